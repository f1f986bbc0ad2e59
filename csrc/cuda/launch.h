// Launching a kernel, on a device or through the SIMT shim. Included by the <op>.cu alone.
#pragma once

#include "device.h"
#include "launching.h"

#if defined(DLA_SIMT)
#include <stdexcept>
#include <string>
#else
#include <array>
#include <atomic>
#include <map>
#endif

namespace dla {
namespace cuda {

#if defined(DLA_SIMT)

template <class Args, class Kernel>
const char* launch_kernel(Kernel kernel, const Args& args, const Launch& how, void*) {
  static thread_local std::string error;
  ++launches;
  try {
    simt::launch(kernel, int(how.blocks), how.cluster, how.threads, size_t(how.shared_bytes), args);
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
template <class Args, class Kernel>
int clusters_of_kernel(Kernel, const Launch& how) {
  return int(how.blocks / how.cluster);
}

#else

inline cudaLaunchConfig_t config_of(const Launch& how, cudaLaunchAttribute* attribute, void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(how.blocks));
  config.blockDim = dim3(unsigned(how.threads));
  config.dynamicSmemBytes = size_t(how.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  if (how.cluster > 1) {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim = {unsigned(how.cluster), 1, 1};
    config.attrs = attribute;
    config.numAttrs = 1;
  }
  return config;
}
// More than 48 KB of shared memory is given only to those who ask: for the most there is, once for each kernel and
// device, so that threads do not undo each other's wish.
template <class Args, class Kernel>
cudaError_t ask_for_shared(Kernel kernel, int64_t bytes) {
  if (bytes <= 48 << 10) return cudaSuccess;
  constexpr int kDevices = 64;
  static std::atomic<bool> asked[kDevices];  // of the kernel with these Args
  int device = 0, most = 0;
  cudaGetDevice(&device);
  if (device < kDevices && asked[device]) return cudaSuccess;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (device < kDevices && error == cudaSuccess) asked[device] = true;
  return error;
}

template <class Args, class Kernel>
const char* launch_kernel(Kernel kernel, const Args& args, const Launch& how, void* stream) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = config_of(how, &attribute, stream);
  cudaError_t error = ask_for_shared<Args>(kernel, how.shared_bytes);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, args);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
// Asking takes longer than launching, so the answers are kept.
template <class Args, class Kernel>
int clusters_of_kernel(Kernel kernel, const Launch& how) {
  static thread_local std::map<std::array<int64_t, 5>, int> known;  // of the kernel with these Args
  int device = 0;
  cudaGetDevice(&device);
  const std::array<int64_t, 5> question{device, how.blocks, how.cluster, how.threads, how.shared_bytes};
  const auto found = known.find(question);
  if (found != known.end()) return found->second;
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = config_of(how, &attribute, nullptr);
  cudaFuncAttributes code;
  // Code for chips before sm_90, which a newer one may have been given, takes every block for a group of its own.
  const bool knows_clusters =
      how.cluster == 1 || (cudaFuncGetAttributes(&code, kernel) == cudaSuccess && code.ptxVersion >= 90);
  int clusters = 0;
  if (!knows_clusters || ask_for_shared<Args>(kernel, how.shared_bytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();  // it was a question
    clusters = 0;
  }
  return known[question] = clusters;
}

#endif

#define DLA_LAUNCH(kernel, Args, T)                                                   \
  template <>                                                                         \
  const char* launch<Args<T>>(const Args<T>& args, const Launch& how, void* stream) { \
    return launch_kernel(kernel<T>, args, how, stream);                               \
  }                                                                                   \
  template <>                                                                         \
  int clusters_that_fit<Args<T>>(const Launch& how) {                                 \
    return clusters_of_kernel<Args<T>>(kernel<T>, how);                               \
  }
#define DLA_LAUNCH_ROWS(kernel, Args) DLA_LAUNCH(kernel, Args, float) DLA_LAUNCH(kernel, Args, double)
#define DLA_LAUNCH_MAPS(kernel, Args) \
  DLA_LAUNCH_ROWS(kernel, Args) DLA_LAUNCH(kernel, Args, BFloat16) DLA_LAUNCH(kernel, Args, Half)

}  // namespace cuda
}  // namespace dla
