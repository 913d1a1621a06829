// How the CPU sources are vectorised: plain loops marked `#pragma omp simd`, compiled for several
// instruction sets; the dynamic loader picks the one of this machine.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

// GCC on Linux has a resolver for that; elsewhere there is one version, for the compiler's default.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTSTY_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define FASTSTY_HAS_CLONES
#else
#define FASTSTY_CLONES
#endif

namespace faststy {

// Whether the version for 64-byte registers is the one that runs.
inline bool has_wide_registers() {
#ifdef FASTSTY_HAS_CLONES
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// As many elements as the widest register holds; compilers split it for narrower ones.
template <typename A>
inline constexpr int64_t WIDTH = 64 / sizeof(A);

// Runs f(first column, number of columns) over blocks of up to 4 · WIDTH columns, and one by one at
// the end. The number is a compile-time constant, so that sums over rows stay in registers. Wide
// blocks, as all channels of a pixel should be read at once: memory that is read in strides is slow.
template <typename A, typename F>
__attribute__((always_inline)) inline void for_blocks(int64_t cols, F f) {
  constexpr int64_t W = WIDTH<A>;
  int64_t c = 0;
  for (; c + 4 * W <= cols; c += 4 * W) f(c, std::integral_constant<int64_t, 4 * W>());
  const int64_t left = (cols - c) / W;
  if (left == 3) f(c, std::integral_constant<int64_t, 3 * W>());
  if (left == 2) f(c, std::integral_constant<int64_t, 2 * W>());
  if (left == 1) f(c, std::integral_constant<int64_t, W>());
  for (c += left * W; c < cols; ++c) f(c, std::integral_constant<int64_t, 1>());
}

// e^x. For float by reduction to ±ln(2)/2 and a polynomial, within 2 units in the last place, as
// calls of std::exp do not vectorise. NaN stays NaN.
inline double exponential(double x) { return std::exp(x); }

__attribute__((always_inline)) inline float exponential(float x) {
  constexpr float ROUND = 12582912.f;  // 1.5 · 2^23: what is added to it loses its fraction
  x = x < -87.f ? -87.f : x;
  x = x > 88.f ? 88.f : x;
  const float shifted = x * 1.44269504f + ROUND;
  const float k = shifted - ROUND;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) + 127u;  // its low bits are k
  return p * std::bit_cast<float>(exponent << 23);
}

}  // namespace faststy
