// What the 32 threads of a warp do together: matrices from shared memory into the registers that
// tensor cores take, and products of them. After the PTX ISA, "Warp-level matrix instructions".
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace faststy::warp {

using Shared = uint32_t;  // an address in shared memory

__device__ __forceinline__ Shared shared_address(const void* p) {
  return static_cast<Shared>(__cvta_generic_to_shared(p));
}

// Four matrices of 8 x 8 values of two bytes. Thread i gives the address of row i % 8 of matrix i / 8;
// it is given values 2·(i % 4) and the one after it of row i / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// Two of them; the addresses of threads 16 and up are not looked at.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[2], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(row)
               : "memory");
}

// Four matrices as above, each turned over: values 2·(i % 4) and the one after it of column i / 4.
__device__ __forceinline__ void load_turned(uint32_t (&to)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// sum [16, 8] += a [16, 16] · b [16, 8]. Of `sum` thread i holds values 2·(i % 4) and the one after
// it of row i / 4, and of row i / 4 + 8.
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4],
                                         const uint32_t* b, torch::headeronly::Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4],
                                         const uint32_t* b, torch::headeronly::BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The sum over threads i % 4 + {0, 4, 8, … 28}; in threads 0 to 3.
__device__ __forceinline__ float sum_of_rows(float x) {
  for (int distance = 16; distance >= 4; distance /= 2) {
    x += __shfl_down_sync(0xffffffffu, x, distance);
  }
  return x;
}

// What the thread next to this one, of a pair, has.
__device__ __forceinline__ uint32_t neighbours(uint32_t x) {
  return __shfl_xor_sync(0xffffffffu, x, 1);
}

// SIZE bytes from global to shared memory while the thread goes on; zeros where `inside` is false.
template <int SIZE>
__device__ __forceinline__ void copy_later(Shared to, const void* from, bool inside) {
  const int bytes = inside ? SIZE : 0;
  if constexpr (SIZE == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(SIZE),
                 "r"(bytes)
                 : "memory");
  }
}

// What this thread has begun to copy since the last group is a group.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the last LEFT.
template <int LEFT>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Waits for all that this thread copies.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace faststy::warp
