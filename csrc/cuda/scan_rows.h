// The scan of rows y [T, B, C], in as many launches as its cell takes: the op scan, and the step of recalibrate where
// weights are many.
#pragma once

#include "gradients.h"
#include "light_call.h"
#include "light_scan_args.h"
#include "phases.h"
#include "scan_args.h"

namespace dla {
namespace cuda {

// A thread has a channel of a sample.
template <class A>
Launch launch_of_channels(const CellArgs<A>& cell) {
  const int threads = current_device().threads;
  return {divide_up(cell.B * cell.C, threads), 1, threads, 0};
}

// What the kernel of either pass is told of a light cell, and of its rows: s, what its bottleneck made of them.
template <class Args, class A>
Args light_args(const CellCall<A>& cell, const Tensor& s, const Tensors& states) {
  const CellArgs<A>& of = cell.args;
  Args args{};
  args.rule = of.rule, args.T = of.T, args.B = of.B, args.C = of.C, args.gates = light_gates<A>(cell.weights);
  args.h0 = of.h0, args.c0 = of.c0, args.start_h = of.start_h;
  args.s = data<A>(s), args.states_h = cell.h_of(states), args.states_c = cell.c_of(states);
  return args;
}

// Of a light cell, which two launches tell what its bottleneck makes of y.
template <class A>
void scan_light_rows(const OnDevice& device, const CellCall<A>& cell, const Tensor& y, const Tensors& states) {
  const CellArgs<A>& of = cell.args;
  const Tensor s = empty<A>(y, sizes_of(y)), uy = empty<A>(y, {of.T, of.B, of.R});
  Phases<A>(device, cell, data<A>(y), y).squeeze(data<A>(s), data<A>(uy));
  run(device, light_args<LightScanArgs<A>>(cell, s, states), launch_of_channels(of));
}

// Fills states, which exist. phases: whether a cell that is not light runs in them.
template <class A>
void scan_rows(const OnDevice& device, CellCall<A>& cell, const Tensor& y, const Tensors& states, bool phases) {
  using Args = ScanArgs<A>;
  if (is_light(cell.weights)) return scan_light_rows(device, cell, y, states);
  if (phases) return Phases<A>(device, cell, data<A>(y), y).forward(cell.h_of(states), cell.c_of(states), nullptr);
  const Launch how = cell.template prepare<Args>(Pass::kForward, 0, y);
  run(device, Args{cell.args, data<A>(y), cell.h_of(states), cell.c_of(states)}, how);
}

// The gradients of rows, weights and the first state.
struct RowGradients {
  Tensor dy;
  Tensors dweights, dstate;
};

template <class A>
RowGradients scan_light_rows_bwd(const OnDevice& device, const CellCall<A>& cell, const Tensor& y,
                                 const Tensors& states, const Tensors& dstates) {
  const CellArgs<A>& of = cell.args;
  const Tensor s = empty<A>(y, sizes_of(y)), dy = empty<A>(y, sizes_of(y));
  Gradients<A> grads(cell, y);
  Phases<A> bottleneck(device, cell, data<A>(y), y);
  bottleneck.squeeze(data<A>(s), grads.args.factors.uy);
  const LightGradients<A> of_gates(of.B, cell.rule.NG * of.C, y);
  auto args = light_args<LightScanBwdArgs<A>>(cell, s, states);
  args.dstates_h = cell.h_of(dstates), args.dstates_c = cell.c_of(dstates);
  args.ds = grads.args.factors.da_scan, args.dh0 = grads.args.dh0, args.dc0 = grads.args.dc0;
  args.factors = of_gates.factors;
  run(device, args, launch_of_channels(of));
  bottleneck.squeeze_back(grads.args, data<A>(dy));
  WeightGradients<A> products;
  grads.weight_gradients(data<A>(y), products);
  of_gates.add_to(products, grads.dweights);
  products.run(device);
  return {dy, grads.dweights, grads.dstate};
}

// From states as they were saved, and what arrives at each, which may be absent, contiguous.
template <class A>
RowGradients scan_rows_bwd(const OnDevice& device, CellCall<A>& cell, const Tensor& y, const Tensors& states,
                           const Tensors& dstates, bool phases) {
  using Args = ScanBwdArgs<A>;
  if (is_light(cell.weights)) return scan_light_rows_bwd(device, cell, y, states, dstates);
  const Tensor dy = empty<A>(y, sizes_of(y));
  Gradients<A> grads(cell, y);
  grads.use_states(states, dstates);
  if (phases) {
    Phases<A>(device, cell, data<A>(y), y).backward(grads.args, nullptr, nullptr, data<A>(dy));
  } else {
    const Launch how = cell.template prepare<Args>(Pass::kBackward, 0, y);
    run(device, Args{cell.args, grads.args, data<A>(y), data<A>(dy)}, how);
  }
  grads.weight_gradients(device, data<A>(y));
  return {dy, grads.dweights, grads.dstate};
}

}  // namespace cuda
}  // namespace dla
