// Borders, maxima and averages of nets in training on the CPU: the raw ops of
// faststy/ops/reflection_pad.py, max_pool.py and averages.py. What they compute is said in
// faststy/ops/reference.py. Torch has them, too, but is slow at them in channels_last.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <vector>

#include "features.h"
#include "parallel.h"
#include "simd.h"

namespace faststy {
namespace {

// Pictures as they lie in memory, [n, h, w, c]: planes are pictures of one channel.
struct Pictures {
  int64_t n, h, w, c;

  explicit Pictures(const Layout& x)
      : n(x.last ? x.n : x.n * x.c), h(x.h), w(x.w), c(x.last ? x.c : 1) {}
};

Layout sized(Layout x, int64_t h, int64_t w) {
  x.h = h, x.w = w;
  return x;
}

template <typename T>
FASTSTY_CLONES void add(const T* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] += static_cast<float>(from[i]);
}

// ------------------------------------------------------------------------------ reflection_pad

Tensor reflection_pad_fwd(Tensor x, int64_t pad) {
  check_features(x, "x");
  const Layout layout(x);
  STD_TORCH_CHECK(0 <= pad && pad < std::min(layout.h, layout.w), "pad: expected less than H and W");
  x = torch::stable::contiguous(x, layout.format());
  const Layout padded = sized(layout, layout.h + 2 * pad, layout.w + 2 * pad);
  Tensor y = padded.empty(x.scalar_type());
  const Pictures in(layout), out(padded);
  const int64_t pixel = in.c * static_cast<int64_t>(x.element_size());
  const char* data = static_cast<const char*>(x.data_ptr());
  char* result = static_cast<char*>(y.data_ptr());
  for_each(out.n * out.h, out.w * out.c, [&](int64_t i) {
    int64_t row = std::abs(i % out.h - pad);
    if (row >= in.h) row = 2 * (in.h - 1) - row;
    const char* from = data + (i / out.h * in.h + row) * in.w * pixel;
    char* to = result + i * out.w * pixel;
    std::memcpy(to + pad * pixel, from, in.w * pixel);
    for (int64_t k = 0; k < pad; ++k) {
      std::memcpy(to + k * pixel, from + (pad - k) * pixel, pixel);
      std::memcpy(to + (pad + in.w + k) * pixel, from + (in.w - 2 - k) * pixel, pixel);
    }
  });
  return y;
}

// Where line i of `size` has gone to in padding, in ascending order.
struct Places {
  std::array<int64_t, 3> at;
  int count = 0;

  Places(int64_t i, int64_t size, int64_t pad) {
    if (1 <= i && i <= pad) at[count++] = pad - i;
    at[count++] = pad + i;
    if (size - 1 - pad <= i && i < size - 1) at[count++] = pad + 2 * (size - 1) - i;
  }
};

Tensor reflection_pad_bwd(Tensor dy, int64_t pad, bool channels_last) {
  check_features(dy, "dy");
  Layout padded(dy);
  padded.last = channels_last && padded.c > 1;
  const Layout layout = sized(padded, padded.h - 2 * pad, padded.w - 2 * pad);
  STD_TORCH_CHECK(0 <= pad && pad < std::min(layout.h, layout.w), "pad: expected less than H and W");
  dy = torch::stable::contiguous(dy, layout.format());
  Tensor dx = layout.empty(dy.scalar_type());
  const Pictures in(padded), out(layout);
  with_dtype(dy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(dy.data_ptr());
    T* result = static_cast<T*>(dx.data_ptr());
    for_each(out.n * out.h, out.w * out.c, [&](int64_t i) {
      const Places rows(i % out.h, out.h, pad);
      const T* picture = data + i / out.h * in.h * in.w * in.c;
      T* to = result + i * out.w * out.c;
      std::vector<float> sum(out.c);
      const auto pixels = [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; ++x) {
          const Places columns(x, out.w, pad);
          std::fill(sum.begin(), sum.end(), 0.f);
          for (int a = 0; a < rows.count; ++a) {
            for (int b = 0; b < columns.count; ++b) {
              add(picture + (rows.at[a] * in.w + columns.at[b]) * in.c, sum.data(), out.c);
            }
          }
          narrow(sum.data(), to + x * out.c, out.c);
        }
      };
      // Most pixels have gone to one place.
      const int64_t begin = std::min(pad + 1, out.w);
      const int64_t end = std::max(out.w - 1 - pad, begin);
      if (rows.count > 1 || begin == end) return pixels(0, out.w);
      pixels(0, begin);
      std::memcpy(to + begin * out.c, picture + (rows.at[0] * in.w + pad + begin) * in.c,
                  (end - begin) * out.c * sizeof(T));
      pixels(end, out.w);
    });
  });
  return dx;
}

// ------------------------------------------------------------------------------ max_pool

// The number of the largest of four, the first of equal ones, the last NaN if there is any.
__attribute__((always_inline)) inline int32_t largest(float a, float b, float c, float d,
                                                      float& most) {
  most = a;
  int32_t which = 0;
  const auto next = [&](float value, int32_t number) __attribute__((always_inline)) {
    const bool more = value > most || value != value;
    most = more ? value : most;
    which = more ? number : which;
  };
  next(b, 1), next(c, 2), next(d, 3);
  return which;
}

// Maxima of `w` windows of two lines.
template <typename T>
FASTSTY_CLONES void maxima(const T* upper, const T* lower, T* to, int64_t w, int64_t c) {
  for (int64_t x = 0; x < w; ++x) {
    const T *first = upper + 2 * x * c, *second = lower + 2 * x * c;
    T* out = to + x * c;
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) {
      float most;
      largest(first[j], first[c + j], second[j], second[c + j], most);
      if constexpr (sizeof(T) == 2) {  // as bits: copies of a class do not vectorise
        (&out->x)[j] = T(most).x;
      } else {
        out[j] = most;
      }
    }
  }
}

// Gradients go where the maxima were, which are zeros elsewhere: `upper` and `lower` are dx.
template <typename T>
FASTSTY_CLONES void maxima_bwd(const T* dy, const T* x_upper, const T* x_lower, T* upper, T* lower,
                               int64_t w, int64_t c) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  for (int64_t x = 0; x < w; ++x) {
    const T *first = x_upper + 2 * x * c, *second = x_lower + 2 * x * c;
    const Bits* g = reinterpret_cast<const Bits*>(dy + x * c);
    Bits* to_first = reinterpret_cast<Bits*>(upper + 2 * x * c);
    Bits* to_second = reinterpret_cast<Bits*>(lower + 2 * x * c);
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) {
      float most;
      const int32_t which = largest(first[j], first[c + j], second[j], second[c + j], most);
      to_first[j] = which == 0 ? g[j] : 0;
      to_first[c + j] = which == 1 ? g[j] : 0;
      to_second[j] = which == 2 ? g[j] : 0;
      to_second[c + j] = which == 3 ? g[j] : 0;
    }
  }
}

Tensor max_pool_fwd(Tensor x) {
  check_features(x, "x");
  const Layout layout(x), halved = sized(layout, layout.h / 2, layout.w / 2);
  STD_TORCH_CHECK(halved.h > 0 && halved.w > 0, "x: expected H and W of at least 2");
  x = torch::stable::contiguous(x, layout.format());
  Tensor y = halved.empty(x.scalar_type());
  const Pictures in(layout), out(halved);
  with_dtype(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(x.data_ptr());
    T* result = static_cast<T*>(y.data_ptr());
    const int64_t line = in.w * in.c;
    for_each(out.n * out.h, 2 * line, [&](int64_t i) {
      const T* upper = data + (i / out.h * in.h + 2 * (i % out.h)) * line;
      maxima(upper, upper + line, result + i * out.w * out.c, out.w, out.c);
    });
  });
  return y;
}

Tensor max_pool_bwd(Tensor dy, Tensor x) {
  check_features(x, "x");
  const Layout layout(x), halved = sized(layout, layout.h / 2, layout.w / 2);
  check_like(dy, "dy", halved);
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type(), "dy: expected the dtype of x");
  x = torch::stable::contiguous(x, layout.format());
  dy = torch::stable::contiguous(dy, layout.format());
  Tensor dx = layout.empty(x.scalar_type());
  const Pictures in(layout), out(halved);
  with_dtype(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T *data = static_cast<const T*>(x.data_ptr()), *g = static_cast<const T*>(dy.data_ptr());
    T* result = static_cast<T*>(dx.data_ptr());
    const int64_t line = in.w * in.c, used = 2 * out.w * in.c;
    const auto clear = [&](T* from, int64_t count) {  // zero is no bit set
      std::memset(static_cast<void*>(from), 0, count * sizeof(T));
    };
    const int64_t pairs = (in.h + 1) / 2;  // of lines, the last of which may be one
    for_each(in.n * pairs, 2 * line, [&](int64_t i) {
      const int64_t sample = i / pairs, row = i % pairs;
      const int64_t at = (sample * in.h + 2 * row) * line;
      T *upper = result + at, *lower = upper + line;
      if (row == out.h) return clear(upper, line);
      maxima_bwd(g + (sample * out.h + row) * out.w * out.c, data + at, data + at + line, upper,
                 lower, out.w, out.c);
      clear(upper + used, line - used), clear(lower + used, line - used);
    });
  });
  return dx;
}

// ------------------------------------------------------------------------------ averages

// to += the sum of `scale` pixels beside each other, for each of `w`. In the order that torch adds
// them in, so that the bits are the same.
template <typename T>
FASTSTY_CLONES void sum_line(const T* from, float* to, int64_t w, int64_t c, int64_t scale) {
  for (int64_t x = 0; x < w; ++x) {
    for (int64_t j = 0; j < c; ++j) {
      float sum = to[x * c + j];
      for (int64_t k = 0; k < scale; ++k) sum += static_cast<float>(from[(x * scale + k) * c + j]);
      to[x * c + j] = sum;
    }
  }
}

std::tuple<Tensor, Tensor> averages_fwd(Tensor x) {
  check_features(x, "x");
  const Layout layout(x), halved = sized(layout, layout.h / 2, layout.w / 2);
  const Layout quartered = sized(layout, layout.h / 4, layout.w / 4);
  STD_TORCH_CHECK(quartered.h > 0 && quartered.w > 0, "x: expected H and W of at least 4");
  x = torch::stable::contiguous(x, layout.format());
  Tensor half = halved.empty(x.scalar_type()), quarter = quartered.empty(x.scalar_type());
  const Pictures in(layout), h(halved), q(quartered);
  with_dtype(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(x.data_ptr());
    T *halves = static_cast<T*>(half.data_ptr()), *quarters = static_cast<T*>(quarter.data_ptr());
    const int64_t line = in.w * in.c, h_line = h.w * h.c, q_line = q.w * q.c;
    const int64_t pairs = (h.h + 1) / 2;  // of lines of halves, the last of which may be one
    for_each(h.n * pairs, 4 * line, [&](int64_t i) {
      const int64_t sample = i / pairs, row = i % pairs;
      const T* lines = data + (sample * in.h + 4 * row) * line;
      for (int64_t r = 2 * row; r < std::min(2 * row + 2, h.h); ++r) {
        const T* upper = data + (sample * in.h + 2 * r) * line;
        std::vector<float> sum(h_line);
        sum_line(upper, sum.data(), h.w, h.c, 2);
        sum_line(upper + line, sum.data(), h.w, h.c, 2);
        for (float& value : sum) value /= 4;
        narrow(sum.data(), halves + (sample * h.h + r) * h_line, h_line);
      }
      if (row == q.h) return;
      std::vector<float> sum(q_line);
      for (int64_t r = 0; r < 4; ++r) sum_line(lines + r * line, sum.data(), q.w, q.c, 4);
      for (float& value : sum) value /= 16;
      narrow(sum.data(), quarters + (sample * q.h + row) * q_line, q_line);
    });
  });
  return {half, quarter};
}

// to += by · from, each pixel of `from` for `scale` pixels beside each other.
template <typename T>
FASTSTY_CLONES void spread_line(const T* from, float by, float* to, int64_t w, int64_t c,
                                int64_t scale) {
  for (int64_t x = 0; x < w; ++x) {
    for (int64_t k = 0; k < scale; ++k) {
      float* pixel = to + (x * scale + k) * c;
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) pixel[j] += by * static_cast<float>(from[x * c + j]);
    }
  }
}

Tensor averages_bwd(Tensor dhalf, Tensor dquarter, int64_t height, int64_t width,
                    bool channels_last) {
  check_features(dhalf, "dhalf");
  Layout halved(dhalf);
  halved.last = channels_last && halved.c > 1;
  STD_TORCH_CHECK(halved.h == height / 2 && halved.w == width / 2, "dhalf: expected half the size");
  const Layout layout = sized(halved, height, width);
  const Layout quartered = sized(halved, height / 4, width / 4);
  check_like(dquarter, "dquarter", quartered);
  STD_TORCH_CHECK(dquarter.scalar_type() == dhalf.scalar_type(), "dquarter: expected one dtype");
  dhalf = torch::stable::contiguous(dhalf, layout.format());
  dquarter = torch::stable::contiguous(dquarter, layout.format());
  Tensor dx = layout.empty(dhalf.scalar_type());
  const Pictures out(layout), h(halved), q(quartered);
  with_dtype(dx.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* halves = static_cast<const T*>(dhalf.data_ptr());
    const T* quarters = static_cast<const T*>(dquarter.data_ptr());
    T* result = static_cast<T*>(dx.data_ptr());
    const int64_t line = out.w * out.c, pairs = (out.h + 1) / 2;
    for_each(out.n * pairs, 2 * line, [&](int64_t i) {  // both lines of a pair are the same
      const int64_t sample = i / pairs, row = i % pairs;
      std::vector<float> sum(line);
      if (row < h.h) {
        spread_line(halves + (sample * h.h + row) * h.w * h.c, 1.f / 4, sum.data(), h.w, h.c, 2);
      }
      if (row / 2 < q.h) {
        spread_line(quarters + (sample * q.h + row / 2) * q.w * q.c, 1.f / 16, sum.data(), q.w, q.c,
                    4);
      }
      T* to = result + (sample * out.h + 2 * row) * line;
      narrow(sum.data(), to, line);
      if (2 * row + 1 < out.h) std::copy_n(to, line, to + line);
    });
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("reflection_pad_fwd(Tensor x, int pad) -> Tensor");
  m.def("reflection_pad_bwd(Tensor dy, int pad, bool channels_last) -> Tensor");
  m.def("max_pool_fwd(Tensor x) -> Tensor");
  m.def("max_pool_bwd(Tensor dy, Tensor x) -> Tensor");
  m.def("averages_fwd(Tensor x) -> (Tensor, Tensor)");
  m.def(
      "averages_bwd(Tensor dhalf, Tensor dquarter, int height, int width, bool channels_last) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("reflection_pad_fwd", TORCH_BOX(&reflection_pad_fwd));
  m.impl("reflection_pad_bwd", TORCH_BOX(&reflection_pad_bwd));
  m.impl("max_pool_fwd", TORCH_BOX(&max_pool_fwd));
  m.impl("max_pool_bwd", TORCH_BOX(&max_pool_bwd));
  m.impl("averages_fwd", TORCH_BOX(&averages_fwd));
  m.impl("averages_bwd", TORCH_BOX(&averages_bwd));
}

}  // namespace faststy
