// Gram matrices on the CPU: the raw ops of faststy/ops/gram.py, whose definitions are in
// faststy/ops/reference.py.
//
// Matrix products of our own: BLAS computes both halves of a symmetric matrix, and is slow where one
// side is as short as the channels of a picture. They read features where they are; those that are
// to be converted or centred are packed a tile at a time. Backward, contiguous planes are left to
// the BLAS that torch carries, which is faster there.

#include <torch/csrc/stable/library.h>

#include <array>
#include <cfloat>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "features.h"
#include "gram_bf16.h"
#include "parallel.h"
#include "simd.h"

namespace faststy {
namespace {

using Optional = std::optional<Tensor>;

// ------------------------------------------------------------------------------ a matrix product

constexpr int64_t MICRO_ROWS = 6;  // with two registers each they and their factors fit into 16

// A factor [k, n], in panels of WIDTH columns.
template <typename A>
struct Panels {
  const A* data;
  int64_t row_stride, panel_stride;
};

template <typename A, bool add, int64_t ROWS>
__attribute__((always_inline)) inline void micro(int64_t k, const A* __restrict a, int64_t row_a,
                                                 int64_t col_a, const A* __restrict b,
                                                 int64_t row_b, A* __restrict c, int64_t row_c,
                                                 int64_t cols) {
  constexpr int64_t W = WIDTH<A>;
  A sum[ROWS][W] = {};
  for (int64_t l = 0; l < k; ++l) {
    for (int64_t i = 0; i < ROWS; ++i) {
      const A factor = a[i * row_a + l * col_a];
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) sum[i][j] += factor * b[l * row_b + j];
    }
  }
  for (int64_t i = 0; i < ROWS; ++i) {
    A* __restrict to = c + i * row_c;
    if (cols >= W) {
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) to[j] = sum[i][j] + (add ? to[j] : 0);
    } else {
      for (int64_t j = 0; j < cols; ++j) to[j] = sum[i][j] + (add ? to[j] : 0);
    }
  }
}

// c [m, n] = a [m, k] · b [k, n], where b has whole panels. A symmetric product is added to c, and
// only what is on and above the diagonal, and some of what is below.
template <typename A, bool symmetric>
FASTSTY_CLONES void multiply(int64_t m, int64_t n, int64_t k, const A* a, int64_t row_a,
                             int64_t col_a, Panels<A> b, A* c, int64_t row_c) {
  constexpr int64_t W = WIDTH<A>;
  for (int64_t j = 0; j < n; j += W) {
    const A* panel = b.data + j / W * b.panel_stride;
    const int64_t rows = symmetric ? std::min(m, j + W) : m;
    int64_t i = 0;
    for (; i + MICRO_ROWS <= rows; i += MICRO_ROWS) {
      micro<A, symmetric, MICRO_ROWS>(k, a + i * row_a, row_a, col_a, panel, b.row_stride,
                                      c + i * row_c + j, row_c, n - j);
    }
    for (; i + 4 <= rows; i += 4) {
      micro<A, symmetric, 4>(k, a + i * row_a, row_a, col_a, panel, b.row_stride,
                             c + i * row_c + j, row_c, n - j);
    }
    for (; i < rows; ++i) {
      micro<A, symmetric, 1>(k, a + i * row_a, row_a, col_a, panel, b.row_stride,
                             c + i * row_c + j, row_c, n - j);
    }
  }
}

// Added to c [ROWS, COLS]: products of `count` pixels of as many planes of a and of b. Each keeps a
// vector of sums over pixels, of BYTES, so that planes are read as they lie.
template <typename A, int64_t BYTES, int64_t ROWS, int64_t COLS>
__attribute__((always_inline)) inline void dots(int64_t count, const A* a, const A* b,
                                                int64_t stride, A* c, int64_t row_c) {
  typedef A Vector __attribute__((vector_size(BYTES)));
  constexpr int64_t W = BYTES / sizeof(A);
  Vector sum[ROWS][COLS];  // in registers, as all loops over it are unrolled
#pragma GCC unroll 4
  for (int64_t i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < COLS; ++j) sum[i][j] = Vector{};
  }
  int64_t l = 0;
  for (; l + W <= count; l += W) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < ROWS; ++i) {
      Vector left, right;
      std::memcpy(&left, a + i * stride + l, BYTES);
#pragma GCC unroll 4
      for (int64_t j = 0; j < COLS; ++j) {
        std::memcpy(&right, b + j * stride + l, BYTES);
        sum[i][j] += left * right;
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < COLS; ++j) {
      A total = 0;
      for (int64_t k = 0; k < W; ++k) total += sum[i][j][k];
      for (int64_t k = l; k < count; ++k) total += a[i * stride + k] * b[j * stride + k];
      c[i * row_c + j] += total;
    }
  }
}

// Added to c [m, m], on and above its diagonal and some below: x [m, count] · xᵀ, for planes x.
template <typename A, int64_t BYTES>
FASTSTY_CLONES void multiply_planes(int64_t m, int64_t count, const A* x, int64_t stride, A* c,
                                    int64_t row_c) {
  constexpr int64_t BLOCK = 4;
  const int64_t whole = m / BLOCK * BLOCK;
  for (int64_t j = 0; j < whole; j += BLOCK) {
    for (int64_t i = 0; i <= j; i += BLOCK) {
      dots<A, BYTES, BLOCK, BLOCK>(count, x + i * stride, x + j * stride, stride,
                                   c + i * row_c + j, row_c);
    }
  }
  for (int64_t j = whole; j < m; ++j) {
    for (int64_t i = 0; i <= j; ++i) {
      dots<A, BYTES, 1, 1>(count, x + i * stride, x + j * stride, stride, c + i * row_c + j, row_c);
    }
  }
}

// ------------------------------------------------------------------------------ features

template <typename A>
int64_t padded(int64_t count) {
  return (count + WIDTH<A> - 1) / WIDTH<A> * WIDTH<A>;
}

// The pixels of samples in tiles, centred where there is a mean.
template <typename A>
class Pixels {
 public:
  Pixels(const Tensor& x, const Optional& mean, const Layout& layout)
      : layout_(layout), parts_(layout), view_(x, layout) {
    if (!mean) return;
    STD_TORCH_CHECK(mean->dim() == 2 && mean->size(0) == layout.n && mean->size(1) == layout.c,
                    "mean: expected [N, C]");
    mean_ = torch::stable::contiguous(torch::stable::to(*mean, SCALAR_TYPE<A>));
    means_ = mean_->template const_data_ptr<A>();
  }

  // Whether a tile can be used where it is.
  bool in_place() const { return !means_ && view_.in_place(); }
  const View<A>& view() const { return view_; }

  // A tile of bfloat16 where it is.
  HalfTile half_tile(int64_t n, int64_t pixel, int64_t count) const {
    const int64_t channel_stride = layout_.last ? 1 : view_.channel_stride();
    const int64_t pixel_stride = layout_.last ? view_.row_stride() : 1;
    const uint16_t* data = view_.template sample_as<const uint16_t>(n) + pixel * pixel_stride;
    return {data, layout_.c, count, channel_stride, pixel_stride};
  }

  // Pixels `pixel` … `pixel + count − 1` of sample n as the matrix [count, channels], or the other
  // way round: element (p, c) goes to to[p * pixel_stride + c * channel_stride].
  void pack(int64_t n, int64_t pixel, int64_t count, A* to, int64_t pixel_stride,
            int64_t channel_stride) const {
    alignas(64) A buffer[TILE];
    const int64_t per_sample = parts_.per_sample();
    for (int64_t i = n * per_sample; i < (n + 1) * per_sample; ++i) {
      const Part part = parts_[i];
      const A* mean = means_ ? means_ + n * layout_.c + part.c : nullptr;
      A* into = to + part.c * channel_stride;
      if (layout_.last) {
        for (int64_t row = 0; row < count; row += part.tile_rows()) {
          const int64_t rows = std::min(part.tile_rows(), count - row);
          const auto from = view_.read(Tile{part, pixel + row, rows, part.cols}, buffer);
          for (int64_t p = 0; p < rows; ++p) {
            copy(from.data + p * from.stride, mean, 1, into + (row + p) * pixel_stride,
                 channel_stride, part.cols);
          }
        }
      } else {
        for (int64_t p = 0; p < count;) {
          const int64_t rows = std::min(TILE, count - p) / part.cols;
          const int64_t cols = rows ? part.cols : count - p;  // at the end a row that is not whole
          const Tile tile{part, (pixel + p) / part.cols, std::max<int64_t>(rows, 1), cols};
          copy(view_.read(tile, buffer).data, mean, 0, into + p * pixel_stride, pixel_stride,
               tile.rows * cols);
          p += tile.rows * cols;
        }
      }
    }
  }

 private:
  static void copy(const A* from, const A* mean, int64_t mean_stride, A* to, int64_t stride,
                   int64_t count) {
    if (mean) {
      for (int64_t j = 0; j < count; ++j) to[j * stride] = from[j] - mean[j * mean_stride];
    } else {
      for (int64_t j = 0; j < count; ++j) to[j * stride] = from[j];
    }
  }

  Layout layout_;
  Parts parts_;
  View<A> view_;
  std::optional<Tensor> mean_;
  const A* means_ = nullptr;
};

// Tiles have a multiple of so many pixels: whole rows of a plane.
constexpr int64_t PIXELS = 64;
static_assert(PIXELS % Parts::PLANE_COLS == 0);

// Pixels in a tile: so many that what a product does once a tile is little.
int64_t tile_pixels(const Layout& layout) {
  const int64_t pixels = 4096 / std::max<int64_t>(layout.c, 1) / PIXELS;
  return std::clamp<int64_t>(pixels, 1, 4) * PIXELS;
}

// As many of planes as stay in a thread's cache while each meets all others; of large ones more, as
// there is enough for all threads.
int64_t plane_pixels(const Layout& layout) {
  const int64_t pixels = (1 << 18) / std::max<int64_t>(layout.c, 1) / PIXELS;
  const int64_t most = std::clamp<int64_t>(layout.pixels() / PIXELS / 32, 16, 32);
  return std::clamp<int64_t>(pixels, 1, most) * PIXELS;
}

// ------------------------------------------------------------------------------ BLAS

bool for_blas(const Tensor& x, const Optional& mean, const Layout& layout) {
  return !layout.last && !mean && x.scalar_type() == wide(x.scalar_type()) && x.is_contiguous();
}

Tensor flat(const Tensor& x, const Layout& layout) {
  const int64_t sizes[] = {layout.n, layout.c, layout.pixels()};
  return torch::stable::view(x, sizes);
}

// out = a · b of each sample. Autocast leaves this form of bmm alone; autograd refuses it for what
// requires gradients.
void bmm(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  const bool grad_mode = aoti_torch_grad_mode_is_enabled();
  aoti_torch_grad_mode_set_enabled(false);
  const AOTITorchError error =
      torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION);
  aoti_torch_grad_mode_set_enabled(grad_mode);
  TORCH_ERROR_CODE_CHECK(error);
  torch::stable::detail::to<Tensor>(stack[0]);  // owned by us
}

// ------------------------------------------------------------------------------ ops

// The Gram matrix of each sample, into G [N, C, C].
template <typename A>
void gram_into(const Tensor& x, const Optional& mean, const Layout& layout, const Tensor& result) {
  A* gram = result.mutable_data_ptr<A>();
  const double scale = 1.0 / std::max<int64_t>(layout.c * layout.pixels(), 1);
  const Pixels<A> pixels(x, mean, layout);
  const int64_t c = layout.c, ld = padded<A>(c);
  const int64_t step = layout.last ? tile_pixels(layout) : plane_pixels(layout);
  const int64_t tiles = (layout.pixels() + step - 1) / step;
  // Chunks of tiles are summed up in the type of the result, and their sums in double. Where many
  // channels have few pixels, there are no more chunks than four times the memory of x holds.
  const int64_t most = std::clamp<int64_t>(4 * layout.pixels() / std::max<int64_t>(c, 1), 1, 64);
  const int64_t chunks = std::clamp<int64_t>(layout.last ? tiles / 8 : tiles, 1, most);
  const bool direct = pixels.in_place() && (!layout.last || ld == c);
  const bool halves = x.scalar_type() == ScalarType::BFloat16 && !mean;
  const auto multiply_all =
      has_wide_registers() ? multiply_planes<A, 64> : multiply_planes<A, 32>;
  std::vector<A> sums(layout.n * chunks * c * ld);

  for_each(layout.n * chunks, layout.pixels() * c * c / 16 / chunks, [&](int64_t i) {
    const int64_t n = i / chunks, chunk = i % chunks;
    A* sum = &sums[i * c * ld];
    std::vector<A> packed(direct ? 0 : step * ld);
    for (int64_t tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; ++tile) {
      const int64_t pixel = tile * step, count = std::min(step, layout.pixels() - pixel);
      if constexpr (std::is_same_v<A, float>) {
        if (halves && add_gram(pixels.half_tile(n, pixel, count), sum, ld)) continue;
      }
      if (!layout.last) {
        if (!direct) pixels.pack(n, pixel, count, packed.data(), 1, step);
        const A* planes = direct ? pixels.view().sample(n) + pixel : packed.data();
        multiply_all(c, count, planes, direct ? pixels.view().channel_stride() : step, sum, ld);
        continue;
      }
      const A* rows = packed.data();
      int64_t stride = ld;
      if (direct) {
        stride = pixels.view().row_stride();
        rows = pixels.view().sample(n) + pixel * stride;
      } else {
        pixels.pack(n, pixel, count, packed.data(), ld, 1);
      }
      multiply<A, true>(c, ld, count, rows, 1, stride, {rows, stride, WIDTH<A>}, sum, ld);
    }
  });

  for_each(layout.n, c * c * chunks, [&](int64_t n) {
    const A* first = &sums[n * chunks * c * ld];
    A* to = gram + n * c * c;
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t j = i; j < c; ++j) {
        double total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += first[(chunk * c + i) * ld + j];
        to[i * c + j] = to[j * c + i] = total * scale;
      }
    }
  });
}

template <typename A>
Tensor empty(std::vector<int64_t> sizes) {
  return torch::stable::empty(sizes, SCALAR_TYPE<A>);
}

Tensor gram_fwd(Tensor x, Optional mean) {
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    Tensor gram = empty<A>({layout.n, layout.c, layout.c});
    gram_into<A>(x, mean, layout, gram);
    return gram;
  });
}

std::tuple<Tensor, Tensor, Tensor> gram_loss_fwd(Tensor x, Optional mean, Tensor target) {
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    const int64_t n = layout.n, c = layout.c;
    const bool per_sample = target.dim() == 3 && target.size(0) == n;
    STD_TORCH_CHECK((per_sample || target.dim() == 2) && target.size(-2) == c &&
                        target.size(-1) == c,
                    "target: expected [C, C] or [N, C, C]");
    const Tensor targets = torch::stable::contiguous(torch::stable::to(target, SCALAR_TYPE<A>));
    Tensor loss = empty<A>({}), difference = empty<A>({n, c, c}), factor = empty<A>({n});
    A *gram = difference.mutable_data_ptr<A>(), *factors = factor.mutable_data_ptr<A>();
    gram_into<A>(x, mean, layout, difference);

    std::vector<double> losses(n);
    for_each(n, c * c, [&](int64_t i) {
      const A* wanted = targets.const_data_ptr<A>() + (per_sample ? i * c * c : 0);
      A* g = gram + i * c * c;
      double energy = 0, distance = 0;
      for (int64_t j = 0; j < c * c; ++j) {
        const double d = double(g[j]) - wanted[j];
        energy += double(wanted[j]) * wanted[j];
        distance += d * d;
      }
      energy = std::max<double>(energy, FLT_MIN) * n;
      factors[i] = 2 / energy;
      losses[i] = distance / energy;
      // What the gradient needs is the symmetric part, where a target is not symmetric.
      for (int64_t j = 0; j < c; ++j) {
        for (int64_t k = j; k < c; ++k) {
          g[j * c + k] -= (wanted[j * c + k] + wanted[k * c + j]) / 2;
          g[k * c + j] = g[j * c + k];
        }
      }
    });
    double total = 0;
    for (const double part : losses) total += part;
    *loss.mutable_data_ptr<A>() = total;
    return std::tuple(loss, difference, factor);
  });
}

Tensor gram_bwd(Tensor symmetric, Tensor x, Optional mean, Optional scale) {
  return with_wide(x, [&](auto zero) {
    using A = decltype(zero);
    const Layout layout(x);
    const int64_t n = layout.n, c = layout.c, ld = padded<A>(c), step = tile_pixels(layout);
    STD_TORCH_CHECK(symmetric.dim() == 3 && symmetric.size(0) == n && symmetric.size(1) == c &&
                        symmetric.size(2) == c,
                    "symmetric: expected [N, C, C]");
    STD_TORCH_CHECK(!scale || (scale->dim() == 1 && scale->size(0) == n), "scale: expected [N]");
    const Tensor matrices = torch::stable::contiguous(torch::stable::to(symmetric, SCALAR_TYPE<A>));
    const Optional scales =
        scale ? Optional(torch::stable::contiguous(torch::stable::to(*scale, SCALAR_TYPE<A>)))
              : std::nullopt;
    Tensor dx = layout.empty(x.scalar_type());
    const Pixels<A> pixels(x, mean, layout);
    const View<A> out(dx, layout);
    const Parts parts(layout);

    const bool blas = for_blas(x, mean, layout);
    // The scaled matrix of each sample, in panels where it is the right factor.
    const int64_t row = blas ? c : ld;
    Tensor factor_of_all = empty<A>({n, c, row});
    A* factors = factor_of_all.mutable_data_ptr<A>();
    std::fill_n(factors, n * c * row, A(0));
    for_each(n, c * c, [&](int64_t i) {
      const double by = (scales ? double(scales->const_data_ptr<A>()[i]) : 1) /
                        std::max<int64_t>(c * layout.pixels(), 1);
      const A* from = matrices.const_data_ptr<A>() + i * c * c;
      A* to = factors + i * c * row;
      for (int64_t k = 0; k < c; ++k) {
        for (int64_t j = 0; j < c; ++j) {
          const int64_t panel = j / WIDTH<A>, rest = j % WIDTH<A>;
          to[layout.last ? (panel * c + k) * WIDTH<A> + rest : k * row + j] = from[k * c + j] * by;
        }
      }
    });
    if (blas) {
      bmm(factor_of_all, flat(x, layout), flat(dx, layout));
      return dx;
    }

    const int64_t tiles = (layout.pixels() + step - 1) / step;
    for_each(n * tiles, step * c * c / 16, [&](int64_t i) {
      const int64_t sample = i / tiles, pixel = i % tiles * step;
      const int64_t count = std::min(step, layout.pixels() - pixel);
      const A* factor = factors + sample * c * ld;
      if (layout.last) {  // [count, C] = pixels [count, C] · factor
        std::vector<A> packed(pixels.in_place() ? 0 : count * c);
        const A* rows = packed.data();
        int64_t stride = c;
        if (pixels.in_place()) {
          stride = pixels.view().row_stride();
          rows = pixels.view().sample(sample) + pixel * stride;
        } else {
          pixels.pack(sample, pixel, count, packed.data(), c, 1);
        }
        const Panels<A> panels{factor, WIDTH<A>, c * WIDTH<A>};
        if (out.in_place()) {
          A* to = out.sample(sample) + pixel * c;
          multiply<A, false>(count, c, c, rows, stride, 1, panels, to, c);
        } else {
          std::vector<A> result(count * c);
          multiply<A, false>(count, c, c, rows, stride, 1, panels, result.data(), c);
          out.write_pixels(parts, sample, pixel, count, result.data(), c);
        }
      } else {  // [C, count] = factor · pixels [C, count]
        std::vector<A> packed(c * padded<A>(count));
        const Panels<A> panels{packed.data(), padded<A>(count), WIDTH<A>};
        pixels.pack(sample, pixel, count, packed.data(), 1, padded<A>(count));
        if (out.in_place()) {
          A* to = out.sample(sample) + pixel;
          multiply<A, false>(c, count, c, factor, ld, 1, panels, to, layout.pixels());
        } else {
          std::vector<A> result(c * count);
          multiply<A, false>(c, count, c, factor, ld, 1, panels, result.data(), count);
          out.write_pixels(parts, sample, pixel, count, result.data(), count);
        }
      }
    });
    return dx;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("gram_fwd(Tensor x, Tensor? mean) -> Tensor");
  m.def("gram_bwd(Tensor symmetric, Tensor x, Tensor? mean, Tensor? scale) -> Tensor");
  m.def("gram_loss_fwd(Tensor x, Tensor? mean, Tensor target) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("gram_fwd", TORCH_BOX(&gram_fwd));
  m.impl("gram_bwd", TORCH_BOX(&gram_bwd));
  m.impl("gram_loss_fwd", TORCH_BOX(&gram_loss_fwd));
}

}  // namespace faststy
