#include <tuple>

#include "scan_rows.h"

namespace dla {
namespace cuda {
namespace {

// f(an A, device, y, cell) for the cell, light or not, that scans given rows y [T, B, C], contiguous.
template <class F>
auto over_scanned(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& name, F f) {
  if (!is_light(weights)) return over_rows(y_in, weights, state, name, /*scans=*/true, f);
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const Rule rule(name);
    check_light(weights, rule.NG, y.size(2), dtype_of<A>(), y);
    CellCall<A> cell(rule, weights, state, y.size(0), y.size(1), y.size(2), y);
    return f(element, device, y, cell);
  });
}

}  // namespace

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& rule) {
  return over_scanned(y_in, weights, state, rule, [](auto, const OnDevice& device, const Tensor& y, auto& cell) {
    const Tensors states = cell.empty_states(y, sizes_of(y));
    scan_rows(device, cell, y, states, cell.in_phases(Pass::kForward, 0));
    return states;
  });
}

std::tuple<Tensor, Tensors, Tensors> scan_bwd(const Tensors& dstates_in, const Tensor& y_in, const Tensors& weights,
                                              const Tensors& state, const Tensors& states_in, const std::string& rule) {
  return over_scanned(y_in, weights, state, rule, [&](auto, const OnDevice& device, const Tensor& y, auto& cell) {
    cell.check("states", states_in, /*may_be_absent=*/false, sizes_of(y), y);
    cell.check("dstates", dstates_in, /*may_be_absent=*/true, sizes_of(y), y);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const auto [dy, dweights, dstate] =
        scan_rows_bwd(device, cell, y, states, dstates, cell.in_phases(Pass::kBackward, 0));
    return std::tuple{dy, dweights, dstate};
  });
}

DLA_REGISTER(m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_bwd", TORCH_BOX(&scan_bwd));
}

}  // namespace cuda
}  // namespace dla
