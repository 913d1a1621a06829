// Feature maps [N, C, H, W] as matrices that kernels walk through tile by tile, in either layout,
// without copying one into the other.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "convert.h"
#include "simd.h"

namespace faststy {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What sums and statistics of a dtype are kept in; computing is done in it, too.
inline ScalarType wide(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename A>
inline constexpr ScalarType SCALAR_TYPE =
    std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

inline void check_features(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, ": expected [N, C, H, W], got ", t.dim(), " dimensions");
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float ||
                      dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  name, ": expected a floating dtype");
}

// Calls f with a zero of the type that x is computed in.
template <typename F>
auto with_wide(const Tensor& x, const F& f) {
  check_features(x, "x");
  return x.scalar_type() == ScalarType::Double ? f(double()) : f(float());
}

// Calls f with a zero of a dtype of at most float32.
template <typename F>
void with_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(torch::headeronly::Half());
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16());
    default: STD_TORCH_CHECK(false, "dtype: expected float16, bfloat16 or float32");
  }
}

inline bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

// The shape and the memory format of a result with the shape of x, as faststy.ops.reference.layout.
struct Layout {
  int64_t n, c, h, w;
  bool last;  // channels last

  explicit Layout(const Tensor& x)
      : n(x.size(0)), c(x.size(1)), h(x.size(2)), w(x.size(3)),
        last(x.stride(1) == 1 && c > 1 && !x.is_contiguous()) {}

  int64_t pixels() const { return h * w; }
  MemoryFormat format() const {
    return last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  }
  Tensor empty(ScalarType dtype) const {
    const int64_t sizes[] = {n, c, h, w};
    return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt, format());
  }
};

inline void check_like(const Tensor& t, const char* name, const Layout& x) {
  check_features(t, name);
  STD_TORCH_CHECK(
      t.size(0) == x.n && t.size(1) == x.c && t.size(2) == x.h && t.size(3) == x.w, name,
      ": expected the shape of x");
}

// Numbers of a tile; enough to pay for what is done once a tile, few enough for the fastest cache.
inline constexpr int64_t TILE = 2048;

// A part of feature maps whose planes are treated alike: the matrix [rows, cols] of
//   channels last: a sample, with pixels as rows and (some) channels as columns;
//   otherwise:     a plane, cut into rows of 16 pixels, and a rest of less than that. All of its
//                  columns share one channel.
struct Part {
  int64_t n, c;  // the sample, and the first of its channels
  int64_t rows, cols, rest;
  bool shared;

  int64_t channels() const { return shared ? 1 : cols; }

  // More would be many to sum up one after another in float.
  static constexpr int64_t MOST_ROWS = 128;

  // Rows are handled in chunks of tiles, wherever several threads share a part.
  static constexpr int64_t TILES = 4;
  int64_t tile_rows() const { return std::clamp<int64_t>(TILE / cols, 1, MOST_ROWS); }
  int64_t chunk_rows() const { return TILES * tile_rows(); }
  int64_t chunks() const { return std::max<int64_t>((rows + chunk_rows() - 1) / chunk_rows(), 1); }
  int64_t chunk_size() const { return std::min(chunk_rows(), rows) * cols; }
  int64_t chunk_of(int64_t row) const { return std::min(row / chunk_rows(), chunks() - 1); }
  int64_t pixels() const { return shared ? rows * cols + rest : rows; }
};

class Parts {
 public:
  static constexpr int64_t PLANE_COLS = 16, MOST_COLS = 1024;

  explicit Parts(const Layout& layout) : layout_(layout) {}

  int64_t per_sample() const { return layout_.last ? strips() : layout_.c; }
  int64_t count() const { return layout_.n * per_sample(); }

  // Numbers in each, about.
  int64_t size() const {
    return layout_.pixels() * (layout_.last ? std::min(MOST_COLS, layout_.c) : 1);
  }

  Part operator[](int64_t i) const {
    const int64_t pixels = layout_.pixels();
    if (layout_.last) {
      const int64_t c = i % strips() * MOST_COLS;
      return {i / strips(), c, pixels, std::min(MOST_COLS, layout_.c - c), 0, false};
    }
    const int64_t rows = pixels / PLANE_COLS;
    return {i / layout_.c, i % layout_.c, rows, PLANE_COLS, pixels % PLANE_COLS, true};
  }

 private:
  int64_t strips() const { return (layout_.c + MOST_COLS - 1) / MOST_COLS; }
  Layout layout_;
};

// Rows `row` … `row + rows − 1` of a part. Its rest is the row after the last, of fewer columns.
struct Tile {
  const Part& part;
  int64_t row, rows, cols;

  static Tile rest(const Part& part) { return {part, part.rows, 1, part.rest}; }
};

// Runs f(tile) over the tiles of a chunk; a rest is not among them.
template <typename F>
void for_tiles(const Part& part, int64_t chunk, const F& f) {
  const int64_t end = std::min(part.rows, (chunk + 1) * part.chunk_rows());
  for (int64_t row = chunk * part.chunk_rows(); row < end; row += part.tile_rows()) {
    f(Tile{part, row, std::min(part.tile_rows(), end - row), part.cols});
  }
}

// Where the tiles of a tensor are, seen in numbers of type A whatever the tensor's dtype is.
template <typename A>
class View {
 public:
  // Pointer to the first number of a tile, and how far its rows are apart.
  struct Rows {
    A* data;
    int64_t stride;
  };

  View() = default;

  // A tensor with the shape of `layout`; what cannot be walked through in that layout is copied.
  View(const Tensor& t, const Layout& layout) : tensor_(t), last_(layout.last) {
    if (!even(t, layout)) tensor_ = torch::stable::contiguous(t, layout.format());
    const Tensor& own = *tensor_;
    dtype_ = own.scalar_type();
    data_ = static_cast<char*>(own.data_ptr());
    n_stride_ = own.stride(0);
    c_stride_ = last_ ? 1 : own.stride(1);
    row_stride_ = last_ ? pixel_stride(own, layout) : Parts::PLANE_COLS;
  }

  // Where it can be used as it is, with strides, if it has the type A.
  bool in_place() const { return dtype_ == SCALAR_TYPE<A>; }
  A* sample(int64_t n) const { return sample_as<A>(n); }
  template <typename T>  // the type that the tensor has
  T* sample_as(int64_t n) const {
    return reinterpret_cast<T*>(data_) + n * n_stride_;
  }
  int64_t row_stride() const { return row_stride_; }
  int64_t channel_stride() const { return c_stride_; }

  explicit operator bool() const { return tensor_.has_value(); }

  // The numbers of a tile: in place, or converted into `buffer`, which holds TILE of them.
  Rows read(const Tile& tile, A* buffer) const {
    const Rows rows = direct(tile, buffer);
    if (!in_place()) {
      each_run(tile, rows, [&](int64_t from, A* to, int64_t count) {
        each_dtype([&](auto zero) {
          widen(reinterpret_cast<const decltype(zero)*>(data_) + from, to, count);
        });
      });
    }
    return rows;
  }

  // Where the numbers of a tile are to be written, before `written` is told.
  Rows direct(const Tile& tile, A* buffer) const {
    if (!in_place()) return {buffer, tile.cols};
    return {reinterpret_cast<A*>(data_) + offset(tile), row_stride_};
  }

  void written(const Tile& tile, const Rows& rows) const {
    if (!in_place()) write(tile, rows);
  }

  // Writes pixels `pixel` … `pixel + count − 1` of a sample that are elsewhere: in rows of pixels
  // where channels are last, otherwise of channels, `stride` apart.
  void write_pixels(const Parts& parts, int64_t n, int64_t pixel, int64_t count, A* from,
                    int64_t stride) const {
    for (int64_t i = n * parts.per_sample(); i < (n + 1) * parts.per_sample(); ++i) {
      const Part part = parts[i];
      if (last_) {
        write({part, pixel, count, part.cols}, {from + part.c, stride});
      } else {
        A* row = from + part.c * stride;
        const int64_t whole = count / part.cols;
        write({part, pixel / part.cols, whole, part.cols}, {row, part.cols});
        write({part, pixel / part.cols + whole, 1, count % part.cols},
              {row + whole * part.cols, 0});
      }
    }
  }

  // Writes numbers that are elsewhere.
  void write(const Tile& tile, const Rows& rows) const {
    each_run(tile, rows, [&](int64_t to, const A* from, int64_t count) {
      if (in_place()) {
        std::copy_n(from, count, reinterpret_cast<A*>(data_) + to);
      } else {
        each_dtype([&](auto zero) {
          narrow(from, reinterpret_cast<decltype(zero)*>(data_) + to, count);
        });
      }
    });
  }

 private:
  // Runs f(place in this tensor, place in `rows`, count) over the numbers of a tile: at once where
  // they lie one after the other in both, otherwise row by row.
  template <typename F>
  void each_run(const Tile& tile, const Rows& rows, const F& f) const {
    if (row_stride_ == tile.cols && rows.stride == tile.cols) {
      return f(offset(tile), rows.data, tile.rows * tile.cols);
    }
    for (int64_t i = 0; i < tile.rows; ++i) {
      f(offset(tile) + i * row_stride_, rows.data + i * rows.stride, tile.cols);
    }
  }

  template <typename F>
  void each_dtype(const F& f) const {
    if (dtype_ == ScalarType::Double) return f(double());
    with_dtype(dtype_, f);
  }

  int64_t offset(const Tile& tile) const {
    return tile.part.n * n_stride_ + tile.part.c * c_stride_ + tile.row * row_stride_;
  }

  static int64_t pixel_stride(const Tensor& t, const Layout& layout) {
    return layout.w == 1 ? t.stride(2) : t.stride(3);
  }

  static bool even(const Tensor& t, const Layout& layout) {
    const int64_t pixel = pixel_stride(t, layout);
    const bool one_row = layout.h == 1 || layout.w == 1;
    if (!one_row && t.stride(2) != layout.w * pixel) return false;
    if (layout.last) return layout.c == 1 || t.stride(1) == 1;
    return layout.pixels() == 1 || pixel == 1;
  }

  std::optional<Tensor> tensor_;  // kept, as it may be a copy
  bool last_ = false;
  ScalarType dtype_ = ScalarType::Float;
  char* data_ = nullptr;
  int64_t n_stride_ = 0, c_stride_ = 0, row_stride_ = 0;
};

}  // namespace faststy
