// The combined loss on the CPU: chunks on torch's threads, rows of numbers in SIMD loops.

#include <tuple>

#include "combined_loss.h"
#include "convert.h"
#include "parallel.h"
#include "simd.h"
#include "text.h"

namespace faststy::loss {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t CHUNK = 1 << 14;  // numbers: two or three such arrays lie in a core's cache
constexpr int64_t BLOCK = 1 << 10;  // that many are summed in float, and blocks in double

template <typename F>
void each_type(Type type, const F& f) {
  if (type == Type::f32) return f(float());
  if (type == Type::f16) return f(Half());
  f(BFloat16());
}

// --------------------------------------------------------------------------- rows of numbers

template <typename T>
FASTSTY_CLONES double energy(const T* b, int64_t count) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += square(static_cast<float>(b[i]));
    sum += part;
  }
  return sum;
}

// The same with a weight for each number.
template <typename T>
FASTSTY_CLONES double energy(const T* b, const T* map, int64_t count) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      part += static_cast<float>(map[i]) * square(static_cast<float>(b[i]));
    }
    sum += part;
  }
  return sum;
}

// Σ (x − b)²; writes `slope · (x − b)` where a gradient is wanted.
template <typename T>
FASTSTY_CLONES double distance(const T* x, const T* b, T* gradient, float slope, int64_t count) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
    float part = 0;
    if (gradient == nullptr) {
#pragma omp simd reduction(+ : part)
      for (int64_t i = begin; i < end; ++i) {
        part += square(static_cast<float>(x[i]) - static_cast<float>(b[i]));
      }
    } else {
#pragma omp simd reduction(+ : part)
      for (int64_t i = begin; i < end; ++i) {
        const float d = static_cast<float>(x[i]) - static_cast<float>(b[i]);
        part += d * d;
        gradient[i] = static_cast<T>(slope * d);
      }
    }
    sum += part;
  }
  return sum;
}

// The same with a weight for each number.
template <typename T>
FASTSTY_CLONES double distance(const T* x, const T* b, const T* map, T* gradient, float slope,
                               int64_t count) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      const float d = static_cast<float>(x[i]) - static_cast<float>(b[i]);
      const float weighted = static_cast<float>(map[i]) * d;
      part += weighted * d;
      if (gradient != nullptr) gradient[i] = static_cast<T>(slope * weighted);
    }
    sum += part;
  }
  return sum;
}

// A row of a channel in float, with a number more on each side, which repeats the border: there, as
// above the first row and below the last, a neighbour is the pixel itself.
struct Row {
  const float *up, *here, *down;
  int64_t count;
};

// What the differences to the left and downwards count in the variation.
FASTSTY_CLONES double roughness(const Row& r, float share_y, float share_x) {
  const float *here = r.here, *down = r.down, *left = r.here - 1;
  const int64_t count = r.count;
  float y = 0, x = 0;
#pragma omp simd reduction(+ : y, x)
  for (int64_t i = 0; i < count; ++i) {
    y += square(down[i] - here[i]);
    x += square(here[i] - left[i]);
  }
  return double(y) * share_y + double(x) * share_x;
}

// Writes the gradient of the variation.
template <typename T>
FASTSTY_CLONES void slopes(const Row& row, T* gradient, float share_y, float share_x) {
  const float *up = row.up, *here = row.here, *down = row.down;
  const int64_t count = row.count;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    gradient[i] = static_cast<T>(variation_slope(here[i], up[i], down[i], here[i - 1],
                                                 here[i + 1], share_y, share_x));
  }
}

// Writes that of the colours, too, whose gradient mixes the channels.
template <typename T>
FASTSTY_CLONES void slopes(const Row& row, T* gradient, float share_y, float share_x,
                           const float (&matrix)[4], const float* r, const float* g,
                           const float* b) {
  const float *up = row.up, *here = row.here, *down = row.down;
  const int64_t count = row.count;
  const float m[4] = {matrix[0], matrix[1], matrix[2], matrix[3]};
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float slope = variation_slope(here[i], up[i], down[i], here[i - 1], here[i + 1],
                                        share_y, share_x);
    gradient[i] = static_cast<T>(slope + colour_slope(m, r[i], g[i], b[i]));
  }
}

// Rows of `channels` that lie `stride` apart, to and from a row of pixels.
template <typename T>
FASTSTY_CLONES void from_pixels(const T* from, float* to, int64_t stride, int64_t channels,
                                int64_t pixels) {
  if (channels == 3) {
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      to[i] = static_cast<float>(from[3 * i]);
      to[i + stride] = static_cast<float>(from[3 * i + 1]);
      to[i + 2 * stride] = static_cast<float>(from[3 * i + 2]);
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) to[c * stride + i] = static_cast<float>(from[i * channels + c]);
  }
}

template <typename T>
FASTSTY_CLONES void to_pixels(const float* from, T* to, int64_t stride, int64_t channels,
                              int64_t pixels) {
  if (channels == 3) {
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      to[3 * i] = static_cast<T>(from[i]);
      to[3 * i + 1] = static_cast<T>(from[i + stride]);
      to[3 * i + 2] = static_cast<T>(from[i + 2 * stride]);
    }
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = static_cast<T>(from[c * stride + i]);
  }
}

// Sums over pixels, whose colours are `step` apart, each channel `stride` after the one before.
template <typename T, int64_t step>
FASTSTY_CLONES void moments(const T* x, int64_t stride, int64_t pixels, double* sums) {
  float r_ = 0, g_ = 0, b_ = 0, rr = 0, rg = 0, rb = 0, gg = 0, gb = 0, bb = 0;
#pragma omp simd reduction(+ : r_, g_, b_, rr, rg, rb, gg, gb, bb)
  for (int64_t i = 0; i < pixels; ++i) {
    const float r = x[i * step], g = x[i * step + stride], b = x[i * step + 2 * stride];
    r_ += r, g_ += g, b_ += b;
    rr += r * r, rg += r * g, rb += r * b, gg += g * g, gb += g * b, bb += b * b;
  }
  const float found[MOMENTS] = {r_, g_, b_, rr, rg, rb, gg, gb, bb};
  for (int i = 0; i < MOMENTS; ++i) sums[i] += found[i];
}

template <typename T>
FASTSTY_CLONES void scale_by(T* x, float scale, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<T>(scale * static_cast<float>(x[i]));
}

template <Form form, typename T>
FASTSTY_CLONES double judged(Role role, const T* x, T* gradient, float slope, int64_t count) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      const Judged j = judge<form>(role, static_cast<float>(x[i]));
      part += j.value;
      if (gradient != nullptr) gradient[i] = static_cast<T>(slope * j.slope);
    }
    sum += part;
  }
  return sum;
}

// --------------------------------------------------------------------------- chunks

// Calls f(offset, where its weights start, count, how many numbers share a weight) for stretches of
// a mapped chunk: in planes a weight each, in channels last all channels of a pixel.
template <typename F>
double for_stretches(const Segment& s, const Chunk& c, const F& f) {
  double sum = 0;
  const int64_t pixels = s.height * s.width;
  for (int64_t i = c.begin; i < c.end;) {
    const int64_t first = s.last ? i / s.channels : i % pixels;
    const int64_t count = s.last ? s.channels : std::min(c.end - i, pixels - first);
    sum += f(i, first, count);
    i += count;
  }
  return sum;
}

template <typename T>
void first_pass(const Segment& s, const Chunk& c, double* sums) {
  if (s.kind == Kind::pair) {
    const T* b = static_cast<const T*>(s.b) + c.group * s.size;
    if (s.map == nullptr) {
      *sums = energy(b + c.begin, c.end - c.begin);
      return;
    }
    const T* map = static_cast<const T*>(s.map) + c.group * s.height * s.width;
    *sums = for_stretches(s, c, [&](int64_t i, int64_t weight, int64_t count) {
      if (!s.last) return energy(b + i, map + weight, count);
      return static_cast<double>(static_cast<float>(map[weight])) * energy(b + i, count);
    });
    return;
  }
  std::fill_n(sums, MOMENTS, 0.);
  const T* x = static_cast<const T*>(s.x) + c.group * s.size;
  for (int64_t y = c.begin; y < c.end; ++y) {
    if (s.last) {
      moments<T, 3>(x + y * s.width * 3, 1, s.width, sums);
    } else {
      moments<T, 1>(x + y * s.width, s.height * s.width, s.width, sums);
    }
  }
}

template <typename T>
double pair_chunk(const Segment& s, const Chunk& c, float slope) {
  const int64_t start = c.group * s.size;
  const T* x = static_cast<const T*>(s.x) + start;
  const T* b = static_cast<const T*>(s.b) + start;
  T* gradient = s.gradient == nullptr ? nullptr : static_cast<T*>(s.gradient) + start;
  const auto at = [&](int64_t i) { return gradient == nullptr ? nullptr : gradient + i; };
  if (s.map == nullptr) {
    return distance(x + c.begin, b + c.begin, at(c.begin), slope, c.end - c.begin);
  }
  const T* map = static_cast<const T*>(s.map) + c.group * s.height * s.width;
  return for_stretches(s, c, [&](int64_t i, int64_t weight, int64_t count) {
    if (!s.last) return distance(x + i, b + i, map + weight, at(i), slope, count);
    const float w = static_cast<float>(map[weight]);
    return static_cast<double>(w) * distance(x + i, b + i, at(i), slope * w, count);
  });
}

template <typename T>
double picture_chunk(const Segment& s, const Chunk& c, const Group& group, const float* weights) {
  const int64_t channels = s.channels, width = s.width, plane = s.height * width;
  const T* x = static_cast<const T*>(s.x) + c.group * s.size;
  T* gradient = s.gradient == nullptr ? nullptr : static_cast<T*>(s.gradient) + c.group * s.size;
  if (width == 0) return 0;

  // Three rows, y − 1, y and y + 1 in turn, channel by channel, and one for what is written.
  const int64_t padded = width + 2;
  std::vector<float> rows(4 * channels * padded);
  float* written = rows.data() + 3 * channels * padded;
  const auto row = [&](int64_t y, int64_t channel) {
    const int64_t inside = std::clamp<int64_t>(y, 0, s.height - 1);
    return rows.data() + (inside % 3 * channels + channel) * padded + 1;
  };
  const auto load = [&](int64_t y) {
    if (s.last) {
      from_pixels(x + y * width * channels, row(y, 0), padded, channels, width);
    } else {
      for (int64_t i = 0; i < channels; ++i) widen(x + i * plane + y * width, row(y, i), width);
    }
    for (int64_t i = 0; i < channels; ++i) {
      float* to = row(y, i);
      to[-1] = to[0];
      to[width] = to[width - 1];
    }
  };
  const float weight = weight_of(weights, VARIATION);
  const float share_y = weight * s.share_y, share_x = weight * s.share_x;
  const auto write = [&](const Row& r, int64_t y, int64_t channel, auto* to) {
    if (s.colours == nullptr) return slopes(r, to, share_y, share_x);
    slopes(r, to, share_y, share_x, group.matrix[channel], row(y, 0), row(y, 1), row(y, 2));
  };

  double sum = 0;
  for (int64_t y = std::max<int64_t>(c.begin - 1, 0); y < std::min(c.begin + 1, s.height); ++y) {
    load(y);
  }
  for (int64_t y = c.begin; y < c.end; ++y) {
    if (y + 1 < s.height) load(y + 1);
    for (int64_t i = 0; i < channels; ++i) {
      const Row r{row(y - 1, i), row(y, i), row(y + 1, i), width};
      sum += roughness(r, s.share_y, s.share_x);
      if (gradient == nullptr) continue;
      if (s.last) {
        write(r, y, i, written + i * padded);
      } else {
        write(r, y, i, gradient + i * plane + y * width);
      }
    }
    if (gradient != nullptr && s.last) {
      to_pixels(written, gradient + y * width * channels, padded, channels, width);
    }
  }
  return sum;
}

template <typename T>
double logits_chunk(const Segment& s, const Chunk& c, float slope) {
  const T* x = static_cast<const T*>(s.x) + c.begin;
  T* gradient = s.gradient == nullptr ? nullptr : static_cast<T*>(s.gradient) + c.begin;
  const int64_t count = c.end - c.begin;
  switch (s.form) {
    case Form::bce: return judged<Form::bce>(s.role, x, gradient, slope, count);
    case Form::hinge: return judged<Form::hinge>(s.role, x, gradient, slope, count);
    default: return judged<Form::lsgan>(s.role, x, gradient, slope, count);
  }
}

template <typename T>
double second_pass(const Segment& s, const Chunk& c, const Group& group, const float* weights) {
  if (s.kind == Kind::picture) return picture_chunk<T>(s, c, group, weights);
  const float slope = group.factor * weight_of(weights, s.term);
  return s.kind == Kind::pair ? pair_chunk<T>(s, c, 2 * slope) : logits_chunk<T>(s, c, slope);
}

// --------------------------------------------------------------------------- the ops

// Runs f(segment, its number of the chunk) for all chunks.
template <typename F>
void for_chunks(const Plan& plan, const F& f) {
  for_each(plan.chunks, plan.numbers / std::max(plan.chunks, 1), [&](int64_t i) {
    size_t s = plan.segments.size() - 1;
    while (plan.segments[s].first_chunk > i) --s;
    f(plan.segments[s], static_cast<int32_t>(i));
  });
}

using Losses = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

Losses run(Plan plan, const float* weights) {
  plan.cut(CHUNK);
  std::vector<double> sums(plan.sums), values(plan.chunks);
  double terms[TERMS] = {};
  std::vector<Group> groups(plan.groups);
  for_chunks(plan, [&](const Segment& s, int32_t i) {
    if (s.sums == 0) return;
    double* own = sums.data() + s.first_sum + (i - s.first_chunk) * s.sums;
    each_type(s.type, [&](auto zero) { first_pass<decltype(zero)>(s, chunk_of(s, i), own); });
  });
  for (const Segment& s : plan.segments) {
    const double* chunk = sums.data() + s.first_sum;
    for (int64_t g = 0; g < s.groups; ++g) {
      std::array<double, MOMENTS> sum{};
      for (int32_t i = 0; i < s.chunks; ++i, chunk += s.sums) {
        for (int32_t j = 0; j < s.sums; ++j) sum[j] += chunk[j];
      }
      groups[s.first_group + g] = group_of(s, g, sum.data(), weights);
    }
  }
  for_chunks(plan, [&](const Segment& s, int32_t i) {
    const Chunk chunk = chunk_of(s, i);
    const Group& group = groups[s.first_group + chunk.group];
    each_type(s.type, [&](auto zero) {
      values[i] = second_pass<decltype(zero)>(s, chunk, group, weights);
    });
  });
  for (const Segment& s : plan.segments) {
    const double* chunk = values.data() + s.first_chunk;
    for (int64_t g = 0; g < s.groups; ++g) {
      const Group& group = groups[s.first_group + g];
      double value = 0;
      for (int32_t i = 0; i < s.chunks; ++i) value += *chunk++;
      terms[s.term] += value * group.factor;
      if (s.kind == Kind::picture) terms[COLOUR] += group.colour;
    }
  }
  Tensor total = torch::stable::empty({}, ScalarType::Float);
  Tensor losses = torch::stable::empty({plan.terms + 2}, ScalarType::Float);
  finish(terms, plan.terms, plan.present, weights, static_cast<float*>(total.data_ptr()),
         static_cast<float*>(losses.data_ptr()));
  return {total, losses, std::move(plan.gradients)};
}

Losses combined_loss_fwd(const Tensors& logits, const Tensors& grams, const Tensors& features,
                         const Tensors& pictures, const Tensors& repaired, const Tensors& targets,
                         const Tensors& references, const Tensors& colours, const Tensors& kept,
                         const Tensors& maps, const Tensor& weights, StringHandle form,
                         double variation, bool gradients) {
  Plan plan = plan_combined_loss(logits, grams, features, pictures, repaired, targets, references,
                                 colours, kept, maps, weights, text(form), variation, gradients);
  return run(std::move(plan), static_cast<const float*>(weights.data_ptr()));
}

Losses discriminator_loss_fwd(const Tensors& real, const Tensors& fake, StringHandle form,
                              bool gradients) {
  return run(plan_discriminator_loss(real, fake, text(form), gradients), nullptr);
}

void combined_loss_scale_(Tensors gradients, Tensor scale) {
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float && scale.numel() == 1,
                  "scale: expected one float32 number");
  for (const Tensor& gradient : gradients) check_dense("gradients", gradient);
  const float factor = *static_cast<const float*>(scale.data_ptr());
  if (factor == 1.f) return;
  for (const Tensor& gradient : gradients) {
    char* data = static_cast<char*>(gradient.data_ptr());
    const int64_t size = static_cast<int64_t>(gradient.element_size()), count = gradient.numel();
    for_each((count + CHUNK - 1) / CHUNK, CHUNK, [&](int64_t i) {
      char* start = data + i * CHUNK * size;
      const int64_t length = std::min(CHUNK, count - i * CHUNK);
      each_type(type_of("gradients", gradient), [&](auto zero) {
        scale_by(reinterpret_cast<decltype(zero)*>(start), factor, length);
      });
    });
  }
}

}  // namespace
}  // namespace faststy::loss

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  for (const char* schema : faststy::loss::SCHEMAS) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CPU, m) {
  m.impl("combined_loss_fwd", TORCH_BOX(&faststy::loss::combined_loss_fwd));
  m.impl("discriminator_loss_fwd", TORCH_BOX(&faststy::loss::discriminator_loss_fwd));
  m.impl("combined_loss_scale_", TORCH_BOX(&faststy::loss::combined_loss_scale_));
}
