// Sums over the pixels of interleaved maps, where every lane has one chain of additions.
#pragma once

#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// kN sums at three levels: of 32 terms, of 32 times 32, of all. The rounding error stays near that of a pairwise sum.
template <int kN, class A>
struct LongSums {
  using V = Vec<A>;
  static constexpr int64_t kFew = 32, kMany = kFew * kFew;
  V few[kN], many[kN], all[kN];  // terms are added to the first

  DLA_HOST_DEVICE LongSums() { clear(few), clear(many), clear(all); }

  // Calls add(p) for p < n.
  template <class F>
  DLA_HOST_DEVICE void run(int64_t n, F add) {
    for (int64_t p = 0; p < n;) {
      for (const int64_t end = p + kFew < n ? p + kFew : n; p < end; ++p) add(p);
      move(few, many);
      if (p % kMany == 0 || p == n) move(many, all);
    }
  }

 private:
  static DLA_HOST_DEVICE void clear(V* sums) {
    for (int i = 0; i < kN; ++i) sums[i] = A(0);
  }
  static DLA_HOST_DEVICE void move(V* from, V* to) {
    for (int i = 0; i < kN; ++i) to[i] += from[i];
    clear(from);
  }
};

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
