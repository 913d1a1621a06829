// A 3x3 convolution of a few channels and all that follows it, on a CUDA device, in half precision.
//
// A block keeps the weights in shared memory and goes from tile to tile. Of each it copies the pixels
// that the tile and its border need, once; the nine taps are nine offsets into that. A warp makes a row
// of 32 pixels by NB x 8 channels by `mma`, and stores it from its registers, while the next tile comes.
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
constexpr int HEIGHT = WARPS, PIXELS = (HEIGHT + 2) * ROW;  // rows of a tile; pixels with the border
constexpr int MOST_INPUTS = 2, MOST_C = 96, MOST_K = 64;
constexpr int MERGERS = 128;  // threads that merge moments
constexpr int OWN = 6 << 10;  // bytes of shared memory: more than what kernels declare

struct Conv {
  Input inputs[MOST_INPUTS];
  int count;
  int n, h, w, c, k;    // of the inputs
  int grow;             // how many pixels more the result has on each side
  int padded;           // c, up to a multiple of 16: in shared memory
  int across, down, tiles;
  unsigned across_reciprocal, sample_reciprocal;  // of across, and of across · down
  int weights;          // bytes of shared memory before the tile
  bool zeros;           // beyond the borders; or they reflect
  bool wide_scale, wide_bias;  // float32, or the dtype of the inputs
  const char* weight;   // [K, 9, C]
  int weight_piece;     // as of an Input
  unsigned weight_pieces, weight_reciprocal;
  const char* gate;     // [N, H, W, C] or null: see load_pixels
  const void *scale, *bias;  // [K] or [N, K], or null
  int64_t scale_stride, bias_stride;
  const char* residual;  // [N, H, W, K] or null
  float slope;
  char* y;  // [N, H, W, K]
  float *mean, *m2;  // [K, tiles] or null: of what was convolved
};

// All filters, zeros where there are none and between channels and their padding.
__device__ __forceinline__ void load_weights(const Conv& conv, char* shared, int filters, int padded) {
  const int filter = 18 * padded + 16;
  if (filters > conv.k || padded > conv.c) {
    for (int i = threadIdx.x; i < filters * filter / 16; i += THREADS) {
      reinterpret_cast<uint4*>(shared)[i] = uint4{0, 0, 0, 0};
    }
    __syncthreads();
  }
  with_size(conv.weight_piece, [&](auto bytes) {
    constexpr int SIZE = sizeof(bytes);
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < conv.k * 9 * conv.weight_pieces; i += THREADS) {
      const unsigned row = ratio(i, conv.weight_reciprocal), place = i - row * conv.weight_pieces;
      copy<SIZE>(shared + row / 9 * filter + row % 9 * 2 * padded + place * SIZE,
                 conv.weight + i * SIZE, true);
    }
  });
}

// The channels of padding, which nothing is copied to.
__device__ __forceinline__ void zero_padding(const Conv& conv, char* shared, int padded) {
  const int rest = padded - conv.c;
  for (int i = threadIdx.x; i < PIXELS * rest; i += THREADS) {
    reinterpret_cast<uint16_t*>(shared + i / rest * (2 * padded + 16))[conv.c + i % rest] = 0;
  }
}

__device__ __forceinline__ float parameter(const void* of, bool wide, int64_t at, auto zero) {
  using T = decltype(zero);
  if (wide) return static_cast<const float*>(of)[at];
  return static_cast<float>(static_cast<const T*>(of)[at]);
}

// Mean and sum of squared deviations of a tile's pixels, channel by channel.
template <int NB>
__device__ void leave_moments(const Conv& conv, const float (&sum)[2][NB][4],
                              const bool (&inside)[2][2], int tile, float pixels) {
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
      for (int m = 0; m < 2; ++m) {
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
      for (int m = 0; m < 2; ++m) {
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

// Channels 2·(lane % 4) and the one after it of one block of 8 of a pixel, or of two: stored by as many
// at a time as neighbours have together.
template <int COUNT>
__device__ __forceinline__ void store(char* pixel, int k, const uint32_t (&pairs)[2], int channels,
                                      bool inside) {
  const int quarter = threadIdx.x % 4, odd = quarter % 2;
  if (COUNT == 2 && channels % 4 == 0) {
    const uint32_t got = warp::neighbours(odd ? pairs[0] : pairs[1]);
    k += odd * 8 + quarter / 2 * 4;
    const uint2 both = odd ? uint2{got, pairs[1]} : uint2{pairs[0], got};
    if (inside && k < channels) *reinterpret_cast<uint2*>(pixel + 2 * k) = both;
    return;
  }
  k += quarter * 2;
#pragma unroll
  for (int i = 0; i < COUNT; ++i, k += 8) {
    if (!inside || k >= channels) continue;
    if (channels % 2 == 0) {
      *reinterpret_cast<uint32_t*>(pixel + 2 * k) = pairs[i];
    } else {
      reinterpret_cast<uint16_t*>(pixel)[k] = pairs[i] & 0xffff;
      if (k + 1 < channels) reinterpret_cast<uint16_t*>(pixel)[k + 1] = pairs[i] >> 16;
    }
  }
}

template <typename T>
__device__ __forceinline__ float half_of(uint32_t pair, int i) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * i));
  return static_cast<float>(*reinterpret_cast<const T*>(&bits));
}

// The sample of a tile, and its first pixel.
struct Place {
  int n, y, x;
};

__device__ __forceinline__ Place place_of(const Conv& conv, int tile) {
  const int n = conv.n == 1 ? 0 : ratio(tile, conv.sample_reciprocal);
  const int rest = tile - n * conv.across * conv.down;
  const int row = ratio(rest, conv.across_reciprocal);
  return {n, row * HEIGHT, (rest - row * conv.across) * TILE_W};
}

constexpr int blocks_at_once(int nb, int cp) {
  return nb <= 2 ? 4 : nb <= 3 && cp > 0 ? 3 : nb <= 6 ? 2 : 1;
}

// T: Half or BFloat16. NB: blocks of 8 channels of the result. CP: channels with their padding, where
// the compiler is to know them, or 0.
template <typename T, int NB, int CP>
__global__ void __launch_bounds__(THREADS, blocks_at_once(NB, CP))
    conv3x3_kernel(const __grid_constant__ Conv conv) {
  extern __shared__ uint4 memory[];
  __shared__ float2 scales[2][NB * 4], biases[2][NB * 4];  // of this tile and of the next
  const int padded = CP > 0 ? CP : conv.padded;
  const int pixel_bytes = 2 * padded + 16, filter = 18 * padded + 16;  // odd numbers of 16
  char* const weights = reinterpret_cast<char*>(memory);
  char* const tile_at = weights + conv.weights;
  const int lane = threadIdx.x % WARP, own = threadIdx.x / WARP;
  const int height = conv.h + 2 * conv.grow, width = conv.w + 2 * conv.grow;

  const auto load_vectors = [&](int n, int into) {
    for (int k = threadIdx.x; k < NB * 8; k += THREADS) {
      const bool known = k < conv.k;
      reinterpret_cast<float*>(scales[into])[k] =
          known && conv.scale ? parameter(conv.scale, conv.wide_scale, n * conv.scale_stride + k, T())
                              : 1.f;
      reinterpret_cast<float*>(biases[into])[k] =
          known && conv.bias ? parameter(conv.bias, conv.wide_bias, n * conv.bias_stride + k, T())
                             : 0.f;
    }
  };
  const bool each = conv.scale_stride != 0 || conv.bias_stride != 0;  // sample has its own

  const auto load = [&](int tile, int into) {
    const Place place = place_of(conv, tile);
    for (int i = 0; i < conv.count; ++i) {
      load_pixels<THREADS, HEIGHT + 2, ROW>(conv.inputs[i], tile_at, pixel_bytes, place.n, conv.h,
                                            conv.w, place.y - 1 - conv.grow,
                                            place.x - 1 - conv.grow, conv.zeros, conv.gate);
    }
    if (each) load_vectors(place.n, into);
  };

  load_weights(conv, weights, NB * 8, padded);
  zero_padding(conv, tile_at, padded);
  load(blockIdx.x, 0);
  if (!each) load_vectors(0, 0), load_vectors(0, 1);

  // Where this thread's rows of matrices begin: of pixels, and of filters.
  const Shared a_row = warp::shared_address(tile_at + (own * ROW + lane % 16) * pixel_bytes +
                                            lane / 16 * 16);
  const Shared b_row = warp::shared_address(weights + (lane % 8 + lane / 16 * 8) * filter +
                                            lane / 8 % 2 * 16);

  int at = 0;
  for (int tile = blockIdx.x; tile < conv.tiles; tile += gridDim.x, at = 1 - at) {
    const auto [n, y0, x0] = place_of(conv, tile);
    warp::wait_for_copies();
    __syncthreads();  // all have copied

    float sum[2][NB][4] = {};
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const Shared a_tap = a_row + (tap / 3 * ROW + tap % 3) * pixel_bytes;
      const Shared b_tap = b_row + tap * 2 * padded;
#pragma unroll
      for (int c = 0; c < 2 * padded; c += 32) {  // bytes: 16 channels
        uint32_t a[2][4], b[NB + 1][2];
        warp::load_matrices(a[0], a_tap + c);
        warp::load_matrices(a[1], a_tap + 16 * pixel_bytes + c);
#pragma unroll
        for (int j = 0; j < NB / 2; ++j) {
          uint32_t two[4];
          warp::load_matrices(two, b_tap + j * 16 * filter + c);
          b[2 * j][0] = two[0], b[2 * j][1] = two[1];
          b[2 * j + 1][0] = two[2], b[2 * j + 1][1] = two[3];
        }
        if constexpr (NB % 2 == 1) warp::load_matrices(b[NB - 1], b_tap + (NB - 1) * 8 * filter + c);
#pragma unroll
        for (int j = 0; j < NB; ++j) {
          warp::multiply(sum[0][j], a[0], b[j], T());
          warp::multiply(sum[1][j], a[1], b[j], T());
        }
      }
    }

    const int y = y0 + own, x = x0 + lane / 4;
    bool inside[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) inside[i / 2][i % 2] = y < height && x + i * 8 < width;
    if (conv.mean != nullptr) {
      const int pixels = min(HEIGHT, height - y0) * min(TILE_W, width - x0);
      leave_moments<NB>(conv, sum, inside, tile, static_cast<float>(pixels));
    }
    // Pixels p are 8 apart. What is added is asked for at once, before it is needed.
    const int64_t first = ((int64_t(n) * height + y) * width + x) * conv.k * 2;
    uint32_t added[4][NB] = {};
    if (conv.residual != nullptr) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
#pragma unroll
        for (int j = 0; j < NB; ++j) {
          const int k = j * 8 + lane % 4 * 2;
          if (!inside[p / 2][p % 2] || k >= conv.k) continue;
          const char* from = conv.residual + first + (p * 8 * conv.k + k) * 2;
          added[p][j] = __ldg(reinterpret_cast<const unsigned*>(from));
        }
      }
    }
    __syncthreads();  // all are through with this tile
    if (tile + gridDim.x < conv.tiles) load(tile + gridDim.x, 1 - at);

    // Scale, bias, residual and activation.
#pragma unroll
    for (int j = 0; j < NB; j += 2) {
      constexpr int MOST = 2;
      const int k = j * 8 + lane % 4 * 2;
      float2 scale[MOST], bias[MOST];
#pragma unroll
      for (int i = 0; i < MOST && j + i < NB; ++i) {
        scale[i] = scales[at][(k + i * 8) / 2], bias[i] = biases[at][(k + i * 8) / 2];
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        char* const pixel = conv.y + first + p * 8 * conv.k * 2;
        uint32_t pairs[MOST] = {};
#pragma unroll
        for (int i = 0; i < MOST && j + i < NB; ++i) {
          float v[2] = {sum[p / 2][j + i][p % 2 * 2] * scale[i].x + bias[i].x,
                        sum[p / 2][j + i][p % 2 * 2 + 1] * scale[i].y + bias[i].y};
          if (conv.residual != nullptr) {
            v[0] += half_of<T>(added[p][j + i], 0), v[1] += half_of<T>(added[p][j + i], 1);
          }
#pragma unroll
          for (float& z : v) {  // z < 0 is false for NaN: it passes through
            z = z < 0 ? (conv.slope == 0 ? 0.f : z * conv.slope) : z;
          }
          pairs[i] = warp::packed(v[0], v[1], T());
        }
        if (j + 1 < NB) {
          store<2>(pixel, j * 8, pairs, conv.k, inside[p / 2][p % 2]);
        } else {
          store<1>(pixel, j * 8, pairs, conv.k, inside[p / 2][p % 2]);
        }
      }
    }
  }
}

// Merges the moments of tiles in a fixed order (Chan et al., 1979): thread i every MERGERS-th tile, then
// pairs of threads.
__global__ void merge_moments_kernel(const float* mean, const float* m2, float* out, Conv conv) {
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
    const int y0 = tile / conv.across % conv.down * HEIGHT, x0 = tile % conv.across * TILE_W;
    const int pixels = min(HEIGHT, conv.h - y0) * min(TILE_W, conv.w - x0);
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

template <typename T, int NB, int CP>
void launch(Conv conv, int device, cudaStream_t stream, Tensor* found) {
  conv.down = (conv.h + 2 * conv.grow + HEIGHT - 1) / HEIGHT;
  conv.across = (conv.w + 2 * conv.grow + TILE_W - 1) / TILE_W;
  const int64_t tiles = int64_t(conv.n) * conv.down * conv.across;
  // Beyond that, reciprocals would be off.
  STD_TORCH_CHECK(tiles * conv.across * (conv.n == 1 ? 1 : conv.down) < int64_t(1) << 32, OP,
                  ": expected fewer pixels");
  conv.tiles = static_cast<int>(tiles);
  conv.across_reciprocal = reciprocal_of(conv.across);
  conv.sample_reciprocal = reciprocal_of(conv.across * conv.down);
  conv.weights = NB * 8 * (18 * conv.padded + 16);
  const int shared = conv.weights + PIXELS * (2 * conv.padded + 16);
  const auto kernel = conv3x3_kernel<T, NB, CP>;
  // The same limit always: another thread may set it between this and the launch.
  const int most = cuda::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, OP) - OWN;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), OP);
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
    void* merged[] = {&mean, &m2, &out, &conv};
    cuda::check(cudaLaunchKernel(merge_moments_kernel, dim3(conv.k), dim3(MERGERS), merged, 0, stream),
                OP);
  }
}

// With the channels known to the compiler, if they are among CPS.
template <typename T, int NB, int... CPS>
void launch_for(const Conv& conv, int device, cudaStream_t stream, Tensor* found) {
  const bool known = ((conv.padded == CPS && (launch<T, NB, CPS>(conv, device, stream, found), true)) || ...);
  if (!known) launch<T, NB, 0>(conv, device, stream, found);
}

// The numbers of channels that the shipped nets have.
template <typename T>
void launch(const Conv& conv, int device, cudaStream_t stream, Tensor* found) {
  const int blocks = (conv.k + 7) / 8;
  if (blocks == 1) return launch_for<T, 1, 16, 32>(conv, device, stream, found);
  if (blocks == 2) return launch_for<T, 2, 16, 32, 48>(conv, device, stream, found);
  if (blocks == 3) return launch_for<T, 3, 32>(conv, device, stream, found);
  if (blocks == 4) return launch_for<T, 4, 16, 48>(conv, device, stream, found);
  if (blocks <= 6) return launch_for<T, 6, 32, 48>(conv, device, stream, found);
  launch_for<T, 8>(conv, device, stream, found);
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
  conv.weight = static_cast<const char*>(weight.const_data_ptr());
  conv.weight_piece = piece_of(2 * conv.c, conv.weight);
  conv.weight_pieces = 2 * conv.c / conv.weight_piece;
  conv.weight_reciprocal = reciprocal_of(conv.weight_pieces);
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
                      v->size(v->dim() - 1) == conv.k &&
                      (conv.k == 1 || v->stride(v->dim() - 1) == 1),
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
    const auto address = reinterpret_cast<uintptr_t>(residual->const_data_ptr());
    STD_TORCH_CHECK(conv.k % 2 == 0 && address % 4 == 0, "residual: expected whole pairs of channels");
    STD_TORCH_CHECK(residual->dim() == 4 && residual->size(0) == conv.n && residual->size(1) == conv.k &&
                        residual->size(2) == conv.h && residual->size(3) == conv.w &&
                        residual->scalar_type() == x.scalar_type() &&
                        residual->device() == x.device() && is_channels_last(*residual),
                    "residual: expected the shape, dtype and device of the result, channels_last");
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

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CUDA, m) {
  m.impl("conv3x3_fwd", TORCH_BOX(&conv3x3_fwd));
  m.impl("conv3x3_train_fwd", TORCH_BOX(&conv3x3_train_fwd));
  m.impl("conv3x3_train_input_grad", TORCH_BOX(&conv3x3_train_input_grad));
}

}  // namespace faststy::conv
