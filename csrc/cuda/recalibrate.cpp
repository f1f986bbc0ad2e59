#include <tuple>

#include "gradients.h"
#include "light_call.h"
#include "map_arguments.h"
#include "recalibrate_args.h"

namespace dla {
namespace cuda {
namespace {

// What shows something of the mean of a [B, C, H, W], of one layer: its arguments, and the tensors that these point
// into. Of taps there is no cell, but its plan.
template <class A>
struct Shown {
  CellCall<A> cell;
  Tensors taps;
  ShownArgs<A> args{};

  Shown(const Tensor& a, const Tensors& weights, const Tensors& state, const std::string& name)
      : cell(cell_of(a, weights, state, name)) {
    args.by = name == "eca"       ? Shows::kTaps
              : name == "se"      ? Shows::kSqueeze
              : is_light(weights) ? Shows::kLightCell
                                  : Shows::kCell;
    if (args.by == Shows::kTaps) {
      taps = as_contiguous(weights);
      args.taps = data<A>(taps[0]), args.K = int(taps[0].size(0));
    }
    if (args.by == Shows::kLightCell) args.light = light_gates<A>(cell.weights);
  }

 private:
  static CellCall<A> cell_of(const Tensor& a, const Tensors& weights, const Tensors& state, const std::string& name) {
    const int64_t B = a.size(0), C = a.size(1);
    if (name == "se" || name == "eca")
      STD_TORCH_CHECK(state.empty(), "state: expected none with rule '", name, "', got ", state.size(), " tensors");
    if (name == "eca") {
      check_taps(weights, dtype_of<A>(), a);
      return CellCall<A>(/*T=*/1, B, C);
    }
    if (name == "se") {
      check_squeeze(weights, C, dtype_of<A>(), a);
      return CellCall<A>(Rule(), weights, state, /*T=*/1, B, C, a);
    }
    const Rule rule(name, /*others=*/", se, eca");
    if (is_light(weights)) {
      check_light(weights, rule.NG, C, dtype_of<A>(), a);
      return CellCall<A>(rule, weights, state, /*T=*/1, B, C, a);
    }
    return CellCall<A>(name, weights, state, /*T=*/1, B, C, /*scan_end=*/1, /*refresh_begin=*/1, a);
  }
};

template <class T>
int64_t sample_bytes(const MapView<const T>& map) {
  return map.C * map.HW * int64_t(sizeof(T));
}

// Fills out and states, which exist; returns y. shortcut: one map or none. It is one launch also of a cell whose
// weights are so many that others run it in phases: of a single step there is little to share.
template <class T>
Tensor forward(const Tensor& a_in, const MapView<const T>& a, const std::vector<MapView<const T>>& shortcut,
               const MapView<T>& out, Shown<accumulate_t<T>>& shown, const Tensors& states, bool relu) {
  using A = accumulate_t<T>;
  using Args = RecalibrateArgs<T>;
  const OnDevice device(a_in);
  CellCall<A>& cell = shown.cell;
  const int64_t B = cell.args.B;
  const Tensor y = empty<A>(a_in, {B, cell.args.C});
  const Launch how = cell.template prepare<Args>(Pass::kForward, sample_bytes(a), a_in);
  Args args{cell.args, shown.args, data<A>(y), cell.h_of(states), cell.c_of(states), !shortcut.empty(), relu, {}};
  enter_map(a, kIn, B, args.layer);
  for (const MapView<const T>& map : shortcut) enter_map(map, kShortcut, B, args.layer);
  enter_map(out, kSum, B, args.layer);
  run(device, args, how);
  return y;
}

// Maps of two layers are read and written side by side: each as both allow.
void read_alike(Layer& a, Layer& b) {
  a.piece = b.piece = std::min(a.piece, b.piece);
  a.slab = b.slab = std::min(a.slab, b.slab);
}

}  // namespace

std::tuple<Tensor, Tensors, Tensor> recalibrate(const Tensor& a_in, const Tensors& shortcut_in, const Tensors& weights,
                                                const Tensors& state, const std::string& rule, bool relu) {
  check_maps("a", {a_in});
  STD_TORCH_CHECK(shortcut_in.size() <= 1, "shortcut: expected one map or none, got ", shortcut_in.size());
  for (const Tensor& map : shortcut_in) check_alike("shortcut", map, a_in);
  return dispatch_maps(a_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(a_in);
    Shown<A> shown(a_in, weights, state, rule);
    const ReadMaps<T> a({a_in}), shortcut(shortcut_in, is_interleaved(a_in));
    Tensors out;
    const auto to = empty_maps(a, out);
    const Tensors states = shown.cell.empty_states(a_in, {a_in.size(0), a_in.size(1)});
    const Tensor y = forward<T>(a_in, a.views[0], shortcut.views, to[0], shown, states, relu);
    restore_layout({a_in}, out);
    return {out[0], states, y};
  });
}

void recalibrate_(const Tensors& out, const Tensors& states, const Tensors& a_in, const Tensors& weights,
                  const Tensors& state, const std::string& rule, bool relu) {
  check_maps("out", out);
  STD_TORCH_CHECK(out.size() == 1, "out: expected one map, got ", out.size());
  STD_TORCH_CHECK(a_in.size() <= 1, "a: expected one map or none, got ", a_in.size());
  for (const Tensor& map : a_in) check_alike("a", map, out[0]);
  dispatch_maps(out[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(out[0]);
    Shown<A> shown(out[0], weights, state, rule);
    shown.cell.check("states", states, /*may_be_absent=*/false, {out[0].size(0), out[0].size(1)}, out[0]);
    for (const Tensor& s : states) STD_TORCH_CHECK(s.is_contiguous(), "states: expected contiguous tensors");
    const auto to = mutable_maps<T>(out);
    const ReadMaps<T> written(out, to[0].interleaved), a(a_in, to[0].interleaved);
    if (a_in.empty())
      forward<T>(out[0], written.views[0], {}, to[0], shown, states, relu);
    else
      forward<T>(out[0], a.views[0], written.views, to[0], shown, states, relu);
  });
}

std::tuple<Tensor, Tensors, Tensors, Tensors> recalibrate_bwd(const Tensor& dout_in, const Tensors& dstates_in,
                                                              const Tensor& a_in, const Tensors& out_in,
                                                              const Tensors& weights, const Tensors& state,
                                                              const Tensor& y_in, const Tensors& states_in,
                                                              const std::string& rule, bool adds) {
  check_maps("a", {a_in});
  check_alike("dout", dout_in, a_in);
  STD_TORCH_CHECK(out_in.size() <= 1, "out: expected one map or none, got ", out_in.size());
  for (const Tensor& map : out_in) check_alike("out", map, a_in);
  STD_TORCH_CHECK(!adds || !out_in.empty(), "adds: without a relu the gradient of the shortcut is dout itself");
  return dispatch_maps(a_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensors, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    using Args = RecalibrateBwdArgs<T>;
    const OnDevice device(a_in);
    Shown<A> shown(a_in, weights, state, rule);
    CellCall<A>& cell = shown.cell;
    const int64_t B = cell.args.B, C = cell.args.C, K = shown.args.K;
    const bool masked = !out_in.empty(), light = shown.args.by == Shows::kLightCell;
    check_tensor("y", y_in, {B, C}, dtype_of<A>(), a_in);
    cell.check("states", states_in, /*may_be_absent=*/false, {B, C}, a_in);
    cell.check("dstates", dstates_in, /*may_be_absent=*/true, {B, C}, a_in);
    const Tensor y = as_contiguous(y_in);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const bool interleaved = is_interleaved(a_in);
    const ReadMaps<T> a({a_in}), dout({dout_in}, interleaved), out(out_in, interleaved);
    Tensors das, dshortcut;
    const auto da = empty_maps(a, das);

    Gradients<A> grads(cell, a_in);
    grads.use_states(states, dstates);
    const LightGradients<A> of_light(light ? B : 0, cell.rule.NG * C, a_in);
    const Launch how = cell.template prepare<Args>(Pass::kBackward, (masked ? 3 : 2) * sample_bytes(a.views[0]), a_in);
    const int64_t blocks = B * cell.args.plan.blocks_per_tile;
    const Tensor of_taps = empty<A>(a_in, {K > 0 ? B : 0, C}), dtaps = empty<A>(a_in, {blocks, K});
    Args args{cell.args, grads.args, shown.args, data<A>(y), of_light.factors, data<A>(of_taps), data<A>(dtaps),
              masked,    adds,       {},         {}};
    enter_map(a.views[0], kIn, B, args.branch);
    enter_map(dout.views[0], kGradOut, B, args.branch);
    enter_map(da[0], kGradIn, B, args.branch);
    if (masked) {
      enter_map(out.views[0], kResult, B, args.beside);
      if (adds) enter_map(empty_maps(out, dshortcut)[0], kGradShortcut, B, args.beside);
      read_alike(args.branch, args.beside);
    }
    run(device, args, how);

    WeightGradients<A> products;
    if (shown.args.by == Shows::kTaps) {
      grads.dweights.push_back(empty<A>(a_in, {K}));
      products.add_column_sums(data<A>(grads.dweights[0]), K, args.dtaps, K, blocks);
    } else {
      grads.weight_gradients(args.y, products);
    }
    if (light) of_light.add_to(products, grads.dweights);
    products.run(device);
    restore_layout({a_in}, das);
    if (adds) restore_layout(out_in, dshortcut);
    return {das[0], dshortcut, grads.dweights, grads.dstate};
  });
}

DLA_REGISTER(m) {
  m.impl("recalibrate", TORCH_BOX(&recalibrate));
  m.impl("recalibrate_", TORCH_BOX(&recalibrate_));
  m.impl("recalibrate_bwd", TORCH_BOX(&recalibrate_bwd));
}

}  // namespace cuda
}  // namespace dla
