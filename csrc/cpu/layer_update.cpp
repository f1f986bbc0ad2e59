// layer_update: pooling, scan, refresh and rescale of one stage in one call, and its gradients.
// A block of samples goes through all of it while its maps are in cache.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "maps.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {
namespace {

// What forward and backward share: the sizes, the cell and its start.
template <class T>
struct Stage {
  using A = accumulate_t<T>;
  const RuleKernels<A>& rule;
  const int64_t layers, B, C;
  const CellWeights<A> weights;
  const Recurrence<A> cell;
  const Start<A> start;

  Stage(const Tensors& xs, const Tensors& w, const Tensors& state, const std::string& name)
      : rule(find_rule<A>(name)),
        layers(xs.size()),
        B(xs[0].size(0)),
        C(xs[0].size(1)),
        weights(checked(w, state, xs[0]), C, rule),
        cell(rule, weights, layers),
        start(state, rule, C) {}

 private:
  const Tensors& checked(const Tensors& w, const Tensors& state, const Tensor& like) const {
    check_cell(rule, w, state, /*may_start=*/true, B, C, like);
    return w;
  }
};

// f(t, b, c0, c1) over the maps of a block of samples, or of the whole batch over all threads.
template <class F>
void for_block(int64_t layers, int64_t b0, int64_t nb, int64_t C, F f) {
  for (int64_t b = b0; b < b0 + nb; ++b)
    for (int64_t t = 0; t < layers; ++t) f(t, b, 0, C);
}

template <class T>
struct Forward {
  using A = accumulate_t<T>;
  const Stage<T>& stage;
  const std::vector<MapView<const T>>& x;
  const std::vector<MapView<T>>& out;
  const bool stream;
  const Tensors& states;
  const Tensor y;

  Forward(const Stage<T>& stage, const std::vector<MapView<const T>>& x, const std::vector<MapView<T>>& out,
          const Tensors& states, bool stream)
      : stage(stage), x(x), out(out), stream(stream), states(states), y(empty<A>({stage.layers, stage.B, stage.C})) {
    const int64_t layers = stage.layers, B = stage.B, C = stage.C;
    if (balanced(B) && !stage.cell.wide) {
      Blocks(B, bytes_of(x, 1)).run([&](int64_t b0, int64_t nb) {
        for_block(layers, b0, nb, C, [&](auto... at) { pool(at...); });
        const Matrix<A> d = recur(b0, nb);
        for_block(layers, b0, nb, C, [&](int64_t t, int64_t b, int64_t c0, int64_t c1) {
          rescale(t, b, c0, c1, d[(b - b0) * layers + t]);
        });
      });
    } else {  // fewer samples than threads, or large weights: share out each phase by itself
      for_each_plane(layers, B, C, [&](auto... at) { pool(at...); });
      const Matrix<A> d(B * layers, C);
      stage.cell.blocks(B, [&](int64_t b0, int64_t nb) {
        const Matrix<A> rows = recur(b0, nb);
        std::copy_n(rows[0], nb * layers * C, d[b0 * layers]);
      });
      for_each_plane(layers, B, C,
                     [&](int64_t t, int64_t b, int64_t c0, int64_t c1) { rescale(t, b, c0, c1, d[b * layers + t]); });
    }
  }

 private:
  void pool(int64_t t, int64_t b, int64_t c0, int64_t c1) const {
    map_kernels<T>().mean(sample(x[t], b).channels(c0, c1), write<A>(y) + (t * stage.B + b) * stage.C + c0);
  }
  // d [nb * T, C] of a block of samples
  Matrix<A> recur(int64_t b0, int64_t nb) const {
    const auto& cell = stage.cell;
    const Matrix<A> y_rows = cell.gather(b0, nb, read<A>(y), stage.B);
    Matrix<A> d(nb * stage.layers, stage.C);
    const auto hoisted = cell.hoist(nb * stage.layers, y_rows.rows);
    const States<A> all = states_of(states, stage.rule, stage.B, stage.C);
    const Matrix<A> h_last = cell.scan(b0, nb, hoisted, stage.start, all);
    cell.refresh(nb, hoisted, h_last.rows, all.c_at(stage.layers - 1, b0), d.rows);
    return d;
  }
  void rescale(int64_t t, int64_t b, int64_t c0, int64_t c1, const A* d) const {
    map_kernels<T>().scale(sample(x[t], b).channels(c0, c1), d + c0, nullptr, sample(out[t], b).channels(c0, c1),
                           stream);
  }
};

}  // namespace

std::tuple<Tensors, Tensors, Tensor> layer_update(const Tensors& xs, const Tensors& weights, const Tensors& state,
                                                  const std::string& rule) {
  check_maps("xs", xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensors, Tensor> {
    using T = decltype(element);
    const Stage<T> stage(xs, weights, state, rule);
    const ReadMaps<T> x(xs);
    Tensors out;
    const auto views = empty_maps(x, out);
    const Tensors states = empty_states(stage.rule, stage.layers, stage.B, stage.C);
    const Forward<T> forward(stage, x.views, views, states, bytes_of(views, stage.B) > kStreamBytes);
    restore_layout(xs, out);
    return {out, states, forward.y};
  });
}

void layer_update_(const Tensors& xs, const Tensors& states, const Tensors& weights, const Tensors& state,
                   const std::string& rule) {
  check_maps("xs", xs);
  dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    const Stage<T> stage(xs, weights, state, rule);
    check_states("states", states, num_states(stage.rule), false, stage.layers, stage.B, stage.C,
                 accumulate_dtype(xs[0].scalar_type()), xs[0]);
    for (const Tensor& s : states) STD_TORCH_CHECK(s.is_contiguous(), "states: expected contiguous tensors");
    const auto views = mutable_maps<T>(xs);
    const ReadMaps<T> x(xs);
    Forward<T>(stage, x.views, views, states, /*stream=*/false);
  });
}

std::tuple<Tensors, Tensors, Tensors> layer_update_bwd(const Tensors& dout, const Tensors& dstates, const Tensors& xs,
                                                       const Tensors& weights, const Tensors& state, const Tensor& y_in,
                                                       const Tensors& states_in, const std::string& rule) {
  check_maps("xs", xs);
  check_like_maps("dout", dout, xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensors, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const Stage<T> stage(xs, weights, state, rule);
    const int64_t layers = stage.layers, B = stage.B, C = stage.C;
    const ScalarType dtype = accumulate_dtype(xs[0].scalar_type());
    check_tensor("y", y_in, {layers, B, C}, dtype, xs[0]);
    check_states("states", states_in, num_states(stage.rule), false, layers, B, C, dtype, xs[0]);
    check_states("dstates", dstates, num_states(stage.rule), true, layers, B, C, dtype, xs[0]);
    const Tensor y = as_contiguous(y_in);
    const Tensors saved = as_contiguous(states_in), incoming = as_contiguous(dstates);
    const States<A> states = states_of(saved, stage.rule, B, C);

    const ReadMaps<T> x(xs), dy(dout, &x);
    Tensors dxs;
    const auto dx = empty_maps(x, dxs);
    const bool stream = bytes_of(dx, B) > kStreamBytes;
    RecurrenceBwd<A> bwd(stage.cell, B, /*scan=*/true, /*refresh=*/true);

    // dd_t = sum over HW of dx'_t * x_t;  dx_t = dx'_t * d_t + dy_t / HW
    const auto dot = [&](int64_t t, int64_t b, int64_t c0, int64_t c1, A* dd) {
      map_kernels<T>().dot(sample(dy.views[t], b).channels(c0, c1), sample(x.views[t], b).channels(c0, c1), dd + c0);
    };
    const auto scale = [&](int64_t t, int64_t b, int64_t c0, int64_t c1, const A* d, const A* e) {
      map_kernels<T>().scale(sample(dy.views[t], b).channels(c0, c1), d + c0, e + c0, sample(dx[t], b).channels(c0, c1),
                             stream);
    };
    // From dd to d and e = dy / HW, all [nb * T, C].
    const auto recur = [&](int64_t b0, int64_t nb, Rows<const A> dd, Rows<A> d) {
      auto block = bwd.begin(b0, nb, stage.cell.gather(b0, nb, read<A>(y), B).rows);
      Matrix<A> h_last(nb, C);
      const Rows<const A> c_last = states.c_at(layers - 1, b0);
      if (!stage.rule.saves_h) stage.rule.feed(nb, C, c_last, h_last.rows);
      const Rows<const A> h = stage.rule.saves_h ? states.h_at(layers - 1, b0) : h_last.rows;
      bwd.refresh(block, h, c_last, dd, d);
      bwd.scan(block, stage.start, states, states_of(incoming, stage.rule, B, C));
      Matrix<A> e = bwd.finish(block);
      for (int64_t m = 0; m < block.M; ++m)
        for (int64_t c = 0; c < C; ++c) e[m][c] /= A(x.views[m % layers].HW);
      return e;
    };

    if (balanced(B) && !stage.cell.wide) {
      Blocks(B, 2 * bytes_of(x.views, 1)).run([&](int64_t b0, int64_t nb) {
        const Matrix<A> dd(nb * layers, C), d(nb * layers, C);
        const auto row = [&](int64_t t, int64_t b) { return (b - b0) * layers + t; };
        for_block(layers, b0, nb, C,
                  [&](int64_t t, int64_t b, int64_t c0, int64_t c1) { dot(t, b, c0, c1, dd[row(t, b)]); });
        const Matrix<A> e = recur(b0, nb, dd.rows, d.rows);
        for_block(layers, b0, nb, C, [&](int64_t t, int64_t b, int64_t c0, int64_t c1) {
          scale(t, b, c0, c1, d[row(t, b)], e[row(t, b)]);
        });
      });
    } else {
      const Matrix<A> dd(B * layers, C), d(B * layers, C), e(B * layers, C);
      for_each_plane(layers, B, C,
                     [&](int64_t t, int64_t b, int64_t c0, int64_t c1) { dot(t, b, c0, c1, dd[b * layers + t]); });
      stage.cell.blocks(B, [&](int64_t b0, int64_t nb) {
        const int64_t row = b0 * layers;
        const Matrix<A> rows = recur(b0, nb, dd.rows.from(row), d.rows.from(row));
        std::copy_n(rows[0], nb * layers * C, e[row]);
      });
      for_each_plane(layers, B, C, [&](int64_t t, int64_t b, int64_t c0, int64_t c1) {
        scale(t, b, c0, c1, d[b * layers + t], e[b * layers + t]);
      });
    }
    restore_layout(xs, dxs);
    return {dxs, bwd.weight_gradients(), bwd.state_gradients(stage.start)};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("layer_update", TORCH_BOX(&layer_update));
  m.impl("layer_update_", TORCH_BOX(&layer_update_));
  m.impl("layer_update_bwd", TORCH_BOX(&layer_update_bwd));
}

std::string cpu_isa() { return isa(); }

// No tensor argument, so no device to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(dla, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

}  // namespace cpu
}  // namespace dla
