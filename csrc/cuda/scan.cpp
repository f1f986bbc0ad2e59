#include <tuple>

#include "light_call.h"
#include "light_scan_args.h"
#include "phases.h"
#include "scan_args.h"

namespace dla {
namespace cuda {
namespace {

// f(an A, device, y, cell): a scan of rows y [T, B, C], contiguous, by a light cell, which two launches tell what its
// bottleneck makes of them.
template <class F>
auto over_light_rows(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& name, F f) {
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const Rule rule(name);
    check_light(weights, rule.NG, y.size(2), dtype_of<A>(), y);
    const CellCall<A> cell(rule, weights, state, y.size(0), y.size(1), y.size(2), y);
    return f(element, device, y, cell);
  });
}

// A thread has a channel of a sample.
template <class A>
Launch launch_of_channels(const CellArgs<A>& cell) {
  const int threads = current_device().threads;
  return {divide_up(cell.B * cell.C, threads), 1, threads, 0};
}

Tensors light_scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& rule) {
  const auto forward = [](auto element, const OnDevice& device, const Tensor& y, const auto& cell) {
    using A = decltype(element);
    const CellArgs<A>& of = cell.args;
    const Tensors states = cell.empty_states(y, sizes_of(y));
    const Tensor s = empty<A>(y, sizes_of(y)), uy = empty<A>(y, {of.T, of.B, of.R});
    Phases<A>(device, cell, data<A>(y), y).squeeze(data<A>(s), data<A>(uy));
    const LightScanArgs<A> args{of.rule,
                                of.T,
                                of.B,
                                of.C,
                                light_gates<A>(cell.weights),
                                of.h0,
                                of.c0,
                                of.start_h,
                                data<A>(s),
                                cell.h_of(states),
                                cell.c_of(states)};
    run(device, args, launch_of_channels(of));
    return states;
  };
  return over_light_rows(y_in, weights, state, rule, forward);
}

std::tuple<Tensor, Tensors, Tensors> light_scan_bwd(const Tensors& dstates_in, const Tensor& y_in,
                                                    const Tensors& weights, const Tensors& state,
                                                    const Tensors& states_in, const std::string& rule) {
  const auto backward = [&](auto element, const OnDevice& device, const Tensor& y, const auto& cell) {
    using A = decltype(element);
    const CellArgs<A>& of = cell.args;
    cell.check("states", states_in, /*may_be_absent=*/false, sizes_of(y), y);
    cell.check("dstates", dstates_in, /*may_be_absent=*/true, sizes_of(y), y);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const Tensor s = empty<A>(y, sizes_of(y)), dy = empty<A>(y, sizes_of(y));
    Gradients<A> grads(cell, y);
    Phases<A> bottleneck(device, cell, data<A>(y), y);
    bottleneck.squeeze(data<A>(s), grads.args.factors.uy);
    const LightGradients<A> of_gates(of.B, cell.rule.NG * of.C, y);
    const LightScanBwdArgs<A> args{of.rule,
                                   of.T,
                                   of.B,
                                   of.C,
                                   light_gates<A>(cell.weights),
                                   of.h0,
                                   of.c0,
                                   of.start_h,
                                   data<A>(s),
                                   cell.h_of(states),
                                   cell.c_of(states),
                                   cell.h_of(dstates),
                                   cell.c_of(dstates),
                                   grads.args.factors.da_scan,
                                   grads.args.dh0,
                                   grads.args.dc0,
                                   of_gates.factors};
    run(device, args, launch_of_channels(of));
    bottleneck.squeeze_back(grads.args, data<A>(dy));
    WeightGradients<A> products;
    grads.weight_gradients(data<A>(y), products);
    of_gates.add_to(products, grads.dweights);
    products.run(device);
    return std::tuple{dy, grads.dweights, grads.dstate};
  };
  return over_light_rows(y_in, weights, state, rule, backward);
}

}  // namespace

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& rule) {
  if (is_light(weights)) return light_scan(y_in, weights, state, rule);
  const auto forward = [](auto element, const OnDevice& device, const Tensor& y, auto& cell) {
    using A = decltype(element);
    using Args = ScanArgs<A>;
    const Tensors states = cell.empty_states(y, sizes_of(y));
    if (cell.in_phases(Pass::kForward, 0)) {
      Phases<A>(device, cell, data<A>(y), y).forward(cell.h_of(states), cell.c_of(states), nullptr);
      return states;
    }
    const Launch how = cell.template prepare<Args>(Pass::kForward, 0, y);
    run(device, Args{cell.args, data<A>(y), cell.h_of(states), cell.c_of(states)}, how);
    return states;
  };
  return over_rows(y_in, weights, state, rule, /*scans=*/true, forward);
}

std::tuple<Tensor, Tensors, Tensors> scan_bwd(const Tensors& dstates_in, const Tensor& y_in, const Tensors& weights,
                                              const Tensors& state, const Tensors& states_in, const std::string& rule) {
  if (is_light(weights)) return light_scan_bwd(dstates_in, y_in, weights, state, states_in, rule);
  const auto backward = [&](auto element, const OnDevice& device, const Tensor& y, auto& cell) {
    using A = decltype(element);
    using Args = ScanBwdArgs<A>;
    cell.check("states", states_in, /*may_be_absent=*/false, sizes_of(y), y);
    cell.check("dstates", dstates_in, /*may_be_absent=*/false, sizes_of(y), y);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const Tensor dy = empty<A>(y, sizes_of(y));
    Gradients<A> grads(cell, y);
    grads.use_states(states, dstates);
    if (cell.in_phases(Pass::kBackward, 0)) {
      Phases<A>(device, cell, data<A>(y), y).backward(grads.args, nullptr, nullptr, data<A>(dy));
    } else {
      const Launch how = cell.template prepare<Args>(Pass::kBackward, 0, y);
      run(device, Args{cell.args, grads.args, data<A>(y), data<A>(dy)}, how);
    }
    grads.weight_gradients(device, data<A>(y));
    return std::tuple{dy, grads.dweights, grads.dstate};
  };
  return over_rows(y_in, weights, state, rule, /*scans=*/true, backward);
}

DLA_REGISTER(m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_bwd", TORCH_BOX(&scan_bwd));
}

}  // namespace cuda
}  // namespace dla
