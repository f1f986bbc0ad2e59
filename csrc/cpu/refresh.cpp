// refresh: d_t = Dyn(y_t, c_T) for all layers at once, output only; and its gradients.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "recurrence_bwd.h"

namespace dla {
namespace cpu {

Tensor refresh(const Tensor& y_in, const Tensors& state, const Tensors& weights, const std::string& name) {
  check_rows("y", y_in);
  const Tensor y = as_contiguous(y_in);
  return dispatch_rows(y.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const RuleKernels<A>& rule = find_rule<A>(name);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    check_cell(rule, weights, state, /*may_start=*/false, B, C, y);
    const CellWeights<A> w(weights, C, rule);
    const Recurrence<A> cell(rule, w, T);
    const Start<A> last(state, rule, C);
    const Tensor d = empty<A>({T, B, C});
    cell.blocks(B, [&](int64_t b0, int64_t nb) {
      const Matrix<A> rows = cell.gather(b0, nb, read<A>(y), B), d_rows(nb * T, C);
      cell.refresh(nb, cell.hoist(nb * T, rows.rows), last.h(b0), last.c(b0), d_rows.rows);
      cell.scatter(b0, nb, d_rows.rows, write<A>(d), B);
    });
    return d;
  });
}

std::tuple<Tensor, Tensors, Tensors> refresh_bwd(const Tensor& dd_in, const Tensor& y_in, const Tensors& state,
                                                 const Tensors& weights, const std::string& name) {
  check_rows("y", y_in);
  const Tensor y = as_contiguous(y_in);
  return dispatch_rows(y.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensors> {
    using A = decltype(element);
    const RuleKernels<A>& rule = find_rule<A>(name);
    const int64_t T = y.size(0), B = y.size(1), C = y.size(2);
    check_cell(rule, weights, state, /*may_start=*/false, B, C, y);
    check_tensor("dd", dd_in, {T, B, C}, y.scalar_type(), y);
    const Tensor dd = as_contiguous(dd_in);
    const CellWeights<A> w(weights, C, rule);
    const Recurrence<A> cell(rule, w, T);
    const Start<A> last(state, rule, C);
    const Tensor dy = empty<A>({T, B, C});
    RecurrenceBwd<A> bwd(cell, B, /*scan=*/false, /*refresh=*/true);
    cell.blocks(B, [&](int64_t b0, int64_t nb) {
      auto block = bwd.begin(b0, nb, cell.gather(b0, nb, read<A>(y), B).rows);
      bwd.refresh(block, last.h(b0), last.c(b0), cell.gather(b0, nb, read<A>(dd), B).rows, {});
      cell.scatter(b0, nb, bwd.finish(block).rows, write<A>(dy), B);
    });
    return {dy, bwd.state_gradients(last), bwd.weight_gradients()};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("refresh", TORCH_BOX(&refresh));
  m.impl("refresh_bwd", TORCH_BOX(&refresh_bwd));
}

}  // namespace cpu
}  // namespace dla
