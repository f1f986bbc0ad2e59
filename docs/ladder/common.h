// What the rungs share: the sizes and arrays of a stage, the cell as one thread computes it, shared memory, launching.
// The words for the machine (thread_index, block_barrier, shuffle_xor) are those of csrc/cuda/device.h, so that the
// rungs run on a GPU and on the SIMT shim of the tests alike.
#pragma once

#include "../../csrc/cells/dsu.h"
#include "../../csrc/cuda/device.h"

namespace ladder {

using namespace dla::cuda;
using dla::State;
using Cell = dla::Dsu<dla::Sigmoid, dla::Identity>;  // the paper's: it feeds h = sig(c) and puts out c

// Of one stage. Its maps are of one size and lie one behind the other; the real op takes a list of any T maps.
struct Args {
  int T, B, C, R, HW;
  const float* x;   // [T, B, C, HW]
  const float* w1;  // [R, 2 C], columns of h, then of y
  const float* w2;  // [3 C, R], rows of gate i, then f, then g
  const float* b2;  // [3 C]
  float* out;       // [T, B, C, HW] written: x_t * d_t
  float* c;         // [T, B, C] written: the state after every layer
  float* y;         // [T, B, C] written: the means of the planes
  float *h, *u;     // [B, C], [B, R] room that rung 1 alone needs

  // Where channel c of layer t, sample b stands in [T, B, C], and its plane in [T, B, C, HW].
  DLA_HOST_DEVICE int64_t at(int t, int b, int c) const { return (int64_t(t) * B + b) * C + c; }
  DLA_HOST_DEVICE int64_t plane(int t, int b, int c) const { return at(t, b, c) * HW; }
};

// ---- the cell, one thread for each number ----

// u[r] = relu(W1 [h, y])[r] from h [C] and y [C].
DLA_DEVICE float bottleneck(const Args& args, int r, const float* h, const float* y) {
  const float* const row = args.w1 + r * 2 * args.C;  // [2 C]
  float sum = 0;
  for (int k = 0; k < args.C; ++k) sum += row[k] * h[k] + row[args.C + k] * y[k];
  return dla::relu(sum);
}

// The state of channel c after a step, from u [R] and the memory before it.
DLA_DEVICE State<float> cell(const Args& args, int c, const float* u, float memory) {
  float a[Cell::NG];
  for (int g = 0; g < Cell::NG; ++g) {
    const int n = g * args.C + c;
    a[g] = args.b2[n];
    for (int r = 0; r < args.R; ++r) a[g] += args.w2[n * args.R + r] * u[r];
  }
  return Cell::step(a, State<float>{0, memory});  // a has all that h has to say
}

// ---- shared memory ----

// Hands it out, array by array. The host, which only asks how many bytes that takes, begins anywhere.
struct Shelf {
  unsigned char* begin = reinterpret_cast<unsigned char*>(sizeof(float));
  int bytes = 0;

  DLA_HOST_DEVICE float* take(int floats) {
    float* const taken = reinterpret_cast<float*>(begin + bytes);
    bytes += floats * int(sizeof(float));
    return taken;
  }
};

// ---- launching: each returns what went wrong, or null ----

#if defined(DLA_SIMT)
inline int processors() { return 1; }  // so that blocks that take several samples have to, in the tests

template <class Kernel>
const char* launch(Kernel kernel, const Args& args, int blocks, int cluster, int shared_bytes) {
  static std::string error;
  try {
    simt::launch(kernel, blocks, cluster, kThreads, size_t(shared_bytes), args);
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
#else
inline int processors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <class Kernel>
const char* launch(Kernel kernel, const Args& args, int blocks, int cluster, int shared_bytes) {
  cudaLaunchAttribute in_clusters;
  in_clusters.id = cudaLaunchAttributeClusterDimension;
  in_clusters.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &in_clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, args);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#endif

}  // namespace ladder
