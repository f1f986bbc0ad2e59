// Work is shared out by samples, over PyTorch's own threads. How it is cut never changes a result:
// every sum that crosses samples is taken later, in one fixed order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include <unistd.h>

#include <torch/csrc/stable/ops.h>

namespace dla {
namespace cpu {

template <class F>
void parallel_for(int64_t n, F f) {  // f(begin, end)
  if (n > 0) torch::stable::parallel_for(0, n, 1, f);
}

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

// Three quarters of a core's second-level cache: what a block may hope to keep there. DLA_KERNELS_L2 is its size in
// bytes where somebody else knows better, such as a simulated cache.
inline int64_t cache_bytes() {
  static const int64_t bytes = [] {
    const char* given = std::getenv("DLA_KERNELS_L2");
    long size = given ? std::atol(given) : 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    if (size <= 0) size = sysconf(_SC_LEVEL2_CACHE_SIZE);  // macOS and musl do not tell
#endif
    return (size > 0 ? int64_t(size) : 1 << 20) / 4 * 3;
  }();
  return bytes;
}

// Blocks of neighbouring samples. A block's maps should stay in a core's cache between their first
// and second reading, so blocks are small; but every block reads all weights, so where a single
// sample outgrows the cache anyway, blocks are large.
struct Blocks {
  static constexpr int64_t kMost = 8;
  int64_t B, size;

  Blocks(int64_t B, int64_t bytes_per_sample) : B(B) {
    const int64_t cache = cache_bytes(), bytes = std::max<int64_t>(bytes_per_sample, 1);
    const int64_t fitting = bytes > cache ? kMost : cache / bytes;
    const int64_t share = (B + num_threads() - 1) / num_threads();
    size = std::max<int64_t>(1, std::min({fitting, kMost, share}));
  }
  int64_t count() const { return (B + size - 1) / size; }

  template <class F>
  void run(F f) const {  // f(b0, nb): samples b0 .. b0 + nb
    parallel_for(count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i * size, std::min(size, B - i * size));
    });
  }
};

// Whether samples alone keep the threads busy: no more than a fifth of them idle.
inline bool balanced(int64_t B) {
  const int64_t threads = num_threads(), rounds = (B + threads - 1) / threads;
  return 5 * B >= 4 * rounds * threads;
}

}  // namespace cpu
}  // namespace dla
