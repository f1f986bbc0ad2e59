// What attend's kernels are told.
#pragma once

#include <cstdint>

namespace dla {
namespace cuda {

// One block for each sample. past is what there is of M layers before: keys and scale [M, B, C], or null; d [2 M, B,
// C], by which they are first refreshed, or null.
template <class A>
struct Attended {
  const A *y, *q, *k;  // [B, C], [K], [K]
  const A *keys, *scale, *d;
  int64_t M, B, C;
  int K, heads;
  A* shares;  // [B, M + 1, heads] for the softmax
};
template <class A>
struct AttendArgs {
  Attended<A> in;
  A *coef, *keys, *scale;  // [M + 1, B, C] written
};
template <class A>
struct AttendBwdArgs {
  Attended<A> in;
  const A *dcoef, *dkeys, *dscale;      // [M + 1, B, C]
  A *dpast_keys, *dpast_scale, *dpast;  // of keys, scale and d, written; null where these are
  A *dy, *dtaps;                        // [B, C]; [B, 2, K], of each sample: dq, dk
  A *dshares, *dqk_rows;                // [B, M + 1, heads]; [B, 2, C] of queries and keys: scratch
};

}  // namespace cuda
}  // namespace dla
