// As much of CUDA as csrc/combined_loss_cuda.cu needs, on the CPU: a thread for each thread of a block,
// the blocks one after another, and barriers. Slow, but every line of the kernels runs.
#pragma once

#include <atomic>
#include <barrier>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__ static
#define __device__
#define __shared__ static  // as blocks run one after another
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t count, cudaStream_t) {
  std::memset(to, value, count);
  return cudaSuccess;
}

namespace emulation {
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<std::unique_ptr<std::barrier<>>> warps;
inline double lanes[1024];
}  // namespace emulation

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 gridDim;

inline void __syncthreads() { emulation::block->arrive_and_wait(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline unsigned atomicAdd(unsigned* to, unsigned value) {
  return std::atomic_ref<unsigned>(*to).fetch_add(value);
}
inline double __shfl_down_sync(unsigned, double x, int distance) {
  const unsigned thread = threadIdx.x;
  std::barrier<>& warp = *emulation::warps[thread / 32];
  emulation::lanes[thread] = x;
  warp.arrive_and_wait();
  const double y = thread % 32 + distance < 32 ? emulation::lanes[thread + distance] : x;
  warp.arrive_and_wait();
  return y;
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, int threads, Arguments... arguments) {
  gridDim = grid;
  emulation::block = std::make_unique<std::barrier<>>(threads);
  emulation::warps.clear();
  for (int i = 0; i < threads; i += 32) {
    emulation::warps.push_back(std::make_unique<std::barrier<>>(32));
  }
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([=] {
      threadIdx = dim3(i);
      for (unsigned block = 0; block < grid.x * grid.y; ++block) {
        blockIdx = dim3(block % grid.x, block / grid.x);
        kernel(arguments...);
        __syncthreads();
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
}
