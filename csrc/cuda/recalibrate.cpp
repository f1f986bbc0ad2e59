#include <tuple>

#include "map_arguments.h"
#include "recalibrate_args.h"
#include "scan_rows.h"

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

  // Whether the step that follows a mean has launches of its own.
  bool step_apart(Pass pass, int64_t sample_bytes) const {
    return args.by != Shows::kTaps && cell.in_phases(pass, sample_bytes);
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

// The mean y [B, C] of each map, and from there the step in launches of its own, to states or, of a bottleneck, to a,
// which is returned.
template <class T>
Tensor step_ahead(const OnDevice& device, const MapView<const T>& map, Shown<accumulate_t<T>>& shown, const Tensor& y,
                  const Tensors& states) {
  using A = accumulate_t<T>;
  CellCall<A>& cell = shown.cell;
  const int64_t B = cell.args.B, C = cell.args.C;
  run_means<T>(device, {map}, B, data<A>(y));
  const bool squeezes = shown.args.by == Shows::kSqueeze;
  const Tensor a = empty<A>(y, {squeezes ? B : 0, C}), uy = empty<A>(y, {squeezes ? B : 0, cell.args.R});
  if (squeezes)
    Phases<A>(device, cell, data<A>(y), y).squeeze(data<A>(a), data<A>(uy));
  else
    scan_rows(device, cell, torch::stable::unsqueeze(y, 0), states, /*phases=*/true);
  shown.args.part = Part::kAfterStep, shown.args.a = data<A>(a);
  return a;
}

// Fills out and states, which exist; returns y. shortcut: one map or none.
template <class T>
Tensor forward(const Tensor& a_in, const MapView<const T>& a, const std::vector<MapView<const T>>& shortcut,
               const MapView<T>& out, Shown<accumulate_t<T>>& shown, const Tensors& states, bool relu) {
  using A = accumulate_t<T>;
  using Args = RecalibrateArgs<T>;
  const OnDevice device(a_in);
  const CellCall<A>& cell = shown.cell;
  const int64_t B = cell.args.B;
  const Tensor y = empty<A>(a_in, {B, cell.args.C});
  const bool apart = shown.step_apart(Pass::kForward, sample_bytes(a));
  const Tensor held = apart ? step_ahead<T>(device, a, shown, y, states) : Tensor();
  CellCall<A> planned = apart ? cell.of_maps() : cell;
  const Launch how = planned.template prepare<Args>(Pass::kForward, sample_bytes(a), a_in);
  Args args{planned.args, shown.args, data<A>(y), cell.h_of(states), cell.c_of(states), !shortcut.empty(), relu, {}};
  enter_map(a, kIn, B, args.layer);
  for (const MapView<const T>& map : shortcut) enter_map(map, kShortcut, B, args.layer);
  enter_map(out, kSum, B, args.layer);
  run(device, args, how);
  return y;
}

// What comes back to weights and state, by launches of which run_maps() is those over the maps, as args tell it.
template <class T, class F>
RowGradients back(const OnDevice& device, RecalibrateBwdArgs<T>& args, Shown<accumulate_t<T>>& shown, const Tensor& y,
                  const Tensors& states, const Tensors& dstates, F run_maps) {
  using A = accumulate_t<T>;
  const CellCall<A>& cell = shown.cell;
  const int64_t B = cell.args.B, C = cell.args.C, K = shown.args.K, blocks = B * args.cell.plan.blocks_per_tile;
  const bool light = shown.args.by == Shows::kLightCell;
  Gradients<A> grads(cell, y);
  grads.use_states(states, dstates);
  const LightGradients<A> of_light(light ? B : 0, cell.rule.NG * C, y);
  const Tensor da = empty<A>(y, {K > 0 ? B : 0, C}), dtaps = empty<A>(y, {blocks, K});
  args.grads = grads.args, args.factors = of_light.factors, args.da = data<A>(da), args.dtaps = data<A>(dtaps);
  run_maps();

  WeightGradients<A> products;
  if (shown.args.by == Shows::kTaps) {
    grads.dweights.push_back(empty<A>(y, {K}));
    products.add_column_sums(data<A>(grads.dweights[0]), K, args.dtaps, K, blocks);
  } else {
    grads.weight_gradients(data<A>(y), products);
  }
  if (light) of_light.add_to(products, grads.dweights);
  products.run(device);
  return {{}, grads.dweights, grads.dstate};
}

// The same, where the step has launches of its own, with one over the maps before them and one after.
template <class T, class F>
RowGradients back_apart(const OnDevice& device, RecalibrateBwdArgs<T>& args, Shown<accumulate_t<T>>& shown,
                        const Tensor& y, const Tensors& states, const Tensors& dstates, F run_maps) {
  using A = accumulate_t<T>;
  CellCall<A>& cell = shown.cell;
  const std::vector<int64_t> row = sizes_of(y);
  const auto run_after = [&](const Tensor& dy) {
    args.shown.part = Part::kAfterStep, args.dy = data<A>(dy);
    run_maps();
  };
  args.shown.part = Part::kBeforeStep;
  if (shown.args.by == Shows::kSqueeze) {
    const Tensor a = empty<A>(y, row), dy = empty<A>(y, row);
    Gradients<A> grads(cell, y);
    Phases<A> bottleneck(device, cell, data<A>(y), y);
    bottleneck.squeeze(data<A>(a), grads.args.factors.uy);
    args.shown.a = data<A>(a), args.grads = grads.args;
    run_maps();
    bottleneck.squeeze_back(grads.args, data<A>(dy));
    run_after(dy);
    grads.weight_gradients(device, data<A>(y));
    return {dy, grads.dweights, {}};
  }
  const Tensors at_states = cell.empty_states(y, row);
  args.grads.states_h = cell.h_of(states), args.grads.states_c = cell.c_of(states);
  args.grads.dstates_h = cell.h_of(dstates), args.grads.dstates_c = cell.c_of(dstates);
  args.dh = cell.h_of(at_states), args.dc = cell.c_of(at_states);
  run_maps();
  const Tensor rows = torch::stable::unsqueeze(y, 0);
  const RowGradients found = scan_rows_bwd(device, cell, rows, states, at_states, /*phases=*/true);
  run_after(found.dy);
  return found;
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
    const int64_t B = cell.args.B, C = cell.args.C;
    const bool masked = !out_in.empty();
    check_tensor("y", y_in, {B, C}, dtype_of<A>(), a_in);
    cell.check("states", states_in, /*may_be_absent=*/false, {B, C}, a_in);
    cell.check("dstates", dstates_in, /*may_be_absent=*/true, {B, C}, a_in);
    const Tensor y = as_contiguous(y_in);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const bool interleaved = is_interleaved(a_in);
    const ReadMaps<T> a({a_in}), dout({dout_in}, interleaved), out(out_in, interleaved);
    Tensors das, dshortcut;
    const auto da = empty_maps(a, das);

    const int64_t read = (masked ? 3 : 2) * sample_bytes(a.views[0]);
    const bool apart = shown.step_apart(Pass::kBackward, read);
    CellCall<A> planned = apart ? cell.of_maps() : cell;
    const Launch how = planned.template prepare<Args>(Pass::kBackward, read, a_in);
    Args args{};
    args.cell = planned.args, args.shown = shown.args, args.y = data<A>(y), args.masked = masked, args.adds = adds;
    enter_map(a.views[0], kIn, B, args.branch);
    enter_map(dout.views[0], kGradOut, B, args.branch);
    enter_map(da[0], kGradIn, B, args.branch);
    if (masked) {
      enter_map(out.views[0], kResult, B, args.beside);
      if (adds) enter_map(empty_maps(out, dshortcut)[0], kGradShortcut, B, args.beside);
      read_alike(args.branch, args.beside);
    }
    const auto run_maps = [&] { run(device, args, how); };
    const RowGradients found = apart ? back_apart<T>(device, args, shown, y, states, dstates, run_maps)
                                     : back<T>(device, args, shown, y, states, dstates, run_maps);
    restore_layout({a_in}, das);
    if (adds) restore_layout(out_in, dshortcut);
    return {das[0], dshortcut, found.dweights, found.dstate};
  });
}

DLA_REGISTER(m) {
  m.impl("recalibrate", TORCH_BOX(&recalibrate));
  m.impl("recalibrate_", TORCH_BOX(&recalibrate_));
  m.impl("recalibrate_bwd", TORCH_BOX(&recalibrate_bwd));
}

}  // namespace cuda
}  // namespace dla
