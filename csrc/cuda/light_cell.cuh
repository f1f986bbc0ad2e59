// A light cell at one channel: how s and h become its gates, and what comes back from these.
#pragma once

#include "../cells/cells.h"
#include "device.h"
#include "light_scan_args.h"

namespace dla {
namespace cuda {

template <class Rule, class A>
struct LightCell {
  A wy[Rule::NG], wh[Rule::NG], b[Rule::NG];

  DLA_DEVICE LightCell(const LightGates<A>& gates, int64_t C, int64_t c) {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) {
      const int64_t at = g * C + c;
      wy[g] = gates.wy[at], wh[g] = gates.wh[at], b[g] = gates.b[at];
    }
  }
  DLA_DEVICE void gates_of(A s, A h, A* a) const {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) a[g] = fma(wy[g], s, fma(wh[g], h, b[g]));
  }
  DLA_DEVICE A to_s(const A* da) const { return sum_of_products(wy, da); }
  DLA_DEVICE A to_h(const A* da) const { return sum_of_products(wh, da); }

 private:
  static DLA_DEVICE A sum_of_products(const A* w, const A* da) {
    A sum = A(0);
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) sum = fma(w[g], da[g], sum);
    return sum;
  }
};

// The gradients of a channel's weights, over the layers of one sample.
template <class Rule, class A>
struct LightSums {
  A dwy[Rule::NG] = {}, dwh[Rule::NG] = {}, db[Rule::NG] = {};

  DLA_DEVICE void add(const A* da, A s, A h) {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) {
      dwy[g] = fma(da[g], s, dwy[g]), dwh[g] = fma(da[g], h, dwh[g]);
      db[g] += da[g];
    }
  }
  DLA_DEVICE void store(const LightFactors<A>& factors, int64_t C, int64_t b, int64_t c) const {
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) {
      const int64_t at = (b * Rule::NG + g) * C + c;
      factors.dwy[at] = dwy[g], factors.dwh[at] = dwh[g], factors.db[at] = db[g];
    }
  }
};

}  // namespace cuda
}  // namespace dla
