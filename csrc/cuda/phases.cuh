// The cell a phase at a time, where weights are many: all blocks share out the rows and columns of each phase, and the
// end of a launch is what everybody waits for. A step is then as fast as the chip, not as a group of blocks, can read
// the weights, and each reading serves 32 samples.
#pragma once

#include "../cells/cells.h"
#include "phases_args.h"
#include "tile_product.cuh"

namespace dla {
namespace cuda {

template <class A>
class PhaseOfCell {
 public:
  DLA_DEVICE explicit PhaseOfCell(const PhaseArgs<A>& args)
      : args(args),
        cell(args.cell),
        f(args.grads.factors),
        B(args.cell.B),
        C(args.cell.C),
        R(args.cell.R),
        N(args.N()) {}

  DLA_DEVICE void run() {
    const PhaseShape shape = shape_of(args);
    if (shape.K == 0)
      for_each(shape.M, shape.N, [&](int64_t b, int64_t i) { alone(b, i); });
    else
      multiply(shape);
  }

 private:
  const PhaseArgs<A>& args;
  const CellArgs<A>& cell;
  const Factors<A>& f;
  const int64_t B, C, R, N;

  // ---- products ----

  DLA_DEVICE void multiply(const PhaseShape& shape) {
    const int ranks = cluster_size(), per_tile = shape.columns(cell.NG), gates = shape.by_gates ? cell.NG : 1;
    const int64_t tile = block_index() / ranks, across = divide_up(shape.N, per_tile);
    const int64_t m0 = tile / across * kTile, n0 = tile % across * per_tile;
    const auto row = [&](int m) { return m0 + m < shape.M ? m0 + m : int64_t(-1); };
    const auto column = [&](int n) {  // gate by gate
      const int g = gates == 1 ? 0 : n / per_tile;
      const int64_t c = n0 + n - g * per_tile;
      return g < gates && c < shape.N ? g * C + c : int64_t(-1);
    };
    TileProduct<A> product(reinterpret_cast<A*>(shared_memory()));
    const Operand<A> right = weights();
    if (const A* const first = left(0)) product.add(left_of(first), row_of_part(0, row), right, column, shape.K);
    if (const A* const second = left(1)) product.add(left_of(second), row_of_part(1, row), right, column, shape.K);
    product.finish([&](auto sums) {
      for (int j = cluster_rank() * num_threads() + thread_index(); j < kTile * per_tile; j += ranks * num_threads()) {
        const int m = j / per_tile, n = j - m * per_tile;
        if (row(m) < 0 || n0 + n >= shape.N) continue;
        if (shape.by_gates)
          with_rule(cell.rule, [&](auto rule) {
            using Rule = decltype(rule);
            A a[Rule::NG];
            for (int g = 0; g < Rule::NG; ++g) a[g] = sums(m, g * per_tile + n);
            use_gates<Rule>(row(m), n0 + n, a);
          });
        else
          use(row(m), n0 + n, sums(m, n));
      }
    });
  }

  // Where the rows begin that are multiplied; a second part is added to them in the phases that come last.
  DLA_DEVICE const A* left(int part) const {
    const int64_t after = int64_t(args.t) * B, first = args.first_refreshed();
    if (part == 1) return finishes() ? (to_gates() ? f.da_refresh : f.ds_refresh) : nullptr;
    switch (args.phase) {
      case Phase::kHoistInto:
        return args.y;
      case Phase::kHoistOutOf:
        return args.low() ? args.uy : args.y;
      case Phase::kInto:
        return args.h + args.t % 2 * B * C;
      case Phase::kOutOf:
        return args.low() ? args.u : args.h + args.t % 2 * B * C;
      case Phase::kLast:
        return args.h + (args.backward ? 0 : cell.scan_end % 2) * B * C;
      case Phase::kRefresh:
        return u_refresh() + first * R;
      case Phase::kRefreshBack:
        return f.da_refresh + first * N;
      case Phase::kScanInto:
        return f.h;
      case Phase::kScanOutOf:
        return args.low() ? f.u_scan : f.h;
      case Phase::kLastToState:
        return f.last_sum;
      case Phase::kStepBack:
        return f.da_scan + after * N;
      case Phase::kStepToState:
        return args.low() ? f.ds_scan + after * R : f.da_scan + after * N;
      case Phase::kFinishInto:
        return f.da_scan;
      case Phase::kFinishOutOf:
        return cell.projection == Projection::kSplit ? f.dsy : to_gates() ? f.da_scan : f.ds_scan;
      default:
        return nullptr;
    }
  }
  // Whether gradients of scan and refresh meet: each is of some layers.
  DLA_DEVICE bool finishes() const {
    return args.phase == Phase::kFinishInto ||
           (args.phase == Phase::kFinishOutOf && cell.projection != Projection::kSplit);
  }
  DLA_DEVICE bool to_gates() const { return args.phase == Phase::kFinishInto || !args.low(); }
  DLA_DEVICE Operand<A> left_of(const A* data) const { return {data, shape_of(args).K, true}; }
  template <class Row>
  DLA_DEVICE auto row_of_part(int part, Row row) const {
    const int64_t begin = finishes() && part == 1 ? args.first_refreshed() : 0;
    const int64_t end = finishes() && part == 0 ? args.scanned() : args.rows();
    return [=](int m) {
      const int64_t at = row(m);
      return at >= begin && at < end ? at : int64_t(-1);
    };
  }
  DLA_DEVICE Operand<A> weights() const {
    const int64_t ld_w1 = args.low() ? cell.ld_w1 : C;
    switch (args.phase) {
      case Phase::kHoistInto:
        return {cell.w1y, ld_w1, true};
      case Phase::kHoistOutOf:
        return args.low() ? Operand<A>{cell.w2y, R, true} : Operand<A>{cell.w1y, C, true};
      case Phase::kInto:
      case Phase::kScanInto:
      case Phase::kLast:
        return {cell.w1h, ld_w1, true};
      case Phase::kOutOf:
      case Phase::kScanOutOf:
      case Phase::kRefresh:
        return args.low() ? Operand<A>{cell.w2h, R, true} : Operand<A>{cell.w1h, C, true};
      case Phase::kRefreshBack:
      case Phase::kStepBack:
        return {cell.w2h, R, false};
      case Phase::kFinishInto:
        return {cell.w2y, R, false};
      case Phase::kFinishOutOf:
        return {cell.w1y, ld_w1, false};
      default:  // to the state
        return {cell.w1h, ld_w1, false};
    }
  }

  // ---- what is made of a sum ----

  DLA_DEVICE A relu_p(int64_t m, int64_t r, A sum) const {  // u of row m
    return relu(sum + (args.joint() ? args.p[m * R + r] : cell.b1h[r]));
  }
  DLA_DEVICE A bias(int64_t n) const { return cell.q1 ? cell.q0[n] + cell.q1[n] : cell.q0[n]; }
  DLA_DEVICE A q(int64_t m, int64_t n) const { return args.joint() ? cell.q0[n] : args.q[m * N + n]; }
  DLA_DEVICE A* u_refresh() const { return args.backward ? f.u_refresh : args.u_refresh; }
  // f(m) for each row of a refreshed layer that is of sample b.
  template <class F>
  DLA_DEVICE void for_refreshed(int64_t b, F each) const {
    for (int64_t m = args.first_refreshed() + b; m < args.rows(); m += B) each(m);
  }

  DLA_DEVICE void use(int64_t m, int64_t n, A sum) const {
    const int64_t of_layer = int64_t(args.t) * B + m;
    switch (args.phase) {
      case Phase::kHoistInto:
        if (args.joint())
          args.p[m * R + n] = sum;
        else
          args.uy[m * R + n] = relu(sum + cell.b1y[n]);
        break;
      case Phase::kHoistOutOf:
        args.q[m * N + n] = sum + bias(n);
        break;
      case Phase::kInto:
        args.u[m * R + n] = relu_p(of_layer, n, sum);
        break;
      case Phase::kLast:
        for_refreshed(m, [&](int64_t row) { u_refresh()[row * R + n] = relu_p(row, n, sum); });
        break;
      case Phase::kRefreshBack: {
        const int64_t at = (args.first_refreshed() + m) * R + n;
        f.ds_refresh[at] = relu_grad(f.u_refresh[at], sum);
        break;
      }
      case Phase::kScanInto:
        f.u_scan[m * R + n] = relu_p(m, n, sum);
        break;
      case Phase::kScanOutOf:
        f.da_scan[m * N + n] = sum + q(m, n);
        break;
      case Phase::kLastToState:
        step_back(cell.scan_end, m, n, sum);
        break;
      case Phase::kStepBack:
        f.ds_scan[of_layer * R + n] = relu_grad(f.u_scan[of_layer * R + n], sum);
        break;
      case Phase::kStepToState:
        step_back(args.t, m, n, sum);
        break;
      case Phase::kFinishInto:
        f.dsy[m * R + n] = relu_grad(f.uy[m * R + n], sum);
        break;
      case Phase::kFinishOutOf:
        args.dy[m * C + n] = sum;
        break;
      default:
        break;
    }
  }
  // a holds the sums of all gates of channel c, without q.
  template <class Rule>
  DLA_DEVICE void use_gates(int64_t m, int64_t c, A* a) const {
    const auto add_q = [&](int64_t row, const A* sums, A* out) {
      for (int g = 0; g < Rule::NG; ++g) out[g] = sums[g] + q(row, g * C + c);
    };
    if (args.phase == Phase::kOutOf) {
      const int64_t of_layer = int64_t(args.t) * B + m, at = m * C + c;
      add_q(of_layer, a, a);
      const State<A> s = Rule::step(a, State<A>{args.h[args.t % 2 * B * C + at], args.c[at]});
      args.h[(args.t + 1) % 2 * B * C + at] = s.h, args.c[at] = s.c;
      if (args.states_h) args.states_h[of_layer * C + c] = s.h;
      if (args.states_c) args.states_c[of_layer * C + c] = s.c;
    } else if (args.phase == Phase::kRefresh) {
      const int64_t row = args.first_refreshed() + m;
      add_q(row, a, a);
      const A dc = refresh<Rule>(row, c, a);
      if (args.backward) args.dc_of_layers[row * C + c] = dc;
    } else {  // the last state of a dense cell, whose layers have no product of their own
      A dc = A(0);
      for_refreshed(m, [&](int64_t row) {
        A of_row[Rule::NG];
        add_q(row, a, of_row);
        dc += refresh<Rule>(row, c, of_row);
      });
      if (args.backward) args.dc[m * C + c] = dc;
    }
  }
  // d of a row, from its gates; backward also da, and what is returned, the gradient of c.
  template <class Rule>
  DLA_DEVICE A refresh(int64_t m, int64_t c, const A* a) const {
    const int64_t at = m % B * C + c;
    const State<A> s{args.h[(args.backward ? 0 : cell.scan_end % 2) * B * C + at], args.c[at]};
    if (args.d) args.d[m * C + c] = Rule::output(Rule::step(a, s));
    if (!args.backward) return A(0);
    A da[Rule::NG];
    const A dc = Rule::output_bwd(a, s, args.dd[m * C + c], da);
    for (int g = 0; g < Rule::NG; ++g) f.da_refresh[m * N + g * C + c] = da[g];
    return dc;
  }
  // dh is the gradient of h before layer t, and so of h after the one before: da of that; or the start's.
  DLA_DEVICE void step_back(int t, int64_t b, int64_t c, A dh) const {
    const int64_t at = b * C + c;
    with_rule(cell.rule, [&](auto rule) {
      using Rule = decltype(rule);
      if (t == 0) {
        const A dc = args.dc[at];
        if (args.grads.dh0) args.grads.dh0[at] = dh;
        if (args.grads.dc0) args.grads.dc0[at] = cell.h0 ? dc : dc + Rule::feed_bwd(cell.c0[at], dh);
        return;
      }
      const int64_t m = int64_t(t - 1) * B + b, of_row = m * C + c;
      const A before = t > 1 ? args.grads.states_c ? args.grads.states_c[of_row - B * C] : A(0) : start_c(at);
      const State<A> s{Rule::kSavesC ? A(0) : f.h[of_row], Rule::kSavesC ? before : A(0)};
      State<A> ds{dh, args.dc[at]};
      if (args.grads.dstates_h) ds.h += args.grads.dstates_h[of_row];
      if (args.grads.dstates_c) ds.c += args.grads.dstates_c[of_row];
      A a[Rule::NG], da[Rule::NG];
      for (int g = 0; g < Rule::NG; ++g) a[g] = f.da_scan[m * N + g * C + c];
      args.dc[at] = Rule::step_bwd(a, s, ds, da);
      for (int g = 0; g < Rule::NG; ++g) f.da_scan[m * N + g * C + c] = da[g];
    });
  }

  // ---- without a product ----

  DLA_DEVICE A start_c(int64_t at) const { return cell.c0 ? cell.c0[at] : A(0); }
  template <class Rule>
  DLA_DEVICE A start_h(int64_t at) const {
    return cell.h0 ? cell.h0[at] : cell.c0 ? Rule::feed(cell.c0[at]) : cell.start_h;
  }
  DLA_DEVICE void alone(int64_t b, int64_t i) const {
    const int64_t at = b * C + i;
    if (args.phase == Phase::kGather) return sum_over_refreshed(b, i);
    if (args.phase == Phase::kLastToState) return step_back(cell.scan_end, b, i, A(0));
    with_rule(cell.rule, [&](auto rule) {
      using Rule = decltype(rule);
      args.h[at] = start_h<Rule>(at), args.c[at] = start_c(at);
      if (args.phase == Phase::kStart) return;
      args.dc[at] = A(0);
      for (int t = 0; t < cell.scan_end; ++t) {  // what the layer saw, and then the state after it
        const int64_t of_row = int64_t(t) * B * C + at;
        f.h[of_row] = args.h[at];
        args.c[at] = Rule::kSavesC ? args.grads.states_c[of_row] : A(0);
        args.h[at] = Rule::kSavesH ? args.grads.states_h[of_row] : Rule::feed(args.grads.states_c[of_row]);
      }
      if (f.h_last) f.h_last[at] = args.h[at];
    });
  }
  DLA_DEVICE void sum_over_refreshed(int64_t b, int64_t i) const {
    const int64_t K = args.low() ? R : N;
    const A* const each = args.low() ? f.ds_refresh : f.da_refresh;
    A sum = A(0), dc = A(0);
    if (i < K) {
      for_refreshed(b, [&](int64_t m) { sum += each[m * K + i]; });
      f.last_sum[b * K + i] = sum;
    }
    if (args.low() && i < C) {
      for_refreshed(b, [&](int64_t m) { dc += args.dc_of_layers[m * C + i]; });
      args.dc[b * C + i] = dc;
    }
  }
  // each(b, i), shared over all threads of the launch.
  template <class F>
  DLA_DEVICE void for_each(int64_t rows, int64_t columns, F each) const {
    const int64_t threads = int64_t(num_blocks()) * num_threads();
    for (int64_t j = int64_t(block_index()) * num_threads() + thread_index(); j < rows * columns; j += threads)
      each(j / columns, j % columns);
  }
};

template <class A>
DLA_KERNEL(phase_kernel, A, PhaseArgs<A>) {
  PhaseOfCell<A>(args).run();
}

}  // namespace cuda
}  // namespace dla
