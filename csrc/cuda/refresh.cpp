#include <tuple>

#include "phases.h"
#include "refresh_args.h"

namespace dla {
namespace cuda {

Tensor refresh(const Tensor& y_in, const Tensors& state, const Tensors& weights, const std::string& rule) {
  const auto forward = [](auto element, const OnDevice& device, const Tensor& y, auto& cell) {
    using A = decltype(element);
    using Args = RefreshArgs<A>;
    const Tensor d = empty<A>(y, sizes_of(y));
    if (cell.in_phases(Pass::kForward, 0)) {
      Phases<A>(device, cell, data<A>(y), y).forward(nullptr, nullptr, data<A>(d));
      return d;
    }
    const Launch how = cell.template prepare<Args>(Pass::kForward, 0, y);
    run(device, Args{cell.args, data<A>(y), data<A>(d)}, how);
    return d;
  };
  return over_rows(y_in, weights, state, rule, /*scans=*/false, forward);
}

std::tuple<Tensor, Tensors, Tensors> refresh_bwd(const Tensor& dd_in, const Tensor& y_in, const Tensors& state,
                                                 const Tensors& weights, const std::string& rule) {
  const auto backward = [&](auto element, const OnDevice& device, const Tensor& y, auto& cell) {
    using A = decltype(element);
    using Args = RefreshBwdArgs<A>;
    check_tensor("dd", dd_in, sizes_of(y), y.scalar_type(), y);
    const Tensor dd = as_contiguous(dd_in), dy = empty<A>(y, sizes_of(y));
    Gradients<A> grads(cell, y);
    if (cell.in_phases(Pass::kBackward, 0)) {
      Phases<A>(device, cell, data<A>(y), y).backward(grads.args, data<A>(dd), nullptr, data<A>(dy));
    } else {
      const Launch how = cell.template prepare<Args>(Pass::kBackward, 0, y);
      run(device, Args{cell.args, grads.args, data<A>(y), data<A>(dd), data<A>(dy)}, how);
    }
    grads.weight_gradients(device, data<A>(y));
    return std::tuple{dy, grads.dstate, grads.dweights};
  };
  return over_rows(y_in, weights, state, rule, /*scans=*/false, backward);
}

DLA_REGISTER(m) {
  m.impl("refresh", TORCH_BOX(&refresh));
  m.impl("refresh_bwd", TORCH_BOX(&refresh_bwd));
}

}  // namespace cuda
}  // namespace dla
