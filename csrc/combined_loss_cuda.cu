// The combined loss on a CUDA device: a block for each chunk, all tensors in one launch for each of
// the two passes; where nothing is relative to anything (a discriminator's losses), in one launch.
//
// The last block to end a pass adds up what all blocks have left, in the order of the chunks.

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "combined_loss.h"

// In builds of torch for CUDA only; weak, so that the library can be loaded with any.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace faststy::loss {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int THREADS = 256, WARP = 32, WARPS = THREADS / WARP;
constexpr int BLOCKS = 2;  // on a multiprocessor, at least
constexpr int64_t SMALLEST_CHUNK = 4096, MOST_CHUNKS = 4096;
constexpr int MOST_SEGMENTS = 25;  // what kernels can take as an argument
constexpr int MOST_SCALED = 128;

struct Table {
  Segment segments[MOST_SEGMENTS];
  int32_t count, groups, chunks, terms;
  uint32_t present;
  const float* weights;
  double *sums, *values, *group_values;
  Group* factors;
  unsigned* done;  // blocks that have ended, of each pass
  float *total, *losses;
};
static_assert(sizeof(Table) <= 4096, "kernel arguments");

// --------------------------------------------------------------------------- numbers

template <typename T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T numbers[SIZE];
};

template <typename F>
__device__ void each_type(Type type, const F& f) {
  if (type == Type::f32) return f(float());
  if (type == Type::f16) return f(Half());
  f(BFloat16());
}

__device__ bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

__device__ double warp_sum(double x) {
  for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_down_sync(0xffffffffu, x, lane);
  return x;  // in the first lane
}

// Sum over a block, in its first thread. `scratch` may be used again after a __syncthreads().
__device__ double block_sum(float x, double* scratch) {
  const double part = warp_sum(x);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = part;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < WARPS; ++i) sum += scratch[i];
  }
  return sum;
}

// Whether this block is the last of its pass to come here: then all that the others wrote is there.
__device__ bool is_last(unsigned* done) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(done, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

__device__ const Segment& segment_of(const Table& table, int32_t chunk) {
  int32_t i = table.count - 1;
  while (table.segments[i].first_chunk > chunk) --i;
  return table.segments[i];
}

// Runs f(segment, group) once per group, by the threads of a warp.
template <typename F>
__device__ void for_groups(const Table& table, const F& f) {
  for (int32_t g = threadIdx.x / WARP; g < table.groups; g += WARPS) {
    int32_t i = table.count - 1;
    while (table.segments[i].first_group > g) --i;
    f(table.segments[i], g - table.segments[i].first_group);
  }
}

// Sum of every `stride`-th of `count` numbers, in the first lane of a warp.
__device__ double sum_of(const double* numbers, int32_t count, int32_t stride) {
  double sum = 0;
  for (int32_t i = threadIdx.x % WARP; i < count; i += WARP) sum += numbers[int64_t(i) * stride];
  return warp_sum(sum);
}

__device__ Group factors_of(const Table& table, const Segment& s, int64_t group) {
  if (s.sums > 0) return table.factors[s.first_group + group];
  return group_of(s, group, nullptr, table.weights);
}

// The weights of a mapped pair's numbers from the i-th to the end of its pixel or row.
template <typename T>
struct Weights {
  const T* from;
  bool each;  // or all have the first

  __device__ Weights(const Segment& s, const T* map, int64_t i) : from(map), each(s.last == 0) {
    if (map != nullptr) from += s.last ? i / s.channels : i % (s.height * s.width);
  }
  __device__ float operator[](int j) const {
    return from == nullptr ? 1.f : static_cast<float>(from[each ? j : 0]);
  }
};

// Runs pack(i) for the packs of a chunk that start at the i-th number, where whole packs can be
// read, and single(i) for what is left. No pack reaches over the end of a mapped pixel or plane.
template <typename T, typename Packs, typename Single>
__device__ void for_numbers(const Segment& s, const Chunk& c, bool packs, const T* map,
                            const Packs& pack, const Single& single) {
  constexpr int SIZE = Pack<T>::SIZE;
  int64_t rest = c.begin;
  if (packs && (map == nullptr || (s.last ? s.channels : s.height * s.width) % SIZE == 0)) {
    const int64_t count = (c.end - c.begin) / SIZE;
    rest += count * SIZE;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += THREADS) pack(c.begin + i * SIZE);
  }
  for (int64_t i = rest + threadIdx.x; i < c.end; i += THREADS) single(i);
}

// --------------------------------------------------------------------------- the first pass

template <typename T>
__device__ float energy(const Segment& s, const Chunk& c) {
  const T* b = static_cast<const T*>(s.b) + c.group * s.size;
  const T* map = static_cast<const T*>(s.map);
  if (map != nullptr) map += c.group * s.height * s.width;
  float sum = 0;
  for_numbers<T>(
      s, c, aligned(b + c.begin), map,
      [&](int64_t i) {
        const Pack<T> of_b = *reinterpret_cast<const Pack<T>*>(b + i);
        const Weights<T> weights(s, map, i);
        for (int j = 0; j < Pack<T>::SIZE; ++j) {
          sum += weights[j] * square(static_cast<float>(of_b.numbers[j]));
        }
      },
      [&](int64_t i) { sum += Weights<T>(s, map, i)[0] * square(static_cast<float>(b[i])); });
  return sum;
}

template <typename T>
__device__ void moments(const Segment& s, const Chunk& c, float (&sums)[MOMENTS]) {
  const T* x = static_cast<const T*>(s.x) + c.group * s.size;
  const int64_t pixel = s.last ? 3 : 1, channel = s.last ? 1 : s.height * s.width;
  for (int64_t i = c.begin * s.width + threadIdx.x; i < c.end * s.width; i += THREADS) {
    const T* p = x + i * pixel;
    add_moments(static_cast<float>(p[0]), static_cast<float>(p[channel]),
                static_cast<float>(p[2 * channel]), sums);
  }
}

__global__ void __launch_bounds__(THREADS, BLOCKS)
    first_pass_kernel(const __grid_constant__ Table table) {
  __shared__ double scratch[WARPS];
  const int32_t index = static_cast<int32_t>(blockIdx.x);
  const Segment& s = segment_of(table, index);
  const Chunk c = chunk_of(s, index);
  double* own = table.sums + s.first_sum + int64_t(index - s.first_chunk) * s.sums;
  float sums[MOMENTS] = {};
  if (s.sums > 0) {
    each_type(s.type, [&](auto zero) {
      using T = decltype(zero);
      if (s.kind == Kind::pair) {
        sums[0] = energy<T>(s, c);
      } else {
        moments<T>(s, c, sums);
      }
    });
  }
#pragma unroll
  for (int i = 0; i < MOMENTS; ++i) {
    if (i >= s.sums) break;
    const double sum = block_sum(sums[i], scratch);
    if (threadIdx.x == 0) own[i] = sum;
    __syncthreads();
  }
  if (!is_last(table.done)) return;
  for_groups(table, [&](const Segment& of, int64_t group) {
    if (of.sums == 0) return;
    const double* chunk = table.sums + of.first_sum + group * of.chunks * of.sums;
    double sum[MOMENTS];
#pragma unroll
    for (int i = 0; i < MOMENTS; ++i) {
      sum[i] = i < of.sums ? sum_of(chunk + i, of.chunks, of.sums) : 0;
    }
    if (threadIdx.x % WARP == 0) {
      table.factors[of.first_group + group] = group_of(of, group, sum, table.weights);
    }
  });
}

// --------------------------------------------------------------------------- the second pass

template <typename T>
__device__ float pair_chunk(const Segment& s, const Chunk& c, float slope) {
  const int64_t start = c.group * s.size;
  const T* x = static_cast<const T*>(s.x) + start;
  const T* b = static_cast<const T*>(s.b) + start;
  const T* map = static_cast<const T*>(s.map);
  if (map != nullptr) map += c.group * s.height * s.width;
  T* gradient = s.gradient == nullptr ? nullptr : static_cast<T*>(s.gradient) + start;
  const bool packs = aligned(x + c.begin) && aligned(b + c.begin) &&
                     (gradient == nullptr || aligned(gradient + c.begin));
  float sum = 0;
  const auto distance = [&](float weight, T of_x, T of_b) {
    const float d = static_cast<float>(of_x) - static_cast<float>(of_b);
    const float weighted = weight * d;
    sum += weighted * d;
    return static_cast<T>(slope * weighted);
  };
  for_numbers<T>(
      s, c, packs, map,
      [&](int64_t i) {
        const Pack<T> of_x = *reinterpret_cast<const Pack<T>*>(x + i);
        const Pack<T> of_b = *reinterpret_cast<const Pack<T>*>(b + i);
        const Weights<T> weights(s, map, i);
        Pack<T> result;
        for (int j = 0; j < Pack<T>::SIZE; ++j) {
          result.numbers[j] = distance(weights[j], of_x.numbers[j], of_b.numbers[j]);
        }
        if (gradient != nullptr) *reinterpret_cast<Pack<T>*>(gradient + i) = result;
      },
      [&](int64_t i) {
        const T result = distance(Weights<T>(s, map, i)[0], x[i], b[i]);
        if (gradient != nullptr) gradient[i] = result;
      });
  return sum;
}

template <typename T>
__device__ float picture_chunk(const Segment& s, const Chunk& c, const Group& group,
                               float weight) {
  const int64_t pixel = s.last ? s.channels : 1, channel = s.last ? 1 : s.height * s.width;
  const T* x = static_cast<const T*>(s.x) + c.group * s.size;
  T* gradient = s.gradient == nullptr ? nullptr : static_cast<T*>(s.gradient) + c.group * s.size;
  float sum = 0;
  for (int64_t i = c.begin * s.width + threadIdx.x; i < c.end * s.width; i += THREADS) {
    const int64_t column = i % s.width, row = i / s.width;
    const int64_t up = row > 0 ? -s.width * pixel : 0;
    const int64_t down = row + 1 < s.height ? s.width * pixel : 0;
    const int64_t left = column > 0 ? -pixel : 0;
    const int64_t right = column + 1 < s.width ? pixel : 0;
    const T* p = x + i * pixel;
    for (int64_t k = 0; k < s.channels; ++k) {
      const T* at = p + k * channel;
      const float here = static_cast<float>(*at);
      const float below = static_cast<float>(at[down]), before = static_cast<float>(at[left]);
      sum += s.share_y * square(below - here) + s.share_x * square(here - before);
      if (gradient == nullptr) continue;
      float slope = weight * variation_slope(here, static_cast<float>(at[up]), below, before,
                                             static_cast<float>(at[right]), s.share_y, s.share_x);
      if (s.colours != nullptr) {
        const float* m = group.matrix[k];
        slope += m[0] * static_cast<float>(p[0]) + m[1] * static_cast<float>(p[channel]) +
                 m[2] * static_cast<float>(p[2 * channel]) + m[3];
      }
      gradient[i * pixel + k * channel] = static_cast<T>(slope);
    }
  }
  return sum;
}

template <typename T>
__device__ float logits_chunk(const Segment& s, const Chunk& c, float slope) {
  const T* x = static_cast<const T*>(s.x);
  T* gradient = static_cast<T*>(s.gradient);
  float sum = 0;
  for (int64_t i = c.begin + threadIdx.x; i < c.end; i += THREADS) {
    const float logit = static_cast<float>(x[i]);
    const Judged j = s.form == Form::bce     ? judge<Form::bce>(s.role, logit)
                     : s.form == Form::hinge ? judge<Form::hinge>(s.role, logit)
                                             : judge<Form::lsgan>(s.role, logit);
    sum += j.value;
    if (gradient != nullptr) gradient[i] = static_cast<T>(slope * j.slope);
  }
  return sum;
}

__global__ void __launch_bounds__(THREADS, BLOCKS)
    second_pass_kernel(const __grid_constant__ Table table) {
  __shared__ double scratch[WARPS];
  __shared__ Group group;
  const int32_t index = static_cast<int32_t>(blockIdx.x);
  if (index < table.chunks) {
    const Segment& s = segment_of(table, index);
    const Chunk c = chunk_of(s, index);
    if (threadIdx.x == 0) group = factors_of(table, s, c.group);
    __syncthreads();
    const float weight = weight_of(table.weights, s.term);
    float value = 0;
    each_type(s.type, [&](auto zero) {
      using T = decltype(zero);
      if (s.kind == Kind::pair) value = pair_chunk<T>(s, c, 2 * group.factor * weight);
      if (s.kind == Kind::picture) value = picture_chunk<T>(s, c, group, weight);
      if (s.kind == Kind::logits) value = logits_chunk<T>(s, c, group.factor * weight);
    });
    const double sum = block_sum(value, scratch);
    if (threadIdx.x == 0) table.values[index] = sum;
  }
  if (!is_last(table.done + 1)) return;
  for_groups(table, [&](const Segment& of, int64_t g) {
    const double value = sum_of(table.values + of.first_chunk + g * of.chunks, of.chunks, 1);
    if (threadIdx.x % WARP == 0) table.group_values[of.first_group + g] = value;
  });
  __syncthreads();
  if (threadIdx.x > 0) return;
  double terms[TERMS] = {};
  for (int32_t i = 0; i < table.count; ++i) {
    const Segment& of = table.segments[i];
    double value = 0, colour = 0;
    for (int64_t g = 0; g < of.groups; ++g) {
      const Group found = factors_of(table, of, g);
      value += table.group_values[of.first_group + g] * found.factor;
      colour += found.colour;
    }
#pragma unroll
    for (int t = 0; t < TERMS; ++t) {
      if (t == of.term) terms[t] += value;
    }
    terms[COLOUR] += colour;
  }
  finish(terms, table.terms, table.present, table.weights, table.total, table.losses);
}

// --------------------------------------------------------------------------- scaling

struct Scaled {
  void* data[MOST_SCALED];
  int64_t count[MOST_SCALED];
  int8_t type[MOST_SCALED];
};
static_assert(sizeof(Scaled) + sizeof(float*) <= 4096, "kernel arguments");

__global__ void __launch_bounds__(THREADS)
    scale_kernel(const __grid_constant__ Scaled scaled, const float* scale) {
  const float factor = *scale;
  if (factor == 1.f) return;  // as nearly always: nothing is read
  const int64_t count = scaled.count[blockIdx.y];
  each_type(static_cast<Type>(scaled.type[blockIdx.y]), [&](auto zero) {
    using T = decltype(zero);
    constexpr int SIZE = Pack<T>::SIZE;
    T* x = static_cast<T*>(scaled.data[blockIdx.y]);
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t step = int64_t(gridDim.x) * THREADS, packs = aligned(x) ? count / SIZE : 0;
    for (int64_t i = first; i < packs; i += step) {
      Pack<T> pack = reinterpret_cast<Pack<T>*>(x)[i];
      for (T& number : pack.numbers) number = static_cast<T>(factor * static_cast<float>(number));
      reinterpret_cast<Pack<T>*>(x)[i] = pack;
    }
    for (int64_t i = packs * SIZE + first; i < count; i += step) {
      x[i] = static_cast<T>(factor * static_cast<float>(x[i]));
    }
  });
}

// --------------------------------------------------------------------------- the ops

using Losses = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

cudaStream_t current_stream(const Tensor& x) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "combined_loss: ", cudaGetErrorString(error));
}

int64_t chunk_for(const std::vector<const Tensors*>& lists) {
  int64_t numbers = 0;
  for (const Tensors* list : lists) {
    for (const Tensor& x : *list) numbers += x.numel();
  }
  const int64_t wanted = (numbers / MOST_CHUNKS + SMALLEST_CHUNK - 1) / SMALLEST_CHUNK;
  return std::max<int64_t>(wanted, 1) * SMALLEST_CHUNK;
}

Losses run(Plan plan, const Tensor& like, const float* weights) {
  STD_TORCH_CHECK(plan.segments.size() <= MOST_SEGMENTS, "combined_loss: expected at most ",
                  MOST_SEGMENTS, " tensors on a CUDA device, got ", plan.segments.size());
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const cudaStream_t stream = current_stream(like);
  Tensor total = torch::stable::new_empty(like, {}, ScalarType::Float);
  Tensor losses = torch::stable::new_empty(like, {plan.terms + 2}, ScalarType::Float);

  constexpr int64_t GROUP = (sizeof(Group) + sizeof(double) - 1) / sizeof(double);
  const int64_t size = plan.sums + plan.chunks + (1 + GROUP) * plan.groups + 1;
  Tensor memory = torch::stable::new_empty(like, {size}, ScalarType::Double);
  Table table{};
  std::copy(plan.segments.begin(), plan.segments.end(), table.segments);
  table.count = static_cast<int32_t>(plan.segments.size());
  table.groups = plan.groups;
  table.chunks = plan.chunks;
  table.terms = plan.terms;
  table.present = plan.present;
  table.weights = weights;
  table.done = static_cast<unsigned*>(memory.data_ptr());
  table.sums = static_cast<double*>(memory.data_ptr()) + 1;
  table.values = table.sums + plan.sums;
  table.group_values = table.values + plan.chunks;
  table.factors = reinterpret_cast<Group*>(table.group_values + plan.groups);
  table.total = static_cast<float*>(total.data_ptr());
  table.losses = static_cast<float*>(losses.data_ptr());

  check(cudaMemsetAsync(table.done, 0, sizeof(double), stream));
  const auto blocks = static_cast<unsigned>(std::max(plan.chunks, 1));
  if (plan.sums > 0) first_pass_kernel<<<blocks, THREADS, 0, stream>>>(table);
  second_pass_kernel<<<blocks, THREADS, 0, stream>>>(table);
  check(cudaGetLastError());
  return {total, losses, std::move(plan.gradients)};
}

Losses combined_loss_fwd(const Tensors& logits, const Tensors& grams, const Tensors& features,
                         const Tensors& pictures, const Tensors& repaired, const Tensors& targets,
                         const Tensors& references, const Tensors& colours, const Tensors& kept,
                         const Tensors& maps, const Tensor& weights, std::string form,
                         double variation, bool gradients) {
  const int64_t chunk = chunk_for({&logits, &grams, &features, &pictures, &repaired});
  Plan plan = plan_combined_loss(logits, grams, features, pictures, repaired, targets, references,
                                 colours, kept, maps, weights, form, variation, gradients, chunk);
  return run(std::move(plan), weights, static_cast<const float*>(weights.data_ptr()));
}

Losses discriminator_loss_fwd(const Tensors& real, const Tensors& fake, std::string form,
                              bool gradients) {
  Plan plan = plan_discriminator_loss(real, fake, form, gradients, chunk_for({&real, &fake}));
  return run(std::move(plan), real[0], nullptr);
}

void combined_loss_scale_(Tensors gradients, Tensor scale) {
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float && scale.numel() == 1,
                  "scale: expected one float32 number");
  const torch::stable::accelerator::DeviceGuard guard(scale.get_device_index());
  const cudaStream_t stream = current_stream(scale);
  for (size_t begin = 0; begin < gradients.size(); begin += MOST_SCALED) {
    const size_t count = std::min<size_t>(gradients.size() - begin, MOST_SCALED);
    Scaled scaled{};
    int64_t largest = 1;
    for (size_t i = 0; i < count; ++i) {
      const Tensor& x = gradients[begin + i];
      STD_TORCH_CHECK(x.device() == scale.device(), named("gradients", begin + i),
                      ": on another device");
      scaled.data[i] = x.data_ptr();
      scaled.count[i] = x.numel();
      scaled.type[i] = static_cast<int8_t>(type_of(named("gradients", begin + i), x));
      largest = std::max(largest, x.numel());
    }
    const int64_t blocks = (largest + SMALLEST_CHUNK - 1) / SMALLEST_CHUNK;
    const dim3 grid(static_cast<unsigned>(std::min(blocks, MOST_CHUNKS)), unsigned(count));
    scale_kernel<<<grid, THREADS, 0, stream>>>(scaled, static_cast<const float*>(scale.data_ptr()));
    check(cudaGetLastError());
  }
}

}  // namespace
}  // namespace faststy::loss

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CUDA, m) {
  m.impl("combined_loss_fwd", TORCH_BOX(&faststy::loss::combined_loss_fwd));
  m.impl("discriminator_loss_fwd", TORCH_BOX(&faststy::loss::discriminator_loss_fwd));
  m.impl("combined_loss_scale_", TORCH_BOX(&faststy::loss::combined_loss_scale_));
}
