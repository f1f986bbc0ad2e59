// What a GPU does for what the kernels ask of it: bandwidth by bytes in flight, second readings by what lies between
// them, barriers, exchanges between the blocks of a cluster, launches by the size of their arguments, clusters that
// fit. Each figure is the best of a few; a line for each: name, parameters, value, unit. The constants of the plan
// (csrc/cuda/plan.h) are taken from these.
//
//   nvcc -O3 -std=c++17 -arch=sm_90 -o build/machine bench/machine.cu && build/machine
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace cg = cooperative_groups;

#define CHECK(call)                                                                       \
  do {                                                                                    \
    const cudaError_t error = (call);                                                     \
    if (error != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      std::exit(1);                                                                       \
    }                                                                                     \
  } while (0)

namespace {

int processors;
constexpr int kThreads = 256;

void say(const char* name, const char* parameters, double value, const char* unit) {
  std::printf("%-28s %-44s %10.3f %s\n", name, parameters, value, unit);
  std::fflush(stdout);
}
template <class... X>
const char* text(const char* format, X... x) {
  static char kept[256];
  std::snprintf(kept, sizeof kept, format, x...);
  return kept;
}

// Microseconds of one call: the best of several rounds.
template <class F>
double best(F call, int rounds = 7, int calls = 3) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  call();
  CHECK(cudaDeviceSynchronize());
  float least = 1e30f;
  for (int i = 0; i < rounds; ++i) {
    CHECK(cudaEventRecord(begin));
    for (int j = 0; j < calls; ++j) call();
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    least = std::min(least, ms / calls);
  }
  CHECK(cudaGetLastError());
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  return 1e3 * least;
}

// ---- bandwidth by bytes in flight ----

template <int kAhead, bool kWrite>
__global__ void stream(const uint4* from, uint4* to, int64_t n) {
  uint32_t found = 0;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step * kAhead) {
    uint4 x[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (i + j * step < n) x[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (i + j * step < n) {
        if (kWrite)
          __stcs(to + i + j * step, x[j]);
        else
          found ^= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
      }
  }
  if (!kWrite && found == 0x12345678) to[0].x = found;
}
template <int kAhead, bool kWrite>
void stream_at(const uint4* from, uint4* to, int64_t bytes, int blocks, int threads) {
  const double us = best([&] { stream<kAhead, kWrite><<<processors * blocks, threads>>>(from, to, bytes / 16); });
  const char* const name = kWrite ? "copy" : "read";
  say(name, text("%d blocks of %d an SM, %d KB in flight", blocks, threads, blocks * threads * kAhead * 16 / 1024),
      bytes * (kWrite ? 2 : 1) / us * 1e-6, "TB/s");
}
template <bool kWrite>
void streams(const uint4* from, uint4* to, int64_t bytes) {
  stream_at<1, kWrite>(from, to, bytes, 1, 256);
  stream_at<2, kWrite>(from, to, bytes, 1, 256);
  stream_at<4, kWrite>(from, to, bytes, 1, 256);
  stream_at<8, kWrite>(from, to, bytes, 1, 256);
  stream_at<1, kWrite>(from, to, bytes, 2, 256);
  stream_at<2, kWrite>(from, to, bytes, 2, 256);
  stream_at<4, kWrite>(from, to, bytes, 2, 256);
  stream_at<8, kWrite>(from, to, bytes, 2, 256);
  stream_at<1, kWrite>(from, to, bytes, 8, 256);
  stream_at<2, kWrite>(from, to, bytes, 8, 256);
  stream_at<4, kWrite>(from, to, bytes, 8, 256);
}

// Bulk copies into shared memory, two stages of `kStage` bytes a block, one thread issuing.
template <int kStage>
__global__ void stream_bulk(const char* from, uint4* to, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ __align__(8) uint64_t full[2];
  const uint32_t bar = uint32_t(__cvta_generic_to_shared(full)), at = uint32_t(__cvta_generic_to_shared(shared));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(bar + 8 * i));
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  __syncthreads();
  const int64_t slabs = bytes / kStage;
  const auto ask = [&](int64_t slab, int stage) {
    if (threadIdx.x == 0 && slab < slabs) {
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar + 8 * stage), "r"(kStage) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       at + stage * kStage),
                   "l"(from + slab * kStage), "r"(kStage), "r"(bar + 8 * stage)
                   : "memory");
    }
  };
  uint32_t found = 0;
  int turn = 0;
  ask(blockIdx.x, 0);
  ask(blockIdx.x + gridDim.x, 1);
  for (int64_t slab = blockIdx.x; slab < slabs; slab += gridDim.x, ++turn) {
    const int stage = turn & 1, phase = turn >> 1 & 1;
    uint32_t done = 0;
    while (!done)
      asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done)
                   : "r"(bar + 8 * stage), "r"(phase)
                   : "memory");
    const uint4* const x = reinterpret_cast<const uint4*>(shared + stage * kStage);
    for (int i = threadIdx.x; i < kStage / 16; i += blockDim.x) found ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    __syncthreads();
    ask(slab + 2 * int64_t(gridDim.x), stage);
  }
  if (found == 0x12345678) to[0].x = found;
#endif
}
template <int kStage>
void bulk(const char* from, uint4* to, int64_t bytes, int blocks) {
  CHECK(cudaFuncSetAttribute(stream_bulk<kStage>, cudaFuncAttributeMaxDynamicSharedMemorySize, 2 * kStage));
  const double us = best([&] { stream_bulk<kStage><<<processors * blocks, kThreads, 2 * kStage>>>(from, to, bytes); });
  say("read, bulk copies", text("%d blocks an SM, 2 stages of %d KB", blocks, kStage / 1024), bytes / us * 1e-6,
      "TB/s");
}

// ---- second readings ----

// Each block reads its slab of a window, then again, forwards or backwards, and goes on to the next window: as a
// kernel reads the maps of the samples in flight. All windows together are `total` bytes.
template <bool kBackwards>
__global__ void reread(const uint4* from, uint4* to, int64_t slab, int windows) {
  uint32_t found = 0;
  constexpr int kAhead = 4;
  for (int w = 0; w < windows; ++w) {
    const uint4* const mine = from + (int64_t(w) * gridDim.x + blockIdx.x) * slab;
    for (int again = 0; again < 2; ++again) {
      for (int64_t i0 = 0; i0 < slab; i0 += kAhead * blockDim.x) {
        uint4 x[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int64_t i = i0 + j * blockDim.x + threadIdx.x, at = kBackwards && again ? slab - 1 - i : i;
          x[j] = i >= slab ? uint4{} : again ? __ldcs(mine + at) : mine[at];
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) found ^= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
      }
      __syncthreads();
    }
  }
  if (found == 0x12345678) to[0].x = found;
}
void rereads(const uint4* from, uint4* to, int64_t bytes) {
  for (const int mb : {8, 16, 24, 32, 40, 48, 64, 96}) {
    const int blocks = 2 * processors;
    const int64_t slab = (int64_t(mb) << 20) / 16 / blocks;
    const int windows = int(bytes / 16 / (slab * blocks));
    for (const bool backwards : {false, true}) {
      const double us = best([&] {
        if (backwards)
          reread<true><<<blocks, kThreads>>>(from, to, slab, windows);
        else
          reread<false><<<blocks, kThreads>>>(from, to, slab, windows);
      });
      say("read twice", text("%d MB between, second %s", mb, backwards ? "backwards" : "forwards"),
          2.0 * 16 * slab * blocks * windows / us * 1e-6, "TB/s");
    }
  }
}

// ---- barriers and exchanges ----

enum Kind { kBlock, kCluster, kClusterRelaxed, kPull, kPush, kGrid };

__device__ int ranks() {
#if __CUDA_ARCH__ >= 900
  return int(__clusterSizeInBlocks());
#else
  return 1;
#endif
}

// `turns` steps of one kind. kPull: each block writes `numbers` sums of its own, a barrier, each adds up those of
// all. kPush: each sends its own to every other, which waits for the bytes it expects and adds up what came.
template <int kKind>
__global__ void steps(int turns, int numbers, float* out) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) float buffer[];  // [2, ranks, numbers]
  __shared__ __align__(8) uint64_t arrived[2];
  const int G = ranks();
  const uint32_t rank = __clusterRelativeBlockRank();
  const uint32_t bar = uint32_t(__cvta_generic_to_shared(arrived));
  if (kKind == kPush && threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(bar + 8 * i));
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar + 8 * i), "r"(G * numbers * 4));
    }
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  for (int i = threadIdx.x; i < 2 * G * numbers; i += blockDim.x) buffer[i] = float(i);
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  float value = float(threadIdx.x);
  for (int t = 0; t < turns; ++t) {
    const int half = t & 1;
    if (kKind == kBlock) __syncthreads();
    if (kKind == kCluster) __cluster_barrier_arrive(), __cluster_barrier_wait();
    if (kKind == kClusterRelaxed) {
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    }
    if (kKind == kPull) {
      float* const mine = buffer + half * numbers;
      for (int i = threadIdx.x; i < numbers; i += blockDim.x) mine[i] = value;
      __cluster_barrier_arrive();
      __cluster_barrier_wait();
      for (int i = threadIdx.x; i < numbers; i += blockDim.x) {
        float sum = 0;
        for (int g = 0; g < G; ++g) sum += *static_cast<float*>(__cluster_map_shared_rank(mine + i, g));
        value = sum * 0.125f;
      }
      __syncthreads();
    }
    if (kKind == kPush) {
      const uint32_t slots = uint32_t(__cvta_generic_to_shared(buffer + (half * G + rank) * numbers));
      for (int i = threadIdx.x; i < numbers * G; i += blockDim.x) {
        const uint32_t to = i / numbers, n = i % numbers;
        uint32_t remote, remote_bar;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(slots + 4 * n), "r"(to));
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_bar) : "r"(bar + 8 * half), "r"(to));
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote),
                     "r"(__float_as_uint(value)), "r"(remote_bar)
                     : "memory");
      }
      uint32_t done = 0;
      while (!done)
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(bar + 8 * half), "r"(t >> 1 & 1)
            : "memory");
      for (int i = threadIdx.x; i < numbers; i += blockDim.x) {
        float sum = 0;
        for (int g = 0; g < G; ++g) sum += buffer[(half * G + g) * numbers + i];
        value = sum * 0.125f;
      }
      __syncthreads();  // all have read this half before it may be armed again
      if (threadIdx.x == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar + 8 * half), "r"(G * numbers * 4)
                     : "memory");
    }
    if (kKind == kGrid) cg::this_grid().sync();
  }
  if (value == 1.2345f) out[0] = value;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#endif
}
template <int kKind>
double step_us(int G, int numbers, int blocks_per_processor, float* out) {
  const int shared = 2 * G * numbers * 4;
  const auto run = [&](int turns) {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(processors * blocks_per_processor / G * G * (kKind == kGrid ? 1 : 1)));
    if (kKind != kGrid && G > 1) config.gridDim = dim3(unsigned(G * 12 * blocks_per_processor));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = size_t(shared);
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {unsigned(G), 1, 1};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    config.attrs = kKind == kGrid ? attributes + 1 : attributes;
    config.numAttrs = 1;
    return best([&] { CHECK(cudaLaunchKernelEx(&config, steps<kKind>, turns, numbers, out)); }, 5, 1);
  };
  return (run(1500) - run(500)) / 1000;
}
void exchanges(float* out) {
  say("block barrier", "256 threads", step_us<kBlock>(1, 1, 1, out), "us");
  say("grid barrier", "one block an SM", step_us<kGrid>(1, 1, 1, out), "us");
  for (const int G : {2, 4, 8}) {
    say("cluster barrier", text("G %d", G), step_us<kCluster>(G, 1, 1, out), "us");
    say("cluster barrier, relaxed", text("G %d", G), step_us<kClusterRelaxed>(G, 1, 1, out), "us");
    for (const int numbers : {16, 64, 128}) {
      say("exchange by pulling", text("G %d, %d numbers", G, numbers), step_us<kPull>(G, numbers, 1, out), "us");
      say("exchange by pushing", text("G %d, %d numbers", G, numbers), step_us<kPush>(G, numbers, 1, out), "us");
    }
    say("exchange by pulling", text("G %d, 64 numbers, 2 blocks an SM", G), step_us<kPull>(G, 64, 2, out), "us");
    say("exchange by pushing", text("G %d, 64 numbers, 2 blocks an SM", G), step_us<kPush>(G, 64, 2, out), "us");
  }
}

// ---- launches ----

template <int kBytes>
struct Argument {
  char bytes[kBytes];
};
template <int kBytes>
__global__ void take(const __grid_constant__ Argument<kBytes> argument, char* out) {
  if (argument.bytes[threadIdx.x % kBytes] == 77) out[0] = 1;
}
template <int kBytes>
void launches(char* out) {
  static Argument<kBytes> argument;
  constexpr int kCalls = 50;
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  for (const int blocks : {1, 264}) {
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kCalls; ++i) take<kBytes><<<blocks, kThreads, 0, stream>>>(argument, out);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&ready, graph, 0));
    const double us = best([&] { CHECK(cudaGraphLaunch(ready, nullptr)); });
    say("launch in a graph", text("%d bytes of arguments, %d blocks", kBytes, blocks), us / kCalls, "us");
    const double plain = best([&] {
      for (int i = 0; i < kCalls; ++i) take<kBytes><<<blocks, kThreads>>>(argument, out);
    });
    say("launch", text("%d bytes of arguments, %d blocks", kBytes, blocks), plain / kCalls, "us");
    CHECK(cudaGraphExecDestroy(ready));
    CHECK(cudaGraphDestroy(graph));
  }
  CHECK(cudaStreamDestroy(stream));
}

// ---- clusters that fit ----

void clusters() {
  CHECK(cudaFuncSetAttribute(steps<kCluster>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  CHECK(cudaFuncSetAttribute(steps<kCluster>, cudaFuncAttributeMaxDynamicSharedMemorySize, 220 << 10));
  for (const int kb : {100, 200})
    for (const int G : {1, 2, 4, 8, 16}) {
      cudaLaunchAttribute attribute;
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(unsigned(G * 64));
      config.blockDim = dim3(kThreads);
      config.dynamicSmemBytes = size_t(kb) << 10;
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {unsigned(G), 1, 1};
      config.attrs = &attribute;
      config.numAttrs = 1;
      int fit = 0;
      if (cudaOccupancyMaxActiveClusters(&fit, steps<kCluster>, &config) != cudaSuccess) cudaGetLastError();
      say("clusters that fit", text("G %d, %d KB of shared memory a block", G, kb), fit, "");
    }
}

}  // namespace

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  processors = device.multiProcessorCount;
  std::printf("%s, %d SMs, L2 %.1f MB\n", device.name, processors, device.l2CacheSize / 1e6);
  constexpr int64_t kBytes = int64_t(1) << 30;
  char *from, *to;
  CHECK(cudaMalloc(&from, kBytes));
  CHECK(cudaMalloc(&to, kBytes));
  std::vector<uint32_t> random(1 << 20);
  for (uint32_t& x : random) x = uint32_t(std::rand());
  for (int64_t at = 0; at < kBytes; at += 4 << 20)
    CHECK(cudaMemcpy(from + at, random.data(), 4 << 20, cudaMemcpyHostToDevice));
  const double us = best([&] { CHECK(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice)); });
  say("cudaMemcpy", "1 GB", 2 * kBytes / us * 1e-6, "TB/s");
  const uint4* const words = reinterpret_cast<const uint4*>(from);
  uint4* const out = reinterpret_cast<uint4*>(to);
  streams<false>(words, out, kBytes);
  streams<true>(words, out, kBytes);
  for (const int blocks : {1, 2}) bulk<16384>(from, out, kBytes, blocks), bulk<32768>(from, out, kBytes, blocks);
  rereads(words, out, kBytes);
  exchanges(reinterpret_cast<float*>(to));
  launches<384>(to);
  launches<4000>(to);
  launches<23000>(to);
  clusters();
  return 0;
}
