#include <tuple>

#include "gradients.h"

namespace dla {
namespace cuda {

Tensor refresh(const Tensor& y_in, const Tensors& state, const Tensors& weights, const std::string& rule) {
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    CellCall<A> cell(rule, weights, state, T, B, C, /*scan_end=*/0, /*refresh_begin=*/0, y);
    const Tensor d = empty<A>(y, {T, B, C});
    const Launch how = cell.template prepare<RefreshArgs<A>>(Pass::kForward, 0, y);
    run(device, RefreshArgs<A>{cell.args, data<A>(y), data<A>(d)}, how);
    return d;
  });
}

std::tuple<Tensor, Tensors, Tensors> refresh_bwd(const Tensor& dd_in, const Tensor& y_in, const Tensors& state,
                                                 const Tensors& weights, const std::string& rule) {
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensors> {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    check_tensor("dd", dd_in, {T, B, C}, y.scalar_type(), y);
    const Tensor dd = as_contiguous(dd_in);
    CellCall<A> cell(rule, weights, state, T, B, C, /*scan_end=*/0, /*refresh_begin=*/0, y);
    const Tensor dy = empty<A>(y, {T, B, C});
    Gradients<A> grads(cell, y);
    const Launch how = cell.template prepare<RefreshBwdArgs<A>>(Pass::kBackward, 0, y);
    run(device, RefreshBwdArgs<A>{cell.args, grads.args, data<A>(y), data<A>(dd), data<A>(dy)}, how);
    grads.weight_gradients(device, data<A>(y));
    return {dy, grads.dstate, grads.dweights};
  });
}

DLA_REGISTER(m) {
  m.impl("refresh", TORCH_BOX(&refresh));
  m.impl("refresh_bwd", TORCH_BOX(&refresh_bwd));
}

}  // namespace cuda
}  // namespace dla
