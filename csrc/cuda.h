// What every CUDA source needs of torch and of the runtime.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

// In builds of torch for CUDA only; weak, so that the library can be loaded with any.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace faststy::cuda {

inline cudaStream_t current_stream(const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr name, int device, const char* op) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), op);
  return value;
}

}  // namespace faststy::cuda
