// What the kernel of a phase of the cell is told.
#pragma once

#include "cell_args.h"
#include "tile_product.h"

namespace dla {
namespace cuda {

// The phases of a cell, each a launch whose blocks share out rows and columns. A phase is a product, and what is made
// of each of its sums; or, where there is none, what has to be known before the next product.
enum class Phase {
  kStart,        // h, c before the first layer
  kHoistInto,    // p, or uy
  kHoistOutOf,   // q
  kInto,         // of layer t: u
  kOutOf,        //             its gates, and the state after it
  kLast,         // W1h h of the last state: u of all refreshed layers
  kRefresh,      // d; backward, the gradients of their gates too
  kBegin,        // backward: what every layer's projection saw
  kRefreshBack,  // to the bottleneck: ds of refreshed layers
  kGather,       // sums over these layers, which share the state
  kScanInto,     // u of scanned layers
  kScanOutOf,    // their gates
  kLastToState,  // dh of the last state, and da of the last layer
  kStepBack,     // ds of layer t
  kStepToState,  // dh before it, and da of the layer before
  kFinishInto,   // dsy
  kFinishOutOf,  // dy
};

template <class A>
struct PhaseArgs {
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;  // backward; there, factors take the place of u
  Phase phase;
  int t;
  bool backward;
  const A* y;              // [T, B, C]
  A *states_h, *states_c;  // [scan_end, B, C] written forward; null where the cell saves none
  A *h, *c;                // [2, B, C], [B, C]: the state, h before layer t at t % 2; backward: the last one, in h[0]
  A *p, *q, *uy;           // [T, B, R], [T, B, NG*C], [T, B, R]; null where the projection has none
  A *u, *u_refresh;        // [B, R], [T, B, R] forward
  A* d;                    // [T, B, C] written; may be null backward
  const A* dd;             // [T, B, C]
  A *dc, *dc_of_layers;    // [B, C], [T, B, C]
  A* dy;                   // [T, B, C] written

  DLA_HOST_DEVICE bool low() const { return cell.projection != Projection::kDense; }
  DLA_HOST_DEVICE bool joint() const { return cell.projection == Projection::kJoint; }
  DLA_HOST_DEVICE int64_t N() const { return cell.NG * cell.C; }
  DLA_HOST_DEVICE int64_t rows() const { return cell.T * cell.B; }
  DLA_HOST_DEVICE int64_t scanned() const { return cell.scan_end * cell.B; }
  DLA_HOST_DEVICE int64_t first_refreshed() const { return cell.refresh_begin * cell.B; }
};

// A phase's product: M rows by N columns, of K terms; K = 0 where it has none. by_gates: a column is a channel, with
// the sums of all its gates.
struct PhaseShape {
  int64_t M, N, K;
  bool by_gates;

  DLA_HOST_DEVICE int columns(int NG) const { return by_gates ? kTile / NG : kTile; }  // of a tile
};

template <class A>
DLA_HOST_DEVICE PhaseShape shape_of(const PhaseArgs<A>& args) {
  const CellArgs<A>& cell = args.cell;
  const int64_t B = cell.B, C = cell.C, R = cell.R, N = args.N();
  const int64_t rows = args.rows(), refreshed = rows - args.first_refreshed();
  const bool low = args.low();
  switch (args.phase) {
    case Phase::kHoistInto:
      return {rows, R, C, false};
    case Phase::kHoistOutOf:
      return {rows, N, low ? R : C, false};
    case Phase::kInto:
      return {B, R, C, false};
    case Phase::kOutOf:
      return {B, C, low ? R : C, true};
    case Phase::kLast:
      return low ? PhaseShape{B, R, C, false} : PhaseShape{B, C, C, true};
    case Phase::kRefresh:
      return {refreshed, C, R, true};
    case Phase::kRefreshBack:
      return {refreshed, R, N, false};
    case Phase::kScanInto:
      return {args.scanned(), R, C, false};
    case Phase::kScanOutOf:
      return {args.scanned(), N, low ? R : C, false};
    case Phase::kLastToState:  // nothing comes back from a refresh of no layers
      return {B, C, refreshed == 0 ? 0 : low ? R : N, false};
    case Phase::kStepBack:
      return {B, R, N, false};
    case Phase::kStepToState:
      return {B, C, low ? R : N, false};
    case Phase::kFinishInto:
      return {rows, R, N, false};
    case Phase::kFinishOutOf:
      return {rows, C, low ? R : N, false};
    case Phase::kStart:
    case Phase::kBegin:
      return {B, C, 0, false};
    case Phase::kGather:
      return {B, low && R > C ? R : low ? C : N, 0, false};
  }
  return {};
}

}  // namespace cuda
}  // namespace dla
