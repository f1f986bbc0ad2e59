// scan: c_t = Dyn(y_t, c_{t-1}) over the layers, and its gradients.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "recurrence_bwd.h"

namespace dla {
namespace cpu {

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& name) {
  check_rows("y", y_in);
  const Tensor y = as_contiguous(y_in);
  return dispatch_rows(y.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const RuleKernels<A>& rule = find_rule<A>(name);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    check_cell(rule, weights, state, /*may_start=*/true, B, C, y);
    const CellWeights<A> w(weights, C, rule);
    const Recurrence<A> cell(rule, w, T);
    const Start<A> start(state, rule, C);
    const Tensors out = empty_states(rule, T, B, C);
    const States<A> states = states_of(out, rule, B, C);
    cell.blocks(B, [&](int64_t b0, int64_t nb) {
      const Matrix<A> rows = cell.gather(b0, nb, read<A>(y), B);
      cell.scan(b0, nb, cell.hoist(nb * T, rows.rows), start, states);
    });
    return out;
  });
}

std::tuple<Tensor, Tensors, Tensors> scan_bwd(const Tensors& dstates, const Tensor& y_in, const Tensors& weights,
                                              const Tensors& state, const Tensors& states_in, const std::string& name) {
  check_rows("y", y_in);
  const Tensor y = as_contiguous(y_in);
  return dispatch_rows(y.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensors> {
    using A = decltype(element);
    const RuleKernels<A>& rule = find_rule<A>(name);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    check_cell(rule, weights, state, /*may_start=*/true, B, C, y);
    check_states("states", states_in, num_states(rule), false, T, B, C, y.scalar_type(), y);
    check_states("dstates", dstates, num_states(rule), true, T, B, C, y.scalar_type(), y);
    const Tensors saved = as_contiguous(states_in), incoming = as_contiguous(dstates);
    const CellWeights<A> w(weights, C, rule);
    const Recurrence<A> cell(rule, w, T);
    const Start<A> start(state, rule, C);
    const Tensor dy = empty<A>({T, B, C});
    RecurrenceBwd<A> bwd(cell, B, /*scan=*/true, /*refresh=*/false);
    cell.blocks(B, [&](int64_t b0, int64_t nb) {
      auto block = bwd.begin(b0, nb, cell.gather(b0, nb, read<A>(y), B).rows);
      bwd.scan(block, start, states_of(saved, rule, B, C), states_of(incoming, rule, B, C));
      cell.scatter(b0, nb, bwd.finish(block).rows, write<A>(dy), B);
    });
    return {dy, bwd.weight_gradients(), bwd.state_gradients(start)};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_bwd", TORCH_BOX(&scan_bwd));
}

}  // namespace cpu
}  // namespace dla
