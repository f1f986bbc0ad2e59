// recalibrate: out = f(shortcut + a h), h being what a cell shows after a step with the mean of a; and its gradients.
// A sample goes through all of it while its map is in cache.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "maps.h"
#include "one_step.h"

namespace dla {
namespace cpu {
namespace {

// per_sample(b, c0, c1) before and after cell(b0, nb): block by block where samples alone keep the threads busy, else
// phase by phase.
template <class T, class Before, class Cell, class After>
void around(const OneStep<accumulate_t<T>>& step, int64_t sample_bytes, Before before, Cell cell, After after) {
  const int64_t B = step.B, C = step.C;
  if (balanced(B) && !step.wide()) {
    Blocks(B, sample_bytes).run([&](int64_t b0, int64_t nb) {
      for (int64_t b = b0; b < b0 + nb; ++b) before(b, 0, C);
      cell(b0, nb);
      for (int64_t b = b0; b < b0 + nb; ++b) after(b, 0, C);
    });
  } else {
    for_each_plane(1, B, C, [&](int64_t, auto... at) { before(at...); });
    step.blocks(cell);
    for_each_plane(1, B, C, [&](int64_t, auto... at) { after(at...); });
  }
}

template <class T>
Plane<const T> part(const ReadMaps<T>& maps, int64_t b, int64_t c0, int64_t c1) {
  return maps.views.empty() ? Plane<const T>{} : sample(maps.views[0], b).channels(c0, c1);
}

// Fills out, which exists, and states; returns y.
template <class T>
Tensor forward(const ReadMaps<T>& a, const ReadMaps<T>& shortcut, const MapView<T>& out,
               const OneStep<accumulate_t<T>>& step, const Tensors& states, bool relu, bool stream) {
  using A = accumulate_t<T>;
  const Tensor y_held = empty<A>({step.B, step.C});
  const Rows<A> y = rows_of<A>(y_held);
  const Matrix<A> shown(step.B, step.C);
  around<T>(
      step, bytes_of(a.views, 1),
      [&](int64_t b, int64_t c0, int64_t c1) { map_kernels<T>().mean(part(a, b, c0, c1), y[b] + c0); },
      [&](int64_t b0, int64_t nb) { step.forward(b0, nb, y.from(b0), states, shown.rows.from(b0)); },
      [&](int64_t b, int64_t c0, int64_t c1) {
        map_kernels<T>().recalibrate(part(a, b, c0, c1), shown[b] + c0, part(shortcut, b, c0, c1), relu,
                                     sample(out, b).channels(c0, c1), stream);
      });
  return y_held;
}

void check_call(const Tensor& a, const Tensors& shortcut) {
  check_maps("a", {a});
  STD_TORCH_CHECK(shortcut.size() <= 1, "shortcut: expected one map or none, got ", shortcut.size());
  for (const Tensor& s : shortcut) check_alike("shortcut", s, a);
}

}  // namespace

std::tuple<Tensor, Tensors, Tensor> recalibrate(const Tensor& a_in, const Tensors& shortcut_in, const Tensors& weights,
                                                const Tensors& state, const std::string& rule, bool relu) {
  check_call(a_in, shortcut_in);
  return dispatch_maps(a_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = a_in.size(0), C = a_in.size(1);
    const auto step = one_step<A>(weights, state, rule, B, C, a_in, /*backward=*/false);
    const ReadMaps<T> a({a_in}), shortcut(shortcut_in, a.views[0].interleaved);
    Tensors out, states;
    const auto views = empty_maps(a, out);
    for (size_t i = 0; i < step->num_states(); ++i) states.push_back(empty<A>({B, C}));
    const Tensor y = forward(a, shortcut, views[0], *step, states, relu, bytes_of(views, B) > kStreamBytes);
    restore_layout({a_in}, out);
    return {out[0], states, y};
  });
}

void recalibrate_(const Tensors& out, const Tensors& states, const Tensors& a_in, const Tensors& weights,
                  const Tensors& state, const std::string& rule, bool relu) {
  check_maps("out", out);
  STD_TORCH_CHECK(out.size() == 1, "out: expected one map, got ", out.size());
  check_call(out[0], a_in);
  dispatch_maps(out[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = out[0].size(0), C = out[0].size(1);
    const auto step = one_step<A>(weights, state, rule, B, C, out[0], /*backward=*/false);
    check_states("states", states, step->num_states(), /*may_be_absent=*/false, {B, C}, dtype_of<A>(), out[0]);
    for (const Tensor& s : states) STD_TORCH_CHECK(s.is_contiguous(), "states: expected contiguous tensors");
    const MapView<T> to = mutable_maps<T>(out)[0];
    const Tensors none, itself{out[0]};
    const ReadMaps<T> a(a_in.empty() ? out : a_in, to.interleaved),
        shortcut(a_in.empty() ? none : itself, to.interleaved);
    forward(a, shortcut, to, *step, states, relu, /*stream=*/false);
  });
}

std::tuple<Tensor, Tensors, Tensors, Tensors> recalibrate_bwd(const Tensor& dout_in, const Tensors& dstates,
                                                              const Tensor& a_in, const Tensors& out_in,
                                                              const Tensors& weights, const Tensors& state,
                                                              const Tensor& y_in, const Tensors& states_in,
                                                              const std::string& rule, bool adds) {
  check_call(a_in, out_in);
  check_alike("dout", dout_in, a_in);
  STD_TORCH_CHECK(!adds || !out_in.empty(), "adds: expected false without out: then the gradient is dout itself");
  return dispatch_maps(a_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensors, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = a_in.size(0), C = a_in.size(1);
    const auto step = one_step<A>(weights, state, rule, B, C, a_in, /*backward=*/true);
    check_tensor("y", y_in, {B, C}, dtype_of<A>(), a_in);
    check_states("states", states_in, step->num_states(), /*may_be_absent=*/false, {B, C}, dtype_of<A>(), a_in);
    check_states("dstates", dstates, step->num_states(), /*may_be_absent=*/true, {B, C}, dtype_of<A>(), a_in);
    const Tensor y_held = as_contiguous(y_in);
    const Tensors states = as_contiguous(states_in), arriving = as_contiguous(dstates);
    const Rows<const A> y{read<A>(y_held), C};

    const ReadMaps<T> a({a_in}), dout({dout_in}, &a), out(out_in, a.views[0].interleaved);
    Tensors da_held, dshortcut;
    const MapView<T> da = empty_maps(a, da_held)[0];
    MapView<T> dbefore{};
    if (adds) dbefore = empty_maps(a, dshortcut)[0];
    const Matrix<A> dshown(B, C), shown(B, C), dy(B, C);
    around<T>(
        *step, (out_in.empty() ? 2 : 3) * bytes_of(a.views, 1),
        [&](int64_t b, int64_t c0, int64_t c1) {
          const auto of = [&](const ReadMaps<T>& maps) { return part(maps, b, c0, c1); };
          if (out_in.empty()) return map_kernels<T>().dot(of(dout), of(a), dshown[b] + c0);
          map_kernels<T>().passed_dot(of(dout), of(out), of(a), dshown[b] + c0);
        },
        [&](int64_t b0, int64_t nb) {
          step->backward(b0, nb, y.from(b0), states, arriving, dshown.rows.from(b0), shown.rows.from(b0),
                         dy.rows.from(b0));
          for (int64_t i = 0; i < nb * C; ++i) dy[b0][i] /= A(da.HW);
        },
        [&](int64_t b, int64_t c0, int64_t c1) {
          const auto of = [&](const ReadMaps<T>& maps) { return part(maps, b, c0, c1); };
          const Plane<T> to = sample(da, b).channels(c0, c1);
          if (out_in.empty()) return map_kernels<T>().scale(of(dout), shown[b] + c0, dy[b] + c0, to, false);
          map_kernels<T>().passed_scale(of(dout), of(out), shown[b] + c0, dy[b] + c0, to,
                                        adds ? sample(dbefore, b).channels(c0, c1) : Plane<T>{});
        });
    restore_layout({a_in}, da_held);
    if (adds) restore_layout(out_in, dshortcut);
    return {da_held[0], dshortcut, step->weight_gradients(), step->state_gradients()};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("recalibrate", TORCH_BOX(&recalibrate));
  m.impl("recalibrate_", TORCH_BOX(&recalibrate_));
  m.impl("recalibrate_bwd", TORCH_BOX(&recalibrate_bwd));
}

}  // namespace cpu
}  // namespace dla
