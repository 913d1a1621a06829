// uint8 frames to cells of pixels in half precision on a CUDA device: the raw op from_pixels of
// faststy/ops/pixels.py, for the frames and cells that painting has. Bytes are read four or two at a
// time; a thread takes a row of a cell, so that neighbours write neighbouring bytes.

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

#include "cuda.h"
#include "warp.h"

namespace faststy {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int THREADS = 256, COLOURS = 3;
constexpr const char* OP = "from_pixels";

struct Cells {
  const uint8_t* frames;  // [N, H, W, 3], strides by sample and row
  int64_t frame_stride, row_stride;
  void* out;  // [N, h, w, 3·R²], written
  int height, width, h, w;
  float scale, low;
  bool aligned;  // every row, to as many bytes as are read at a time
};

// R x R pixels a cell; channel (c·R + dy)·R + dx is colour c of the pixel in row dy and column dx.
template <typename T, int R>
__global__ void cells_kernel(const Cells cells) {
  using Read = std::conditional_t<R == 4, uint32_t, uint16_t>;
  using Written = std::conditional_t<R == 4, uint2, uint32_t>;
  const int at = blockIdx.x * THREADS + threadIdx.x, cell = at / R, dy = at % R;
  if (cell >= cells.w) return;
  const int n = blockIdx.y / cells.h, row = blockIdx.y % cells.h;
  // Cells that stick out repeat the last row and column.
  const int y = min(row * R + dy, cells.height - 1);
  const uint8_t* from = cells.frames + n * cells.frame_stride + y * cells.row_stride;
  uint8_t bytes[R * COLOURS];
  if (cells.aligned && (cell + 1) * R <= cells.width) {
#pragma unroll
    for (int i = 0; i < COLOURS; ++i) {
      const Read part = reinterpret_cast<const Read*>(from + cell * R * COLOURS)[i];
#pragma unroll
      for (int j = 0; j < R; ++j) bytes[i * R + j] = static_cast<uint8_t>(part >> (8 * j));
    }
  } else {
    for (int i = 0; i < R * COLOURS; ++i) {
      const int x = min(cell * R + i / COLOURS, cells.width - 1);
      bytes[i] = from[x * COLOURS + i % COLOURS];
    }
  }
  T* const to = static_cast<T*>(cells.out) + (int64_t(blockIdx.y) * cells.w + cell) * COLOURS * R * R;
#pragma unroll
  for (int c = 0; c < COLOURS; ++c) {
    uint32_t pairs[R / 2];
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      const float first = static_cast<float>(bytes[2 * i * COLOURS + c]);
      const float second = static_cast<float>(bytes[(2 * i + 1) * COLOURS + c]);
      pairs[i] = warp::packed(first * cells.scale + cells.low, second * cells.scale + cells.low, T());
    }
    *reinterpret_cast<Written*>(to + (c * R + dy) * R) = *reinterpret_cast<const Written*>(pairs);
  }
}

template <typename T>
void launch(Cells cells, int rows, int r, cudaStream_t stream) {
  const dim3 grid((cells.w * r + THREADS - 1) / THREADS, rows);
  void* arguments[] = {&cells};
  const auto kernel = r == 4 ? cells_kernel<T, 4> : cells_kernel<T, 2>;
  cuda::check(cudaLaunchKernel(kernel, grid, dim3(THREADS), arguments, 0, stream), OP);
}

Tensor from_pixels(Tensor frames, ScalarType dtype, bool channels_last, int64_t r, double low,
                   double high) {
  STD_TORCH_CHECK(frames.dim() == 4 && frames.size(3) == COLOURS && frames.stride(3) == 1 &&
                      frames.stride(2) == COLOURS,
                  "frames: expected [N, H, W, 3] with neighbouring pixels");
  STD_TORCH_CHECK(channels_last && (r == 2 || r == 4), "expected cells of 2 or 4, channels_last");
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "dtype: expected float16 or bfloat16");
  const torch::stable::accelerator::DeviceGuard guard(frames.get_device_index());
  Cells cells{};
  cells.frames = static_cast<const uint8_t*>(frames.const_data_ptr());
  cells.frame_stride = frames.stride(0), cells.row_stride = frames.stride(1);
  cells.height = static_cast<int>(frames.size(1)), cells.width = static_cast<int>(frames.size(2));
  cells.h = static_cast<int>((cells.height + r - 1) / r);
  cells.w = static_cast<int>((cells.width + r - 1) / r);
  cells.scale = static_cast<float>((high - low) / 255), cells.low = static_cast<float>(low);
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(cells.frames));
  cells.aligned = (address | cells.row_stride | cells.frame_stride) % r == 0;
  const int64_t rows = frames.size(0) * cells.h, sizes[] = {frames.size(0), COLOURS * r * r, cells.h,
                                                            cells.w};
  STD_TORCH_CHECK(rows < 65536, "frames: expected fewer than 65536 rows of cells");
  Tensor out = torch::stable::empty(sizes, dtype, std::nullopt, frames.device(), std::nullopt,
                                    MemoryFormat::ChannelsLast);
  cells.out = out.mutable_data_ptr();
  const cudaStream_t stream = cuda::current_stream(frames);
  if (dtype == ScalarType::Half) {
    launch<Half>(cells, static_cast<int>(rows), static_cast<int>(r), stream);
  } else {
    launch<BFloat16>(cells, static_cast<int>(rows), static_cast<int>(r), stream);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(faststy_native, CUDA, m) {
  m.impl("from_pixels", TORCH_BOX(&from_pixels));
}

}  // namespace faststy
