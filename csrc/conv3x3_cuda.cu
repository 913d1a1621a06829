// A 3x3 convolution of a few channels and all that follows it, on a CUDA device, in half precision.
//
// A block keeps the weights in shared memory and goes from tile to tile. Of each it copies the pixels
// that the tile and its border need, once, while the tile before is computed; the nine taps are nine
// offsets into that. A warp makes MW x 16 pixels by NB x 8 channels by `mma`, and stores them from its
// registers: it waits for the others once a tile.
//
// The same kernel serves painting and nets that learn (reflected borders; scale, bias, residual,
// moments), a frozen net (zeros beyond the borders, bias, ReLU), and gradients of inputs (filters
// turned round; through the gate that a ReLU was).

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "conv3x3_cuda.h"

namespace faststy::conv {
namespace {

using warp::Shared;

constexpr int WARPS = 8, THREADS = WARPS * WARP;
constexpr int MOST_INPUTS = 2, MOST_C = 96, MOST_K = 64;
constexpr int MERGERS = 128;  // threads that merge moments
constexpr int STATIC = 6144;  // bytes of shared memory: more than kernels declare

struct Conv {
  Input inputs[MOST_INPUTS];
  int count;
  int n, h, w, c, k;    // of the inputs
  int grow;             // how many pixels more the result has on each side
  int padded;           // c, up to a multiple of 16
  int pixel, filter;    // bytes of a pixel and of a filter in shared memory
  int across, down, tiles;
  int weights, buffer;  // bytes of shared memory: of the filters, and of a tile
  int buffers;          // tiles there: 2, or 1 where there is no room for more
  bool zeros;           // beyond the borders; or they reflect
  bool wide_scale, wide_bias;  // float32, or the dtype of the inputs
  const char* weight;   // [K, 9, C]
  int weight_piece;
  const char* gate;     // [N, H, W, C] or null: see load_pixels
  const void *scale, *bias;  // [K] or [N, K], or null
  int64_t scale_stride, bias_stride;
  const char* residual;  // [N, H, W, K] or null
  float slope;
  char* y;  // [N, H, W, K]
  float *mean, *m2;  // [K, tiles] or null: of what was convolved
};

// All filters, zeros where there are none and between channels and their padding.
__device__ void load_weights(const Conv& conv, char* shared) {
  const int rows = conv.weights / conv.filter;
  for (int i = threadIdx.x; i < conv.weights / 16; i += THREADS) {
    reinterpret_cast<uint4*>(shared)[i] = uint4{0, 0, 0, 0};
  }
  __syncthreads();
  with_size(conv.weight_piece, [&](auto bytes) {
    constexpr int SIZE = sizeof(bytes);
    const int pieces = 2 * conv.c / SIZE;
    for (int i = threadIdx.x; i < min(conv.k, rows) * 9 * pieces; i += THREADS) {
      const int place = i % pieces, tap = i / pieces % 9, k = i / pieces / 9;
      copy<SIZE>(shared + k * conv.filter + tap * 2 * conv.padded + place * SIZE,
                 conv.weight + int64_t(i) * SIZE, true);
    }
  });
}

// The channels of padding, which nothing is copied to.
__device__ void zero_padding(const Conv& conv, char* shared, int pixels) {
  const int rest = conv.padded - conv.c;
  for (int i = threadIdx.x; i < pixels * rest; i += THREADS) {
    reinterpret_cast<uint16_t*>(shared + i / rest * conv.pixel)[conv.c + i % rest] = 0;
  }
}

__device__ __forceinline__ float parameter(const void* of, bool wide, int64_t at, auto zero) {
  using T = decltype(zero);
  if (wide) return static_cast<const float*>(of)[at];
  return static_cast<float>(static_cast<const T*>(of)[at]);
}

// Mean and sum of squared deviations of a tile's pixels, channel by channel.
template <int NB, int MW>
__device__ void leave_moments(const Conv& conv, const float (&sum)[MW][NB][4],
                              const bool (&inside)[MW][2], int tile, float pixels) {
  __shared__ float part[2][WARPS][NB * 8];
  const int lane = threadIdx.x % WARP, own = threadIdx.x / WARP;
  const auto total = [&](int of, int k) {
    float all = 0;
    for (int i = 0; i < WARPS; ++i) all += part[of][i][k];
    return all;
  };
  for (int j = 0; j < NB; ++j) {
    for (int v = 0; v < 2; ++v) {
      float x = 0;
      for (int m = 0; m < MW; ++m) {
        for (int half = 0; half < 2; ++half) x += inside[m][half] ? sum[m][j][half * 2 + v] : 0.f;
      }
      x = warp::sum_of_rows(x);
      if (lane < 4) part[0][own][j * 8 + lane * 2 + v] = x;
    }
  }
  __syncthreads();
  for (int j = 0; j < NB; ++j) {
    for (int v = 0; v < 2; ++v) {
      const float mean = total(0, j * 8 + lane % 4 * 2 + v) / pixels;
      float x = 0;
      for (int m = 0; m < MW; ++m) {
        for (int half = 0; half < 2; ++half) {
          const float deviation = sum[m][j][half * 2 + v] - mean;
          x += inside[m][half] ? deviation * deviation : 0.f;
        }
      }
      x = warp::sum_of_rows(x);
      if (lane < 4) part[1][own][j * 8 + lane * 2 + v] = x;
    }
  }
  __syncthreads();
  for (int k = threadIdx.x; k < conv.k; k += THREADS) {
    conv.mean[int64_t(k) * conv.tiles + tile] = total(0, k) / pixels;
    conv.m2[int64_t(k) * conv.tiles + tile] = total(1, k);
  }
}

// A pixel's channels, of which a thread has the pairs j·8 + 2·(lane % 4), for all j: stored by as many
// at a time as neighbours have together.
template <int NB>
__device__ __forceinline__ void store(char* pixel, const uint32_t (&pairs)[NB], int channels, bool inside) {
  const int quarter = threadIdx.x % 4, odd = quarter % 2;
  if (channels % 4 == 0) {
#pragma unroll
    for (int j = 0; j + 1 < NB; j += 2) {
      const uint32_t got = warp::neighbours(odd ? pairs[j] : pairs[j + 1]);
      const int k = (j + odd) * 8 + quarter / 2 * 4;
      const uint2 both = odd ? uint2{got, pairs[j + 1]} : uint2{pairs[j], got};
      if (inside && k < channels) *reinterpret_cast<uint2*>(pixel + 2 * k) = both;
    }
  }
#pragma unroll
  for (int j = 0; j < NB; ++j) {
    const int k = j * 8 + quarter * 2;
    if ((channels % 4 == 0 && j / 2 * 2 + 1 < NB) || !inside || k >= channels) continue;
    if (channels % 2 == 0) {
      *reinterpret_cast<uint32_t*>(pixel + 2 * k) = pairs[j];
    } else {
      reinterpret_cast<uint16_t*>(pixel)[k] = pairs[j] & 0xffff;
      if (k + 1 < channels) reinterpret_cast<uint16_t*>(pixel)[k + 1] = pairs[j] >> 16;
    }
  }
}

template <typename T>
__device__ __forceinline__ T half_of(uint32_t pair, int i) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * i));
  return *reinterpret_cast<const T*>(&bits);
}

// T: Half or BFloat16. NB: blocks of 8 channels of the result. MW: blocks of 16 pixels of a warp.
template <typename T, int NB, int MW>
__global__ void __launch_bounds__(THREADS, NB * MW <= 12 ? 2 : 1)
    conv3x3_kernel(const __grid_constant__ Conv conv) {
  constexpr int HEIGHT = WARPS * MW / 2, PIXELS = (HEIGHT + 2) * ROW;
  extern __shared__ uint4 memory[];
  __shared__ float scales[2][NB * 8], biases[2][NB * 8];
  char* const weights = reinterpret_cast<char*>(memory);
  char* const tiles = weights + conv.weights;
  const int lane = threadIdx.x % WARP, own = threadIdx.x / WARP;
  const int height = conv.h + 2 * conv.grow, width = conv.w + 2 * conv.grow;

  const auto load = [&](int tile, int into) {
    const int n = tile / (conv.across * conv.down);
    const int y0 = tile / conv.across % conv.down * HEIGHT, x0 = tile % conv.across * TILE_W;
    for (int i = 0; i < conv.count; ++i) {
      load_pixels<THREADS, HEIGHT + 2, ROW>(conv.inputs[i], tiles + into * conv.buffer, conv.pixel, n,
                                            conv.h, conv.w, y0 - 1 - conv.grow, x0 - 1 - conv.grow,
                                            conv.zeros, conv.gate);
    }
    for (int k = threadIdx.x; k < NB * 8; k += THREADS) {
      const bool known = k < conv.k;
      scales[into][k] = known && conv.scale ? parameter(conv.scale, conv.wide_scale,
                                                        n * conv.scale_stride + k, T())
                                            : 1.f;
      biases[into][k] = known && conv.bias ? parameter(conv.bias, conv.wide_bias,
                                                       n * conv.bias_stride + k, T())
                                           : 0.f;
    }
  };

  load_weights(conv, weights);
  for (int i = 0; i < conv.buffers; ++i) zero_padding(conv, tiles + i * conv.buffer, PIXELS);
  if (conv.buffers == 2) load(blockIdx.x, 0);

  // Where this thread's rows of matrices begin: of pixels, and of filters.
  const Shared a_first = warp::shared_address(tiles + (own * (MW / 2) * ROW + lane % 16) * conv.pixel +
                                              lane / 16 * 16);
  const Shared b_row = warp::shared_address(weights + (lane % 8 + lane / 16 * 8) * conv.filter +
                                            lane / 8 % 2 * 16);

  int at = 0;  // the buffer of the tile at hand
  for (int tile = blockIdx.x; tile < conv.tiles; tile += gridDim.x) {
    if (conv.buffers == 1) {
      __syncthreads();
      load(tile, 0);
    }
    warp::wait_for_copies();
    __syncthreads();  // all have copied this tile, and are through with the one before
    if (conv.buffers == 2 && tile + gridDim.x < conv.tiles) load(tile + gridDim.x, 1 - at);

    const Shared a_row = a_first + at * conv.buffer;
    float sum[MW][NB][4] = {};
    for (int tap = 0; tap < 9; ++tap) {
      const Shared a_tap = a_row + (tap / 3 * ROW + tap % 3) * conv.pixel;
      const Shared b_tap = b_row + tap * 2 * conv.padded;
#pragma unroll 1
      for (int c = 0; c < 2 * conv.padded; c += 32) {  // bytes: 16 channels
        uint32_t a[MW][4], b[NB + 1][2];
#pragma unroll
        for (int m = 0; m < MW; ++m) {
          warp::load_matrices(a[m], a_tap + (m / 2 * ROW + m % 2 * 16) * conv.pixel + c);
        }
#pragma unroll
        for (int j = 0; j < NB / 2; ++j) {
          uint32_t two[4];
          warp::load_matrices(two, b_tap + j * 16 * conv.filter + c);
          b[2 * j][0] = two[0], b[2 * j][1] = two[1];
          b[2 * j + 1][0] = two[2], b[2 * j + 1][1] = two[3];
        }
        if constexpr (NB % 2 == 1) {
          warp::load_matrices(b[NB - 1], b_tap + (NB - 1) * 8 * conv.filter + c);
        }
#pragma unroll
        for (int j = 0; j < NB; ++j) {
#pragma unroll
          for (int m = 0; m < MW; ++m) warp::multiply(sum[m][j], a[m], b[j], T());
        }
      }
    }

    const int n = tile / (conv.across * conv.down);
    const int y0 = tile / conv.across % conv.down * HEIGHT, x0 = tile % conv.across * TILE_W;
    bool inside[MW][2];
#pragma unroll
    for (int m = 0; m < MW; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        inside[m][half] = y0 + own * (MW / 2) + m / 2 < height &&
                          x0 + m % 2 * 16 + half * 8 + lane / 4 < width;
      }
    }
    if (conv.mean != nullptr) {
      const int pixels = min(HEIGHT, height - y0) * min(TILE_W, width - x0);
      leave_moments<NB, MW>(conv, sum, inside, tile, static_cast<float>(pixels));
    }

    // Scale, bias, residual and activation.
#pragma unroll
    for (int m = 0; m < MW; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int y = y0 + own * (MW / 2) + m / 2, x = x0 + m % 2 * 16 + half * 8 + lane / 4;
        const int64_t pixel = ((int64_t(n) * height + y) * width + x) * conv.k * 2;
        uint32_t added[NB], pairs[NB];
#pragma unroll
        for (int j = 0; j < NB; ++j) {
          const int k = j * 8 + lane % 4 * 2;
          const bool there = conv.residual != nullptr && inside[m][half] && k < conv.k;
          added[j] = there ? __ldg(reinterpret_cast<const unsigned*>(conv.residual + pixel + 2 * k)) : 0;
        }
#pragma unroll
        for (int j = 0; j < NB; ++j) {
          const int k = j * 8 + lane % 4 * 2;
          T both[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {  // v < 0 is false for NaN: it passes through
            float v = sum[m][j][half * 2 + i] * scales[at][k + i] + biases[at][k + i];
            if (conv.residual != nullptr) v += static_cast<float>(half_of<T>(added[j], i));
            both[i] = static_cast<T>(v < 0 ? (conv.slope == 0 ? 0.f : v * conv.slope) : v);
          }
          memcpy(&pairs[j], both, 4);
        }
        store<NB>(conv.y + pixel, pairs, conv.k, inside[m][half]);
      }
    }
    at = conv.buffers == 2 ? 1 - at : 0;
  }
}

// Merges the moments of tiles in a fixed order (Chan et al., 1979): thread i every MERGERS-th tile, then
// pairs of threads.
__global__ void merge_moments_kernel(const float* mean, const float* m2, float* out, Conv conv,
                                     int height) {
  __shared__ float shared[3][MERGERS];
  const int k = blockIdx.x, thread = threadIdx.x;
  float own[3] = {0, 0, 0};  // pixels, mean, M2
  const auto merge = [&](float count, float other_mean, float other_m2) {
    const float all = own[0] + count, delta = other_mean - own[1];
    const float share = all > 0 ? count / all : 0.f;
    own[2] += other_m2 + delta * delta * own[0] * share;
    own[1] += delta * share;
    own[0] = all;
  };
  for (int tile = thread; tile < conv.tiles; tile += MERGERS) {
    const int y0 = tile / conv.across % conv.down * height, x0 = tile % conv.across * TILE_W;
    const int pixels = min(height, conv.h - y0) * min(TILE_W, conv.w - x0);
    merge(static_cast<float>(pixels), mean[int64_t(k) * conv.tiles + tile],
          m2[int64_t(k) * conv.tiles + tile]);
  }
  for (int i = 0; i < 3; ++i) shared[i][thread] = own[i];
  __syncthreads();
  for (int half = MERGERS / 2; half > 0; half /= 2) {
    if (thread < half) {
      merge(shared[0][thread + half], shared[1][thread + half], shared[2][thread + half]);
      for (int i = 0; i < 3; ++i) shared[i][thread] = own[i];
    }
    __syncthreads();
  }
  if (thread == 0) {
    out[k] = own[1];
    out[conv.k + k] = own[2] / own[0];
  }
}

// ---------------------------------------------------------------------------- on the host

// Shared memory for the filters and `buffers` tiles.
int shared_for(const Conv& conv, int blocks, int rows, int buffers) {
  return blocks * 8 * conv.filter + buffers * (rows + 2) * ROW * conv.pixel;
}

template <typename T, int NB, int MW>
void launch(Conv conv, int device, cudaStream_t stream, Tensor* found) {
  constexpr int HEIGHT = WARPS * MW / 2;
  conv.down = (conv.h + 2 * conv.grow + HEIGHT - 1) / HEIGHT;
  conv.across = (conv.w + 2 * conv.grow + TILE_W - 1) / TILE_W;
  const int64_t tiles = int64_t(conv.n) * conv.down * conv.across;
  STD_TORCH_CHECK(tiles < (int64_t(1) << 31), OP, ": expected fewer than 2^31 tiles");
  conv.tiles = static_cast<int>(tiles);
  conv.weights = NB * 8 * conv.filter;
  conv.buffer = (HEIGHT + 2) * ROW * conv.pixel;
  const int shared = shared_for(conv, NB, HEIGHT, conv.buffers);
  const auto kernel = conv3x3_kernel<T, NB, MW>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), OP);
  int at_once = 0;
  cuda::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, kernel, THREADS, shared), OP);
  STD_TORCH_CHECK(at_once > 0, OP, ": it needs ", shared, " bytes of shared memory");
  const int64_t blocks =
      int64_t(at_once) * cuda::attribute(cudaDevAttrMultiProcessorCount, device, OP);
  Tensor parts;
  if (found != nullptr) {
    parts = torch::stable::new_empty(*found, {2, conv.k, tiles}, ScalarType::Float);
    conv.mean = static_cast<float*>(parts.mutable_data_ptr());
    conv.m2 = conv.mean + conv.k * tiles;
  }
  const auto grid = static_cast<unsigned>(std::min(tiles, blocks));
  void* arguments[] = {&conv};
  cuda::check(cudaLaunchKernel(kernel, dim3(grid), dim3(THREADS), arguments, shared, stream), OP);
  if (found != nullptr) {
    const float *mean = conv.mean, *m2 = conv.m2;
    float* out = static_cast<float*>(found->mutable_data_ptr());
    int height = HEIGHT;
    void* merged[] = {&mean, &m2, &out, &conv, &height};
    cuda::check(cudaLaunchKernel(merge_moments_kernel, dim3(conv.k), dim3(MERGERS), merged, 0, stream),
                OP);
  }
}

template <typename T, int NB>
void launch(Conv conv, int device, cudaStream_t stream, Tensor* found) {
  const int most = cuda::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, OP) - STATIC;
  if constexpr (NB <= 6) {  // larger tiles, and two of them, where there is room
    conv.buffers = 2;
    if (shared_for(conv, NB, WARPS * 2, 2) <= most) return launch<T, NB, 4>(conv, device, stream, found);
  }
  conv.buffers = shared_for(conv, NB, WARPS, 2) <= most ? 2 : 1;
  launch<T, NB, 2>(conv, device, stream, found);
}

template <typename T>
void launch(const Conv& conv, int device, cudaStream_t stream, Tensor* found) {
  const int blocks = (conv.k + 7) / 8;
  if (blocks == 1) return launch<T, 1>(conv, device, stream, found);
  if (blocks == 2) return launch<T, 2>(conv, device, stream, found);
  if (blocks == 3) return launch<T, 3>(conv, device, stream, found);
  if (blocks == 4) return launch<T, 4>(conv, device, stream, found);
  if (blocks <= 6) return launch<T, 6>(conv, device, stream, found);
  launch<T, 8>(conv, device, stream, found);
}

// All that the inputs and the weights decide.
Conv conv_of(const std::vector<Tensor>& inputs, const Tensor& weight) {
  STD_TORCH_CHECK(!inputs.empty() && inputs.size() <= MOST_INPUTS, "inputs: expected 1 or 2, got ",
                  inputs.size());
  const Tensor& x = inputs[0];
  Conv conv{};
  conv.count = static_cast<int>(inputs.size());
  for (int i = 0; i < conv.count; ++i) {
    const Tensor& t = inputs[i];
    for (const int dim : {0, 2, 3}) check_input(t, "inputs", x, dim, x.size(dim));
    conv.inputs[i] = input_of(t, 0, static_cast<int>(t.size(1)), 2 * conv.c);
    conv.c += static_cast<int>(t.size(1));
  }
  STD_TORCH_CHECK(conv.c <= MOST_C, "inputs: expected at most ", MOST_C, " channels, got ", conv.c);
  check_input(weight, "weight", x, 1, conv.c);
  STD_TORCH_CHECK(weight.size(2) == 3 && weight.size(3) == 3, "weight: expected [K, C, 3, 3]");
  STD_TORCH_CHECK(weight.size(0) <= MOST_K, "weight: expected at most ", MOST_K, " filters, got ",
                  weight.size(0));
  conv.n = static_cast<int>(x.size(0)), conv.k = static_cast<int>(weight.size(0));
  conv.h = static_cast<int>(x.size(2)), conv.w = static_cast<int>(x.size(3));
  conv.padded = (conv.c + 15) / 16 * 16;
  conv.pixel = 2 * conv.padded + 16;
  conv.filter = 18 * conv.padded + 16;
  conv.weight = static_cast<const char*>(weight.const_data_ptr());
  conv.weight_piece = piece_of(2 * conv.c, conv.weight);
  conv.slope = 1;
  return conv;
}

Tensor run(Conv conv, const Tensor& x, Tensor* found) {
  const int64_t sizes[] = {conv.n, conv.k, conv.h + 2 * conv.grow, conv.w + 2 * conv.grow};
  Tensor y = torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                  MemoryFormat::ChannelsLast);
  conv.y = static_cast<char*>(y.mutable_data_ptr());
  const cudaStream_t stream = cuda::current_stream(x);
  if (x.scalar_type() == ScalarType::Half) {
    launch<Half>(conv, x.get_device_index(), stream, found);
  } else {
    launch<BFloat16>(conv, x.get_device_index(), stream, found);
  }
  return y;
}

void set_vector(const std::optional<Tensor>& v, const char* name, const Conv& conv, const Tensor& x,
                const void*& data, bool& wide, int64_t& stride) {
  if (!v) return;
  STD_TORCH_CHECK((v->dim() == 1 || (v->dim() == 2 && v->size(0) == conv.n)) &&
                      v->size(v->dim() - 1) == conv.k && v->stride(v->dim() - 1) == 1,
                  name, ": expected [K] or [N, K] with neighbouring values");
  wide = v->scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK((wide || v->scalar_type() == x.scalar_type()) && v->device() == x.device(), name,
                  ": expected float32 or the dtype of the inputs, on their device");
  data = v->const_data_ptr();
  stride = v->dim() == 2 ? v->stride(0) : 0;
}

std::tuple<Tensor, Tensor> conv3x3_fwd(std::vector<Tensor> inputs, Tensor weight,
                                       std::optional<Tensor> scale, std::optional<Tensor> bias,
                                       std::optional<Tensor> residual, double slope, bool moments) {
  Conv conv = conv_of(inputs, weight);
  const Tensor& x = inputs[0];
  STD_TORCH_CHECK(conv.h >= 2 && conv.w >= 2, "inputs: expected two rows and columns or more");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  set_vector(scale, "scale", conv, x, conv.scale, conv.wide_scale, conv.scale_stride);
  set_vector(bias, "bias", conv, x, conv.bias, conv.wide_bias, conv.bias_stride);
  if (residual) {
    STD_TORCH_CHECK(conv.k % 2 == 0, "residual: expected an even number of channels");
    STD_TORCH_CHECK(residual->dim() == 4 && residual->size(0) == conv.n && residual->size(1) == conv.k &&
                        residual->size(2) == conv.h && residual->size(3) == conv.w &&
                        residual->scalar_type() == x.scalar_type() && is_channels_last(*residual),
                    "residual: expected the shape and dtype of the result, channels_last");
    conv.residual = static_cast<const char*>(residual->const_data_ptr());
  }
  conv.slope = static_cast<float>(slope);
  Tensor found = torch::stable::new_empty(x, {moments ? 2 : 0, conv.k}, ScalarType::Float);
  Tensor y = run(conv, x, moments ? &found : nullptr);
  return {y, found};
}

// In training: borders that reflect, or zeros beyond them; bias and ReLU.
Tensor conv3x3_train_fwd(Tensor x, Tensor weight, std::optional<Tensor> bias, bool reflect, bool relu) {
  Conv conv = conv_of({x}, weight);
  STD_TORCH_CHECK(!reflect || (conv.h >= 2 && conv.w >= 2), "x: expected two rows and columns or more");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  set_vector(bias, "bias", conv, x, conv.bias, conv.wide_bias, conv.bias_stride);
  conv.zeros = !reflect;
  conv.slope = relu ? 0.f : 1.f;
  return run(conv, x, nullptr);
}

// The gradient of a convolution's input, by filters that are turned round: [N, C, H, W] from
// [N, K, H, W], or that of a padded input [N, C, H + 2, W + 2]; `gate` is what the ReLU made, if any.
Tensor conv3x3_train_input_grad(Tensor dy, Tensor turned, std::optional<Tensor> gate, bool padded) {
  Conv conv = conv_of({dy}, turned);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  conv.zeros = true;
  conv.grow = padded ? 1 : 0;
  if (gate) {
    for (int i = 0; i < 4; ++i) check_input(*gate, "gate", dy, i, dy.size(i));
    conv.gate = static_cast<const char*>(gate->const_data_ptr());
    Input& input = conv.inputs[0];
    input.piece = std::gcd(input.piece, piece_of(2 * conv.c, conv.gate));
    input.pieces = 2 * conv.c / input.piece;
    input.reciprocal = reciprocal_of(input.pieces);
  }
  return run(conv, dy, nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("conv3x3_train_fwd(Tensor x, Tensor weight, Tensor? bias, bool reflect, bool relu) -> Tensor");
  m.def("conv3x3_train_input_grad(Tensor dy, Tensor turned, Tensor? gate, bool padded) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CUDA, m) {
  m.impl("conv3x3_fwd", TORCH_BOX(&conv3x3_fwd));
  m.impl("conv3x3_train_fwd", TORCH_BOX(&conv3x3_train_fwd));
  m.impl("conv3x3_train_input_grad", TORCH_BOX(&conv3x3_train_input_grad));
}

}  // namespace faststy::conv
