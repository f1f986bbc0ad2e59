#include <tuple>

#include "gradients.h"
#include "scan_args.h"

namespace dla {
namespace cuda {

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& rule) {
  const auto forward = [](auto element, const OnDevice& device, const Tensor& y, auto& cell) {
    using A = decltype(element);
    using Args = ScanArgs<A>;
    const Tensors states = cell.empty_states(y, sizes_of(y));
    const Launch how = cell.template prepare<Args>(Pass::kForward, 0, y);
    run(device, Args{cell.args, data<A>(y), cell.h_of(states), cell.c_of(states)}, how);
    return states;
  };
  return over_rows(y_in, weights, state, rule, /*scans=*/true, forward);
}

std::tuple<Tensor, Tensors, Tensors> scan_bwd(const Tensors& dstates_in, const Tensor& y_in, const Tensors& weights,
                                              const Tensors& state, const Tensors& states_in, const std::string& rule) {
  const auto backward = [&](auto element, const OnDevice& device, const Tensor& y, auto& cell) {
    using A = decltype(element);
    using Args = ScanBwdArgs<A>;
    cell.check("states", states_in, /*may_be_absent=*/false, sizes_of(y), y);
    cell.check("dstates", dstates_in, /*may_be_absent=*/false, sizes_of(y), y);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const Tensor dy = empty<A>(y, sizes_of(y));
    Gradients<A> grads(cell, y);
    grads.use_states(states, dstates);
    const Launch how = cell.template prepare<Args>(Pass::kBackward, 0, y);
    run(device, Args{cell.args, grads.args, data<A>(y), data<A>(dy)}, how);
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
