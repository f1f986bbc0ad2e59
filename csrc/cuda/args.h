// What the kernels are told, and how they are asked for: host code without CUDA and without torch, between the
// operators (<op>.cpp) and the launches (<op>.cu).
#pragma once

#include <atomic>
#include <cstdint>

#include "../common.h"
#include "layers.h"
#include "plan.h"

namespace dla {
namespace cuda {

// ---- launching ----

struct Launch {
  int64_t blocks;
  int cluster, threads;
  int64_t shared_bytes;
};
// Launches the kernel that takes these arguments; returns what went wrong, or null. Each <op>.cu has its own.
template <class Args>
const char* launch(const Args& args, const Launch& how, void* stream);
// How many clusters of such a launch the current device can hold at once.
template <class Args>
int clusters_that_fit(const Launch& how);

Device current_device();
// Torch's guard tells torch's copy of the CUDA runtime; this tells ours, which is linked statically.
void use_device(int index);
#if defined(DLA_SIMT)
extern std::atomic<int64_t> launches;
#endif

// ---- maps ----

// The blocks of an op on maps alone: for each layer and sample, pieces of `channels` channels.
struct Pieces {
  int64_t T, B, C;
  int channels;

  int64_t blocks() const { return T * B * divide_up(C, channels); }
};
template <class T>
struct GapArgs {
  Pieces pieces;
  accumulate_t<T>* y;  // [T, B, C] written
  Layers layers;
};

template <class T>
struct RescaleArgs {
  Pieces pieces;
  const accumulate_t<T>* d;  // [T, B, C]
  Layers layers;
};

template <class T>
struct RescaleBwdArgs {
  Pieces pieces;
  const accumulate_t<T>* d;  // [T, B, C]
  accumulate_t<T>* dd;       // [T, B, C] written
  Layers layers;
};

// ---- layer attention, without its cell ----

// What a channel's mean and variance over the batch are put together from: planes [2, B, C], the mean of each plane
// and the sum of the squared distances from it.
constexpr int kMomentsChannels = 8;  // of a block
template <class A>
struct MomentsArgs {
  int64_t B, C;
  int HW;
  const A* planes;  // [2, B, C]
  A* moments;       // [2, C] written
};

template <class T>
struct DepthwiseArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int W;
  const A* v;  // [C, 9]
  A* y;        // [2, B, C] written
  Layer layer;
};
template <class T>
struct DepthwiseBwdArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int W;
  const A *v, *dy;  // [C, 9]; [2, B, C]
  A* dv;            // [B, C, 9] written, of each sample
  Layer layer;
};

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

template <class T>
struct MixArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int M;
  const A* coef;  // [M, B, C]
  A* planes;      // [2, B, C] written, for the moments; may be null
  Layer out;
  Layers values;
};
template <class T>
struct MixBwdArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  int M;
  bool has_later;
  const A* coef;  // [M, B, C]
  A* dcoef;       // [M, B, C] written
  Layer dout;
  Layers values;
};

template <class A>
struct NormArgs {
  const A *moments, *gamma, *beta;  // [2, C], [C], [C]
  const A* keep;                    // [B]; may be null
  A eps;
  bool relu;
};
template <class T>
struct NormAddArgs {
  Pieces pieces;
  NormArgs<accumulate_t<T>> norm;
  Layer layer;
};
template <class T>
struct NormAddSumsArgs {
  Pieces pieces;
  NormArgs<accumulate_t<T>> norm;
  accumulate_t<T>* sums;  // [2, B, C] written
  Layer layer;
};
template <class T>
struct NormAddBwdArgs {
  using A = accumulate_t<T>;
  Pieces pieces;
  NormArgs<A> norm;
  bool batch_moments;
  const A *dgamma, *dbeta;  // [C]
  Layer layer;
};

// ---- recurrences ----

// What every kernel with a recurrence is told. Tensors of rows are [T, B, C], states before the first
// layer [B, C]; pointers may be null where a comment says so.
template <class A>
struct CellArgs {
  Plan plan;
  A* workspace;
  int rule, NG;
  Projection projection;
  int64_t T, B, C, R;
  int scan_end, refresh_begin;  // the scan runs over layers [0, scan_end), the refresh over [refresh_begin, T)
  const A *w1h, *w1y;           // [R, C] in rows of ld_w1; dense: Wh, Wy [NG*C, C]
  int64_t ld_w1;
  const A *w2h, *w2y;  // [NG*C, R]
  const A *b1h, *b1y;  // [R] split only
  const A *q0, *q1;    // [NG*C] what q holds besides y; q1 may be null
  const A *h0, *c0;    // h0 null: act(c0); both: the cell's own start
  A start_h;
  bool saves_h, saves_c;
};

// Factors of the weight gradients, rows [T, B]; null where the pass or the projection has none.
template <class A>
struct Factors {
  A* h;                        // [T, B, C] what each layer's projection saw
  A *da_scan, *da_refresh;     // [T, B, NG*C]
  A *u_scan, *u_refresh, *uy;  // [T, B, R]
  A *ds_scan, *ds_refresh, *dsy;
  A *h_last, *last_sum;  // [B, C], and [B, R] (dense: [B, NG*C]): over the layers, what refresh sent to W1h h
};

template <class A>
struct RecurrenceGrads {
  const A *states_h, *states_c;    // [scan_end, B, C] as saved
  const A *dstates_h, *dstates_c;  // [scan_end, B, C]; may be null
  A *dh0, *dc0;                    // [B, C] written; may be null
  Factors<A> factors;
};

template <class A>
struct ScanArgs {
  CellArgs<A> cell;
  const A* y;              // [T, B, C]
  A *states_h, *states_c;  // [T, B, C] written
};

template <class A>
struct ScanBwdArgs {
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  const A* y;  // [T, B, C]
  A* dy;       // [T, B, C] written
};

template <class A>
struct RefreshArgs {
  CellArgs<A> cell;
  const A* y;  // [T, B, C]
  A* d;        // [T, B, C] written
};

template <class A>
struct RefreshBwdArgs {
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  const A *y, *dd;  // [T, B, C]
  A* dy;            // [T, B, C] written
};

template <class T>
struct LayerUpdateArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  A *y, *states_h, *states_c;  // [T, B, C] written
  Layers layers;
};

template <class T>
struct LayerUpdateBwdArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  const A* y;  // [T, B, C]
  Layers layers;
};

// ---- layer attention, with its cell ----

template <class A>
struct LightFilters {
  const A *q, *k;  // [K]
  const A *v, *e;  // [C, 9]; e may be null
  const A* lam;    // [C]
  int K, heads;
};

// Layers: of the maps, x and, where there is one, o_prev. A cell without gates is none.
template <class T>
struct LightStepArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  LightFilters<A> filters;
  int W;
  A* y;                    // [maps, B, C] written
  A *states_h, *states_c;  // [B, C] written
  A* planes;               // [2, B, C] written, for the moments; may be null
  Layer layers[2];
};

template <class T>
struct LightStepBwdArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  LightFilters<A> filters;
  int W;
  const A* y;           // [maps, B, C]
  A *dv, *de, *dlam;    // [B, C, 9] and [B, C] written, of each sample
  A* dtaps;             // [B, blocks per tile, 2, K] written, of each block's channels: dq, dk
  A *dgates, *dscores;  // [B, C] and [B, heads], for the blocks of a group to exchange
  Layer layers[2];
};

// ---- weight gradients ----

// sum over K rows of g[k][m] * x[k][n]; x null: of g[k][m] alone, for a bias.
template <class A>
struct Product {
  const A *g, *x;
  int64_t ldg, ldx, K;
};
template <class A>
struct WeightGradient {
  A* out;  // [M, N] in rows of ld
  int64_t M, N, ld;
  Product<A> term[2];
  int64_t first_tile;
};
constexpr int kMostWeights = 13;  // eight of split, where joint's w1 counts twice; five of layer attention
template <class A>
struct WeightGradientArgs {
  int count;
  WeightGradient<A> of[kMostWeights];
};

constexpr int kTile = 32;  // a block's output is kTile x kTile
constexpr int kPatch = 4;  // a thread's kPatch x kPatch
constexpr int kSlab = 32;  // rows that are staged at once
constexpr int kParts = 4;  // of the block, which share the rows of a slab
constexpr int kPartThreads = (kTile / kPatch) * (kTile / kPatch);
constexpr int kGradientThreads = kParts * kPartThreads;

template <class A>
constexpr int64_t gradient_shared_bytes() {
  return (2 * kSlab * kTile > kParts * kTile * kTile ? 2 * kSlab * kTile : kParts * kTile * kTile) * sizeof(A);
}
inline int64_t tiles_of(int64_t M, int64_t N) { return ((M + kTile - 1) / kTile) * ((N + kTile - 1) / kTile); }

}  // namespace cuda
}  // namespace dla
