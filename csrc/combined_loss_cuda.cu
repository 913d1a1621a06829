// The combined loss on a CUDA device, in one launch: as many blocks as the device holds at once, which
// go through their chunks twice and wait for each other in between. What the first pass reads, a
// block keeps in shared memory for the second, as far as that goes.
//
// The last block to end a pass adds up what all blocks have left, in the order of the chunks.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "combined_loss.h"
#include "cuda.h"
#include "text.h"

namespace faststy::loss {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int THREADS = 256, WARP = 32, WARPS = THREADS / WARP;
constexpr int BLOCKS = 2;  // on a multiprocessor
constexpr int64_t SMALLEST_CHUNK = 1024, LARGEST_CHUNK = 12288;
constexpr int MOST_SEGMENTS = 25;  // what kernels can take as an argument
constexpr int MOST_SCALED = 128;
constexpr int64_t MOST_BLOCKS = 4096;  // of what scales a tensor

// Counters, all zero at the start.
struct Progress {
  unsigned ended[2];  // blocks that have ended the first pass, the second
  unsigned ready;     // whether the second may begin
};

struct Table {
  Segment segments[MOST_SEGMENTS];
  int32_t count, groups, chunks, terms;
  uint32_t present;
  int32_t shared;  // bytes of each block
  const float* weights;
  double *sums, *values, *group_values;
  Group* factors;
  Progress* progress;
  float *total, *losses;
};
static_assert(sizeof(Table) + 2 * sizeof(bool) <= 4096, "kernel arguments");

// --------------------------------------------------------------------------- numbers

template <typename T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T numbers[SIZE];
};

template <typename T>
__device__ Pack<T> load(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}

template <typename T>
__device__ void store(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

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
__device__ bool is_last(unsigned* ended) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ended, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// The last block lets the others go on, who see all that it wrote.
__device__ void open(unsigned* ready) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(ready, 1u);
}

__device__ void wait_for(unsigned* ready) {
  if (threadIdx.x == 0) {
    while (*static_cast<volatile unsigned*>(ready) == 0) __nanosleep(20);
  }
  __syncthreads();
  __threadfence();
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

// Runs pack(i) for the packs of a chunk that start at the i-th number, where `packs` says that whole
// ones can be read, and single(i) for what is left. A thread has `AHEAD` packs on their way at a time.
template <typename T, int AHEAD, typename Packs, typename Single>
__device__ void for_numbers(const Chunk& c, bool packs, const Packs& pack, const Single& single) {
  constexpr int SIZE = Pack<T>::SIZE;
  const int64_t count = packs ? (c.end - c.begin) / SIZE : 0;
#pragma unroll AHEAD
  for (int64_t i = threadIdx.x; i < count; i += THREADS) pack(c.begin + i * SIZE);
  for (int64_t i = c.begin + count * SIZE + threadIdx.x; i < c.end; i += THREADS) single(i);
}

// --------------------------------------------------------------------------- pairs

// A pair's map as weights of its numbers; or 1 for each.
template <typename T, bool mapped>
struct Map {
  static constexpr int SIZE = Pack<T>::SIZE;
  static constexpr int AHEAD = mapped ? 2 : 4;  // packs, as there are registers for
  const Segment& s;
  const T* map;

  __device__ Map(const Segment& s_, const Chunk& c) : s(s_), map(static_cast<const T*>(s.map)) {
    if (mapped) map += c.group * pixels();
  }
  __device__ int64_t pixels() const { return s.height * s.width; }

  // No pack may reach over the end of a pixel, or of a plane.
  __device__ bool packs() const {
    if (!mapped) return true;
    return s.last ? s.channels % SIZE == 0 : pixels() % SIZE == 0 && aligned(map);
  }
  __device__ float single(int64_t i) const {
    return mapped ? static_cast<float>(map[s.last ? i / s.channels : i % pixels()]) : 1.f;
  }
  // The weights of a pack's numbers.
  __device__ Pack<T> pack(int64_t i) const {
    if (mapped && !s.last) return load(map + i % pixels());
    Pack<T> weights;
    const T weight = mapped ? map[i / s.channels] : static_cast<T>(1.f);
#pragma unroll
    for (T& w : weights.numbers) w = weight;
    return weights;
  }
};

// The energy of the reference, which is also written to `kept`.
template <typename T, bool mapped>
__device__ float energy(const Segment& s, const Chunk& c, T* kept) {
  const T* b = static_cast<const T*>(s.b) + c.group * s.size;
  const Map<T, mapped> map(s, c);
  float sum = 0;
  for_numbers<T, Map<T, mapped>::AHEAD>(
      c, aligned(b + c.begin) && map.packs(),
      [&](int64_t i) {
        const Pack<T> of_b = load(b + i);
        if (kept != nullptr) store(kept + (i - c.begin), of_b);
        const Pack<T> weights = map.pack(i);
#pragma unroll
        for (int j = 0; j < Pack<T>::SIZE; ++j) {
          sum += static_cast<float>(weights.numbers[j]) * square(static_cast<float>(of_b.numbers[j]));
        }
      },
      [&](int64_t i) {
        if (kept != nullptr) kept[i - c.begin] = b[i];
        sum += map.single(i) * square(static_cast<float>(b[i]));
      });
  return sum;
}

template <typename T, bool mapped>
__device__ float pair_chunk(const Segment& s, const Chunk& c, float slope, const T* kept) {
  const int64_t start = c.group * s.size;
  const T* x = static_cast<const T*>(s.x) + start + c.begin;
  const T* reference = static_cast<const T*>(s.b) + start + c.begin;
  const T* b = kept != nullptr ? kept : reference;
  T* gradient = s.gradient == nullptr ? nullptr : static_cast<T*>(s.gradient) + start + c.begin;
  const Map<T, mapped> map(s, c);
  float sum = 0;
  const auto distance = [&](float weight, T of_x, T of_b) {
    const float d = static_cast<float>(of_x) - static_cast<float>(of_b);
    const float weighted = weight * d;
    sum += weighted * d;
    return static_cast<T>(slope * weighted);
  };
  for_numbers<T, Map<T, mapped>::AHEAD>(
      c, aligned(x) && aligned(reference) && aligned(gradient) && map.packs(),
      [&](int64_t i) {
        const int64_t at = i - c.begin;
        const Pack<T> of_x = load(x + at), of_b = load(b + at);
        const Pack<T> weights = map.pack(i);
        Pack<T> result;
#pragma unroll
        for (int j = 0; j < Pack<T>::SIZE; ++j) {
          result.numbers[j] = distance(static_cast<float>(weights.numbers[j]), of_x.numbers[j], of_b.numbers[j]);
        }
        if (gradient != nullptr) store(gradient + at, result);
      },
      [&](int64_t i) {
        const int64_t at = i - c.begin;
        const T result = distance(map.single(i), x[at], b[at]);
        if (gradient != nullptr) gradient[at] = result;
      });
  return sum;
}

// --------------------------------------------------------------------------- pictures

constexpr int RGB = 3;

// Pixels of a chunk's rows as they lie in x, or of the rows that were kept.
template <typename T, bool last>
struct Pixels {
  T* data;          // the first row's
  int64_t channel;  // how far the next one is

  static __device__ Pixels of(const Segment& s, const Chunk& c, T* x) {
    if (x == nullptr) return {};
    const int64_t first = c.begin * s.width * pixel(s);
    return {x + c.group * s.size + first, last ? 1 : s.height * s.width};
  }
  static __device__ Pixels of_kept(const Segment& s, const Chunk& c, T* kept) {
    return {kept, last ? 1 : (c.end - c.begin) * s.width};
  }
  static __device__ int64_t pixel(const Segment& s) { return last ? s.channels : 1; }

  __device__ T* at(const Segment& s, int32_t y, int32_t column) const {
    return data + (y * s.width + column) * pixel(s);
  }
};

// As many pixels of a row as numbers are in a pack, of three channels: a pack of each, or with
// channels last three packs in which they alternate.
template <typename T, bool last>
struct Unit {
  static constexpr int SIZE = Pack<T>::SIZE;
  Pack<T> packs[RGB];

  // Which number of the unit the j-th of a pack is.
  static __device__ constexpr int pixel_of(int pack, int j) {
    return last ? (pack * SIZE + j) / RGB : j;
  }
  static __device__ constexpr int channel_of(int pack, int j) {
    return last ? (pack * SIZE + j) % RGB : pack;
  }
  __device__ float operator()(int pixel, int channel) const {
    const int i = RGB * pixel + channel;
    return static_cast<float>(last ? packs[i / SIZE].numbers[i % SIZE]
                                   : packs[channel].numbers[pixel]);
  }
  // How far the next pack is.
  static __device__ int64_t step(int64_t channel) { return last ? SIZE : channel; }
  static __device__ Unit from(const T* data, int64_t channel) {
    Unit unit;
#pragma unroll
    for (int i = 0; i < RGB; ++i) unit.packs[i] = load(data + i * step(channel));
    return unit;
  }
  __device__ void to(T* data, int64_t channel) const {
#pragma unroll
    for (int i = 0; i < RGB; ++i) store(data + i * step(channel), packs[i]);
  }
};

// Whether a picture can be read in units: then each row starts where a pack does.
template <typename T>
__device__ bool has_units(const Segment& s) {
  return s.channels == RGB && s.width % Pack<T>::SIZE == 0 && aligned(s.x) && aligned(s.gradient);
}

// Sums of the colours of a chunk, which is also written to `to_keep`.
template <typename T, bool last>
__device__ void moments(const Segment& s, const Chunk& c, T* to_keep, float (&sums)[MOMENTS]) {
  const auto x = Pixels<const T, last>::of(s, c, static_cast<const T*>(s.x));
  const auto kept = Pixels<T, last>::of_kept(s, c, to_keep);
  const auto width = static_cast<int32_t>(s.width);
  const int32_t size = has_units<T>(s) ? Pack<T>::SIZE : 1, in_row = width / size;
  const int32_t count = static_cast<int32_t>(c.end - c.begin) * in_row;
  for (int32_t i = threadIdx.x; i < count; i += THREADS) {
    const int32_t y = i / in_row, column = i % in_row * size;
    const T* from = x.at(s, y, column);
    if (size > 1) {
      const auto unit = Unit<T, last>::from(from, x.channel);
      if (to_keep != nullptr) unit.to(kept.at(s, y, column), kept.channel);
#pragma unroll
      for (int j = 0; j < Pack<T>::SIZE; ++j) {
        add_moments(unit(j, 0), unit(j, 1), unit(j, 2), sums);
      }
    } else {
      float rgb[RGB];
#pragma unroll
      for (int k = 0; k < RGB; ++k) {
        const T number = from[k * x.channel];
        if (to_keep != nullptr) kept.at(s, y, column)[k * kept.channel] = number;
        rgb[k] = static_cast<float>(number);
      }
      add_moments(rgb[0], rgb[1], rgb[2], sums);
    }
  }
}

// The second pass over a picture's chunk. Rows outside of it are read from x, as are all that were
// not kept.
template <typename T, bool last>
struct Picture {
  using Source = Pixels<const T, last>;
  const Segment& s;
  const Group& group;
  float weight;
  Source x, kept;
  Pixels<T, last> gradient;
  int32_t rows, first, height;  // in the chunk, the number of its first, in all

  __device__ Picture(const Segment& s_, const Chunk& c, const Group& group_, float weight_,
                     const T* kept_)
      : s(s_), group(group_), weight(weight_) {
    x = Source::of(s, c, static_cast<const T*>(s.x));
    kept = kept_ == nullptr ? x : Source::of_kept(s, c, kept_);
    gradient = Pixels<T, last>::of(s, c, static_cast<T*>(s.gradient));
    rows = static_cast<int32_t>(c.end - c.begin);
    first = static_cast<int32_t>(c.begin);
    height = static_cast<int32_t>(s.height);
  }

  __device__ Source source(int32_t y) const {
    const bool outside = y < 0 || y >= rows;
    return {outside ? x.data : kept.data, outside ? x.channel : kept.channel};
  }
  __device__ int32_t above(int32_t y) const { return first + y > 0 ? y - 1 : y; }
  __device__ int32_t below(int32_t y) const { return first + y + 1 < height ? y + 1 : y; }

  // Adds a number's differences to the sum and returns its gradient, without the colours'.
  __device__ float number(float here, float up, float down, float left, float right,
                          float& sum) const {
    sum += s.share_y * square(down - here) + s.share_x * square(here - left);
    return weight * variation_slope(here, up, down, left, right, s.share_y, s.share_x);
  }

  __device__ void unit(int32_t y, int32_t column, float& sum) const {
    using Of = Unit<T, last>;
    constexpr int SIZE = Of::SIZE;
    const int32_t y_up = above(y), y_down = below(y);
    const Source own = source(y), upper = source(y_up), lower = source(y_down);
    const T* p = own.at(s, y, column);
    const T *p_up = upper.at(s, y_up, column), *p_down = lower.at(s, y_down, column);
    T* to = gradient.data == nullptr ? nullptr : gradient.at(s, y, column);
    const Of here = Of::from(p, own.channel);
    const int64_t before = column > 0 ? -own.pixel(s) : 0;
    const int64_t after = (column + SIZE < s.width ? SIZE : SIZE - 1) * own.pixel(s);
#pragma unroll
    for (int n = 0; n < RGB; ++n) {
      const Pack<T> up = load(p_up + n * Of::step(upper.channel));
      const Pack<T> down = load(p_down + n * Of::step(lower.channel));
      Pack<T> result;
#pragma unroll
      for (int j = 0; j < SIZE; ++j) {
        const int i = Of::pixel_of(n, j), k = Of::channel_of(n, j);
        const float left = i > 0 ? here((i + SIZE - 1) % SIZE, k)
                                 : static_cast<float>(p[before + k * own.channel]);
        const float right = i + 1 < SIZE ? here((i + 1) % SIZE, k)
                                         : static_cast<float>(p[after + k * own.channel]);
        float slope = number(here(i, k), static_cast<float>(up.numbers[j]),
                             static_cast<float>(down.numbers[j]), left, right, sum);
        if (s.colours != nullptr) {
          slope += colour_slope(group.matrix[k], here(i, 0), here(i, 1), here(i, 2));
        }
        result.numbers[j] = static_cast<T>(slope);
      }
      if (to != nullptr) store(to + n * Of::step(gradient.channel), result);
    }
  }

  __device__ void pixel(int32_t y, int32_t column, float& sum) const {
    const int32_t y_up = above(y), y_down = below(y);
    const Source own = source(y), upper = source(y_up), lower = source(y_down);
    const T *p = own.at(s, y, column), *up = upper.at(s, y_up, column), *down = lower.at(s, y_down, column);
    const int64_t left = column > 0 ? -own.pixel(s) : 0;
    const int64_t right = column + 1 < s.width ? own.pixel(s) : 0;
    for (int64_t k = 0; k < s.channels; ++k) {
      const T* at = p + k * own.channel;
      float slope = number(static_cast<float>(*at), static_cast<float>(up[k * upper.channel]),
                           static_cast<float>(down[k * lower.channel]),
                           static_cast<float>(at[left]), static_cast<float>(at[right]), sum);
      if (gradient.data == nullptr) continue;
      if (s.colours != nullptr) {
        slope += colour_slope(group.matrix[k], static_cast<float>(p[0]),
                              static_cast<float>(p[own.channel]),
                              static_cast<float>(p[2 * own.channel]));
      }
      gradient.at(s, y, column)[k * gradient.channel] = static_cast<T>(slope);
    }
  }

  __device__ float operator()() const {
    const auto width = static_cast<int32_t>(s.width);
    const int32_t size = has_units<T>(s) ? Pack<T>::SIZE : 1, in_row = width / size;
    float sum = 0;
    for (int32_t i = threadIdx.x; i < rows * in_row; i += THREADS) {
      const int32_t y = i / in_row, column = i % in_row * size;
      if (size > 1) {
        unit(y, column, sum);
      } else {
        pixel(y, column, sum);
      }
    }
    return sum;
  }
};

// --------------------------------------------------------------------------- logits

template <typename T>
__device__ float logits_chunk(const Segment& s, const Chunk& c, float slope) {
  const T* x = static_cast<const T*>(s.x);
  T* gradient = static_cast<T*>(s.gradient);
  float sum = 0;
  const auto judged = [&](T of_x) {
    const float logit = static_cast<float>(of_x);
    const Judged j = s.form == Form::bce     ? judge<Form::bce>(s.role, logit)
                     : s.form == Form::hinge ? judge<Form::hinge>(s.role, logit)
                                             : judge<Form::lsgan>(s.role, logit);
    sum += j.value;
    return static_cast<T>(slope * j.slope);
  };
  for_numbers<T, 1>(
      c, aligned(x + c.begin) && (gradient == nullptr || aligned(gradient + c.begin)),
      [&](int64_t i) {
        Pack<T> pack = load(x + i);
        for (T& number : pack.numbers) number = judged(number);
        if (gradient != nullptr) store(gradient + i, pack);
      },
      [&](int64_t i) {
        const T result = judged(x[i]);
        if (gradient != nullptr) gradient[i] = result;
      });
  return sum;
}

// --------------------------------------------------------------------------- the two passes

// Bytes of what the first pass reads of a chunk, rounded up to whole packs.
__device__ int64_t bytes_of(const Segment& s, const Chunk& c) {
  if (s.sums == 0) return 0;
  const int64_t unit = s.kind == Kind::picture ? s.channels * s.width : 1;
  const int64_t bytes = (c.end - c.begin) * unit * (s.type == Type::f32 ? 4 : 2);
  return (bytes + 15) / 16 * 16;
}

__device__ void first_pass(const Table& table, int32_t index, const Segment& s, const Chunk& c,
                           void* keep) {
  __shared__ double scratch[WARPS];
  if (s.sums == 0) return;
  float sums[MOMENTS] = {};
  each_type(s.type, [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(keep);
    if (s.kind == Kind::pair) {
      sums[0] = s.map == nullptr ? energy<T, false>(s, c, to) : energy<T, true>(s, c, to);
    } else if (s.last) {
      moments<T, true>(s, c, to, sums);
    } else {
      moments<T, false>(s, c, to, sums);
    }
  });
  double* own = table.sums + s.first_sum + int64_t(index - s.first_chunk) * s.sums;
#pragma unroll
  for (int i = 0; i < MOMENTS; ++i) {
    if (i >= s.sums) break;
    const double sum = block_sum(sums[i], scratch);
    if (threadIdx.x == 0) own[i] = sum;
    __syncthreads();
  }
}

__device__ void find_factors(const Table& table) {
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

__device__ void second_pass(const Table& table, int32_t index, const Segment& s, const Chunk& c,
                            const void* kept) {
  __shared__ double scratch[WARPS];
  __shared__ Group group;
  if (threadIdx.x == 0) group = factors_of(table, s, c.group);
  __syncthreads();
  const float weight = weight_of(table.weights, s.term);
  float value = 0;
  each_type(s.type, [&](auto zero) {
    using T = decltype(zero);
    const T* of_b = static_cast<const T*>(kept);
    if (s.kind == Kind::pair) {
      const float slope = 2 * group.factor * weight;
      value = s.map == nullptr ? pair_chunk<T, false>(s, c, slope, of_b)
                               : pair_chunk<T, true>(s, c, slope, of_b);
    } else if (s.kind == Kind::logits) {
      value = logits_chunk<T>(s, c, group.factor * weight);
    } else if (s.last) {
      value = Picture<T, true>(s, c, group, weight, of_b)();
    } else {
      value = Picture<T, false>(s, c, group, weight, of_b)();
    }
  });
  const double sum = block_sum(value, scratch);
  if (threadIdx.x == 0) table.values[index] = sum;
  __syncthreads();
}

__device__ void add_up(const Table& table) {
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

// Every block has every gridDim.x-th chunk. The first of them it keeps; the others it takes in the
// opposite order the second time, so that what it read last comes first, from cache.
__global__ void __launch_bounds__(THREADS, BLOCKS)
    combined_loss_kernel(const __grid_constant__ Table table, bool first, bool second) {
  extern __shared__ uint4 memory[];
  char* const shared = reinterpret_cast<char*>(memory);
  const auto block = static_cast<int32_t>(blockIdx.x), blocks = static_cast<int32_t>(gridDim.x);
  int32_t index = block, kept_to = block;  // the first chunk that is not kept
  int64_t used = 0;
  if (first) {
    for (; index < table.chunks; index += blocks) {
      const Segment& s = segment_of(table, index);
      const Chunk c = chunk_of(s, index);
      const int64_t bytes = bytes_of(s, c);
      const bool keep = kept_to == index && used + bytes <= table.shared;
      first_pass(table, index, s, c, keep ? shared + used : nullptr);
      if (keep) used += bytes, kept_to += blocks;
    }
    const bool last = is_last(table.progress->ended);
    if (last) find_factors(table);
    if (!second) return;
    if (last) {
      open(&table.progress->ready);
    } else {
      wait_for(&table.progress->ready);
    }
  }
  index = block + (table.chunks - block + blocks - 1) / blocks * blocks;
  while ((index -= blocks) >= 0) {
    const Segment& s = segment_of(table, index);
    const Chunk c = chunk_of(s, index);
    const bool kept = index < kept_to;
    if (kept) used -= bytes_of(s, c);
    second_pass(table, index, s, c, kept && s.sums > 0 ? shared + used : nullptr);
  }
  if (is_last(table.progress->ended + 1)) add_up(table);
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

constexpr const char* OP = "combined_loss";

void check(cudaError_t error) { cuda::check(error, OP); }

// What of a device decides how the work is cut.
struct Device {
  int multiprocessors, cooperative;  // the latter: whether blocks can wait for each other
  int shared;                        // bytes that each of BLOCKS blocks can have

  explicit Device(int index) {
    const auto of = [&](cudaDeviceAttr name) { return cuda::attribute(name, index, OP); };
    constexpr int OWN = 1024;  // more than what kernels declare
    multiprocessors = of(cudaDevAttrMultiProcessorCount);
    cooperative = of(cudaDevAttrCooperativeLaunch);
    shared = of(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / BLOCKS -
             of(cudaDevAttrReservedSharedMemoryPerBlock);
    shared = std::min(shared, of(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    shared = std::max(shared - OWN, 0) / 16 * 16;
  }
  int64_t blocks() const { return int64_t(BLOCKS) * multiprocessors; }
};

constexpr int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers of a chunk, so that every block has the same number of chunks, if one has any; each group
// may end in a chunk that is not full.
int64_t chunk_for(const Plan& plan, int64_t blocks) {
  int64_t groups = 0;
  for (const Segment& s : plan.segments) groups += s.groups;
  const int64_t rounds = ratio_up(plan.numbers / LARGEST_CHUNK + 2 * groups + 1, blocks);
  const int64_t wanted = ratio_up(plan.numbers, rounds * blocks - groups);
  return std::max(ratio_up(wanted, SMALLEST_CHUNK / 4) * SMALLEST_CHUNK / 4, SMALLEST_CHUNK);
}

// Shared memory for what the first pass reads, or as much of that as there is.
int shared_for(const Plan& plan, int64_t blocks, int most) {
  int64_t largest = 0;
  for (const Segment& s : plan.segments) {
    if (s.sums > 0) largest = std::max(largest, s.kind == Kind::pair ? s.chunk : s.chunk * s.width * RGB);
  }
  const int64_t needed = ratio_up(plan.chunks, blocks) * ratio_up(largest * sizeof(float), 16) * 16;
  return static_cast<int>(std::min<int64_t>(needed, most));
}

void launch(Table& table, unsigned blocks, bool first, bool second, cudaStream_t stream) {
  void* arguments[] = {&table, &first, &second};
  check(first && second ? cudaLaunchCooperativeKernel(combined_loss_kernel, blocks, THREADS,
                                                      arguments, table.shared, stream)
                        : cudaLaunchKernel(combined_loss_kernel, blocks, THREADS, arguments, 0,
                                           stream));
}

Losses run(Plan plan, const Tensor& like, const float* weights) {
  STD_TORCH_CHECK(plan.segments.size() <= MOST_SEGMENTS, "combined_loss: expected at most ",
                  MOST_SEGMENTS, " tensors on a CUDA device, got ", plan.segments.size());
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const cudaStream_t stream = cuda::current_stream(like);
  const Device device(like.get_device_index());
  plan.cut(chunk_for(plan, device.blocks()));
  const int64_t blocks = std::clamp<int64_t>(plan.chunks, 1, device.blocks());
  Tensor total = torch::stable::new_empty(like, {}, ScalarType::Float);
  Tensor losses = torch::stable::new_empty(like, {plan.terms + 2}, ScalarType::Float);

  constexpr int64_t GROUP = ratio_up(sizeof(Group), sizeof(double));
  constexpr int64_t PROGRESS = ratio_up(sizeof(Progress), sizeof(double));
  const int64_t size = PROGRESS + plan.sums + plan.chunks + (1 + GROUP) * plan.groups;
  Tensor memory = torch::stable::new_empty(like, {size}, ScalarType::Double);
  Table table{};
  std::copy(plan.segments.begin(), plan.segments.end(), table.segments);
  table.count = static_cast<int32_t>(plan.segments.size());
  table.groups = plan.groups;
  table.chunks = plan.chunks;
  table.terms = plan.terms;
  table.present = plan.present;
  table.weights = weights;
  table.progress = static_cast<Progress*>(memory.data_ptr());
  table.sums = static_cast<double*>(memory.data_ptr()) + PROGRESS;
  table.values = table.sums + plan.sums;
  table.group_values = table.values + plan.chunks;
  table.factors = reinterpret_cast<Group*>(table.group_values + plan.groups);
  table.total = static_cast<float*>(total.data_ptr());
  table.losses = static_cast<float*>(losses.data_ptr());
  check(cudaMemsetAsync(table.progress, 0, sizeof(Progress), stream));

  const bool twice = plan.sums > 0;
  int at_once = 0;  // blocks on a multiprocessor
  if (twice && device.cooperative) {
    table.shared = shared_for(plan, blocks, device.shared);
    // The same limit always: another thread may set it between this and the launch.
    check(cudaFuncSetAttribute(combined_loss_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               device.shared));
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, combined_loss_kernel, THREADS,
                                                        table.shared));
  }
  const auto grid = static_cast<unsigned>(blocks);
  if (twice && int64_t(at_once) * device.multiprocessors >= blocks) {
    launch(table, grid, true, true, stream);
  } else {
    table.shared = 0;
    if (twice) launch(table, grid, true, false, stream);
    launch(table, grid, false, true, stream);
  }
  return {total, losses, std::move(plan.gradients)};
}

Losses combined_loss_fwd(const Tensors& logits, const Tensors& grams, const Tensors& features,
                         const Tensors& pictures, const Tensors& repaired, const Tensors& targets,
                         const Tensors& references, const Tensors& colours, const Tensors& kept,
                         const Tensors& maps, const Tensor& weights, StringHandle form,
                         double variation, bool gradients) {
  Plan plan = plan_combined_loss(logits, grams, features, pictures, repaired, targets, references,
                                 colours, kept, maps, weights, text(form), variation, gradients);
  return run(std::move(plan), weights, static_cast<const float*>(weights.data_ptr()));
}

Losses discriminator_loss_fwd(const Tensors& real, const Tensors& fake, StringHandle form,
                              bool gradients) {
  Plan plan = plan_discriminator_loss(real, fake, text(form), gradients);
  return run(std::move(plan), real[0], nullptr);
}

void combined_loss_scale_(Tensors gradients, Tensor scale) {
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float && scale.numel() == 1,
                  "scale: expected one float32 number");
  const torch::stable::accelerator::DeviceGuard guard(scale.get_device_index());
  const cudaStream_t stream = cuda::current_stream(scale);
  for (size_t begin = 0; begin < gradients.size(); begin += MOST_SCALED) {
    const size_t count = std::min<size_t>(gradients.size() - begin, MOST_SCALED);
    Scaled scaled{};
    int64_t largest = 1;
    for (size_t i = 0; i < count; ++i) {
      const Tensor& x = gradients[begin + i];
      STD_TORCH_CHECK(x.device() == scale.device(), named("gradients", begin + i),
                      ": on another device");
      check_dense(named("gradients", begin + i), x);
      scaled.data[i] = x.data_ptr();
      scaled.count[i] = x.numel();
      scaled.type[i] = static_cast<int8_t>(type_of(named("gradients", begin + i), x));
      largest = std::max(largest, x.numel());
    }
    const int64_t blocks = std::min(ratio_up(largest, LARGEST_CHUNK / 4), MOST_BLOCKS);
    const dim3 grid(static_cast<unsigned>(blocks), unsigned(count));
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
