// The cell of a call in launches that all of the chip shares, one after the other: where weights are many.
#pragma once

#include <algorithm>

#include "gradients.h"
#include "phases_args.h"

namespace dla {
namespace cuda {

template <class A>
class Phases {
 public:
  // y [T, B, C]
  Phases(const OnDevice& device, const CellCall<A>& cell, const A* y, const Tensor& like)
      : device_(device), like_(like) {
    args_.cell = cell.args;
    args_.y = y;
    largest_group_ = std::min(current_device().largest_cluster, kMaxGroup);
  }

  // Of a cell whose y alone goes through a bottleneck: what that makes of it, s [T, B, C], keeping uy [T, B, R].
  void squeeze(A* s, A* uy) {
    args_.cell.projection = Projection::kSplit;  // of which y's half is that bottleneck
    args_.q = s, args_.uy = uy;
    hoist();
  }
  // From the gradient of s, among the factors: dy, and what the bottleneck's weights need.
  void squeeze_back(const RecurrenceGrads<A>& grads, A* dy) {
    args_.cell.projection = Projection::kSplit;
    args_.cell.scan_end = int(args_.cell.T);  // all rows have one
    args_.backward = true, args_.grads = grads, args_.dy = dy;
    run(Phase::kFinishInto);
    run(Phase::kFinishOutOf);
  }
  // Fills the states after each scanned layer, where these are saved, and d [T, B, C] of the refreshed ones.
  void forward(A* states_h, A* states_c, A* d) {
    const CellArgs<A>& cell = args_.cell;
    const bool refreshes = cell.refresh_begin < cell.T;
    want_state(2);
    if (args_.low()) held_.want(args_.u, cell.B * cell.R);
    if (args_.low() && refreshes) held_.want(args_.u_refresh, args_.rows() * cell.R);
    if (cell.projection == Projection::kSplit) held_.want(args_.uy, args_.rows() * cell.R);
    held_.allocate(like_);
    args_.states_h = states_h, args_.states_c = states_c, args_.d = d;
    run(Phase::kStart);
    hoist();
    for (int t = 0; t < cell.scan_end; ++t) {
      if (args_.low()) run(Phase::kInto, t);
      run(Phase::kOutOf, t);
    }
    if (refreshes) run(Phase::kLast);
    if (refreshes && args_.low()) run(Phase::kRefresh);
  }

  // From dd [T, B, C] of refreshed layers and what grads hold, all gradients but the weights': dy [T, B, C], that of
  // the state, and the factors of the weights'. d [T, B, C] is written once more where it is wanted.
  void backward(const RecurrenceGrads<A>& grads, const A* dd, A* d, A* dy) {
    const CellArgs<A>& cell = args_.cell;
    const bool refreshes = cell.refresh_begin < cell.T;
    want_state(1);
    held_.want(args_.dc, cell.B * cell.C);
    if (args_.low() && refreshes) held_.want(args_.dc_of_layers, args_.rows() * cell.C);
    held_.allocate(like_);
    args_.uy = grads.factors.uy;
    args_.backward = true, args_.grads = grads;
    args_.dd = dd, args_.d = d, args_.dy = dy;
    run(Phase::kBegin);
    hoist();
    if (refreshes) {
      run(Phase::kLast);
      if (args_.low()) run(Phase::kRefresh), run(Phase::kRefreshBack);
      run(Phase::kGather);
    }
    if (cell.scan_end > 0) {
      if (args_.low()) run(Phase::kScanInto);
      run(Phase::kScanOutOf);
    }
    run(Phase::kLastToState);
    for (int t = cell.scan_end - 1; t >= 0; --t) {
      if (args_.low()) run(Phase::kStepBack, t);
      run(Phase::kStepToState, t);
    }
    if (cell.projection == Projection::kSplit) run(Phase::kFinishInto);
    run(Phase::kFinishOutOf);
  }

 private:
  const OnDevice& device_;
  const Tensor& like_;
  PhaseArgs<A> args_{};
  int largest_group_;
  Held<A> held_;

  void want_state(int states_h) {
    const CellArgs<A>& cell = args_.cell;
    held_.want(args_.h, states_h * cell.B * cell.C), held_.want(args_.c, cell.B * cell.C);
    if (args_.joint()) held_.want(args_.p, args_.rows() * cell.R);
    if (!args_.joint()) held_.want(args_.q, args_.rows() * args_.N());
  }
  void hoist() {
    if (args_.low()) run(Phase::kHoistInto);
    if (!args_.joint()) run(Phase::kHoistOutOf);
  }

  void run(Phase phase, int t = 0) {
    args_.phase = phase, args_.t = t;
    const PhaseShape shape = shape_of(args_);
    if (shape.M == 0 || shape.N == 0) return;
    if (shape.K == 0) {
      constexpr int kEach = 4;  // numbers of a thread
      cuda::run(device_, args_, Launch{divide_up(shape.M * shape.N, kEach * kProductThreads), 1, kProductThreads, 0});
      return;
    }
    // Blocks share a sum where there are few columns, whatever the batch.
    const int64_t across = divide_up(shape.N, shape.columns(args_.cell.NG)), tiles = divide_up(shape.M, kTile) * across;
    constexpr int kFewColumns = 16, kFewTerms = 2 * kSlab;  // tiles of them, and terms of a block
    int group = 1;
    while (across <= kFewColumns && 2 * group <= largest_group_ && shape.K / (2 * group) >= kFewTerms) group *= 2;
    Launch how{tiles * group, group, kProductThreads, product_shared_bytes<A>()};
    if (group > 1 && clusters_that_fit<PhaseArgs<A>>(how) == 0) how.blocks = tiles, how.cluster = 1;
    cuda::run(device_, args_, how);
  }
};

}  // namespace cuda
}  // namespace dla
