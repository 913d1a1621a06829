// What the repairer needs beyond convolutions, on the CPU: the raw ops of faststy/ops/repair.py. What
// they compute is said in faststy/ops/reference.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace faststy {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t CELL = 4;   // pixels of a position of the nets
constexpr int64_t BLOCK = 8;  // pixels whose mean brightness is no detail
constexpr int64_t HEADS = 6;  // map, two gates and three corrections
constexpr float GATE = 4;     // the most that a detail is multiplied by

void check_frames(const Tensor& frames, const char* name) {
  STD_TORCH_CHECK(frames.is_cpu() && frames.scalar_type() == ScalarType::Byte &&
                      frames.dim() == 4 && frames.size(3) == 3 && frames.is_contiguous(),
                  name, ": expected contiguous uint8 [N, H, W, 3] on the CPU");
}

Tensor empty(int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t sizes[] = {n, c, h, w};
  return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                              MemoryFormat::ChannelsLast);
}

FASTSTY_CLONES void luma(const uint8_t* rgb, float* out, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    out[i] = (0.299f / 255) * rgb[3 * i] + (0.587f / 255) * rgb[3 * i + 1] +
             (0.114f / 255) * rgb[3 * i + 2];
  }
}

FASTSTY_CLONES void add(const float* x, float* sums, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

FASTSTY_CLONES void mix(const float* a, const float* b, float share, float* out, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] * (1 - share) + b[i] * share;
}

// A line of means, of blocks of SCALE pixels, drawn out to pixels; `means` has one more at each end.
template <int64_t SCALE>
void widen(const float* means, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float left = means[i - 1] - means[i], right = means[i + 1] - means[i];
#pragma GCC unroll 8
    for (int64_t j = 0; j < SCALE; ++j) {
      const float place = (j + 0.5f) / SCALE - 0.5f;
      out[i * SCALE + j] = means[i] + (place < 0 ? -place * left : place * right);
    }
  }
}

struct Detail {
  int64_t height, width, down, across;  // of the frame, and in blocks
  std::unique_ptr<float[]> brightness;
  std::vector<float> means;
  static constexpr int64_t BORDER = 1;

  Detail(const uint8_t* frame, int64_t h, int64_t w)
      : height(h),
        width(w),
        down((h + BLOCK - 1) / BLOCK),
        across((w + BLOCK - 1) / BLOCK),
        brightness(std::make_unique_for_overwrite<float[]>(h * w)),
        means(down * (across + 2 * BORDER)) {
    for_each(down, BLOCK * width, [&](int64_t block) {
      std::vector<float> sums(across * BLOCK);
      for (int64_t i = 0; i < BLOCK; ++i) {
        const int64_t y = block * BLOCK + i;
        float* line = brightness.get() + std::min(y, height - 1) * width;
        if (y < height) luma(frame + y * width * 3, line, width);
        add(line, sums.data(), width);  // the last row goes on
      }
      std::fill(sums.begin() + width, sums.end(), sums[width - 1]);
      float* out = means.data() + block * (across + 2 * BORDER) + BORDER;
      for (int64_t j = 0; j < across; ++j) {
        float sum = 0;
        for (int64_t i = 0; i < BLOCK; ++i) sum += sums[j * BLOCK + i];
        out[j] = sum / (BLOCK * BLOCK);
      }
      out[-1] = out[0];
      out[across] = out[across - 1];
    });
  }

  // The row y of brightness less its smooth part; `room` holds two lines.
  void row(int64_t y, float* out, float* room) const {
    const int64_t step = across + 2 * BORDER;
    const float place = (static_cast<float>(y % BLOCK) + 0.5f) / BLOCK - 0.5f;
    const int64_t block = y / BLOCK;
    const int64_t other = std::clamp<int64_t>(block + (place < 0 ? -1 : 1), 0, down - 1);
    float* line = room;
    float* smooth = room + step;
    mix(means.data() + block * step, means.data() + other * step, std::abs(place), line, step);
    widen<BLOCK>(line + BORDER, across, smooth);
    const float* bright = brightness.get() + y * width;
    for (int64_t i = 0; i < width; ++i) out[i] = bright[i] - smooth[i];
  }
};

// The four columns of each cell and the products of two details, added to sums [3, w].
void add_products(const float* a, const float* b, int64_t w, float* sums) {
  for (int64_t i = 0; i < w; ++i) {
    float aa = 0, bb = 0, ab = 0;
    for (int64_t j = i * CELL; j < (i + 1) * CELL; ++j) {
      aa += a[j] * a[j];
      bb += b[j] * b[j];
      ab += a[j] * b[j];
    }
    sums[i] += aa;
    sums[w + i] += bb;
    sums[2 * w + i] += ab;
  }
}

std::tuple<Tensor, Tensor> repair_hints(const Tensor painted, const Tensor photo) {
  check_frames(painted, "painted");
  check_frames(photo, "photo");
  const int64_t n = photo.size(0), height = photo.size(1), width = photo.size(2);
  STD_TORCH_CHECK(painted.numel() == photo.numel() && painted.size(1) == height &&
                      painted.size(2) == width,
                  "painted: expected the shape of the photo");
  STD_TORCH_CHECK(height % CELL == 0 && width % CELL == 0 && photo.numel() > 0,
                  "photo: expected whole cells of ", CELL, " pixels");
  const int64_t h = height / CELL, w = width / CELL;
  const int64_t size = height * width, detail_sizes[] = {n, 2, height, width};
  Tensor details = torch::stable::empty(detail_sizes, ScalarType::Float);
  Tensor hints = empty(n, 3, h, w);
  for (int64_t sample = 0; sample < n; ++sample) {
    const Detail a(static_cast<const uint8_t*>(painted.const_data_ptr()) + sample * size * 3,
                   height, width);
    const Detail b(static_cast<const uint8_t*>(photo.const_data_ptr()) + sample * size * 3, height,
                   width);
    float* own = static_cast<float*>(details.mutable_data_ptr()) + sample * 2 * size;
    float* found = static_cast<float*>(hints.mutable_data_ptr()) + sample * h * w * 3;
    std::vector<float> products(h * 3 * w);
    for_each(h, CELL * width * 4, [&](int64_t cell) {
      std::vector<float> room(2 * (width + 4 * BLOCK));
      for (int64_t y = cell * CELL; y < (cell + 1) * CELL; ++y) {
        float *one = own + y * width, *two = one + size;
        a.row(y, one, room.data());
        b.row(y, two, room.data());
        add_products(one, two, w, products.data() + cell * 3 * w);
      }
    });
    for_each(h, w * 40, [&](int64_t y) {
      std::vector<float> sums(3 * w);
      const int64_t top = std::max<int64_t>(y - 1, 0), bottom = std::min(y + 1, h - 1);
      for (int64_t i = top; i <= bottom; ++i) add(products.data() + i * 3 * w, sums.data(), 3 * w);
      for (int64_t x = 0; x < w; ++x) {
        const int64_t left = std::max<int64_t>(x - 1, 0), right = std::min(x + 1, w - 1);
        float mean[3];
        for (int64_t k = 0; k < 3; ++k) {
          float sum = 0;
          for (int64_t i = left; i <= right; ++i) sum += sums[k * w + i];
          mean[k] = sum / static_cast<float>((bottom - top + 1) * (right - left + 1) * CELL * CELL);
        }
        const float aa = mean[0] + 1e-5f, bb = mean[1] + 1e-5f;
        float* out = found + (y * w + x) * 3;
        out[0] = std::log(aa) / 4 + 1;
        out[1] = std::log(bb) / 4 + 1;
        out[2] = mean[2] / std::sqrt(aa * bb);
      }
    });
  }
  return {details, hints};
}

// share = strength · σ(map) and the gated details, in place of the map and of the first gate.
FASTSTY_CLONES void gates(float* map, float* more, const float* less, const float* photo,
                          const float* own, float strength, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    map[i] = strength / (1 + exponential(-map[i]));
    more[i] = GATE * photo[i] / (1 + exponential(-more[i])) -
              GATE * own[i] / (1 + exponential(-less[i]));
  }
}

FASTSTY_CLONES void add_to_pixels(const uint8_t* pixels, const float* x, uint8_t* out,
                                  int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    float value = static_cast<float>(pixels[i]) + 255 * x[i];
    value = value > 0.f ? value : 0.f;
    value = value < 255.f ? value : 255.f;
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(value + 0.5f));
  }
}

Tensor repair_apply(const Tensor painted, const Tensor details, const Tensor heads,
                    double strength) {
  check_frames(painted, "painted");
  const int64_t n = painted.size(0), height = painted.size(1), width = painted.size(2);
  const int64_t h = height / CELL, w = width / CELL;
  STD_TORCH_CHECK(details.scalar_type() == ScalarType::Float && details.is_contiguous() &&
                      details.numel() == 2 * n * height * width,
                  "details: expected contiguous float32 [N, 2, H, W]");
  STD_TORCH_CHECK(heads.scalar_type() == ScalarType::Float && heads.dim() == 4 &&
                      heads.size(0) == n && heads.size(1) == HEADS && heads.size(2) == h &&
                      heads.size(3) == w && heads.stride(1) == 1 && h * CELL == height &&
                      w * CELL == width,
                  "heads: expected channels_last float32 [N, 6, H/4, W/4]");
  const Tensor rows = torch::stable::contiguous(heads, MemoryFormat::ChannelsLast);
  Tensor out = torch::stable::empty_like(painted);
  const float* from = static_cast<const float*>(rows.const_data_ptr());
  const float* known = static_cast<const float*>(details.const_data_ptr());
  const uint8_t* before = static_cast<const uint8_t*>(painted.const_data_ptr());
  uint8_t* after = static_cast<uint8_t*>(out.mutable_data_ptr());
  for_each(n * height, width * 20, [&](int64_t row) {
    thread_local std::vector<float> room;
    room.resize(HEADS * (w + 2) + (HEADS + 3) * width);
    const int64_t y = row % height, cell = y / CELL;
    const float place = (static_cast<float>(y % CELL) + 0.5f) / CELL - 0.5f;
    const int64_t other = std::clamp<int64_t>(cell + (place < 0 ? -1 : 1), 0, h - 1);
    const float* sample = from + row / height * h * w * HEADS;
    const float *near = sample + cell * w * HEADS, *far = sample + other * w * HEADS;
    float* lines[HEADS];
    for (int64_t k = 0; k < HEADS; ++k) {
      float* narrow = room.data() + k * (w + 2) + 1;
      for (int64_t i = 0; i < w; ++i) {
        const float value = near[i * HEADS + k];
        narrow[i] = value + std::abs(place) * (far[i * HEADS + k] - value);
      }
      narrow[-1] = narrow[0];
      narrow[w] = narrow[w - 1];
      float* line = room.data() + HEADS * (w + 2) + k * width;
      widen<CELL>(narrow, w, line);
      lines[k] = line;
    }
    const int64_t start = row * width;
    const float* own = known + (row / height * 2 * height + y) * width;
    const float* photo = own + height * width;
    gates(lines[0], lines[1], lines[2], photo, own, static_cast<float>(strength), width);
    float* added = lines[HEADS - 1] + width;
    for (int64_t i = 0; i < width; ++i) {
      for (int c = 0; c < 3; ++c) added[3 * i + c] = lines[0][i] * (lines[1][i] + lines[3 + c][i]);
    }
    add_to_pixels(before + 3 * start, added, after + 3 * start, 3 * width);
  });
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("repair_hints(Tensor painted, Tensor photo) -> (Tensor, Tensor)");
  m.def("repair_apply(Tensor painted, Tensor details, Tensor heads, float strength) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("repair_hints", TORCH_BOX(&repair_hints));
  m.impl("repair_apply", TORCH_BOX(&repair_apply));
}

}  // namespace
}  // namespace faststy
