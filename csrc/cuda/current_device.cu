// What the plan needs to know of the device.
#include "launch.h"

#if defined(DLA_SIMT)
#include <cstdio>
#include <cstdlib>
#endif

namespace dla {
namespace cuda {

#if defined(DLA_SIMT)

std::atomic<int64_t> launches{0};

// A device as small as the shapes it is tested with, so that clusters, chunks and the workspace all come into
// play; a plan would have no use for clusters here. DLA_SIMT_DEVICE=processors,shared,l2,cluster,threads asks for
// another.
Device current_device() {
  int processors = 2, shared = 12 << 10, l2 = 16 << 10, cluster = 4, threads = 64;
  if (const char* given = std::getenv("DLA_SIMT_DEVICE"))
    std::sscanf(given, "%d,%d,%d,%d,%d", &processors, &shared, &l2, &cluster, &threads);
  return {processors, shared, 2 * (int64_t(shared) + 1024), l2, cluster, threads, cluster};
}

void use_device(int) {}

#else

void use_device(int index) { cudaSetDevice(index); }

Device current_device() {
  int index = 0, processors = 0, per_block = 0, per_processor = 0, l2 = 0, clusters = 0;
  cudaGetDevice(&index);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index);
  cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
  cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, index);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, index);
  return {processors, per_block, per_processor, l2, clusters ? 8 : 1, kThreads};
}

#endif

}  // namespace cuda
}  // namespace dla
