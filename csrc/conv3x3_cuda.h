// What the CUDA convolutions share: pixels of channels_last tensors, brought into shared memory.
//
// A pixel there is an odd number of 16 bytes, so that the rows of matrices, which are neighbouring
// pixels, come out of different banks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cuda.h"
#include "features.h"
#include "warp.h"

namespace faststy::conv {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int WARP = 32;
constexpr int TILE_W = 32, ROW = TILE_W + 2;  // pixels of a row of a tile, and with its border
constexpr const char* OP = "conv3x3";

// Channels of a tensor [N, H, W, …], as they are copied.
struct Input {
  const char* data;
  int stride;           // bytes from one pixel to the next
  int first;            // byte of a pixel in shared memory
  int piece;            // bytes that are copied at a time: 16, 8, 4 or 2
  unsigned pieces;      // of a pixel
  unsigned reciprocal;  // of that, times 2³²; 0 for 1
};

template <int SIZE>
struct alignas(SIZE) Bytes {
  uint16_t values[SIZE / 2];
};

__device__ __forceinline__ unsigned ratio(unsigned a, unsigned reciprocal) {
  return reciprocal == 0 ? a : __umulhi(a, reciprocal);
}

// f with as many Bytes: 16, 8, 4 or 2.
template <typename F>
__device__ __forceinline__ void with_size(int size, const F& f) {
  if (size == 16) return f(Bytes<16>());
  if (size == 8) return f(Bytes<8>());
  if (size == 4) return f(Bytes<4>());
  f(Bytes<2>());
}

template <int SIZE>
__device__ __forceinline__ void copy(char* to, const char* from, bool inside) {
  if constexpr (SIZE >= 4) {
    warp::copy_later<SIZE>(warp::shared_address(to), from, inside);
  } else {
    *reinterpret_cast<uint16_t*>(to) = inside ? *reinterpret_cast<const uint16_t*>(from) : 0;
  }
}

// Index −1 as 1 and `side` as side − 2; what is further out belongs to no pixel of the picture.
__device__ __forceinline__ int reflected(int i, int side) {
  i = min(abs(i), side);
  return min(i, 2 * side - 2 - i);
}

// ROWS x COLS pixels of sample n of [N, h, w, …] from (y0, x0) on, by THREADS threads. Beyond the
// borders are zeros, or they reflect. Where `gate`, of the same shape, is not above 0, values are 0.
template <int THREADS, int ROWS, int COLS>
__device__ __forceinline__ void load_pixels(const Input& input, char* shared, int pixel_bytes, int n,
                                            int h, int w, int y0, int x0, bool zeros,
                                            const char* gate = nullptr) {
  const int64_t sample = int64_t(n) * h * w * input.stride;
  const bool whole = y0 >= 0 && x0 >= 0 && y0 + ROWS <= h && x0 + COLS <= w;
  with_size(input.piece, [&](auto bytes) {
    constexpr int SIZE = sizeof(bytes);
    const unsigned count = ROWS * COLS * input.pieces;
    if (whole && gate == nullptr) {  // nearly always: few instructions
      const char* const from = input.data + sample + (int64_t(y0) * w + x0) * input.stride;
#pragma unroll 4
      for (unsigned at = threadIdx.x; at < count; at += THREADS) {
        const unsigned pixel = ratio(at, input.reciprocal), place = at - pixel * input.pieces;
        const unsigned row = pixel / COLS, column = pixel % COLS;
        copy<SIZE>(shared + pixel * pixel_bytes + input.first + place * SIZE,
                   from + (row * w + column) * input.stride + place * SIZE, true);
      }
      return;
    }
#pragma unroll 1
    for (unsigned at = threadIdx.x; at < count; at += THREADS) {
      const unsigned pixel = ratio(at, input.reciprocal), place = at - pixel * input.pieces;
      int y = y0 + int(pixel / COLS), x = x0 + int(pixel % COLS);
      bool inside = true;
      if (zeros) {
        inside = y >= 0 && y < h && x >= 0 && x < w;
        y = inside ? y : 0, x = inside ? x : 0;
      } else {
        y = reflected(y, h), x = reflected(x, w);
      }
      const int64_t from = sample + (int64_t(y) * w + x) * input.stride + place * SIZE;
      char* to = shared + pixel * pixel_bytes + input.first + place * SIZE;
      if (gate == nullptr) {
        copy<SIZE>(to, input.data + from, inside);
        continue;
      }
      Bytes<SIZE> values{};
      if (inside) {
        values = *reinterpret_cast<const Bytes<SIZE>*>(input.data + from);
        const auto gates = *reinterpret_cast<const Bytes<SIZE>*>(gate + from);
        // Above 0: the sign is not set, and something else is.
        for (int j = 0; j < SIZE / 2; ++j) {
          if (gates.values[j] >= 0x8000 || gates.values[j] == 0) values.values[j] = 0;
        }
      }
      *reinterpret_cast<Bytes<SIZE>*>(to) = values;
    }
  });
}

// ---------------------------------------------------------------------------- on the host

inline int piece_of(int bytes, const void* data) {
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % 16);
  return static_cast<int>(std::gcd(std::gcd(int64_t(bytes), address), int64_t(16)));
}

inline unsigned reciprocal_of(unsigned a) {
  return a == 1 ? 0 : static_cast<unsigned>(((uint64_t(1) << 32) + a - 1) / a);
}

// `channels` from `begin` on of [N, C, H, W] in channels_last, to byte `first` of pixels.
inline Input input_of(const Tensor& t, int begin, int channels, int first) {
  Input input{};
  input.stride = static_cast<int>(2 * t.size(1));
  input.data = static_cast<const char*>(t.const_data_ptr()) + 2 * begin;
  input.first = first;
  input.piece = std::gcd(std::gcd(piece_of(2 * channels, input.data), input.stride), first);
  input.pieces = 2 * channels / input.piece;
  input.reciprocal = reciprocal_of(input.pieces);
  return input;
}

// Half precision, channels_last, and `size` in dimension `dim`, on the device of `like`.
inline void check_input(const Tensor& t, const char* name, const Tensor& like, int dim, int64_t size) {
  check_features(t, name);
  STD_TORCH_CHECK(like.scalar_type() == ScalarType::Half || like.scalar_type() == ScalarType::BFloat16,
                  name, ": expected float16 or bfloat16");
  STD_TORCH_CHECK(
      t.scalar_type() == like.scalar_type() && t.device() == like.device() && t.size(dim) == size, name,
      ": expected one dtype, one device and fitting shapes");
  const bool either = t.size(1) == 1 || t.size(2) * t.size(3) == 1;  // the layouts are one
  STD_TORCH_CHECK(is_channels_last(t) || (either && t.is_contiguous()), name,
                  ": expected channels_last");
}

}  // namespace faststy::conv
