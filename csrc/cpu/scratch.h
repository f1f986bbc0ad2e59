// Scratch memory that stays with its thread. Every call needs the same few matrices again; given back to
// the system each time, they would cost more in page faults than the work done in them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "microkernels.h"

namespace dla {
namespace cpu {

// Blocks of 2^k bytes, aligned to cache lines. A thread keeps up to kKept bytes of freed ones.
class ScratchPool {
 public:
  static void* take(int log2_size) {
    auto& free = mine().free_[log2_size];
    if (free.empty()) return ::operator new(size_t(1) << log2_size, kLine);
    void* block = free.back();
    free.pop_back();
    mine().kept_ -= size_t(1) << log2_size;
    return block;
  }
  static void give(void* block, int log2_size) {
    const size_t size = size_t(1) << log2_size;
    if (mine().kept_ + size > kKept) return ::operator delete(block, kLine);
    mine().free_[log2_size].push_back(block);
    mine().kept_ += size;
  }

 private:
  static constexpr std::align_val_t kLine{64};
  static constexpr size_t kKept = 64 << 20;
  std::array<std::vector<void*>, 64> free_;
  size_t kept_ = 0;

  static ScratchPool& mine() {
    thread_local ScratchPool pool;
    return pool;
  }
  ~ScratchPool() {
    for (auto& blocks : free_)
      for (void* block : blocks) ::operator delete(block, kLine);
  }
};

// A contiguous matrix of scratch memory. Under DLA_KERNELS_POISON=1 it starts as NaN, so that reading
// what was never written shows.
template <class A>
struct Matrix {
  Rows<A> rows;

  Matrix() = default;
  Matrix(int64_t M, int64_t N) : rows{nullptr, N} {
    const size_t bytes = size_t(M * N) * sizeof(A);
    int log2_size = 8;
    while ((size_t(1) << log2_size) < bytes) ++log2_size;
    held_ = {static_cast<A*>(ScratchPool::take(log2_size)), Give{log2_size}};
    rows.data = held_.get();
    static const bool poison = std::getenv("DLA_KERNELS_POISON") != nullptr;
    if (poison) std::fill_n(rows.data, M * N, std::numeric_limits<A>::quiet_NaN());
  }
  A* operator[](int64_t m) const { return rows[m]; }
  bool exists() const { return held_ != nullptr; }

 private:
  struct Give {
    int log2_size;
    void operator()(A* block) const { ScratchPool::give(block, log2_size); }
  };
  std::unique_ptr<A[], Give> held_{nullptr, Give{0}};
};

}  // namespace cpu
}  // namespace dla
