// The one header between the kernels and the machine they run on: CUDA on a device, or the SIMT shim
// (tests/simt) on a host without one. Kernels use nothing of either but what stands here. Blocks and grids
// are one-dimensional; the blocks of a cluster form a *group* that works on one tile of samples.
#pragma once

#include <cstdint>

#include "../cells/math.h"
#include "plan.h"

#if defined(DLA_SIMT)
#include "simt.h"

#define DLA_DEVICE inline
#define DLA_KERNEL(name, T, Args) void name(const Args& args)

namespace dla {
namespace cuda {

using simt::await_copies;
using simt::block_index;
using simt::cluster_rank;
using simt::cluster_size;
using simt::copy_async;
using simt::expect_letters;
using simt::Letterbox;
using simt::num_blocks;
using simt::num_threads;
using simt::open_letterbox;
using simt::peer;
using simt::send_letter;
using simt::shared_memory;
using simt::shuffle_xor;
using simt::thread_index;
using simt::wait_for_letters;

inline void block_barrier() { simt::barrier(); }
inline void cluster_barrier() { simt::cluster_barrier(); }

template <class V>
V load_last(const V* p) {
  return *p;
}
template <class V>
void store_streaming(V* p, V x) {
  *p = x;
}
template <class V>
V load_or_zero(const V* p, bool there) {
  return there ? *p : V{};
}
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float about_inverse(int n) { return 1.0f / float(n); }
inline int not_before(int n) { return n; }
inline int leading_zeros(int n) { return n == 0 ? 32 : __builtin_clz(unsigned(n)); }

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
inline Words4* as_words4(void* p) { return static_cast<Words4*>(simt::aligned(p, sizeof(Words4))); }
inline const Words4* as_words4(const void* p) { return as_words4(const_cast<void*>(p)); }

}  // namespace cuda
}  // namespace dla
#else
#include <cuda_runtime.h>

#define DLA_DEVICE __device__ __forceinline__
// Two blocks of 256 threads on a multiprocessor, so that one streams maps while the other scans. In fp64, which
// is for checking, one, with twice the registers.
#define DLA_KERNEL(name, T, Args) \
  __global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) name(const __grid_constant__ Args args)

namespace dla {
namespace cuda {

DLA_DEVICE int thread_index() { return threadIdx.x; }
DLA_DEVICE constexpr int num_threads() { return kThreads; }  // a constant saves registers and divisions
DLA_DEVICE int block_index() { return blockIdx.x; }
DLA_DEVICE int num_blocks() { return gridDim.x; }
DLA_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return dynamic_shared;
}
DLA_DEVICE void block_barrier() { __syncthreads(); }

// Clusters begin with sm_90; before, a group is one block.
DLA_DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return int(__clusterRelativeBlockRank());
#else
  return 0;
#endif
}
DLA_DEVICE int cluster_size() {
#if __CUDA_ARCH__ >= 900
  return int(__clusterSizeInBlocks());
#else
  return 1;
#endif
}
DLA_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();  // release and acquire, for shared and global memory
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}
// The same place in the shared memory of another block of the cluster.
template <class T>
DLA_DEVICE T* peer(T* p, int rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<T*>(__cluster_map_shared_rank(p, rank));
#else
  return p;
#endif
}

// A letterbox counts, in shared memory, the bytes that blocks of the cluster send to this one: an mbarrier. Its phases
// alternate between 0 and 1. One thread of the block expects so many bytes in a phase, and with their last one the
// phase ends; some may come before they are expected, as it does not end before that. Unlike a barrier of the cluster,
// which fences all that was ever written, it orders just these bytes.
using Letterbox = uint64_t;
#define DLA_FENCES_SHARED (__CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208)  // PTX 8.6
#if DLA_FENCES_SHARED
#define DLA_WAIT "relaxed"
#else
#define DLA_WAIT "acquire"
#endif
DLA_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
// By one thread; a group_barrier() must follow before anyone sends.
DLA_DEVICE void open_letterbox(Letterbox* box) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(box)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
DLA_DEVICE void expect_letters(Letterbox* box, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)), "r"(bytes)
               : "memory");
#endif
}
// Writes x where `to` lies, in block `rank` of the cluster, and counts it in the same letterbox there.
template <class A>
DLA_DEVICE void send_letter(A* to, A x, Letterbox* box, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t there, counted;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(shared_address(box)), "r"(rank));
  if constexpr (sizeof(A) == 4)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there),
                 "r"(__float_as_uint(x)), "r"(counted)
                 : "memory");
  else
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(there),
                 "l"(__double_as_longlong(x)), "r"(counted)
                 : "memory");
#endif
}
// Till that phase has ended, after which what it counted is known. A wait that acquires all memory of the cluster would
// drop the first-level cache; what came lies in shared memory.
DLA_DEVICE void wait_for_letters(Letterbox* box, int phase) {
#if __CUDA_ARCH__ >= 900
  uint32_t ended = 0;
  while (!ended)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity." DLA_WAIT
                 ".cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(ended)
                 : "r"(shared_address(box)), "r"(phase)
                 : "memory");
#if DLA_FENCES_SHARED
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
#endif
}

template <class T>
DLA_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// A map's second reading is its last, and what is written is not read again here: neither should push
// the maps of samples in flight out of the second-level cache.
template <class V>
DLA_DEVICE V load_last(const V* p) {
  return __ldcs(p);
}
template <class V>
DLA_DEVICE void store_streaming(V* p, V x) {
  __stcs(p, x);
}
// Copies 4, 8 or 16 bytes from global memory to shared memory, past all registers, so that any number are on their way.
// They are known to the thread after await_copies(), to others after a barrier that follows.
template <class V>
DLA_DEVICE void copy_async(V* to, const V* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "n"(sizeof(V))
               : "memory");
#else
  *to = *from;
#endif
}
DLA_DEVICE void await_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
// *p where it is there, else zero: without a branch, so that many loads are in flight. Of what this kernel does not
// write: the compiler may move it past a store.
template <class V>
DLA_DEVICE V load_or_zero(const V* p, bool there) {
  constexpr int kWords = sizeof(V) / 4;
  const auto from = __cvta_generic_to_global(p);
  V x;
  if constexpr (sizeof(V) == 2) {
    uint32_t wide;  // a load of 16 bits fills it with zeros
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, 0; @p ld.global.u16 %0, [%1]; }"
                 : "=r"(wide)
                 : "l"(from), "r"(uint32_t(there)));
    const uint16_t bits = uint16_t(wide);
    memcpy(&x, &bits, sizeof x);
  } else if constexpr (kWords % 4 == 0) {
    uint32_t words[kWords];
#pragma unroll
    for (int w = 0; w < kWords; w += 4)
      asm volatile(
          "{ .reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
          "@p ld.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
          : "=r"(words[w]), "=r"(words[w + 1]), "=r"(words[w + 2]), "=r"(words[w + 3])
          : "l"(from + 4 * w), "r"(uint32_t(there)));
    memcpy(&x, words, sizeof x);
  } else if constexpr (kWords == 2) {
    uint32_t words[2];
    asm volatile(
        "{ .reg .pred p; setp.ne.u32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.v2.b32 {%0, %1}, [%2]; }"
        : "=r"(words[0]), "=r"(words[1])
        : "l"(from), "r"(uint32_t(there)));
    memcpy(&x, words, sizeof x);
  } else {
    static_assert(kWords == 1, "2, 4, 8 bytes or sixteens");
    uint32_t word;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, 0; @p ld.global.b32 %0, [%1]; }"
                 : "=r"(word)
                 : "l"(from), "r"(uint32_t(there)));
    memcpy(&x, &word, sizeof x);
  }
  return x;
}
DLA_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DLA_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
DLA_DEVICE int leading_zeros(int n) { return __clz(n); }
// The same number, of which nothing is known before: a compiler would else work out what follows of it, for every
// loop of a kernel, before the first of them, and keep all that in registers which there are not.
DLA_DEVICE int not_before(int n) {
  asm volatile("" : "+r"(n));
  return n;
}
DLA_DEVICE float about_inverse(int n) { return __fdividef(1.0f, float(not_before(n))); }

using Words4 = uint4;
// p begins on 16 bytes, or the device stops.
DLA_DEVICE Words4* as_words4(void* p) { return static_cast<Words4*>(p); }
DLA_DEVICE const Words4* as_words4(const void* p) { return static_cast<const Words4*>(p); }

}  // namespace cuda
}  // namespace dla
#endif

namespace dla {
namespace cuda {

// What a function with barriers says of them, at "Barriers:". All threads of a block call it, where it exchanges all
// blocks of the group. Known: written before a barrier that everyone who reads it has passed, so that it may be read.
// Free: read by everyone before such a barrier, so that it may be written.
DLA_DEVICE void group_barrier() {
  if (cluster_size() > 1)
    cluster_barrier();
  else
    block_barrier();
}

constexpr int kWarp = 32;

DLA_HOST_DEVICE int at_most(int x, int limit) { return x < limit ? x : limit; }
// The smallest power of two that is at least n, up to `most`, itself a power of two.
DLA_HOST_DEVICE int power_of_two(int n, int most) {
  int p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}

// The logarithms of n > 0 to the base 2, rounded down, and up: threads are shared out by powers of two.
DLA_DEVICE int floor_log2(int n) { return 31 - leading_zeros(n); }
DLA_DEVICE int ceil_log2(int n) { return 32 - leading_zeros(n - 1); }

// Division by an n that many numbers have in common: a processor has no instruction for it, and takes dozens.
struct Divisor {
  int n;
  float inverse;

  DLA_DEVICE explicit Divisor(int n) : n(n), inverse(about_inverse(n)) {}
  // i / n, rounded down, for 0 <= i < 2^30. Below 2^20 the half keeps the product as far from a whole number as the
  // inverse, off by two units in the last place at most, can move it; beyond, what is left over is divided once more.
  DLA_DEVICE int under(int i) const {
    int q = int((float(i) + 0.5f) * inverse);
    if (i >= 1 << 20) {
      q += int(float(i - q * n) * inverse);
      const int rest = i - q * n;
      q += rest < 0 ? -1 : rest >= n ? 1 : 0;
    }
    return q;
  }
};

DLA_HOST_DEVICE float inverse_root(float x) { return 1.0f / ::sqrtf(x); }
DLA_HOST_DEVICE double inverse_root(double x) { return 1.0 / ::sqrt(x); }

// Sum over the `lanes` neighbouring threads, a power of two of at most a warp; every one gets it.
template <class A>
DLA_DEVICE A sum_lanes(A x, int lanes) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    if (mask < lanes) x += shuffle_xor(x, mask);
  return x;
}

}  // namespace cuda
}  // namespace dla
