// The combined loss, as far as the CPU and CUDA share it: what an element, a group and a term come
// to, and how the work is cut into chunks.
//
// Two passes over chunks. The first finds what the second divides by: the energies of references,
// and of a picture the moments of its colours. The second reads everything, sums values, and writes
// gradients, as by then all factors are known. Every chunk has places of its own for its sums, and
// these are added in the order of the chunks: the same bits, whoever computed which.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#ifdef __CUDACC__
#define FASTSTY_SHARED __host__ __device__ __forceinline__
#define FASTSTY_UNROLL _Pragma("unroll")
namespace faststy {
FASTSTY_SHARED float exponential(float x) { return expf(x); }
}  // namespace faststy
#else
#include "simd.h"
#define FASTSTY_SHARED __attribute__((always_inline)) inline
#define FASTSTY_UNROLL
#endif

namespace faststy::loss {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum class Form : int32_t { bce, hinge, lsgan };
enum class Role : int32_t { generator, real, fake };
enum class Kind : int32_t { logits, pair, picture };
enum class Type : int32_t { f32, f16, bf16 };

constexpr int TERMS = 6;  // adversarial, style, content, variation, colour, repair
constexpr int VARIATION = 3, COLOUR = 4;
constexpr int MOMENTS = 9;  // sums of r, g, b, rr, rg, rb, gg, gb, bb
constexpr double EPS = 1e-6;  // faststy.ops.reference.LOSS_EPS

// A tensor that gets gradients, and what it is compared with.
struct Segment {
  Kind kind;
  Type type;  // of x, b, map and gradient
  Form form;
  Role role;
  int32_t term;
  int32_t last;            // channels last
  const void* x;
  const void* b;           // pair: the reference
  const void* map;         // pair: [groups, pixels], the weight of each pixel, or null
  void* gradient;          // null where none is wanted
  const float* colours;    // picture: [groups, 4, 4], or null
  int64_t groups;          // parts of x that are normalised on their own
  int64_t size;            // numbers in each
  int64_t channels, height, width;
  float eps;               // pair: added to the energy
  float share;             // of a group in its term
  float share_y, share_x;  // picture: of a squared difference of rows, of columns, in its term
  int64_t chunk;           // numbers in a chunk, of a picture rows
  int32_t chunks;          // in a group
  int32_t first_chunk, first_group;
  int32_t first_sum, sums;  // of the first pass: where they start, how many of each chunk
};

// What the second pass needs to know of a group.
struct Group {
  float factor;              // of the sum of squares: share / energy
  float colour;              // the colour term's value
  float matrix[3][4];        // the weighted gradient at the pixel (r, g, b, 1)
};

struct Chunk {
  int32_t group;
  int64_t begin, end;  // numbers of the group, of a picture rows
};

FASTSTY_SHARED Chunk chunk_of(const Segment& s, int32_t index) {
  const int32_t inside = index - s.first_chunk;
  const int64_t whole = s.kind == Kind::picture ? s.height : s.size;
  const int64_t begin = inside % s.chunks * s.chunk;
  const int64_t end = begin + s.chunk;
  return {inside / s.chunks, begin, end < whole ? end : whole};
}

// A discriminator's terms have no weights.
FASTSTY_SHARED float weight_of(const float* weights, int term) {
  return weights == nullptr ? 1.f : weights[term];
}

struct Judged {
  float value, slope;
};

// log(1 + e) for e in 0…1: 2·atanh(e / (2 + e)) by its series, within 2 units in the last place.
FASTSTY_SHARED float log_one_plus(float e) {
  const float s = e / (2.f + e), q = s * s;
  float p = 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  return 2.f * s + 2.f * s * q * p;
}

template <Form form>
FASTSTY_SHARED Judged judge(Role role, float x) {
  const float sign = role == Role::fake ? 1.f : -1.f;
  if constexpr (form == Form::bce) {  // softplus(±x), in a form that never overflows
    const float z = sign * x, e = exponential(z > 0.f ? -z : z);
    const float share = 1.f / (1.f + e);
    return {(z > 0.f ? z : 0.f) + log_one_plus(e), sign * (z > 0.f ? share : e * share)};
  } else if constexpr (form == Form::lsgan) {
    const float d = x - (role == Role::fake ? 0.f : 1.f);
    return {d * d, 2.f * d};
  } else {
    const float margin = 1.f + sign * x;
    if (role == Role::generator) return {sign * x, sign};
    return {margin < 0.f ? 0.f : margin, margin > 0.f ? sign : 0.f};  // NaN stays
  }
}

FASTSTY_SHARED float square(float x) { return x * x; }

FASTSTY_SHARED void add_moments(float r, float g, float b, float (&sums)[MOMENTS]) {
  sums[0] += r, sums[1] += g, sums[2] += b;
  sums[3] += r * r, sums[4] += r * g, sums[5] += r * b;
  sums[6] += g * g, sums[7] += g * b, sums[8] += b * b;
}

// What a picture's pixel adds to the gradient of the variation: it is in four differences, or fewer
// at the border, where a neighbour is the pixel itself.
FASTSTY_SHARED float variation_slope(float x, float up, float down, float left, float right,
                                     float share_y, float share_x) {
  return 2.f * (share_y * (2.f * x - up - down) + share_x * (2.f * x - left - right));
}

FASTSTY_SHARED float colour_slope(const float (&row)[4], float r, float g, float b) {
  return row[0] * r + row[1] * g + row[2] * b + row[3];
}

// The group's factors, from its sums of the first pass.
FASTSTY_SHARED Group group_of(const Segment& s, int64_t index, const double* sums,
                              const float* weights) {
  Group group{};
  if (s.kind == Kind::logits) group.factor = s.share;
  if (s.kind == Kind::pair) group.factor = static_cast<float>(s.share / (sums[0] + s.eps));
  if (s.kind != Kind::picture) return group;
  group.factor = 1.f;
  if (s.colours == nullptr) return group;
  const double pixels = static_cast<double>(s.height) * static_cast<double>(s.width);
  const double moments[4][4] = {{sums[3], sums[4], sums[5], sums[0]},
                                {sums[4], sums[6], sums[7], sums[1]},
                                {sums[5], sums[7], sums[8], sums[2]},
                                {sums[0], sums[1], sums[2], pixels}};
  const float* target = s.colours + 16 * index;
  double error = 0, energy = 0;
  for (int i = 0; i < 16; ++i) {
    const double t = target[i], d = moments[i / 4][i % 4] / (4 * pixels) - t;
    error += d * d;
    energy += t * t;
  }
  if (energy < 1.17549435e-38) energy = 1.17549435e-38;  // faststy.ops.reference.TINY
  group.colour = static_cast<float>(s.share * error / energy);
  const double factor = weight_of(weights, COLOUR) * 2. * s.share / energy / (4 * pixels);
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 4; ++j) {  // x xᵀ moves with both of its factors
      const double d = moments[i][j] / (2 * pixels) - target[4 * i + j] - target[4 * j + i];
      group.matrix[i][j] = static_cast<float>(factor * d);
    }
  }
  return group;
}

// The total, and all in one: terms, total, and 1 where they are finite.
FASTSTY_SHARED void finish(const double (&terms)[TERMS], int count, uint32_t present,
                           const float* weights, float* total, float* losses) {
  bool finite = true;
  double sum = 0;
  FASTSTY_UNROLL
  for (int i = 0; i < TERMS; ++i) {
    if (i >= count) continue;
    losses[i] = static_cast<float>(terms[i]);
    finite = finite && losses[i] - losses[i] == 0.f;
    if (present >> i & 1) sum += double(weight_of(weights, i)) * terms[i];
  }
  *total = losses[count] = static_cast<float>(sum);
  losses[count + 1] = finite && *total - *total == 0.f ? 1.f : 0.f;
}

// --------------------------------------------------------------------------- how work is cut

inline Type type_of(const std::string& name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Half: return Type::f16;
    case ScalarType::BFloat16: return Type::bf16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, float16 or bfloat16");
  }
}

inline bool channels_last(const Tensor& x) {
  if (x.dim() != 4) return false;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// What is read and written number by number, in the order of memory.
inline void check_dense(const std::string& name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_contiguous() || channels_last(x), name, ": expected a dense tensor");
}

struct Plan {
  std::vector<Segment> segments;
  std::vector<Tensor> gradients;
  int32_t chunks = 0, groups = 0, sums = 0;  // known once it is cut
  int64_t numbers = 0;
  uint32_t present = 0;  // a bit for each term that counts
  int32_t terms = TERMS;

  Plan(bool wanted, const Tensor& like) : wanted_(wanted), device_(like.device()) {}

  void logits(const std::string& name, const Tensor& x, const std::string& form, Role role,
              int32_t term, size_t tensors) {
    Segment& s = add(name, Kind::logits, x, term);
    s.form = form == "bce" ? Form::bce : form == "hinge" ? Form::hinge : Form::lsgan;
    STD_TORCH_CHECK(s.form != Form::lsgan || form == "lsgan",
                    "form: expected bce, hinge or lsgan, got ", form);
    s.role = role;
    s.size = x.numel();
    s.share = static_cast<float>(1. / static_cast<double>(tensors) / at_least_one(s.size));
  }

  // A distance relative to the energy of `b`, of the whole or the mean of that of each sample.
  void pair(const std::string& name, const Tensor& x, const Tensor& b, const Tensor* map,
            bool samples, double eps, int32_t term, size_t tensors) {
    Segment& s = add(name, Kind::pair, x, term);
    match(name + " reference", x, b, x.numel());
    s.b = b.data_ptr();
    s.groups = samples ? x.size(0) : 1;
    s.size = s.groups > 0 ? x.numel() / s.groups : 0;
    if (x.dim() == 4) shape(s, x);
    if (map != nullptr) {
      STD_TORCH_CHECK(x.dim() == 4 && map->is_contiguous(), name, " map: expected to be dense");
      match(name + " map", x, *map, s.groups * s.height * s.width);
      s.map = map->data_ptr();
    }
    s.eps = static_cast<float>(eps);
    s.share = static_cast<float>(1. / static_cast<double>(tensors) / at_least_one(s.groups));
    s.sums = 1;
  }

  void picture(const std::string& name, const Tensor& x, const Tensor* colours, double variation,
               size_t tensors) {
    STD_TORCH_CHECK(x.dim() == 4, name, ": expected [N, C, H, W]");
    Segment& s = add(name, Kind::picture, x, VARIATION);
    shape(s, x);
    s.groups = x.size(0);
    s.size = s.channels * s.height * s.width;
    const double planes = static_cast<double>(s.groups * s.channels * static_cast<int64_t>(tensors));
    const double scale = 1. / (variation + EPS);
    s.share_y = static_cast<float>(scale / at_least_one(planes * double((s.height - 1) * s.width)));
    s.share_x = static_cast<float>(scale / at_least_one(planes * double(s.height * (s.width - 1))));
    s.share = static_cast<float>(1. / static_cast<double>(tensors) / at_least_one(s.groups));
    if (colours != nullptr) {
      STD_TORCH_CHECK(s.channels == 3, name, ": expected 3 channels");
      STD_TORCH_CHECK(colours->scalar_type() == ScalarType::Float && colours->is_contiguous() &&
                          colours->numel() == 16 * s.groups,
                      name, " colours: expected float32 [N, 4, 4]");
      STD_TORCH_CHECK(colours->device() == x.device(), name, " colours: on another device");
      s.colours = static_cast<const float*>(colours->data_ptr());
      s.sums = MOMENTS;
      present |= 1u << COLOUR;
    }
  }

  // Cuts all into chunks of that many numbers, or of a few more: whole rows of pictures, and whole
  // pixels where these have a weight each.
  void cut(int64_t numbers_of_chunk) {
    for (Segment& s : segments) {
      const bool picture = s.kind == Kind::picture;
      const int64_t unit = picture ? std::max<int64_t>(s.channels * s.width, 1)
                           : s.map != nullptr && s.last ? std::max<int64_t>(s.channels, 1)
                                                        : 1;
      const int64_t units = std::max<int64_t>((numbers_of_chunk + unit - 1) / unit, 1);
      s.chunk = picture ? units : units * unit;
      const int64_t whole = picture ? s.height : s.size;
      const int64_t count = std::max<int64_t>((whole + s.chunk - 1) / s.chunk, 1);
      STD_TORCH_CHECK(chunks + count * s.groups < std::numeric_limits<int32_t>::max() / MOMENTS,
                      "the combined loss of that many numbers is not supported");
      s.chunks = static_cast<int32_t>(count);
      s.first_chunk = chunks;
      s.first_group = groups;
      s.first_sum = sums;
      const int32_t own = s.chunks * static_cast<int32_t>(s.groups);
      chunks += own;
      sums += own * s.sums;
      groups += static_cast<int32_t>(s.groups);
    }
  }

 private:
  static double at_least_one(double count) { return count < 1 ? 1 : count; }

  Segment& add(const std::string& name, Kind kind, const Tensor& x, int32_t term) {
    check_dense(name, x);
    STD_TORCH_CHECK(x.device() == device_, name, ": on another device");
    Segment s{};
    s.kind = kind;
    s.type = type_of(name, x);
    s.term = term;
    s.x = x.data_ptr();
    s.groups = 1;
    numbers += x.numel();
    if (wanted_) {
      gradients.push_back(torch::stable::empty_like(x));
      s.gradient = gradients.back().data_ptr();
    }
    present |= 1u << term;
    segments.push_back(s);
    return segments.back();
  }

  void match(const std::string& name, const Tensor& x, const Tensor& other, int64_t numel) const {
    STD_TORCH_CHECK(other.numel() == numel, name, ": expected ", numel, " numbers, got ",
                    other.numel());
    STD_TORCH_CHECK(other.scalar_type() == x.scalar_type(), name, ": has another dtype");
    STD_TORCH_CHECK(other.device() == x.device(), name, ": on another device");
    STD_TORCH_CHECK(x.is_contiguous() ? other.is_contiguous() : channels_last(other), name,
                    ": has another memory layout");
  }

  static void shape(Segment& s, const Tensor& x) {
    s.channels = x.size(1), s.height = x.size(2), s.width = x.size(3);
    s.last = !x.is_contiguous();
  }

  bool wanted_;
  torch::stable::Device device_;
};

using Tensors = std::vector<Tensor>;

inline std::string named(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

inline void same_length(const char* name, const Tensors& a, const Tensors& b) {
  STD_TORCH_CHECK(a.size() == b.size(), name, ": expected ", a.size(), " tensors, got ", b.size());
}

inline Plan plan_combined_loss(const Tensors& logits, const Tensors& grams, const Tensors& features,
                               const Tensors& pictures, const Tensors& repaired,
                               const Tensors& targets, const Tensors& references,
                               const Tensors& colours, const Tensors& kept, const Tensors& maps,
                               const Tensor& weights, const std::string& form, double variation,
                               bool gradients) {
  same_length("targets", grams, targets);
  same_length("references", features, references);
  if (!colours.empty()) same_length("colours", pictures, colours);
  same_length("kept", repaired, kept);
  same_length("maps", repaired, maps);
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Float && weights.numel() == TERMS &&
                      weights.is_contiguous(),
                  "weights: expected float32 [6]");
  Plan plan(gradients, weights);
  for (size_t i = 0; i < logits.size(); ++i) {
    plan.logits(named("logits", i), logits[i], form, Role::generator, 0, logits.size());
  }
  for (size_t i = 0; i < grams.size(); ++i) {
    const double tiny = std::numeric_limits<float>::min();
    plan.pair(named("grams", i), grams[i], targets[i], nullptr, true, tiny, 1, grams.size());
  }
  for (size_t i = 0; i < features.size(); ++i) {
    plan.pair(named("features", i), features[i], references[i], nullptr, false, EPS, 2,
              features.size());
  }
  for (size_t i = 0; i < pictures.size(); ++i) {
    plan.picture(named("pictures", i), pictures[i], colours.empty() ? nullptr : &colours[i],
                 variation, pictures.size());
  }
  for (size_t i = 0; i < repaired.size(); ++i) {
    const Tensor& x = repaired[i];
    const double count = x.size(0) > 0 ? double(x.numel()) / double(x.size(0)) : 0;
    plan.pair(named("repaired", i), x, kept[i], &maps[i], true, EPS * count, 5, repaired.size());
  }
  return plan;
}

inline Plan plan_discriminator_loss(const Tensors& real, const Tensors& fake,
                                    const std::string& form, bool gradients) {
  STD_TORCH_CHECK(!real.empty() && !fake.empty(), "logits: expected at least one of each side");
  Plan plan(gradients, real[0]);
  plan.terms = 2;
  for (size_t i = 0; i < real.size(); ++i) {
    plan.logits(named("real", i), real[i], form, Role::real, 0, real.size());
  }
  for (size_t i = 0; i < fake.size(); ++i) {
    plan.logits(named("fake", i), fake[i], form, Role::fake, 1, fake.size());
  }
  return plan;
}

constexpr const char* SCHEMAS[] = {
    "combined_loss_fwd(Tensor[] logits, Tensor[] grams, Tensor[] features, Tensor[] pictures, "
    "Tensor[] repaired, Tensor[] targets, Tensor[] references, Tensor[] colours, Tensor[] kept, "
    "Tensor[] maps, Tensor weights, str form, float variation, bool gradients) "
    "-> (Tensor, Tensor, Tensor[])",
    "discriminator_loss_fwd(Tensor[] real, Tensor[] fake, str form, bool gradients) "
    "-> (Tensor, Tensor, Tensor[])",
    "combined_loss_scale_(Tensor(a!)[] gradients, Tensor scale) -> ()",
};

}  // namespace faststy::loss
