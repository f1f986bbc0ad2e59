#include <tuple>

#include "gradients.h"

namespace dla {
namespace cuda {

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& rule) {
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    CellCall<A> cell(rule, weights, state, T, B, C, /*scan_end=*/T, /*refresh_begin=*/T, y);
    const Tensors states = cell.empty_states(y, {T, B, C});
    const Launch how = cell.template prepare<ScanArgs<A>>(Pass::kForward, 0, y);
    run(device, ScanArgs<A>{cell.args, data<A>(y), cell.h_of(states), cell.c_of(states)}, how);
    return states;
  });
}

std::tuple<Tensor, Tensors, Tensors> scan_bwd(const Tensors& dstates_in, const Tensor& y_in, const Tensors& weights,
                                              const Tensors& state, const Tensors& states_in, const std::string& rule) {
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensors> {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    CellCall<A> cell(rule, weights, state, T, B, C, /*scan_end=*/T, /*refresh_begin=*/T, y);
    check_states("states", states_in, cell.rule.num_states(), false, T, B, C, dtype_of<A>(), y);
    check_states("dstates", dstates_in, cell.rule.num_states(), false, T, B, C, dtype_of<A>(), y);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const Tensor dy = empty<A>(y, {T, B, C});
    Gradients<A> grads(cell, y);
    grads.args.states_h = cell.h_of(states), grads.args.states_c = cell.c_of(states);
    grads.args.dstates_h = cell.h_of(dstates), grads.args.dstates_c = cell.c_of(dstates);
    const Launch how = cell.template prepare<ScanBwdArgs<A>>(Pass::kBackward, 0, y);
    run(device, ScanBwdArgs<A>{cell.args, grads.args, data<A>(y), data<A>(dy)}, how);
    grads.weight_gradients(device, data<A>(y));
    return {dy, grads.dweights, grads.dstate};
  });
}

DLA_REGISTER(m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_bwd", TORCH_BOX(&scan_bwd));
}

}  // namespace cuda
}  // namespace dla
