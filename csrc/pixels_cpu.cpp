// Between uint8 frames and tensors on the CPU: the raw ops of faststy/ops/pixels.py, whose
// definitions are in faststy/ops/reference.py. Each reads and writes everything once.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "features.h"
#include "parallel.h"
#include "simd.h"

namespace faststy {
namespace {

// Clamped, rounded with halves up, NaN to 0.
template <typename T>
FASTSTY_CLONES void to_bytes(const T* from, uint8_t* to, int64_t count, float scale, float low) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    float value = (static_cast<float>(from[i]) - low) * scale;
    value = value > 0.f ? value : 0.f;  // NaN is not
    value = value < 255.f ? value : 255.f;
    to[i] = static_cast<uint8_t>(static_cast<int32_t>(value + 0.5f));
  }
}

template <typename T>
FASTSTY_CLONES void from_bytes(const uint8_t* from, T* to, int64_t count, float scale, float low) {
  if constexpr (sizeof(T) == 2) {  // as bits: copies of a class do not vectorise
    uint16_t* bits = &to->x;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) bits[i] = T(static_cast<float>(from[i]) * scale + low).x;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]) * scale + low;
  }
}

// RGB lines of `count` cells of R x R pixels, cell by cell: all of a channel together.
template <int64_t R>
void to_cells(const uint8_t* const* lines, int64_t count, uint8_t* cells) {
  for (int64_t p = 0; p < count; ++p) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < R; ++i) {
      const uint8_t* pixel = lines[i] + p * R * 3;
#pragma GCC unroll 3
      for (int64_t channel = 0; channel < 3; ++channel) {
#pragma GCC unroll 4
        for (int64_t j = 0; j < R; ++j) {
          cells[p * R * R * 3 + (channel * R + i) * R + j] = pixel[j * 3 + channel];
        }
      }
    }
  }
}

inline void gather(const uint8_t* from, const int32_t* places, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[places[i]];
}

Tensor from_pixels(Tensor frames, ScalarType dtype, bool channels_last, int64_t r, double low,
                   double high) {
  STD_TORCH_CHECK(frames.dim() == 4 && frames.scalar_type() == ScalarType::Byte,
                  "frames: expected [N, H, W, C] uint8");
  STD_TORCH_CHECK(r >= 1, "unshuffle: expected at least 1, got ", r);
  const int64_t n = frames.size(0), height = frames.size(1), width = frames.size(2);
  const int64_t c = frames.size(3), k = c * r * r;
  const int64_t h = (height + r - 1) / r, w = (width + r - 1) / r;
  const int64_t sizes[] = {n, k, h, w};
  Tensor x = torch::stable::empty(
      sizes, dtype, std::nullopt, std::nullopt, std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  const int64_t k_stride = channels_last ? 1 : h * w, w_stride = channels_last ? k : 1;
  const auto* bytes = static_cast<const uint8_t*>(frames.const_data_ptr());
  const int64_t strides[] = {frames.stride(0), frames.stride(1), frames.stride(2),
                             frames.stride(3)};

  // What the nets read: whole cells of RGB, whose bytes are put in order before they are converted.
  const bool in_cells = channels_last && c == 3 && (r == 2 || r == 4) && height % r == 0 &&
                        width % r == 0 && strides[2] == 3 && strides[3] == 1;
  const float scale = static_cast<float>((high - low) / 255), offset = static_cast<float>(low);
  std::array<uint8_t, 256> every_byte;
  std::iota(every_byte.begin(), every_byte.end(), uint8_t(0));

  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    std::array<T, 256> of_byte;  // by the loop that converts cells, so that the bits are the same
    if (!in_cells) from_bytes(every_byte.data(), of_byte.data(), 256, scale, offset);
    T* to = static_cast<T*>(x.mutable_data_ptr());
    for_each(n * h, k * w, [&](int64_t line) {
      const int64_t sample = line / h, row = line % h;
      T* out = to + sample * k * h * w + row * w * w_stride;
      if (in_cells) {
        thread_local std::vector<uint8_t> room;
        room.resize(w * k);
        const uint8_t* lines[4];
        for (int64_t i = 0; i < r; ++i) {
          lines[i] = bytes + sample * strides[0] + (row * r + i) * strides[1];
        }
        (r == 2 ? to_cells<2> : to_cells<4>)(lines, w, room.data());
        from_bytes(room.data(), out, w * k, scale, offset);
        return;
      }
      for (int64_t i = 0; i < r; ++i) {
        // What is beyond an edge repeats it.
        const uint8_t* in =
            bytes + sample * strides[0] + std::min(row * r + i, height - 1) * strides[1];
        for (int64_t channel = 0; channel < c; ++channel) {
          for (int64_t j = 0; j < r; ++j) {
            T* cell = out + (channel * r * r + i * r + j) * k_stride;
            const uint8_t* first = in + j * strides[2] + channel * strides[3];
            const int64_t whole = std::min(w, (width - j + r - 1) / r);
            for (int64_t p = 0; p < whole; ++p) {
              cell[p * w_stride] = of_byte[first[p * r * strides[2]]];
            }
            const uint8_t* last = in + (width - 1) * strides[2] + channel * strides[3];
            for (int64_t p = whole; p < w; ++p) cell[p * w_stride] = of_byte[*last];
          }
        }
      }
    });
  });
  return x;
}

Tensor to_pixels(Tensor x, int64_t r, int64_t height, int64_t width, double low, double high) {
  STD_TORCH_CHECK(x.dim() == 4, "x: expected [N, C, H, W]");
  STD_TORCH_CHECK(r >= 1 && x.size(1) % (r * r) == 0, "shuffle: expected multiples of ", r * r,
                  " channels");
  const int64_t n = x.size(0), k = x.size(1), h = x.size(2), w = x.size(3), c = k / (r * r);
  STD_TORCH_CHECK(0 <= height && height <= h * r && 0 <= width && width <= w * r,
                  "size: expected at most ", h * r, " × ", w * r);
  const int64_t sizes[] = {n, height, width, c};
  Tensor frames = torch::stable::empty(sizes, ScalarType::Byte);
  auto* bytes = static_cast<uint8_t*>(frames.mutable_data_ptr());
  // A line of cells is converted in the order it lies in, where that is contiguous, then put in
  // order: pixels or channels are next to each other.
  const bool last = x.stride(1) == 1 && x.stride(3) == k;
  if (!last && x.stride(3) != 1) x = torch::stable::contiguous(x);
  const int64_t k_step = last ? 1 : w, w_step = last ? k : 1;
  const int64_t n_stride = x.stride(0), k_stride = x.stride(1), h_stride = x.stride(2);
  const float scale = 255 / (high - low), offset = low;

  with_dtype(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(x.const_data_ptr());
    for_each(n * h, k * w, [&](int64_t line) {
      const int64_t sample = line / h, row = line % h;
      const T* in = from + sample * n_stride + row * h_stride;
      if (last && r == 1) {  // they are in order
        if (row < height) {
          to_bytes(in, bytes + (sample * height + row) * width * c, width * c, scale, offset);
        }
        return;
      }
      std::vector<uint8_t> converted(k * w);
      if (last) {
        to_bytes(in, converted.data(), k * w, scale, offset);
      } else {
        for (int64_t i = 0; i < k; ++i) {
          to_bytes(in + i * k_stride, converted.data() + i * w, w, scale, offset);
        }
      }
      // A cell's part of a row of pixels, and where each of its numbers is.
      const int64_t run = r * c, whole = width / r;
      std::vector<int32_t> places(run);
      for (int64_t i = 0; i < std::min(r, height - row * r); ++i) {
        for (int64_t j = 0; j < run; ++j) places[j] = (j % c * r * r + i * r + j / c) * k_step;
        uint8_t* out = bytes + (sample * height + row * r + i) * width * c;
        for (int64_t p = 0; p < whole; ++p) {
          gather(&converted[p * w_step], places.data(), run, out + p * run);
        }
        const int64_t rest = width % r * c;
        if (rest) gather(&converted[whole * w_step], places.data(), rest, out + whole * run);
      }
    });
  });
  return frames;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def(
      "from_pixels(Tensor frames, ScalarType dtype, bool channels_last, int unshuffle, float low, "
      "float high) -> Tensor");
  m.def(
      "to_pixels(Tensor x, int shuffle, int height, int width, float low, float high) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("from_pixels", TORCH_BOX(&from_pixels));
  m.impl("to_pixels", TORCH_BOX(&to_pixels));
}

}  // namespace faststy
