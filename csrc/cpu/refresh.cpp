// refresh: d_t = Dyn(y_t, c_T) for all layers at once, output only; and its gradients.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cell_call.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {

Tensor refresh(const Tensor& y_in, const Tensors& state, const Tensors& weights, const std::string& name) {
  return over_rows(y_in, weights, state, name, /*may_start=*/false, [](const auto& call, const Tensor& y) {
    const auto& cell = call.cell;
    const auto& last = call.start;
    const Tensor d = torch::stable::new_empty(y, {call.T, call.B, call.C});
    call.blocks([&](int64_t b0, int64_t nb) {
      const auto rows = call.gather(b0, nb, y), d_rows = call.scratch(nb);
      cell.refresh(nb, cell.hoist(nb * call.T, rows.rows), last.h(b0), last.c(b0), d_rows.rows);
      call.scatter(b0, nb, d_rows, d);
    });
    return d;
  });
}

std::tuple<Tensor, Tensors, Tensors> refresh_bwd(const Tensor& dd_in, const Tensor& y_in, const Tensors& state,
                                                 const Tensors& weights, const std::string& name) {
  return over_rows(y_in, weights, state, name, /*may_start=*/false, [&](const auto& call, const Tensor& y) {
    const std::vector<int64_t> shape{call.T, call.B, call.C};
    check_tensor("dd", dd_in, shape, y.scalar_type(), y);
    const Tensor dd = as_contiguous(dd_in), dy = torch::stable::new_empty(y, shape);
    const auto& last = call.start;
    RecurrenceBwd bwd(call.cell, call.B, /*has_scan=*/false, /*has_refresh=*/true);
    call.blocks([&](int64_t b0, int64_t nb) {
      auto block = bwd.begin(b0, nb, call.gather(b0, nb, y).rows);
      bwd.refresh(block, last.h(b0), last.c(b0), call.gather(b0, nb, dd).rows, {});
      call.scatter(b0, nb, bwd.finish(block), dy);
    });
    return std::tuple{dy, bwd.state_gradients(last), bwd.weight_gradients()};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("refresh", TORCH_BOX(&refresh));
  m.impl("refresh_bwd", TORCH_BOX(&refresh_bwd));
}

}  // namespace cpu
}  // namespace dla
