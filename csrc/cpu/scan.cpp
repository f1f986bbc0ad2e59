// scan: c_t = Dyn(y_t, c_{t-1}) over the layers, and its gradients.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cell_call.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& name) {
  return over_rows(y_in, weights, state, name, /*may_start=*/true, [](const auto& call, const Tensor& y) {
    const auto& cell = call.cell;
    const Tensors out = call.empty_states({call.T, call.B, call.C});
    const auto states = call.states_of(out);
    call.blocks([&](int64_t b0, int64_t nb) {
      cell.scan(b0, nb, cell.hoist(nb * call.T, call.gather(b0, nb, y).rows), call.start, states);
    });
    return out;
  });
}

std::tuple<Tensor, Tensors, Tensors> scan_bwd(const Tensors& dstates, const Tensor& y_in, const Tensors& weights,
                                              const Tensors& state, const Tensors& states_in, const std::string& name) {
  return over_rows(y_in, weights, state, name, /*may_start=*/true, [&](const auto& call, const Tensor& y) {
    const std::vector<int64_t> shape{call.T, call.B, call.C};
    call.check("states", states_in, /*may_be_absent=*/false, shape, y);
    call.check("dstates", dstates, /*may_be_absent=*/true, shape, y);
    const Tensors saved = as_contiguous(states_in), incoming = as_contiguous(dstates);
    const auto states = call.states_of(saved), arriving = call.states_of(incoming);
    const Tensor dy = torch::stable::new_empty(y, shape);
    RecurrenceBwd bwd(call.cell, call.B, /*has_scan=*/true, /*has_refresh=*/false);
    call.blocks([&](int64_t b0, int64_t nb) {
      auto block = bwd.begin(b0, nb, call.gather(b0, nb, y).rows);
      bwd.scan(block, call.start, states, arriving);
      call.scatter(b0, nb, bwd.finish(block), dy);
    });
    return std::tuple{dy, bwd.weight_gradients(), bwd.state_gradients(call.start)};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_bwd", TORCH_BOX(&scan_bwd));
}

}  // namespace cpu
}  // namespace dla
