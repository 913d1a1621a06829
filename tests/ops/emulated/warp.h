// csrc/warp.h on the CPU, thread by thread: where values lie is as the PTX ISA draws it.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace faststy::warp {

using Shared = const char*;

inline Shared shared_address(const void* p) { return static_cast<Shared>(p); }

// What all threads of the warp give, by their lanes.
inline const std::array<uint64_t, 6>* exchange(const std::array<uint64_t, 6>& given) {
  const unsigned thread = threadIdx.x;
  auto& words = emulation::block->words[emulation::turn ^= 1];
  words[thread] = given;
  emulation::block->warps[thread / 32]->arrive_and_wait();
  return &words[thread / 32 * 32];
}

template <size_t COUNT>
void load_matrices(uint32_t (&to)[COUNT], Shared row) {
  const auto* rows = exchange({reinterpret_cast<uint64_t>(row)});
  const unsigned lane = threadIdx.x % 32;
  for (size_t i = 0; i < COUNT; ++i) {
    const auto* from = reinterpret_cast<const char*>(rows[i * 8 + lane / 4][0]);
    if (reinterpret_cast<uint64_t>(from) % 16 != 0) std::abort();
    std::memcpy(&to[i], from + lane % 4 * 4, 4);
  }
}

inline void load_turned(uint32_t (&to)[4], Shared row) {
  const auto* rows = exchange({reinterpret_cast<uint64_t>(row)});
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned half = 0; half < 2; ++half) {
      const auto* from = reinterpret_cast<const char*>(rows[i * 8 + lane % 4 * 2 + half][0]);
      if (reinterpret_cast<uint64_t>(from) % 16 != 0) std::abort();
      std::memcpy(reinterpret_cast<char*>(&to[i]) + half * 2, from + lane / 4 * 2, 2);
    }
  }
}

template <typename T>
void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t* b, T) {
  const auto* words = exchange({a[0], a[1], a[2], a[3], b[0], b[1]});
  const auto value = [&](unsigned lane, unsigned word, unsigned half) {
    T found;
    std::memcpy(&found, reinterpret_cast<const char*>(&words[lane][word]) + half * 2, 2);
    return static_cast<float>(found);
  };
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned pair = k % 8 / 2;
      sum[i] += value(row * 4 + pair, k / 8 * 2 + i / 2, k % 2) *
                value(column * 4 + pair, 4 + k / 8, k % 2);
    }
  }
}

inline float sum_of_rows(float x) {
  for (int distance = 16; distance >= 4; distance /= 2) {
    x += static_cast<float>(__shfl_down_sync(0xffffffffu, x, distance));
  }
  return x;
}

inline uint32_t neighbours(uint32_t x) {
  return static_cast<uint32_t>(exchange({x})[threadIdx.x % 32 ^ 1][0]);
}

template <int SIZE>
void copy_later(Shared to, const void* from, bool inside) {
  if (reinterpret_cast<uint64_t>(to) % SIZE != 0) std::abort();
  if (inside && reinterpret_cast<uint64_t>(from) % SIZE != 0) std::abort();
  char* const place = const_cast<char*>(to);
  inside ? std::memcpy(place, from, SIZE) : std::memset(place, 0, SIZE);
}

inline void wait_for_copies() {}
inline void end_group() {}
template <int LEFT>
void wait_for_groups() {}

}  // namespace faststy::warp
