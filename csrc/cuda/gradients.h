// The backward pass of a cell: its gradients, and those of its weights, which are products of what the pass leaves.
#pragma once

#include "cell_call.h"
#include "held.h"
#include "weight_gradients.h"

namespace dla {
namespace cuda {

// A backward pass: its gradients, the factors of the weight gradients, and their products.
template <class A>
struct Gradients {
  RecurrenceGrads<A> args{};
  Tensors dstate, dweights;

  Gradients(const CellCall<A>& cell, const Tensor& like) : cell_(cell) {
    const int64_t B = cell.args.B, C = cell.args.C, R = cell.args.R, N = cell.args.NG * C, rows = cell.args.T * B;
    const bool low = cell.args.projection != Projection::kDense, squeeze = cell.args.projection == Projection::kSqueeze;
    const bool y_apart = cell.args.projection == Projection::kSplit || squeeze;
    const bool has_scan = cell.args.scan_end > 0, has_refresh = cell.args.refresh_begin < cell.args.T;
    for (size_t i = 0; i < cell.state.size(); ++i) dstate.push_back(empty<A>(like, {B, C}));
    args.dh0 = cell.args.h0 ? data<A>(dstate.front()) : nullptr;
    args.dc0 = cell.args.c0 ? data<A>(dstate.back()) : nullptr;

    Factors<A>& f = args.factors;
    const auto want = [&](bool needed, A*& pointer, int64_t size) {
      if (needed) held_.want(pointer, size);
    };
    want(has_scan, f.h, rows * C);
    want(has_scan || squeeze, f.da_scan, rows * N);
    want(has_refresh, f.da_refresh, rows * N);
    want(has_scan && low, f.u_scan, rows * R);
    want(has_scan && low, f.ds_scan, rows * R);
    want(has_refresh && low, f.u_refresh, rows * R);
    want(has_refresh && low, f.ds_refresh, rows * R);
    want(y_apart, f.uy, rows * R);
    want(y_apart, f.dsy, rows * R);
    want(has_refresh, f.h_last, B * C);
    want(has_refresh, f.last_sum, B * (low ? R : N));
    held_.allocate(like);
  }

  // States as the forward pass saved them, and what arrives at them.
  void use_states(const Tensors& states, const Tensors& dstates) {
    args.states_h = cell_.h_of(states), args.states_c = cell_.c_of(states);
    args.dstates_h = cell_.h_of(dstates), args.dstates_c = cell_.c_of(dstates);
  }
  // dweights, in the order of the weights; y [T, B, C].
  void weight_gradients(const A* y, WeightGradients<A>& products) {
    const CellArgs<A>& cell = cell_.args;
    const Factors<A>& f = args.factors;
    const int64_t C = cell.C, R = cell.R, N = cell.NG * C, rows = cell.T * cell.B;
    const int64_t scanned = cell.scan_end * cell.B, first = cell.refresh_begin * cell.B;  // of the refreshed rows
    const int64_t last = first < rows ? cell.B : 0;
    for (const Tensor& w : cell_.weights) dweights.push_back(torch::stable::new_empty(w, sizes_of(w)));
    const auto out = [&](size_t i) { return data<A>(dweights[i]); };

    const auto of_scan = [&](const A* g, int64_t ldg, const A* x, int64_t ldx) {
      return Product<A>{g, x, ldg, ldx, scanned};
    };
    const auto of_refresh = [&](const A* g, int64_t ldg, const A* x, int64_t ldx) {
      if (first == rows) return Product<A>{};
      return Product<A>{g + first * ldg, x ? x + first * ldx : nullptr, ldg, ldx, rows - first};
    };
    const auto both = [&](const A* g_scan, const A* g_refresh, int64_t ldg, const A* x_scan, const A* x_refresh,
                          int64_t ldx, A* to, int64_t ld) {
      products.add(to, ldg, ldx, ld, of_scan(g_scan, ldg, x_scan, ldx), of_refresh(g_refresh, ldg, x_refresh, ldx));
    };
    const auto with_h = [&](const A* g_scan, int64_t ldg, A* to, int64_t ld) {
      products.add(to, ldg, C, ld, of_scan(g_scan, ldg, f.h, C), {f.last_sum, f.h_last, ldg, C, last});
    };
    const auto column_sums = [&](const A* g_scan, const A* g_refresh, int64_t ldg, A* to) {
      products.add(to, ldg, 1, 1, of_scan(g_scan, ldg, nullptr, 0), of_refresh(g_refresh, ldg, nullptr, 0));
    };
    switch (cell.projection) {
      case Projection::kJoint:
        with_h(f.ds_scan, R, out(0), 2 * C);
        both(f.ds_scan, f.ds_refresh, R, y, y, C, out(0) + C, 2 * C);
        both(f.da_scan, f.da_refresh, N, f.u_scan, f.u_refresh, R, out(1), R);
        column_sums(f.da_scan, f.da_refresh, N, out(2));
        break;
      case Projection::kSplit:
        products.add(out(0), R, C, C, {f.dsy, y, R, C, rows}, {});
        products.add_column_sums(out(1), R, f.dsy, R, rows);
        both(f.da_scan, f.da_refresh, N, f.uy, f.uy, R, out(2), R);
        column_sums(f.da_scan, f.da_refresh, N, out(3));
        with_h(f.ds_scan, R, out(4), C);
        column_sums(f.ds_scan, f.ds_refresh, R, out(5));
        both(f.da_scan, f.da_refresh, N, f.u_scan, f.u_refresh, R, out(6), R);
        column_sums(f.da_scan, f.da_refresh, N, out(7));
        break;
      case Projection::kDense:
        both(f.da_scan, f.da_refresh, N, y, y, C, out(0), C);
        column_sums(f.da_scan, f.da_refresh, N, out(1));
        with_h(f.da_scan, N, out(2), C);
        column_sums(f.da_scan, f.da_refresh, N, out(3));
        break;
      case Projection::kSqueeze:
        squeeze_gradients(y, products);
        break;
    }
  }
  // The same, where there are no other weights.
  void weight_gradients(const OnDevice& device, const A* y) {
    WeightGradients<A> products;
    weight_gradients(y, products);
    products.run(device);
  }

 private:
  void squeeze_gradients(const A* y, WeightGradients<A>& products) {
    const CellArgs<A>& cell = cell_.args;
    const Factors<A>& f = args.factors;
    const int64_t C = cell.C, R = cell.R, rows = cell.T * cell.B;
    const SqueezePlaces at = in_squeeze(cell_.weights);
    const auto out = [&](int i) { return data<A>(dweights[size_t(i)]); };
    products.add(out(at.w1), R, C, C, {f.dsy, y, R, C, rows}, {});
    products.add(out(at.w2), C, R, R, {f.da_scan, f.uy, C, R, rows}, {});
    if (at.b1 >= 0) products.add_column_sums(out(at.b1), R, f.dsy, R, rows);
    if (at.b2 >= 0) products.add_column_sums(out(at.b2), C, f.da_scan, C, rows);
  }

  const CellCall<A>& cell_;
  Held<A> held_;
};

}  // namespace cuda
}  // namespace dla
