#include <tuple>

#include "gradients.h"
#include "layer_update_args.h"
#include "map_arguments.h"
#include "map_gradients_args.h"
#include "phases.h"
#include "rescale_args.h"

namespace dla {
namespace cuda {
namespace {

template <class T>
int64_t sample_bytes(const std::vector<MapView<const T>>& maps) {
  int64_t pixels = 0;
  for (const auto& map : maps) pixels += map.HW;
  return pixels * maps[0].C * int64_t(sizeof(T));
}

// The same where the cell has launches of its own, between those over the maps.
template <class T>
Tensor forward_in_phases(const Tensors& xs, const ReadMaps<T>& x, const std::vector<MapView<T>>& out,
                         const CellCall<accumulate_t<T>>& cell, const Tensors& states) {
  using A = accumulate_t<T>;
  const OnDevice device(xs[0]);
  const int64_t B = cell.args.B;
  const Tensor y = empty<A>(xs[0], {cell.args.T, B, cell.args.C}), d = empty<A>(xs[0], sizes_of(y));
  run_means<T>(device, x.views, B, data<A>(y));
  Phases<A>(device, cell, data<A>(y), xs[0]).forward(cell.h_of(states), cell.c_of(states), data<A>(d));
  RescaleArgs<T> rescale{pieces_of(x.views, B), data<A>(d), {}};
  enter_maps(x.views, kIn, B, rescale.layers);
  enter_maps(out, kOut, B, rescale.layers);
  run(device, rescale, launch_of<T>(rescale.pieces));
  return y;
}

// Fills dx, which exists, and what grads point to.
template <class T>
void backward_in_phases(const Tensors& xs, const ReadMaps<T>& x, const ReadMaps<T>& dout,
                        const std::vector<MapView<T>>& dx, const CellCall<accumulate_t<T>>& cell,
                        const Gradients<accumulate_t<T>>& grads, const accumulate_t<T>* y) {
  using A = accumulate_t<T>;
  const OnDevice device(xs[0]);
  const int64_t B = cell.args.B;
  const std::vector<int64_t> rows{cell.args.T, B, cell.args.C};
  const Tensor d = empty<A>(xs[0], rows), dd = empty<A>(xs[0], rows), dy = empty<A>(xs[0], rows);
  const Pieces pieces = pieces_of(x.views, B);
  GateGradientsArgs<T> of_gates{pieces, data<A>(dd), {}};
  enter_maps(x.views, kIn, B, of_gates.layers);
  enter_maps(dout.views, kGradOut, B, of_gates.layers);
  run(device, of_gates, launch_of<T>(pieces));
  Phases<A>(device, cell, y, xs[0]).backward(grads.args, data<A>(dd), data<A>(d), data<A>(dy));
  MapGradientsArgs<T> of_maps{pieces, data<A>(d), data<A>(dy), of_gates.layers};
  enter_maps(dx, kGradIn, B, of_maps.layers);
  run(device, of_maps, launch_of<T>(pieces));
}

// Fills out and states, which exist; returns y.
template <class T>
Tensor forward(const Tensors& xs, const ReadMaps<T>& x, const std::vector<MapView<T>>& out,
               CellCall<accumulate_t<T>>& cell, const Tensors& states) {
  using A = accumulate_t<T>;
  using Args = LayerUpdateArgs<T>;
  const OnDevice device(xs[0]);
  const int64_t B = cell.args.B;
  if (cell.in_phases(Pass::kForward, sample_bytes(x.views))) return forward_in_phases<T>(xs, x, out, cell, states);
  const Tensor y = empty<A>(xs[0], {cell.args.T, B, cell.args.C});
  const Launch how = cell.template prepare<Args>(Pass::kForward, sample_bytes(x.views), xs[0]);
  Args args{cell.args, data<A>(y), cell.h_of(states), cell.c_of(states), {}};
  enter_maps(x.views, kIn, B, args.layers);
  enter_maps(out, kOut, B, args.layers);
  run(device, args, how);
  return y;
}

template <class A>
CellCall<A> cell_of(const Tensors& xs, const Tensors& weights, const Tensors& state, const std::string& rule) {
  const int64_t T = int64_t(xs.size());
  return CellCall<A>(rule, weights, state, T, xs[0].size(0), xs[0].size(1), /*scan_end=*/T, /*refresh_begin=*/0, xs[0]);
}

}  // namespace

std::tuple<Tensors, Tensors, Tensor> layer_update(const Tensors& xs, const Tensors& weights, const Tensors& state,
                                                  const std::string& rule) {
  check_maps("xs", xs);
  check_layers(xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensors, Tensor> {
    using T = decltype(element);
    const OnDevice device(xs[0]);
    CellCall<accumulate_t<T>> cell = cell_of<accumulate_t<T>>(xs, weights, state, rule);
    const ReadMaps<T> x(xs);
    Tensors out;
    const auto views = empty_maps(x, out);
    const Tensors states = cell.empty_states(xs[0], {cell.args.T, cell.args.B, cell.args.C});
    const Tensor y = forward<T>(xs, x, views, cell, states);
    restore_layout(xs, out);
    return {out, states, y};
  });
}

void layer_update_(const Tensors& xs, const Tensors& states, const Tensors& weights, const Tensors& state,
                   const std::string& rule) {
  check_maps("xs", xs);
  check_layers(xs);
  dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(xs[0]);
    CellCall<A> cell = cell_of<A>(xs, weights, state, rule);
    cell.check("states", states, /*may_be_absent=*/false, {cell.args.T, cell.args.B, cell.args.C}, xs[0]);
    for (const Tensor& s : states) STD_TORCH_CHECK(s.is_contiguous(), "states: expected contiguous tensors");
    const auto views = mutable_maps<T>(xs);
    forward<T>(xs, ReadMaps<T>(xs), views, cell, states);
  });
}

std::tuple<Tensors, Tensors, Tensors> layer_update_bwd(const Tensors& dout, const Tensors& dstates_in,
                                                       const Tensors& xs, const Tensors& weights, const Tensors& state,
                                                       const Tensor& y_in, const Tensors& states_in,
                                                       const std::string& rule) {
  check_maps("xs", xs);
  check_layers(xs);
  check_like_maps("dout", dout, xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensors, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    using Args = LayerUpdateBwdArgs<T>;
    const OnDevice device(xs[0]);
    CellCall<A> cell = cell_of<A>(xs, weights, state, rule);
    const int64_t layers = cell.args.T, B = cell.args.B, C = cell.args.C;
    check_tensor("y", y_in, {layers, B, C}, dtype_of<A>(), xs[0]);
    cell.check("states", states_in, /*may_be_absent=*/false, {layers, B, C}, xs[0]);
    cell.check("dstates", dstates_in, /*may_be_absent=*/true, {layers, B, C}, xs[0]);
    const Tensor y = as_contiguous(y_in);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const ReadMaps<T> x(xs), dy(dout, &x);
    Tensors dxs;
    const auto dx = empty_maps(x, dxs);

    Gradients<A> grads(cell, xs[0]);
    grads.use_states(states, dstates);
    if (cell.in_phases(Pass::kBackward, 2 * sample_bytes(x.views))) {
      backward_in_phases<T>(xs, x, dy, dx, cell, grads, data<A>(y));
    } else {
      const Launch how = cell.template prepare<Args>(Pass::kBackward, 2 * sample_bytes(x.views), xs[0]);
      Args args{cell.args, grads.args, data<A>(y), {}};
      enter_maps(x.views, kIn, B, args.layers);
      enter_maps(dy.views, kGradOut, B, args.layers);
      enter_maps(dx, kGradIn, B, args.layers);
      run(device, args, how);
    }
    grads.weight_gradients(device, data<A>(y));
    restore_layout(xs, dxs);
    return {dxs, grads.dweights, grads.dstate};
  });
}

DLA_REGISTER(m) {
  m.impl("layer_update", TORCH_BOX(&layer_update));
  m.impl("layer_update_", TORCH_BOX(&layer_update_));
  m.impl("layer_update_bwd", TORCH_BOX(&layer_update_bwd));
}

}  // namespace cuda
}  // namespace dla
