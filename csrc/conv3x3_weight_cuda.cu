// The gradient of the weights of a 3x3 convolution with reflected borders, in bfloat16.
//
// dw[k, tap, c] is a sum over pixels of dy[k] · x[c, moved by tap]: a product of matrices whose inner
// side is all pixels. A block goes from tile to tile, of which the next is copied meanwhile, and keeps
// its sums in registers: a warp has one tap, K x C sums of it. Each block leaves a matrix of its own; a second launch adds them up, always
// in the same order.

#include <algorithm>

#include "conv3x3_cuda.h"

namespace faststy::conv {
namespace {

using warp::Shared;

constexpr int TAPS = 9, THREADS = TAPS * WARP;
constexpr int HEIGHT = 8;         // rows of a tile
constexpr int MOST_K = 64, MOST_C = 96;
constexpr int MERGERS = 256;

struct Sums {
  Input dy, x;  // x: of the block's channels
  int n, h, w, k, c;
  int across, down, tiles;
  int chunk;  // channels of x that a block takes; blockIdx.y tells which
  float* parts;  // [blocks, 9, k, c], written
};

// MB blocks of 16 channels of dy by NB blocks of 8 channels of x.
template <int MB, int NB>
__global__ void __launch_bounds__(THREADS, MB * NB <= 12 ? 2 : 1)
    weight_grad_kernel(const __grid_constant__ Sums sums) {
  constexpr int DY_BYTES = MB * 32 + 16, X_BYTES = NB * 16 + 16;  // of a pixel
  constexpr int DY = HEIGHT * TILE_W * DY_BYTES, X = (HEIGHT + 2) * ROW * X_BYTES;
  extern __shared__ uint4 memory[];  // two tiles
  char* const first = reinterpret_cast<char*>(memory);
  const int lane = threadIdx.x % WARP, tap = threadIdx.x / WARP;
  Input x = sums.x;
  x.data += 2 * sums.chunk * blockIdx.y;

  const auto load = [&](int tile, char* to) {
    const int n = tile / (sums.across * sums.down);
    const int y0 = tile / sums.across % sums.down * HEIGHT, x0 = tile % sums.across * TILE_W;
    load_pixels<THREADS, HEIGHT, TILE_W>(sums.dy, to, DY_BYTES, n, sums.h, sums.w, y0, x0, true);
    load_pixels<THREADS, HEIGHT + 2, ROW>(x, to + DY, X_BYTES, n, sums.h, sums.w, y0 - 1, x0 - 1,
                                          false);
    warp::end_group();
  };

  // What is beyond the channels stays zero.
  for (int i = threadIdx.x; i < 2 * (DY + X) / 16; i += THREADS) memory[i] = uint4{0, 0, 0, 0};
  __syncthreads();
  // Rows of matrices are pixels; turned over, those are the inner side of the product.
  const Shared dy_row = warp::shared_address(first + (lane % 8 + lane / 16 * 8) * DY_BYTES +
                                             lane / 8 % 2 * 16);
  const Shared x_row = warp::shared_address(
      first + DY + (tap / 3 * ROW + tap % 3 + lane % 16) * X_BYTES + lane / 16 * 16);

  float sum[MB][NB][4] = {};
  int shift = DY + X;  // bytes to the tile at hand; before the first there is none
  const int step = gridDim.x;
  for (int tile = int(blockIdx.x) - step; tile < sums.tiles; tile += step, shift ^= DY + X) {
    if (tile + step < sums.tiles) {
      load(tile + step, first + (shift ^ (DY + X)));
      warp::wait_for_groups<1>();
    } else {
      warp::wait_for_groups<0>();
    }
    if (tile < 0) continue;
    __syncthreads();
    for (int row = 0; row < HEIGHT; ++row) {
#pragma unroll
      for (int column = 0; column < TILE_W; column += 16) {
        uint32_t b[NB][2];
#pragma unroll
        for (int j = 0; j < NB / 2; ++j) {
          uint32_t two[4];
          warp::load_turned(two, x_row + shift + (row * ROW + column) * X_BYTES + j * 32);
          b[2 * j][0] = two[0], b[2 * j][1] = two[1];
          b[2 * j + 1][0] = two[2], b[2 * j + 1][1] = two[3];
        }
#pragma unroll
        for (int m = 0; m < MB; ++m) {
          uint32_t a[4];
          warp::load_turned(a, dy_row + shift + (row * TILE_W + column) * DY_BYTES + m * 32);
#pragma unroll
          for (int j = 0; j < NB; ++j) warp::multiply(sum[m][j], a, b[j], BFloat16());
        }
      }
    }
    __syncthreads();  // before another tile comes here
  }

  float* const part = sums.parts + (int64_t(blockIdx.x) * TAPS + tap) * sums.k * sums.c;
  const int c0 = sums.chunk * blockIdx.y, c1 = min(c0 + sums.chunk, sums.c);
#pragma unroll
  for (int m = 0; m < MB; ++m) {
#pragma unroll
    for (int j = 0; j < NB; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = m * 16 + lane / 4 + i / 2 * 8, c = c0 + j * 8 + lane % 4 * 2 + i % 2;
        if (k < sums.k && c < c1) part[k * sums.c + c] = sum[m][j][i];
      }
    }
  }
}

__global__ void add_up_kernel(const float* parts, float* dw, int count, int k, int c) {
  const int i = blockIdx.x * MERGERS + threadIdx.x, size = TAPS * k * c;
  if (i >= size) return;
  float sum = 0;
#pragma unroll 8
  for (int part = 0; part < count; ++part) sum += parts[int64_t(part) * size + i];
  const int tap = i / (k * c), filter = i / c % k;
  dw[(filter * TAPS + tap) * c + i % c] = sum;
}

// ---------------------------------------------------------------------------- on the host

template <int MB, int NB>
void launch(Sums sums, int device, cudaStream_t stream, const Tensor& like, float* dw) {
  constexpr int SHARED =
      2 * (HEIGHT * TILE_W * (MB * 32 + 16) + (HEIGHT + 2) * ROW * (NB * 16 + 16));
  const auto kernel = weight_grad_kernel<MB, NB>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED), OP);
  int at_once = 0;
  cuda::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, kernel, THREADS, SHARED), OP);
  STD_TORCH_CHECK(at_once > 0, OP, ": it needs ", SHARED, " bytes of shared memory");
  const int chunks = (sums.c + sums.chunk - 1) / sums.chunk;
  const int most = std::max(
      at_once * cuda::attribute(cudaDevAttrMultiProcessorCount, device, OP) / chunks, 1);
  int blocks = std::min(sums.tiles, most);
  const int size = TAPS * sums.k * sums.c;
  Tensor parts = torch::stable::new_empty(like, {blocks, size}, ScalarType::Float);
  sums.parts = static_cast<float*>(parts.mutable_data_ptr());
  void* arguments[] = {&sums};
  cuda::check(cudaLaunchKernel(kernel, dim3(blocks, chunks), dim3(THREADS), arguments, SHARED, stream),
              OP);
  const float* from = sums.parts;
  void* added[] = {&from, &dw, &blocks, &sums.k, &sums.c};
  cuda::check(cudaLaunchKernel(add_up_kernel, dim3((size + MERGERS - 1) / MERGERS), dim3(MERGERS),
                               added, 0, stream),
              OP);
}

template <int MB>
void launch(Sums sums, int device, cudaStream_t stream, const Tensor& like, float* dw) {
  // The fewest chunks of channels, and of those the narrowest.
  const int chunks = (sums.c + 47) / 48, wanted = (sums.c + chunks - 1) / chunks;
  sums.chunk = std::min(wanted <= 16 ? 16 : wanted <= 32 ? 32 : 48, sums.c);
  sums.x.pieces = 2 * sums.chunk / sums.x.piece;
  sums.x.reciprocal = reciprocal_of(sums.x.pieces);
  if (sums.chunk <= 16) return launch<MB, 2>(sums, device, stream, like, dw);
  if (sums.chunk <= 32) return launch<MB, 4>(sums, device, stream, like, dw);
  launch<MB, 6>(sums, device, stream, like, dw);
}

// [K, C, 3, 3] float32, channels_last, from dy [N, K, H, W] and x [N, C, H, W].
Tensor conv3x3_train_weight_grad(Tensor dy, Tensor x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "x: expected bfloat16");
  for (const int dim : {0, 2, 3}) check_input(dy, "dy", x, dim, x.size(dim));
  check_input(x, "x", x, 0, x.size(0));
  Sums sums{};
  sums.n = static_cast<int>(x.size(0)), sums.k = static_cast<int>(dy.size(1));
  sums.h = static_cast<int>(x.size(2)), sums.w = static_cast<int>(x.size(3));
  sums.c = static_cast<int>(x.size(1));
  STD_TORCH_CHECK(sums.k <= MOST_K && sums.c <= MOST_C, "x, dy: expected at most ", MOST_C, " and ",
                  MOST_K, " channels, got ", sums.c, " and ", sums.k);
  STD_TORCH_CHECK(sums.c <= 48 || sums.c == 96, "x: expected at most 48 channels, or 96");
  STD_TORCH_CHECK(sums.h >= 2 && sums.w >= 2, "x: expected two rows and columns or more");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  sums.dy = input_of(dy, 0, sums.k, 0);
  sums.x = input_of(x, 0, std::min(sums.c, 48), 0);
  sums.down = (sums.h + HEIGHT - 1) / HEIGHT, sums.across = (sums.w + TILE_W - 1) / TILE_W;
  const int64_t tiles = int64_t(sums.n) * sums.down * sums.across;
  STD_TORCH_CHECK(tiles < (int64_t(1) << 31), OP, ": expected fewer than 2^31 tiles");
  sums.tiles = static_cast<int>(tiles);
  const int64_t sizes[] = {sums.k, sums.c, 3, 3};
  Tensor dw = torch::stable::empty(sizes, ScalarType::Float, std::nullopt, x.device(), std::nullopt,
                                   MemoryFormat::ChannelsLast);
  float* const to = static_cast<float*>(dw.mutable_data_ptr());
  const cudaStream_t stream = cuda::current_stream(x);
  const int device = x.get_device_index();
  if (sums.k <= 16) {
    launch<1>(sums, device, stream, x, to);
  } else if (sums.k <= 32) {
    launch<2>(sums, device, stream, x, to);
  } else if (sums.k <= 48) {
    launch<3>(sums, device, stream, x, to);
  } else {
    launch<4>(sums, device, stream, x, to);
  }
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(faststy_native, m) {
  m.def("conv3x3_train_weight_grad(Tensor dy, Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CUDA, m) {
  m.impl("conv3x3_train_weight_grad", TORCH_BOX(&conv3x3_train_weight_grad));
}

}  // namespace faststy::conv
