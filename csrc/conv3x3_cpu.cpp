// 3x3 convolutions on the CPU: the raw ops of faststy/ops/conv3x3.py and, but for the gradient of
// weights, of conv3x3_train.py. What they compute is said in faststy/ops/reference.py.
//
// By the minimal filtering F(4x4, 3x3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural
// Networks" (2016): each tile of 6x6 positions becomes 36 numbers per channel, convolving becomes 36
// products of matrices with a quarter of the multiplications, and these become 4x4 results. A thread
// takes some tiles through all three, so that everything between stays in its cache.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "parallel.h"

namespace faststy {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Tiles that a thread takes at a time: their transforms, and those of the weights, fit its cache.
constexpr int TILES = 24;
constexpr int64_t MOST_LANES = 16;

struct Input {
  const float* x;     // [N, rows_in, cols_in, c]
  int64_t c;
  const float* gate;  // likewise, or null: x counts where it is positive
};

struct Conv {
  std::vector<Input> inputs;
  int64_t rows_in, cols_in;      // of the inputs
  int64_t n, height, width, c, k;  // of the result; c: channels of all inputs
  int64_t padded;      // k in whole vectors
  const float* w;      // [k, c, 3, 3]
  float* u;            // [36, c, padded], the transformed weights
  const float *scale, *bias;  // [n, padded]
  const float* residual;      // [N, H, W, k] or null
  float slope;                // of what is negative in the end
  float* y;                   // [N, H, W, k]
  int64_t tiles_down, tiles_across;
  std::vector<int64_t> rows, cols;  // the row of the inputs that stands at place i, −1 for zeros
};

struct Tile {
  int64_t n, y, x;  // the sample, and its first row and column
  int64_t height, width;
  int64_t place;  // of its first pixel
};

Tile tile_at(const Conv& conv, int64_t index) {
  const int64_t n = index / (conv.tiles_down * conv.tiles_across);
  const int64_t y = index / conv.tiles_across % conv.tiles_down * 4;
  const int64_t x = index % conv.tiles_across * 4;
  const int64_t height = std::min<int64_t>(4, conv.height - y);
  const int64_t width = std::min<int64_t>(4, conv.width - x);
  return {n, y, x, height, width, (n * conv.height + y) * conv.width + x};
}

}  // namespace
}  // namespace faststy

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTSTY_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define FASTSTY_ISA avx512
#define LANES 16
#define ACCUMULATORS 24
#include "conv3x3.h"
#undef FASTSTY_ISA
#undef LANES
#undef ACCUMULATORS
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define FASTSTY_ISA avx2
#define LANES 8
#define ACCUMULATORS 12
#include "conv3x3.h"
#undef FASTSTY_ISA
#undef LANES
#undef ACCUMULATORS
#pragma GCC pop_options
#endif
#define FASTSTY_ISA plain  // SSE2, or NEON
#define LANES 4
#define ACCUMULATORS 12
#include "conv3x3.h"

namespace faststy {
namespace {

struct Kernels {
  void (*weights)(const Conv&, int64_t);
  void (*convolve)(const Conv&, int64_t, int64_t, float*, float*, float*, double*);
};

Kernels kernels() {
#ifdef FASTSTY_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return {avx512::weights, avx512::convolve};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {avx2::weights, avx2::convolve};
  }
#endif
  return {plain::weights, plain::convolve};
}

// What stands beyond `pad` rows before the first of `size` and after the last.
enum class Border { REFLECTED, ZERO };

std::vector<int64_t> places(int64_t size, int64_t tiles, Border border, int64_t pad) {
  std::vector<int64_t> places(4 * tiles + 2);
  for (int64_t i = 0; i < 4 * tiles + 2; ++i) {
    int64_t place = i - pad;
    if (border == Border::ZERO) {
      places[i] = place < size ? std::max<int64_t>(place, -1) : -1;
      continue;
    }
    if (place >= size) place = 2 * size - 2 - place;
    places[i] = std::clamp<int64_t>(std::abs(place), 0, size - 1);  // the last tiles' rest: any value
  }
  return places;
}

// Room that begins at a cache line and is kept for the next time.
float* aligned(std::vector<float>& room, int64_t numbers) {
  room.resize(std::max<size_t>(room.size(), numbers + 16));
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(room.data()) + 63) & ~uintptr_t(63));
}

// A vector [k], or [n, k], as [n, padded].
std::vector<float> padded(const std::optional<Tensor>& values, const Conv& conv, float other) {
  std::vector<float> result(conv.n * conv.padded, other);
  if (!values) return result;
  const float* from = static_cast<const float*>(values->const_data_ptr());
  const int64_t step = values->dim() == 2 ? values->stride(0) : 0;
  for (int64_t i = 0; i < conv.n; ++i) {
    std::copy_n(from + i * step, conv.k, result.begin() + i * conv.padded);
  }
  return result;
}

// What a dense tensor of NHWC data is, whatever strides its dimensions of size 1 have.
bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

void check(const Tensor& t, const char* name, int64_t dims) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float && t.dim() == dims, name,
                  ": expected float32 of ", dims, " dimensions on the CPU");
}

void check_vector(const std::optional<Tensor>& t, const char* name, const Conv& conv) {
  if (!t) return;
  const int64_t last = t->dim() - 1;
  check(*t, name, last == 1 ? 2 : 1);
  STD_TORCH_CHECK(t->size(last) == conv.k && (conv.k == 1 || t->stride(last) == 1) &&
                      (last == 0 || t->size(0) == conv.n),
                  name, ": expected ", conv.k, " in a row, or so for each sample");
}

void check_reflected(const Conv& conv, const char* name) {
  STD_TORCH_CHECK(conv.rows_in > 1 && conv.cols_in > 1, name,
                  ": expected two rows and columns or more");
}

void add_input(Conv& conv, const Tensor& x, const char* name) {
  check(x, name, 4);
  STD_TORCH_CHECK(is_channels_last(x), name, ": expected channels_last");
  if (conv.inputs.empty()) {
    conv.n = x.size(0), conv.rows_in = x.size(2), conv.cols_in = x.size(3), conv.c = 0;
  }
  STD_TORCH_CHECK(x.size(0) == conv.n && x.size(2) == conv.rows_in && x.size(3) == conv.cols_in, name,
                  ": expected one size");
  conv.inputs.push_back({static_cast<const float*>(x.const_data_ptr()), x.size(1), nullptr});
  conv.c += x.size(1);
}

void take_weight(Conv& conv, const Tensor& weight, const char* name) {
  check(weight, name, 4);
  conv.k = weight.size(0);
  STD_TORCH_CHECK(weight.is_contiguous() && weight.size(1) == conv.c && weight.size(2) == 3 &&
                      weight.size(3) == 3,
                  name, ": expected contiguous [K, C, 3, 3]");
  STD_TORCH_CHECK(conv.n > 0 && conv.rows_in > 0 && conv.cols_in > 0 && conv.c > 0 && conv.k > 0,
                  name, ": expected something to convolve");
  conv.w = static_cast<const float*>(weight.const_data_ptr());
}

// Convolves the inputs of `conv` with its weights. The first of the result's rows and columns has
// `pad` of those beyond the border in its window. Moments go to `found` [2, k], unless it is null.
Tensor convolved(Conv& conv, Border border, int64_t pad, const std::optional<Tensor>& scale,
                 const std::optional<Tensor>& bias, double slope, float* found) {
  check_vector(scale, "scale", conv);
  check_vector(bias, "bias", conv);
  conv.height = conv.rows_in + 2 * pad - 2, conv.width = conv.cols_in + 2 * pad - 2;
  const int64_t sizes[] = {conv.n, conv.k, conv.height, conv.width};
  Tensor y = torch::stable::empty(sizes, ScalarType::Float, std::nullopt, std::nullopt,
                                  std::nullopt, MemoryFormat::ChannelsLast);
  conv.padded = (conv.k + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
  const std::vector<float> scales = padded(scale, conv, 1);
  const std::vector<float> biases = padded(bias, conv, 0);
  thread_local std::vector<float> transformed;
  conv.u = aligned(transformed, 36 * conv.c * conv.padded);
  conv.scale = scales.data(), conv.bias = biases.data();
  conv.slope = static_cast<float>(slope);
  conv.y = static_cast<float*>(y.mutable_data_ptr());
  conv.tiles_down = (conv.height + 3) / 4, conv.tiles_across = (conv.width + 3) / 4;
  conv.rows = places(conv.rows_in, conv.tiles_down, border, pad);
  conv.cols = places(conv.cols_in, conv.tiles_across, border, pad);

  const Kernels run = kernels();
  for_each(conv.c, conv.padded * 36, [&](int64_t c) { run.weights(conv, c); });
  const int64_t count = conv.n * conv.tiles_down * conv.tiles_across;
  const int64_t chunks = (count + TILES - 1) / TILES;
  std::vector<double> parts(found != nullptr ? chunks * conv.k * 2 : 0);
  for_each(chunks, TILES * 16 * conv.c, [&](int64_t i) {
    thread_local std::vector<float> inputs_room, results_room, tile_room;
    float* v = aligned(inputs_room, 36 * TILES * conv.c);
    float* m = aligned(results_room, 36 * TILES * conv.padded);
    float* room = aligned(tile_room, 36 * conv.c);
    run.convolve(conv, i * TILES, std::min((i + 1) * TILES, count), v, m, room,
                 found != nullptr ? parts.data() + i * conv.k * 2 : nullptr);
  });
  if (found == nullptr) return y;

  // Moments of the chunks, joined in their order (Chan et al., 1979).
  std::vector<double> sizes_of(chunks);
  for (int64_t i = 0; i < chunks; ++i) {
    for (int64_t t = i * TILES; t < std::min((i + 1) * TILES, count); ++t) {
      const Tile tile = tile_at(conv, t);
      sizes_of[i] += static_cast<double>(tile.height * tile.width);
    }
  }
  for (int64_t k = 0; k < conv.k; ++k) {
    double pixels = 0, mean = 0, m2 = 0;
    for (int64_t i = 0; i < chunks; ++i) {
      const double* part = parts.data() + (i * conv.k + k) * 2;
      const double delta = part[0] - mean, share = sizes_of[i] / (pixels + sizes_of[i]);
      mean += delta * share;
      m2 += part[1] + delta * delta * pixels * share;
      pixels += sizes_of[i];
    }
    found[k] = static_cast<float>(mean);
    found[conv.k + k] = static_cast<float>(m2 / pixels);
  }
  return y;
}

std::tuple<Tensor, Tensor> conv3x3_fwd(std::vector<Tensor> inputs, Tensor weight,
                                       std::optional<Tensor> scale, std::optional<Tensor> bias,
                                       std::optional<Tensor> residual, double slope, bool moments) {
  STD_TORCH_CHECK(!inputs.empty(), "inputs: expected one or more");
  Conv conv = {};
  for (const Tensor& x : inputs) add_input(conv, x, "inputs");
  take_weight(conv, weight, "weight");
  check_reflected(conv, "inputs");
  if (residual) {
    const int64_t sizes[] = {conv.n, conv.k, conv.rows_in, conv.cols_in};
    check(*residual, "residual", 4);
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(residual->size(i) == sizes[i], "residual: expected the shape of the result");
    }
    STD_TORCH_CHECK(is_channels_last(*residual), "residual: expected channels_last");
    conv.residual = static_cast<const float*>(residual->const_data_ptr());
  }
  const int64_t moment_sizes[] = {moments ? 2 : 0, conv.k};
  Tensor found = torch::stable::empty(moment_sizes, ScalarType::Float);
  float* wanted = moments ? static_cast<float*>(found.mutable_data_ptr()) : nullptr;
  Tensor y = convolved(conv, Border::REFLECTED, 1, scale, bias, slope, wanted);
  return {y, found};
}

Tensor conv3x3_train_fwd(Tensor x, Tensor weight, std::optional<Tensor> bias, bool reflect,
                         bool relu) {
  Conv conv = {};
  add_input(conv, x, "x");
  take_weight(conv, weight, "weight");
  if (reflect) check_reflected(conv, "x");
  const Border border = reflect ? Border::REFLECTED : Border::ZERO;
  return convolved(conv, border, 1, std::nullopt, bias, relu ? 0 : 1, nullptr);
}

Tensor conv3x3_train_input_grad(Tensor dy, Tensor turned, std::optional<Tensor> gate, bool padded) {
  Conv conv = {};
  add_input(conv, dy, "dy");
  take_weight(conv, turned, "turned");
  if (gate) {
    check(*gate, "gate", 4);
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(gate->size(i) == dy.size(i), "gate: expected the shape of dy");
    }
    STD_TORCH_CHECK(is_channels_last(*gate), "gate: expected channels_last");
    conv.inputs[0].gate = static_cast<const float*>(gate->const_data_ptr());
  }
  return convolved(conv, Border::ZERO, padded ? 2 : 1, std::nullopt, std::nullopt, 1, nullptr);
}

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def(
      "conv3x3_fwd(Tensor[] inputs, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, "
      "float slope, bool moments) -> (Tensor, Tensor)");
  m.def(
      "conv3x3_train_fwd(Tensor x, Tensor weight, Tensor? bias, bool reflect, bool relu) -> Tensor");
  m.def(
      "conv3x3_train_input_grad(Tensor dy, Tensor turned, Tensor? gate, bool padded) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("conv3x3_fwd", TORCH_BOX(&conv3x3_fwd));
  m.impl("conv3x3_train_fwd", TORCH_BOX(&conv3x3_train_fwd));
  m.impl("conv3x3_train_input_grad", TORCH_BOX(&conv3x3_train_input_grad));
}

}  // namespace
}  // namespace faststy
