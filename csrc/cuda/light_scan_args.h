// What light_scan's kernels are told; and the gates of a light cell, wherever it runs.
#pragma once

#include <cstdint>

namespace dla {
namespace cuda {

// a = wy s + wh h + b, element by element.
template <class A>
struct LightGates {
  const A *wy, *wh, *b;  // [NG*C]
};
// What each sample contributes to their gradients.
template <class A>
struct LightFactors {
  A *dwy, *dwh, *db;  // [B, NG*C]
};

template <class A>
struct LightScanArgs {
  int rule;
  int64_t T, B, C;
  LightGates<A> gates;
  const A *h0, *c0;  // [B, C]; as in CellArgs
  A start_h;
  const A* s;              // [T, B, C]
  A *states_h, *states_c;  // [T, B, C] written
};

template <class A>
struct LightScanBwdArgs {
  int rule;
  int64_t T, B, C;
  LightGates<A> gates;
  const A *h0, *c0;
  A start_h;
  const A *s, *states_h, *states_c;  // [T, B, C]
  const A *dstates_h, *dstates_c;    // [T, B, C]; may be null
  A* ds;                             // [T, B, C] written
  A *dh0, *dc0;                      // [B, C] written; may be null
  LightFactors<A> factors;
};

}  // namespace cuda
}  // namespace dla
