// layer_update: pooling, scan, refresh and rescale of one stage in one call, and its gradients.
// A block of samples goes through all of it while its maps are in cache.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cell_call.h"
#include "maps.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {
namespace {

template <class A>
CellCall<A> cell_of(const Tensors& xs, const Tensors& weights, const Tensors& state, const std::string& rule) {
  return {weights, state, rule, /*may_start=*/true, int64_t(xs.size()), xs[0].size(0), xs[0].size(1), xs[0]};
}

// f(t, b, c0, c1) over the maps of a block of samples, or of the whole batch over all threads.
template <class F>
void for_block(int64_t layers, int64_t b0, int64_t nb, int64_t C, F f) {
  for (int64_t b = b0; b < b0 + nb; ++b)
    for (int64_t t = 0; t < layers; ++t) f(t, b, 0, C);
}

template <class T>
struct Forward {
  using A = accumulate_t<T>;
  const CellCall<A>& call;
  const std::vector<MapView<const T>>& x;
  const std::vector<MapView<T>>& out;
  const bool stream;
  const Tensors& states;
  const Tensor y;

  Forward(const CellCall<A>& call, const std::vector<MapView<const T>>& x, const std::vector<MapView<T>>& out,
          const Tensors& states, bool stream)
      : call(call), x(x), out(out), stream(stream), states(states), y(empty<A>({call.T, call.B, call.C})) {
    const int64_t layers = call.T, B = call.B, C = call.C;
    if (balanced(B) && !call.cell.wide) {
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
      call.blocks([&](int64_t b0, int64_t nb) {
        const Matrix<A> rows = recur(b0, nb);
        std::copy_n(rows[0], nb * layers * C, d[b0 * layers]);
      });
      for_each_plane(layers, B, C,
                     [&](int64_t t, int64_t b, int64_t c0, int64_t c1) { rescale(t, b, c0, c1, d[b * layers + t]); });
    }
  }

 private:
  void pool(int64_t t, int64_t b, int64_t c0, int64_t c1) const {
    map_kernels<T>().mean(sample(x[t], b).channels(c0, c1), write<A>(y) + (t * call.B + b) * call.C + c0);
  }
  // d [nb * T, C] of a block of samples
  Matrix<A> recur(int64_t b0, int64_t nb) const {
    const auto& cell = call.cell;
    const Matrix<A> y_rows = call.gather(b0, nb, y);
    Matrix<A> d(nb * call.T, call.C);
    const auto hoisted = cell.hoist(nb * call.T, y_rows.rows);
    const States<A> all = call.states_of(states);
    const Matrix<A> h_last = cell.scan(b0, nb, hoisted, call.start, all);
    cell.refresh(nb, hoisted, h_last.rows, all.c_at(call.T - 1, b0), d.rows);
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
    const auto call = cell_of<accumulate_t<T>>(xs, weights, state, rule);
    const ReadMaps<T> x(xs);
    Tensors out;
    const auto views = empty_maps(x, out);
    const Tensors states = call.empty_states({call.T, call.B, call.C});
    const Forward<T> forward(call, x.views, views, states, bytes_of(views, call.B) > kStreamBytes);
    restore_layout(xs, out);
    return {out, states, forward.y};
  });
}

void layer_update_(const Tensors& xs, const Tensors& states, const Tensors& weights, const Tensors& state,
                   const std::string& rule) {
  check_maps("xs", xs);
  dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto call = cell_of<accumulate_t<T>>(xs, weights, state, rule);
    call.check("states", states, /*may_be_absent=*/false, {call.T, call.B, call.C}, xs[0]);
    for (const Tensor& s : states) STD_TORCH_CHECK(s.is_contiguous(), "states: expected contiguous tensors");
    const auto views = mutable_maps<T>(xs);
    const ReadMaps<T> x(xs);
    Forward<T>(call, x.views, views, states, /*stream=*/false);
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
    const auto call = cell_of<accumulate_t<T>>(xs, weights, state, rule);
    const int64_t layers = call.T, B = call.B, C = call.C;
    const std::vector<int64_t> shape{layers, B, C};
    check_tensor("y", y_in, shape, dtype_of<A>(), xs[0]);
    call.check("states", states_in, /*may_be_absent=*/false, shape, xs[0]);
    call.check("dstates", dstates, /*may_be_absent=*/true, shape, xs[0]);
    const Tensor y = as_contiguous(y_in);
    const Tensors saved = as_contiguous(states_in), incoming = as_contiguous(dstates);
    const States<A> states = call.states_of(saved);

    const ReadMaps<T> x(xs), dy(dout, &x);
    Tensors dxs;
    const auto dx = empty_maps(x, dxs);
    const bool stream = bytes_of(dx, B) > kStreamBytes;
    RecurrenceBwd<A> bwd(call.cell, B, /*scan=*/true, /*refresh=*/true);

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
      auto block = bwd.begin(b0, nb, call.gather(b0, nb, y).rows);
      Matrix<A> h_last(nb, C);
      const Rows<const A> c_last = states.c_at(layers - 1, b0);
      if (!call.rule.saves_h) call.rule.feed(nb, C, c_last, h_last.rows);
      const Rows<const A> h = call.rule.saves_h ? states.h_at(layers - 1, b0) : h_last.rows;
      bwd.refresh(block, h, c_last, dd, d);
      bwd.scan(block, call.start, states, call.states_of(incoming));
      Matrix<A> e = bwd.finish(block);
      for (int64_t m = 0; m < block.M; ++m)
        for (int64_t c = 0; c < C; ++c) e[m][c] /= A(x.views[m % layers].HW);
      return e;
    };

    if (balanced(B) && !call.cell.wide) {
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
      call.blocks([&](int64_t b0, int64_t nb) {
        const int64_t row = b0 * layers;
        const Matrix<A> rows = recur(b0, nb, dd.rows.from(row), d.rows.from(row));
        std::copy_n(rows[0], nb * layers * C, e[row]);
      });
      for_each_plane(layers, B, C, [&](int64_t t, int64_t b, int64_t c0, int64_t c1) {
        scale(t, b, c0, c1, d[b * layers + t], e[b * layers + t]);
      });
    }
    restore_layout(xs, dxs);
    return {dxs, bwd.weight_gradients(), bwd.state_gradients(call.start)};
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
