// How operators (<op>.cpp) reach a device: its stream, a launch there, and the memory of tensors. Compiled for CUDA
// tensors, or, with DLA_SIMT, for CPU tensors that the shim works on, in a library of operators of its own.
#pragma once

#include <vector>

#include <torch/csrc/stable/library.h>

#if defined(DLA_SIMT)
#define DLA_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(dla_simt, CPU, m)
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define DLA_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(dla, CUDA, m)
#endif

#include "../tensors.h"
#include "launching.h"

namespace dla {
namespace cuda {

// While it lives, the device of `like` is the current one, and its current stream is ours.
class OnDevice {
 public:
#if defined(DLA_SIMT)
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& like) : index_(like.get_device_index()), guard_(index_) { use_device(index_); }
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

template <class Args>
void run(const OnDevice& device, const Args& args, const Launch& how) {
  if (how.blocks == 0) return;
  const char* error = launch(args, how, device.stream());
  STD_TORCH_CHECK(error == nullptr, "dla_kernels: a CUDA launch of ", how.blocks, " blocks of ", how.threads,
                  " threads with ", how.shared_bytes, " bytes of shared memory failed: ", error);
}

template <class A>
Tensor empty(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape, dtype_of<A>());
}
template <class A>
A* data(const Tensor& x) {  // x is contiguous
  return static_cast<A*>(x.data_ptr());
}
template <class A>
A* data_or_null(const Tensors& xs, size_t i) {
  return i < xs.size() ? data<A>(xs[i]) : nullptr;
}

}  // namespace cuda
}  // namespace dla
