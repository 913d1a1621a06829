// Rows of numbers from the dtype that is stored to the one that is computed in, and back.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "simd.h"

#ifdef FASTSTY_HAS_CLONES
#include <immintrin.h>
#endif

namespace faststy {

#ifdef FASTSTY_HAS_CLONES

// float16 by the processor's own instructions (F16C): GCC 12 makes no vectors of them, and by
// integers, as torch's Half is converted, numbers take several times as long.
inline bool has_f16c() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

__attribute__((target("avx2,f16c"))) inline void widen_halves(const uint16_t* from, float* to,
                                                              int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) to[i] = _cvtsh_ss(from[i]);
}

__attribute__((target("avx2,f16c"))) inline void narrow_halves(const float* from, uint16_t* to,
                                                               int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < count; ++i) to[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

#endif

template <typename A, typename T>
FASTSTY_CLONES void widen_any(const T* from, A* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<A>(from[i]);
}

template <typename A, typename T>
FASTSTY_CLONES void narrow_any(const A* from, T* to, int64_t count) {
  if constexpr (sizeof(T) == 2) {  // as bits: copies of a class do not vectorise
    uint16_t* bits = &to->x;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) bits[i] = T(static_cast<float>(from[i])).x;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
  }
}

// From T to A, which is float or double.
template <typename A, typename T>
void widen(const T* from, A* to, int64_t count) {
#ifdef FASTSTY_HAS_CLONES
  if constexpr (std::is_same_v<A, float> && std::is_same_v<T, torch::headeronly::Half>) {
    if (has_f16c()) return widen_halves(reinterpret_cast<const uint16_t*>(from), to, count);
  }
#endif
  widen_any(from, to, count);
}

// From A to T, rounded to the nearest.
template <typename A, typename T>
void narrow(const A* from, T* to, int64_t count) {
#ifdef FASTSTY_HAS_CLONES
  if constexpr (std::is_same_v<A, float> && std::is_same_v<T, torch::headeronly::Half>) {
    if (has_f16c()) return narrow_halves(from, reinterpret_cast<uint16_t*>(to), count);
  }
#endif
  narrow_any(from, to, count);
}

}  // namespace faststy
