// How kernels are asked for: host code without CUDA and without torch, between the operators (<op>.cpp), which fill in
// the arguments (<op>_args.h), and the launches (<op>.cu).
#pragma once

#include <atomic>
#include <cstdint>

#include "plan.h"

namespace dla {
namespace cuda {

struct Launch {
  int64_t blocks;
  int cluster, threads;
  int64_t shared_bytes;
};
// Launches the kernel that takes these arguments; returns what went wrong, or null. Each <op>.cu has its own.
template <class Args>
const char* launch(const Args& args, const Launch& how, void* stream);
// How many clusters of such a launch the current device can hold at once.
template <class Args>
int clusters_that_fit(const Launch& how);

Device current_device();
// Torch's guard tells torch's copy of the CUDA runtime; this tells ours, which is linked statically.
void use_device(int index);
#if defined(DLA_SIMT)
extern std::atomic<int64_t> launches;
#endif

}  // namespace cuda
}  // namespace dla
