// scan: c_t = Dyn(y_t, c_{t-1}) over the layers, and its gradients.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "bottleneck.h"
#include "cell_call.h"
#include "light_scan.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {
namespace {

// A light cell over rows y [T, B, C]: the bottleneck takes all of them at once, and what it makes of them, s, is
// scanned.
template <class A>
struct LightCall {
  const Tensor y_held;
  const Bottleneck<A> bottleneck;
  const LightScan<A> cell;
  const Matrix<A> s;  // [T * B, C]

  LightCall(const Tensor& y, const Tensors& weights, const Tensors& state, const std::string& rule, bool backward)
      : y_held(as_contiguous(y)),
        bottleneck({weights.begin(), weights.begin() + 4}, y.size(0) * y.size(1), y.size(2), y, backward),
        cell({weights.begin() + 4, weights.end()}, state, rule, y.size(0), y.size(1), y.size(2), y, backward),
        s(y.size(0) * y.size(1), y.size(2)) {}

  Rows<const A> y() const { return {read<A>(y_held), cell.C}; }
  // f(b0, nb) over blocks of samples
  template <class F>
  void blocks(F f) const {
    Blocks(cell.B, 4 * cell.T * cell.N * int64_t(sizeof(A))).run(f);
  }
};

Tensors light_scan(const Tensor& y, const Tensors& weights, const Tensors& state, const std::string& rule) {
  check_rows("y", y);
  return dispatch_rows(y.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const LightCall<A> call(y, weights, state, rule, /*backward=*/false);
    const LightScan<A>& cell = call.cell;
    Tensors out;
    for (size_t i = 0; i < cell.num_states(); ++i) out.push_back(empty<A>({cell.T, cell.B, cell.C}));
    const States<A> states = cell.states_of(out);
    call.bottleneck.blocks([&](int64_t m0, int64_t nb) {
      const Matrix<A> u(nb, call.bottleneck.R);
      call.bottleneck.forward(nb, call.y().from(m0), u.rows, call.s.rows.from(m0));
    });
    call.blocks([&](int64_t b0, int64_t nb) { cell.forward(b0, nb, call.s[0], states); });
    return out;
  });
}

std::tuple<Tensor, Tensors, Tensors> light_scan_bwd(const Tensors& dstates, const Tensor& y, const Tensors& weights,
                                                    const Tensors& state, const Tensors& states_in,
                                                    const std::string& rule) {
  check_rows("y", y);
  return dispatch_rows(y.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const LightCall<A> call(y, weights, state, rule, /*backward=*/true);
    const LightScan<A>& cell = call.cell;
    const std::vector<int64_t> shape{cell.T, cell.B, cell.C};
    check_states("states", states_in, cell.num_states(), /*may_be_absent=*/false, shape, dtype_of<A>(), y);
    check_states("dstates", dstates, cell.num_states(), /*may_be_absent=*/true, shape, dtype_of<A>(), y);
    const Tensors saved = as_contiguous(states_in), incoming = as_contiguous(dstates);
    const States<A> states = cell.states_of(saved), arriving = cell.states_of(incoming);
    const Matrix<A> ds(cell.T * cell.B, cell.C);
    const Tensor dy = empty<A>(shape);
    call.bottleneck.blocks([&](int64_t m0, int64_t nb) {
      call.bottleneck.forward_again(m0, nb, call.y().from(m0), call.s.rows.from(m0));
    });
    call.blocks([&](int64_t b0, int64_t nb) { cell.backward(b0, nb, call.s[0], states, arriving, ds[0]); });
    call.bottleneck.blocks([&](int64_t m0, int64_t nb) {
      call.bottleneck.backward(m0, nb, ds.rows.from(m0), {write<A>(dy) + m0 * cell.C, cell.C});
    });
    Tensors dweights = call.bottleneck.weight_gradients();
    for (const Tensor& w : cell.weight_gradients(call.s[0])) dweights.push_back(w);
    return std::tuple{dy, dweights, cell.state_gradients()};
  });
}

}  // namespace

Tensors scan(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& name) {
  if (is_light(weights)) return light_scan(y_in, weights, state, name);
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
  if (is_light(weights)) return light_scan_bwd(dstates, y_in, weights, state, states_in, name);
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
