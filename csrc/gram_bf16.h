// Gram matrices of bfloat16 by the instruction that multiplies pairs and adds them in float32
// (AVX512-BF16): nothing is widened first, and products are exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd.h"

#ifdef FASTSTY_HAS_CLONES
#include <immintrin.h>
#define FASTSTY_PAIRS                                                                  \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-" \
                        "width=512")))
#endif

namespace faststy {

// A tile of pixels of bfloat16, which is kept as its bits.
struct HalfTile {
  const uint16_t* data;
  int64_t channels, pixels;
  int64_t channel_stride, pixel_stride;  // one of them is 1
};

#ifdef FASTSTY_HAS_CLONES

inline bool has_pairs() { return has_wide_registers() && __builtin_cpu_supports("avx512bf16"); }

// Added to c [ROWS, COLS]: products of planes a with planes b, a register of pixels at a time.
template <int64_t ROWS, int64_t COLS>
FASTSTY_PAIRS inline void plane_dots(int64_t count, const uint16_t* a, const uint16_t* b,
                                     int64_t stride, float* c, int64_t row_c) {
  constexpr int64_t W = 32;
  __m512 sum[ROWS][COLS];  // in registers, as all loops over it are unrolled
#pragma GCC unroll 4
  for (int64_t i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < COLS; ++j) sum[i][j] = _mm512_setzero_ps();
  }
  for (int64_t l = 0; l < count; l += W) {
    const __mmask32 there = count - l >= W ? ~0u : (1u << (count - l)) - 1;
    __m512bh right[COLS];
#pragma GCC unroll 4
    for (int64_t j = 0; j < COLS; ++j) {
      right[j] = (__m512bh)_mm512_maskz_loadu_epi16(there, b + j * stride + l);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < ROWS; ++i) {
      const __m512bh left = (__m512bh)_mm512_maskz_loadu_epi16(there, a + i * stride + l);
#pragma GCC unroll 4
      for (int64_t j = 0; j < COLS; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < COLS; ++j) c[i * row_c + j] += _mm512_reduce_add_ps(sum[i][j]);
  }
}

FASTSTY_PAIRS inline void add_planes(const HalfTile& x, float* c, int64_t row_c) {
  constexpr int64_t BLOCK = 4;
  const int64_t m = x.channels, whole = m / BLOCK * BLOCK, stride = x.channel_stride;
  for (int64_t j = 0; j < whole; j += BLOCK) {
    for (int64_t i = 0; i <= j; i += BLOCK) {
      plane_dots<BLOCK, BLOCK>(x.pixels, x.data + i * stride, x.data + j * stride, stride,
                               c + i * row_c + j, row_c);
    }
  }
  for (int64_t j = whole; j < m; ++j) {
    for (int64_t i = 0; i <= j; ++i) {
      plane_dots<1, 1>(x.pixels, x.data + i * stride, x.data + j * stride, stride,
                       c + i * row_c + j, row_c);
    }
  }
}

// Added to c [ROWS, 16]: a [k, ROWS] transposed · b [k, 16], of pairs of pixels.
template <int64_t ROWS>
FASTSTY_PAIRS inline void pair_products(int64_t k, const uint32_t* a, const uint32_t* b,
                                        int64_t stride, float* c, int64_t row_c) {
  __m512 sum[ROWS];
#pragma GCC unroll 12
  for (int64_t i = 0; i < ROWS; ++i) sum[i] = _mm512_setzero_ps();
  for (int64_t l = 0; l < k; ++l) {
    const __m512bh right = (__m512bh)_mm512_loadu_si512(b + l * stride);
#pragma GCC unroll 12
    for (int64_t i = 0; i < ROWS; ++i) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[l * stride + i]));
      sum[i] = _mm512_dpbf16_ps(sum[i], left, right);
    }
  }
#pragma GCC unroll 12
  for (int64_t i = 0; i < ROWS; ++i) {
    float* to = c + i * row_c;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum[i]));
  }
}

// Channels last: pixels 2l and 2l + 1 of a channel become one number of row l.
FASTSTY_PAIRS inline void add_pixels(const HalfTile& x, float* c, int64_t row_c) {
  const int64_t k = (x.pixels + 1) / 2, m = x.channels;
  thread_local std::vector<uint32_t> room;
  room.assign(k * row_c, 0);
  for (int64_t l = 0; l < k; ++l) {
    const uint16_t* even = x.data + 2 * l * x.pixel_stride;
    const uint16_t* odd = even + x.pixel_stride;
    uint32_t* to = room.data() + l * row_c;
    if (2 * l + 1 < x.pixels) {
      for (int64_t j = 0; j < m; ++j) to[j] = even[j] | static_cast<uint32_t>(odd[j]) << 16;
    } else {
      for (int64_t j = 0; j < m; ++j) to[j] = even[j];
    }
  }
  for (int64_t j = 0; j < row_c; j += 16) {
    const uint32_t* b = room.data() + j;
    const int64_t rows = std::min(m, j + 16);
    int64_t i = 0;
    for (; i + 12 <= rows; i += 12) {
      pair_products<12>(k, room.data() + i, b, row_c, c + i * row_c + j, row_c);
    }
    for (; i + 4 <= rows; i += 4) {
      pair_products<4>(k, room.data() + i, b, row_c, c + i * row_c + j, row_c);
    }
    for (; i < rows; ++i) {
      pair_products<1>(k, room.data() + i, b, row_c, c + i * row_c + j, row_c);
    }
  }
}

#endif

// Adds x · xᵀ to c [channels, row_c], on and above its diagonal and some below; row_c is a multiple
// of 16. False, and nothing is done, on a machine without the instruction.
inline bool add_gram(const HalfTile& x, float* c, int64_t row_c) {
#ifdef FASTSTY_HAS_CLONES
  if (has_pairs()) {
    x.pixel_stride == 1 ? add_planes(x, c, row_c) : add_pixels(x, c, row_c);
    return true;
  }
#endif
  return false;
}

}  // namespace faststy
