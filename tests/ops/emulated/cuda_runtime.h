// As much of CUDA as csrc/*_cuda.cu need, on the CPU: a thread for each thread of a block,
// and barriers. Blocks run one after another, those of a cooperative launch side by side. Slow, but
// every line of the kernels runs.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t count, cudaStream_t) {
  std::memset(to, value, count);
  return cudaSuccess;
}

namespace emulation {
constexpr unsigned MOST_BLOCKS = 16;  // side by side

struct Block {
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<double> lanes[2];  // in turns: one shuffle may begin while another is read
  std::vector<std::array<uint64_t, 6>> words[2];  // likewise
  std::vector<uint4> shared;

  Block(int threads, size_t bytes) : all(threads), shared((bytes + 15) / 16) {
    for (std::vector<double>& of : lanes) of.resize(threads);
    for (auto& of : words) of.resize(threads);
    for (int i = 0; i < threads; i += 32) {
      warps.push_back(std::make_unique<std::barrier<>>(32));
    }
  }
};

inline thread_local Block* block;
inline thread_local unsigned turn = 0;
inline thread_local unsigned slot;  // which of the blocks that run side by side

inline int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}
}  // namespace emulation

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 gridDim;

inline void __syncthreads() { emulation::block->all.arrive_and_wait(); }
inline void __syncwarp() { emulation::block->warps[threadIdx.x / 32]->arrive_and_wait(); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t(a) * b) >> 32; }
template <typename T>
T __ldg(const T* from) {
  return *from;
}
using std::abs, std::min;
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __nanosleep(unsigned) { std::this_thread::yield(); }
inline unsigned atomicAdd(unsigned* to, unsigned value) {
  return std::atomic_ref<unsigned>(*to).fetch_add(value);
}
inline double __shfl_down_sync(unsigned, double x, int distance) {
  const unsigned thread = threadIdx.x;
  std::barrier<>& warp = *emulation::block->warps[thread / 32];
  std::vector<double>& lanes = emulation::block->lanes[emulation::turn ^= 1];
  lanes[thread] = x;
  warp.arrive_and_wait();
  return thread % 32 + distance < 32 ? lanes[thread + distance] : x;
}

// A device of two multiprocessors.
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 2; break;
    case cudaDevAttrCooperativeLaunch: *value = emulation::setting("EMULATED_COOPERATIVE", 1); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    default: *value = emulation::setting("EMULATED_SHARED", 1 << 16);
  }
  return cudaSuccess;
}
namespace emulation {
inline int limit = 0;  // of a launch's shared memory
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int value) {
  emulation::limit = value;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

namespace emulation {
inline int launches = 0;

// Runs f with the indices and the shared memory of every thread of every block, `abreast` at a time.
template <typename F>
void run(dim3 grid, int threads, size_t bytes, unsigned abreast, const F& f) {
  gridDim = grid;
  ++launches;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::thread> pool;
  for (unsigned place = 0; place < abreast; ++place) {
    blocks.push_back(std::make_unique<Block>(threads, bytes));
    for (int i = 0; i < threads; ++i) {
      pool.emplace_back([=, &f, own = blocks.back().get()] {
        block = own;
        slot = place;
        threadIdx = dim3(i);
        for (unsigned b = place; b < grid.x * grid.y; b += abreast) {
          blockIdx = dim3(b % grid.x, b / grid.x);
          f();
          __syncthreads();
        }
      });
    }
  }
  for (std::thread& thread : pool) thread.join();
}

template <typename... Arguments, size_t... I>
cudaError_t launch(void (*kernel)(Arguments...), dim3 grid, dim3 threads, void** from, size_t bytes,
                   unsigned abreast, std::index_sequence<I...>) {
  if (abreast > MOST_BLOCKS) return 1;
  run(grid, threads.x, bytes, abreast, [&] { kernel(*static_cast<Arguments*>(from[I])...); });
  return cudaSuccess;
}
}  // namespace emulation

template <typename... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 threads, void** arguments,
                             size_t bytes, cudaStream_t) {
  return emulation::launch(kernel, grid, threads, arguments, bytes, 1,
                           std::index_sequence_for<Arguments...>());
}

template <typename... Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments...), dim3 grid, dim3 threads,
                                        void** arguments, size_t bytes, cudaStream_t) {
  return emulation::launch(kernel, grid, threads, arguments, bytes, grid.x,
                           std::index_sequence_for<Arguments...>());
}

// kernel<<<grid, threads, 0, stream>>>(arguments...)
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, int threads, Arguments... arguments) {
  emulation::run(grid, threads, 0, 1, [&] { kernel(arguments...); });
}
