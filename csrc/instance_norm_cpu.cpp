// Instance normalisation with scale, shift, residual and activation on the CPU: the raw ops of
// faststy/ops/instance_norm.py. What they compute is said in faststy/ops/reference.py.
//
// Each part of x (see features.h) is read twice: for its statistics, and to be normalised; in the
// backward pass for the sums over g = dL/dz, and for dL/dx. A thread does both while the part is in
// its cache.

#include <torch/csrc/stable/library.h>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "features.h"
#include "parallel.h"
#include "simd.h"
#include "text.h"

namespace faststy {
namespace {

enum class Activation { none, relu, leaky_relu, silu };

constexpr double LEAKY_SLOPE = 0.2;

Activation activation_named(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "silu") return Activation::silu;
  STD_TORCH_CHECK(false, "activation: expected none, relu, leaky_relu or silu, got ", name);
}

// NaN stays NaN in all of them.
template <Activation act, typename A>
__attribute__((always_inline)) inline A activate(A z) {
  if constexpr (act == Activation::relu) return z < 0 ? A(0) : z;
  if constexpr (act == Activation::leaky_relu) return z < 0 ? z * A(LEAKY_SLOPE) : z;
  if constexpr (act == Activation::silu) return z / (1 + exponential(-z));
  return z;
}

template <Activation act, typename A>
__attribute__((always_inline)) inline A activation_grad(A g, A z) {
  if constexpr (act == Activation::relu) return z <= 0 ? A(0) : g;
  if constexpr (act == Activation::leaky_relu) return z <= 0 ? g * A(LEAKY_SLOPE) : g;
  if constexpr (act == Activation::silu) {
    const A sigmoid = 1 / (1 + exponential(-z));
    return g * sigmoid * (1 + z * (1 - sigmoid));
  }
  return g;
}

// ------------------------------------------------------------------------------ kernels on tiles

template <typename A>
using Rows = typename View<A>::Rows;

// What normalises a column.
template <typename A>
struct Columns {
  A mean[Parts::MOST_COLS], scale[Parts::MOST_COLS], shift[Parts::MOST_COLS];
};

// The mean of each column, and the sum of its squared differences from that. In two passes, and
// corrected for what rounding left in the first.
template <typename A>
FASTSTY_CLONES void moments(Rows<A> x, int64_t rows, int64_t cols, A* mean, A* m2) {
  for_blocks<A>(cols, [&](int64_t c, auto width) __attribute__((always_inline)) {
    constexpr int64_t W = width;
    const A* __restrict first = x.data + c;
    const A* __restrict second = first + x.stride;  // two rows at a time, for two chains of sums
    const int64_t pairs = rows / 2;
    const bool odd = rows % 2;
    const A* __restrict last = first + (rows - 1) * x.stride;
    A sum_a[W] = {}, sum_b[W] = {};
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t at = 2 * i * x.stride;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) sum_a[j] += first[at + j];
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) sum_b[j] += second[at + j];
    }
    if (odd) {
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) sum_a[j] += last[j];
    }
    A middle[W], square_a[W] = {}, square_b[W] = {};
    const A share = A(1) / rows;
#pragma omp simd
    for (int64_t j = 0; j < W; ++j) {
      middle[j] = (sum_a[j] + sum_b[j]) * share;
      sum_a[j] = sum_b[j] = 0;
    }
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t at = 2 * i * x.stride;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        const A a = first[at + j] - middle[j];
        sum_a[j] += a;
        square_a[j] += a * a;
      }
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        const A b = second[at + j] - middle[j];
        sum_b[j] += b;
        square_b[j] += b * b;
      }
    }
    if (odd) {
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        const A d = last[j] - middle[j];
        sum_a[j] += d;
        square_a[j] += d * d;
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < W; ++j) {
      const A sum = sum_a[j] + sum_b[j], correction = sum * share;
      mean[c + j] = middle[j] + correction;
      const A left = square_a[j] + square_b[j] - sum * correction;
      m2[c + j] = left < 0 ? A(0) : left;  // of flat columns rounding may leave less; NaN stays
    }
  });
}

// Moments of b rows joined to those of a rows (Chan et al., 1979).
template <typename B>
FASTSTY_CLONES void join(double a, double* mean, double* m2, double b, const B* mean_b,
                         const B* m2_b, int64_t cols) {
  const double share = b / (a + b);
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) {
    const double delta = mean_b[j] - mean[j];
    mean[j] += delta * share;
    m2[j] += m2_b[j] + delta * delta * a * share;
  }
}

template <typename A, Activation act, bool has_residual>
FASTSTY_CLONES void affine(Rows<A> x, Rows<A> r, Rows<A> y, int64_t rows, int64_t cols,
                           const Columns<A>& by) {
  for_blocks<A>(cols, [&](int64_t c, auto width) __attribute__((always_inline)) {
    constexpr int64_t W = width;
    A mean[W], scale[W], shift[W];
    std::memcpy(mean, by.mean + c, sizeof(mean));
    std::memcpy(scale, by.scale + c, sizeof(scale));
    std::memcpy(shift, by.shift + c, sizeof(shift));
    for (int64_t i = 0; i < rows; ++i) {
      const A* __restrict xi = x.data + i * x.stride + c;
      const A* __restrict ri = has_residual ? r.data + i * r.stride + c : nullptr;
      A* __restrict yi = y.data + i * y.stride + c;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        A z = (xi[j] - mean[j]) * scale[j] + shift[j];
        if constexpr (has_residual) z += ri[j];
        yi[j] = activate<act>(z);
      }
    }
  });
}

// g = dy · activation′(z).
template <typename A, Activation act, bool has_residual>
FASTSTY_CLONES void chain(Rows<A> dy, Rows<A> x, Rows<A> r, Rows<A> g, int64_t rows, int64_t cols,
                          const Columns<A>& by) {
  for_blocks<A>(cols, [&](int64_t c, auto width) __attribute__((always_inline)) {
    constexpr int64_t W = width;
    A mean[W], scale[W], shift[W];
    std::memcpy(mean, by.mean + c, sizeof(mean));
    std::memcpy(scale, by.scale + c, sizeof(scale));
    std::memcpy(shift, by.shift + c, sizeof(shift));
    for (int64_t i = 0; i < rows; ++i) {
      const A* __restrict di = dy.data + i * dy.stride + c;
      const A* __restrict xi = x.data + i * x.stride + c;
      const A* __restrict ri = has_residual ? r.data + i * r.stride + c : nullptr;
      A* __restrict gi = g.data + i * g.stride + c;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        A z = (xi[j] - mean[j]) * scale[j] + shift[j];
        if constexpr (has_residual) z += ri[j];
        gi[j] = activation_grad<act>(di[j], z);
      }
    }
  });
}

// Sums over each column of g and of g · (x − mean).
template <typename A>
FASTSTY_CLONES void sums(Rows<A> g, Rows<A> x, int64_t rows, int64_t cols, const A* mean, A* sum,
                         A* product) {
  for_blocks<A>(cols, [&](int64_t c, auto width) __attribute__((always_inline)) {
    constexpr int64_t W = width;
    A m[W], s[W] = {}, p[W] = {};
    std::memcpy(m, mean + c, sizeof(m));
    for (int64_t i = 0; i < rows; ++i) {
      const A* __restrict gi = g.data + i * g.stride + c;
      const A* __restrict xi = x.data + i * x.stride + c;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        s[j] += gi[j];
        p[j] += gi[j] * (xi[j] - m[j]);
      }
    }
    std::memcpy(sum + c, s, sizeof(s));
    std::memcpy(product + c, p, sizeof(p));
  });
}

// dx = scale · (g − mean of g − (x − mean) · slope), or scale · g where statistics are fixed.
template <typename A, bool fixed>
FASTSTY_CLONES void grad(Rows<A> g, Rows<A> x, Rows<A> dx, int64_t rows, int64_t cols,
                         const Columns<A>& by, const A* mean_g, const A* slope) {
  for_blocks<A>(cols, [&](int64_t c, auto width) __attribute__((always_inline)) {
    constexpr int64_t W = width;
    A mean[W], scale[W], level[W], tilt[W];
    std::memcpy(mean, by.mean + c, sizeof(mean));
    std::memcpy(scale, by.scale + c, sizeof(scale));
    std::memcpy(level, mean_g + c, sizeof(level));
    std::memcpy(tilt, slope + c, sizeof(tilt));
    for (int64_t i = 0; i < rows; ++i) {
      const A* __restrict gi = g.data + i * g.stride + c;
      const A* __restrict xi = x.data + i * x.stride + c;
      A* __restrict di = dx.data + i * dx.stride + c;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        A d = gi[j];
        if constexpr (!fixed) d = d - level[j] - (xi[j] - mean[j]) * tilt[j];
        di[j] = scale[j] * d;
      }
    }
  });
}

// Sum, and sum of squared differences from `middle`.
FASTSTY_CLONES double total(const double* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += x[j];
  return sum;
}

FASTSTY_CLONES double spread(const double* x, int64_t count, double middle) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += (x[j] - middle) * (x[j] - middle);
  return sum;
}

// ------------------------------------------------------------------------------ parts

using PerColumn = std::array<double, Parts::MOST_COLS>;

// Means and variances of the channels of a part: one for each column, or one for all where these
// share a channel.
template <typename A>
void statistics(const View<A>& x, const Part& part, PerColumn& mean, PerColumn& variance) {
  const int64_t cols = part.cols;
  std::vector<double> joined(2 * part.chunks() * cols);
  for_each(part.chunks(), part.chunk_size(), [&](int64_t chunk) {
    double *chunk_mean = &joined[2 * chunk * cols], *chunk_m2 = chunk_mean + cols;
    double rows = 0;
    for_tiles(part, chunk, [&](const Tile& tile) {
      alignas(64) A buffer[TILE], tile_mean[Parts::MOST_COLS], tile_m2[Parts::MOST_COLS];
      moments<A>(x.read(tile, buffer), tile.rows, cols, tile_mean, tile_m2);
      join<A>(rows, chunk_mean, chunk_m2, tile.rows, tile_mean, tile_m2, cols);
      rows += tile.rows;
    });
  });
  std::copy_n(joined.data(), cols, mean.begin());
  std::copy_n(joined.data() + cols, cols, variance.begin());
  for (int64_t chunk = 1; chunk < part.chunks(); ++chunk) {
    const int64_t before = chunk * part.chunk_rows();
    const int64_t rows = std::min(part.chunk_rows(), part.rows - before);
    const double* chunk_mean = &joined[2 * chunk * cols];
    join<double>(before, mean.data(), variance.data(), rows, chunk_mean, chunk_mean + cols, cols);
  }
  if (part.shared) {
    const double middle = total(mean.data(), cols) / cols;
    variance[0] = total(variance.data(), cols) + part.rows * spread(mean.data(), cols, middle);
    mean[0] = middle;
    if (part.rest) {
      alignas(64) A buffer[TILE];
      const Rows<A> rest = x.read(Tile::rest(part), buffer);
      double values[Parts::PLANE_COLS];
      std::copy_n(rest.data, part.rest, values);
      const double rest_mean = total(values, part.rest) / part.rest;
      const double rest_m2 = spread(values, part.rest, rest_mean);
      join<double>(part.rows * cols, mean.data(), variance.data(), part.rest, &rest_mean, &rest_m2,
                   1);
    }
  }
  for (int64_t j = 0; j < part.channels(); ++j) variance[j] /= part.pixels();
}

// Runs f(tile) over all tiles of a part.
template <typename F>
void for_all_tiles(const Part& part, const F& f) {
  for_each(part.chunks(), part.chunk_size(), [&](int64_t chunk) {
    for_tiles(part, chunk, f);
    if (part.rest && chunk == part.chunks() - 1) f(Tile::rest(part));
  });
}

// A number for each channel of each sample: [N, C], or [C] for all samples alike; or `otherwise`.
template <typename A>
class PerChannel {
 public:
  PerChannel(const char* name, const std::optional<Tensor>& t, const Layout& layout, A otherwise)
      : otherwise_(otherwise) {
    if (!t) return;
    const bool per_sample = t->dim() == 2 && t->size(0) == layout.n && t->size(1) == layout.c;
    STD_TORCH_CHECK(per_sample || (t->dim() == 1 && t->size(0) == layout.c), name,
                    ": expected [C] or [N, C]");
    tensor_ = *t;  // torch is asked only where something is to be done: small maps notice
    if (t->scalar_type() != SCALAR_TYPE<A>) tensor_ = torch::stable::to(*tensor_, SCALAR_TYPE<A>);
    if (!tensor_->is_contiguous()) tensor_ = torch::stable::contiguous(*tensor_);
    data_ = tensor_->template const_data_ptr<A>();
    n_stride_ = per_sample ? layout.c : 0;
  }

  A operator()(const Part& part, int64_t channel) const {
    return data_ ? data_[part.n * n_stride_ + part.c + channel] : otherwise_;
  }

 private:
  std::optional<Tensor> tensor_;
  const A* data_ = nullptr;
  int64_t n_stride_ = 0;
  A otherwise_;
};

// Calls f with `act` and `has_residual` as compile-time constants.
template <typename F>
void with_constants(Activation act, bool has_residual, const F& f) {
  const auto with_residual = [&](auto act) {
    if (has_residual) {
      f(act, std::true_type());
    } else {
      f(act, std::false_type());
    }
  };
  switch (act) {
    case Activation::none:
      return with_residual(std::integral_constant<Activation, Activation::none>());
    case Activation::relu:
      return with_residual(std::integral_constant<Activation, Activation::relu>());
    case Activation::leaky_relu:
      return with_residual(std::integral_constant<Activation, Activation::leaky_relu>());
    case Activation::silu:
      return with_residual(std::integral_constant<Activation, Activation::silu>());
  }
}

// What normalises each column of a part.
template <typename A>
void fill(Columns<A>& by, const Part& part, const PerChannel<A>& mean, const PerChannel<A>& rstd,
          const PerChannel<A>& weight, const PerChannel<A>& bias) {
  for (int64_t j = 0; j < part.channels(); ++j) {
    by.mean[j] = mean(part, j);
    by.scale[j] = rstd(part, j) * weight(part, j);
    by.shift[j] = bias(part, j);
  }
  if (part.shared) {
    std::fill_n(by.mean, part.cols, by.mean[0]);
    std::fill_n(by.scale, part.cols, by.scale[0]);
    std::fill_n(by.shift, part.cols, by.shift[0]);
  }
}

template <typename A>
void apply(const View<A>& x, const View<A>& residual, const View<A>& y, const Part& part,
           Activation act, const Columns<A>& by) {
  with_constants(act, static_cast<bool>(residual), [&](auto act, auto has_residual) {
    for_all_tiles(part, [&](const Tile& tile) {
      alignas(64) A x_buffer[TILE], r_buffer[TILE], y_buffer[TILE];
      const Rows<A> to = y.direct(tile, y_buffer);
      const Rows<A> r = has_residual ? residual.read(tile, r_buffer) : Rows<A>();
      affine<A, act, has_residual>(x.read(tile, x_buffer), r, to, tile.rows, tile.cols, by);
      y.written(tile, to);
    });
  });
}

// Where the first channel of a part is in a tensor [N, C].
template <typename A>
A* at(const Tensor& t, const Part& part) {
  return t.mutable_data_ptr<A>() + part.n * t.size(1) + part.c;
}

// The gradients of a part, and what they are computed from.
template <typename A>
struct Gradient {
  View<A> x, dy, residual, dx, dresidual;
  PerChannel<A> mean, rstd, weight, bias;
  Tensor dweight, dbias;  // [N, C]
  bool fixed;

  // g = dL/dz of a tile, in `buffer`, or where it is in dy.
  template <Activation act, bool has_residual>
  Rows<A> of(const Tile& tile, Rows<A> from, const Columns<A>& by, A* buffer) const {
    if constexpr (act == Activation::none) return dy.read(tile, buffer);
    alignas(64) A dy_buffer[TILE], r_buffer[TILE];
    const Rows<A> r = has_residual ? residual.read(tile, r_buffer) : Rows<A>();
    const Rows<A> g{buffer, tile.cols};
    chain<A, act, has_residual>(dy.read(tile, dy_buffer), from, r, g, tile.rows, tile.cols, by);
    return g;
  }

  template <Activation act, bool has_residual>
  void operator()(const Part& part) const {
    const int64_t cols = part.cols;
    Columns<A> by;
    fill(by, part, mean, rstd, weight, bias);

    std::vector<double> total_of(2 * part.chunks() * cols);  // g, and g · (x − mean)
    for_all_tiles(part, [&](const Tile& tile) {
      alignas(64) A x_buffer[TILE], g_buffer[TILE];
      alignas(64) A sum[Parts::MOST_COLS], product[Parts::MOST_COLS];
      const Rows<A> from = x.read(tile, x_buffer);
      const Rows<A> g = of<act, has_residual>(tile, from, by, g_buffer);
      sums<A>(g, from, tile.rows, tile.cols, by.mean, sum, product);
      double* into = &total_of[2 * part.chunk_of(tile.row) * cols];
      for (int64_t j = 0; j < tile.cols; ++j) into[j] += sum[j];
      for (int64_t j = 0; j < tile.cols; ++j) into[cols + j] += product[j];
      if constexpr (has_residual) dresidual.write(tile, g);
    });
    for (int64_t chunk = 1; chunk < part.chunks(); ++chunk) {
      for (int64_t j = 0; j < 2 * cols; ++j) total_of[j] += total_of[2 * chunk * cols + j];
    }
    if (part.shared) {
      total_of[0] = total(&total_of[0], cols);
      total_of[cols] = total(&total_of[cols], cols);
    }

    A level[Parts::MOST_COLS], slope[Parts::MOST_COLS];
    const double pixels = part.pixels();
    for (int64_t j = 0; j < part.channels(); ++j) {
      const double r = rstd(part, j);
      at<A>(dbias, part)[j] = total_of[j];
      at<A>(dweight, part)[j] = total_of[cols + j] * r;
      level[j] = total_of[j] / pixels;
      slope[j] = total_of[cols + j] / pixels * r * r;
    }
    if (part.shared) {
      std::fill_n(level, cols, level[0]);
      std::fill_n(slope, cols, slope[0]);
    }

    for_all_tiles(part, [&](const Tile& tile) {
      alignas(64) A x_buffer[TILE], g_buffer[TILE], dx_buffer[TILE];
      const Rows<A> from = x.read(tile, x_buffer), to = dx.direct(tile, dx_buffer);
      // Where g has been written as it is, it need not be computed again.
      const Rows<A> g = has_residual && dresidual.in_place()
                            ? dresidual.read(tile, g_buffer)
                            : of<act, has_residual>(tile, from, by, g_buffer);
      if (fixed) {
        grad<A, true>(g, from, to, tile.rows, tile.cols, by, level, slope);
      } else {
        grad<A, false>(g, from, to, tile.rows, tile.cols, by, level, slope);
      }
      dx.written(tile, to);
    });
  }
};

// ------------------------------------------------------------------------------ ops

using Optional = std::optional<Tensor>;

template <typename A>
View<A> optional_view(const Optional& t, const char* name, const Layout& layout) {
  if (!t) return {};
  check_like(*t, name, layout);
  return View<A>(*t, layout);
}

template <typename A>
Tensor empty_per_channel(const Layout& layout) {
  const int64_t sizes[] = {layout.n, layout.c};
  return torch::stable::empty(sizes, SCALAR_TYPE<A>);
}

std::tuple<Tensor, Tensor> stats(Tensor x, double eps) {
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    const Parts parts(layout);
    const View<A> from(x, layout);
    Tensor means = empty_per_channel<A>(layout), rstds = empty_per_channel<A>(layout);
    for_each_nested(parts.count(), parts.size(), [&](int64_t i) {
      const Part part = parts[i];
      PerColumn mean, variance;
      statistics(from, part, mean, variance);
      for (int64_t j = 0; j < part.channels(); ++j) {
        at<A>(means, part)[j] = mean[j];
        at<A>(rstds, part)[j] = 1 / std::sqrt(variance[j] + eps);
      }
    });
    return std::tuple(means, rstds);
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Optional weight, Optional bias,
                                           Optional residual, double eps, StringHandle activation) {
  const Activation act = activation_named(text(activation));
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    const Parts parts(layout);
    const PerChannel<A> weights("weight", weight, layout, 1), biases("bias", bias, layout, 0);
    Tensor y = layout.empty(x.scalar_type());
    Tensor means = empty_per_channel<A>(layout), rstds = empty_per_channel<A>(layout);
    const PerChannel<A> mean_of("mean", means, layout, 0), rstd_of("rstd", rstds, layout, 1);
    const View<A> from(x, layout), to(y, layout);
    const View<A> added = optional_view<A>(residual, "residual", layout);
    for_each_nested(parts.count(), parts.size(), [&](int64_t i) {
      const Part part = parts[i];
      PerColumn mean, variance;
      statistics(from, part, mean, variance);
      for (int64_t j = 0; j < part.channels(); ++j) {
        at<A>(means, part)[j] = mean[j];
        at<A>(rstds, part)[j] = 1 / std::sqrt(variance[j] + eps);
      }
      Columns<A> by;
      fill(by, part, mean_of, rstd_of, weights, biases);
      apply(from, added, to, part, act, by);
    });
    return std::tuple(y, means, rstds);
  });
}

Tensor apply_statistics(Tensor x, Tensor mean, Tensor rstd, Optional weight, Optional bias,
                        Optional residual, StringHandle activation) {
  const Activation act = activation_named(text(activation));
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    const Parts parts(layout);
    const PerChannel<A> weights("weight", weight, layout, 1), biases("bias", bias, layout, 0);
    const PerChannel<A> means("mean", mean, layout, 0), rstds("rstd", rstd, layout, 1);
    Tensor y = layout.empty(x.scalar_type());
    const View<A> from(x, layout), to(y, layout);
    const View<A> added = optional_view<A>(residual, "residual", layout);
    for_each_nested(parts.count(), parts.size(), [&](int64_t i) {
      const Part part = parts[i];
      Columns<A> by;
      fill(by, part, means, rstds, weights, biases);
      apply(from, added, to, part, act, by);
    });
    return y;
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd,
                                                    Optional weight, Optional bias,
                                                    Optional residual, StringHandle activation,
                                                    bool fixed) {
  const Activation act = activation_named(text(activation));
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    check_like(dy, "dy", layout);
    const Parts parts(layout);
    // Without an activation the residual's gradient is dy.
    const bool chained = act != Activation::none;
    Tensor dx = layout.empty(x.scalar_type());
    Tensor dresidual = residual && chained ? layout.empty(residual->scalar_type())
                                           : torch::stable::new_empty(x, {0});
    Tensor dweight = empty_per_channel<A>(layout), dbias = empty_per_channel<A>(layout);
    const View<A> added = optional_view<A>(chained ? residual : std::nullopt, "residual", layout);
    const Gradient<A> gradient{
        View<A>(x, layout),
        View<A>(dy, layout),
        added,
        View<A>(dx, layout),
        added ? View<A>(dresidual, layout) : View<A>(),
        PerChannel<A>("mean", mean, layout, 0),
        PerChannel<A>("rstd", rstd, layout, 1),
        PerChannel<A>("weight", weight, layout, 1),
        PerChannel<A>("bias", bias, layout, 0),
        dweight,
        dbias,
        fixed,
    };
    for_each_nested(parts.count(), parts.size(), [&](int64_t i) {
      with_constants(act, static_cast<bool>(added), [&](auto act, auto has_residual) {
        gradient.template operator()<decltype(act)::value, decltype(has_residual)::value>(parts[i]);
      });
    });
    return std::tuple(dx, dresidual, dweight, dbias);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("instance_norm_stats(Tensor x, float eps) -> (Tensor, Tensor)");
  m.def(
      "instance_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
      "str activation) -> (Tensor, Tensor, Tensor)");
  m.def(
      "instance_norm_apply(Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
      "Tensor? residual, str activation) -> Tensor");
  m.def(
      "instance_norm_bwd(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, "
      "Tensor? bias, Tensor? residual, str activation, bool fixed) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("instance_norm_stats", TORCH_BOX(&stats));
  m.impl("instance_norm_fwd", TORCH_BOX(&forward));
  m.impl("instance_norm_apply", TORCH_BOX(&apply_statistics));
  m.impl("instance_norm_bwd", TORCH_BOX(&backward));
}

}  // namespace faststy
