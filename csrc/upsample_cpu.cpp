// From features to pixels on the CPU: the raw ops of faststy/ops/upsample.py. What they compute is
// said in faststy/ops/reference.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace faststy {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& x, int64_t scale) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 4,
                  "x: expected float32 [N, C, H, W] on the CPU");
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(x.size(dim) == 1 || x.stride(dim) == expected, "x: expected channels_last");
    expected *= x.size(dim);
  }
  STD_TORCH_CHECK(scale > 0 && x.numel() > 0, "scale: expected at least 1, of an x with numbers");
}

Tensor empty(int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t sizes[] = {n, c, h, w};
  return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// out = a · (1 − share) + b · share
FASTSTY_CLONES void mix(const float* a, const float* b, float share, float* out, int64_t count) {
  const float rest = 1 - share;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] * rest + b[i] * share;
}

// out = (a + 2b + c) / 4
FASTSTY_CLONES void blur_three(const float* a, const float* b, const float* c, float* out,
                               int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = 0.25f * (a[i] + c[i]) + 0.5f * b[i];
}

// Where the result i of an upsampling reads: between places first and first + 1.
struct Source {
  int64_t first;
  float share;

  Source(int64_t i, int64_t scale) {
    const int64_t doubled = 2 * i + 1 - scale;  // 2 · scale · place
    first = doubled < 0 ? -1 : doubled / (2 * scale);
    share = static_cast<float>(doubled - 2 * scale * first) / static_cast<float>(2 * scale);
  }
};

// Each of w pixels of c numbers to `scale` of them; `line` goes on by one pixel at both ends.
FASTSTY_CLONES void stretch(const float* line, int64_t w, int64_t c, const Source* places,
                            int64_t scale, float* __restrict out) {
  for (int64_t i = 0; i < w; ++i) {
    for (int64_t phase = 0; phase < scale; ++phase, out += c) {
      const float* left = line + (i + places[phase].first) * c;
      const float* right = left + c;
      const float share = places[phase].share, rest = 1 - share;
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) out[j] = left[j] * rest + right[j] * share;
    }
  }
}

Tensor upsample_fwd(const Tensor x, int64_t scale) {
  check(x, scale);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  Tensor y = empty(n, c, h * scale, w * scale);
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* to = static_cast<float*>(y.mutable_data_ptr());
  std::vector<Source> places;
  for (int64_t phase = 0; phase < scale; ++phase) places.emplace_back(phase, scale);
  for_each(n * h * scale, w * scale * c, [&](int64_t row) {
    thread_local std::vector<float> room;
    room.resize((w + 2) * c);
    const Source source(row % (h * scale), scale);
    const float* sample = from + row / (h * scale) * h * w * c;
    const float* above = sample + std::max<int64_t>(source.first, 0) * w * c;
    const float* below = sample + std::min(source.first + 1, h - 1) * w * c;
    float* line = room.data() + c;
    mix(above, below, source.share, line, w * c);
    std::copy_n(line, c, line - c);  // the borders go on
    std::copy_n(line + (w - 1) * c, c, line + w * c);
    stretch(line, w, c, places.data(), scale, to + row * w * scale * c);
  });
  return y;
}

Tensor blur_cells_fwd(const Tensor x, int64_t scale) {
  check(x, scale);
  STD_TORCH_CHECK(x.size(1) % (scale * scale) == 0, "x: expected channels in multiples of ",
                  scale * scale);
  const int64_t n = x.size(0), c = x.size(1) / (scale * scale), h = x.size(2), w = x.size(3);
  const int64_t height = h * scale, width = w * scale, run = scale * c;
  Tensor y = empty(n, c, height, width);
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* to = static_cast<float*>(y.mutable_data_ptr());
  for_each(n * h, width * scale * c, [&](int64_t cell_row) {
    thread_local std::vector<float> room;
    const int64_t step = (width + 2) * c;
    room.resize((scale + 3) * step);
    const auto line = [&](int64_t i) { return room.data() + (i + 1) * step + c; };
    const int64_t sample = cell_row / h, top = cell_row % h * scale;
    for (int64_t i = -1; i <= scale; ++i) {
      const int64_t row = std::clamp<int64_t>(top + i, 0, height - 1);
      const float* cells = from + ((sample * h + row / scale) * w * scale + row % scale) * run;
      float* out = line(i);
      // By fours where cells are more than a row: what is too much is overwritten.
      const int64_t fours = scale == 1 ? 0 : w - 1;
      for (int64_t j = 0; j < fours; ++j) {
        const float* cell = cells + j * scale * run;
        for (int64_t q = 0; q < run; q += 4) std::memcpy(out + j * run + q, cell + q, 16);
      }
      std::copy_n(cells + fours * scale * run, (w - fours) * run, out + fours * run);
    }
    float* down = line(scale + 1);
    for (int64_t i = 0; i < scale; ++i) {
      blur_three(line(i - 1), line(i), line(i + 1), down, width * c);
      std::copy_n(down, c, down - c);
      std::copy_n(down + (width - 1) * c, c, down + width * c);
      blur_three(down - c, down, down + c, to + ((sample * height) + top + i) * width * c,
                 width * c);
    }
  });
  return y;
}

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("upsample_fwd(Tensor x, int scale) -> Tensor");
  m.def("blur_cells_fwd(Tensor x, int scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("upsample_fwd", TORCH_BOX(&upsample_fwd));
  m.impl("blur_cells_fwd", TORCH_BOX(&blur_cells_fwd));
}

}  // namespace
}  // namespace faststy
