// light_step: one layer of DLA-L or MRLA-L, o = gate dwconv(x; v) + lam (d o_prev + dwconv(o_prev; e)), and its
// gradients. Both terms are one pass with filters of the sample's own: gate v, and lam (e + d centre).
#include <optional>
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cell_call.h"
#include "heads.h"
#include "moments.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {
namespace {

// What forward and backward share.
template <class T>
struct LightStep {
  using A = accumulate_t<T>;
  const int64_t B, C, W;
  const ReadMaps<T> maps;  // x, o_prev, in the layout of x
  const MapView<const T>& x = maps.views[0];
  const int rows_before;  // of o_prev's filter: 0 (no o_prev), 1 (no e) or 9
  const Gate<A> gate;
  const Matrix<A> v, e;  // [9, C]
  const Tensor lam_held;
  const A* lam;
  std::optional<CellCall<A>> call;  // of the cell that refreshes o_prev

  LightStep(const Tensors& maps, const Tensors& filters, const Tensors& weights, const Tensors& state,
            const std::string& rule, int64_t heads)
      : B(maps[0].size(0)),
        C(maps[0].size(1)),
        W(maps[0].size(3)),
        maps(maps, is_interleaved(maps[0])),
        rows_before(maps.size() < 2      ? 0
                    : filters.size() < 5 ? 1
                                         : 9),
        gate(filters[0], filters[1], C, heads),
        v(tap_rows<A>(filters[2], C)),
        e(rows_before == 9 ? tap_rows<A>(filters[4], C) : Matrix<A>()),
        lam_held(as_contiguous(filters[3])),
        lam(read<A>(lam_held)) {
    if (!weights.empty()) call.emplace(weights, state, rule, /*may_start=*/true, /*T=*/1, B, C, maps[0]);
  }

  const MapView<const T>& before() const { return maps.views[1]; }
  bool by_samples() const { return balanced(B) && !(call && call->cell.wide); }
  int64_t bytes(int64_t maps) const { return maps * C * x.HW * int64_t(sizeof(T)); }

  // f(b0, nb) over blocks of samples
  template <class F>
  void blocks(F f) const {
    call ? call->blocks(f) : Blocks(B, C).run(f);
  }
  // The filters of a sample's channels c0 .. c1; turned around, they take gradients back.
  Matrix<A> own_taps(const A* gate, int64_t c0, int64_t c1, bool turned) const {
    Matrix<A> taps(9, c1 - c0);
    for (int k = 0; k < 9; ++k)
      for (int64_t c = c0; c < c1; ++c) taps[turned ? 8 - k : k][c - c0] = gate[c] * v[k][c];
    return taps;
  }
  Matrix<A> taps_before(const A* d, int64_t c0, int64_t c1, bool turned) const {
    Matrix<A> taps(std::max(rows_before, 1), c1 - c0);
    for (int k = 0; k < rows_before; ++k)
      for (int64_t c = c0; c < c1; ++c) {
        const A own = rows_before == 1 || k == kCentre ? d[c] : A(0);
        taps[turned ? rows_before - 1 - k : k][c - c0] = lam[c] * (rows_before == 9 ? e[k][c] + own : own);
      }
    return taps;
  }
};

void check_layer(const Tensors& maps, const Tensors& filters, const Tensors& weights, const Tensors& state,
                 int64_t heads) {
  check_maps("maps", maps);
  STD_TORCH_CHECK(maps.size() <= 2, "maps: expected [x] or [x, o_prev], got ", maps.size());
  check_alike("maps", maps.back(), maps[0]);
  check_filters(filters, maps[0].size(1), heads, accumulate_dtype(maps[0].scalar_type()), maps[0]);
  STD_TORCH_CHECK(!weights.empty() || state.empty(), "state: expected none without weights, got ", state.size(),
                  " tensors");
}

}  // namespace

std::tuple<Tensor, Tensors, Tensor, Tensors> light_step(const Tensors& maps, const Tensors& filters,
                                                        const Tensors& weights, const Tensors& state,
                                                        const std::string& rule, int64_t heads, bool wanted) {
  check_layer(maps, filters, weights, state, heads);
  return dispatch_maps(maps[0].scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensor, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const LightStep<T> layer(maps, filters, weights, state, rule, heads);
    const int64_t B = layer.B, C = layer.C, num_maps = maps.size();
    const auto& call = layer.call;
    Tensors out;
    const MapView<T> o = empty_maps(ReadMaps<T>({layer.maps.held[0]}, layer.x.interleaved), out)[0];
    const Tensors states = call ? call->empty_states({B, C}) : Tensors{};
    const Tensor y_held = empty<A>({num_maps, B, C});
    const Rows<A> y{write<A>(y_held), C};  // [maps * B, C]
    const Matrix<A> gate(B, C), d(B, C);
    const Moments<T> moments(wanted, B, C, layer.x.HW);

    const auto pool = [&](int64_t i, int64_t b, int64_t c0, int64_t c1) {
      const MapView<const T>& map = i ? layer.before() : layer.x;
      map_kernels<T>().mean(sample(map, b).channels(c0, c1), y[i * B + b] + c0);
    };
    const auto attend = [&](int64_t b0, int64_t nb) {
      for (int64_t b = b0; b < b0 + nb; ++b) layer.gate(y[b], gate[b]);
      if (!call) return std::fill_n(d[b0], nb * C, A(1)), void();
      const Recurrence<A>& cell = call->cell;
      const States<A> all = call->states_of(states);
      const Matrix<A> h = cell.scan(b0, nb, cell.hoist(nb, y.from(b0)), call->start, all);
      if (num_maps == 2) cell.refresh(nb, cell.hoist(nb, y.from(B + b0)), h.rows, all.c_at(0, b0), d.rows.from(b0));
    };
    const auto filter = [&](int64_t b, int64_t begin, int64_t end) {
      for_few_channels(o, 3, begin, end, [&](int64_t c0, int64_t c1) {
        const Matrix<A> taps = layer.own_taps(gate[b], c0, c1, false);
        const Matrix<A> taps_before = layer.taps_before(d[b], c0, c1, false);
        StencilArgs<T> args{};
        args.x = sample(layer.x, b).channels(c0, c1), args.taps = taps.rows;
        if (num_maps == 2)
          args.before = sample(layer.before(), b).channels(c0, c1), args.taps_before = taps_before.rows;
        args.rows_before = layer.rows_before;
        args.out = sample(o, b).channels(c0, c1), args.W = layer.W;
        map_kernels<T>().stencil(args);
        moments.take(o, b, c0, c1);
      });
    };

    if (layer.by_samples()) {
      Blocks(B, layer.bytes(num_maps)).run([&](int64_t b0, int64_t nb) {
        for (int64_t b = b0; b < b0 + nb; ++b)
          for (int64_t i = 0; i < num_maps; ++i) pool(i, b, 0, C);
        attend(b0, nb);
        for (int64_t b = b0; b < b0 + nb; ++b) filter(b, 0, C);
      });
    } else {  // fewer samples than threads, or large weights: share out each phase by itself
      for_each_plane(num_maps, B, C, pool);
      layer.blocks(attend);
      for_each_plane(1, B, C, [&](int64_t, auto... at) { filter(at...); });
    }
    restore_layout({maps[0]}, out);
    return {out[0], states, y_held, moments.finish()};
  });
}

std::tuple<Tensors, Tensors, Tensors, Tensors> light_step_bwd(const Tensor& dout, const Tensors& dstates,
                                                              const Tensors& maps, const Tensors& filters,
                                                              const Tensors& weights, const Tensors& state,
                                                              const Tensor& y_in, const Tensors& states_in,
                                                              const std::string& rule, int64_t heads) {
  check_layer(maps, filters, weights, state, heads);
  check_alike("dout", dout, maps[0]);
  return dispatch_maps(maps[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensors, Tensors, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const LightStep<T> layer(maps, filters, weights, state, rule, heads);
    const int64_t B = layer.B, C = layer.C, K = filters[0].size(0), num_maps = maps.size();
    const auto& call = layer.call;
    const ScalarType dtype = accumulate_dtype(maps[0].scalar_type());
    check_tensor("y", y_in, {num_maps, B, C}, dtype, maps[0]);
    const Tensor y_held = as_contiguous(y_in);
    const Rows<const A> y{read<A>(y_held), C};
    const Tensors saved = as_contiguous(states_in), incoming = as_contiguous(dstates);
    if (call) {
      call->check("states", saved, /*may_be_absent=*/false, {B, C}, maps[0]);
      call->check("dstates", incoming, /*may_be_absent=*/true, {B, C}, maps[0]);
    }

    const ReadMaps<T> grads({dout}, layer.x.interleaved);
    const MapView<const T>& g = grads.views[0];
    Tensors dmaps;
    const auto dx = empty_maps(layer.maps, dmaps);
    const int rows = layer.rows_before;
    // Sums over pixels of dout with the neighbours of x and of o_prev, row (b, k) = b * rows + k; gates, and what
    // arrives at the gates q . k; the gradients of y over HW, row (i, b) = i * B + b.
    const Matrix<A> with_x(B * 9, C), with_before(std::max<int64_t>(B * rows, 1), C), gate(B, C), d(B, C), dd(B, C);
    const Matrix<A> dq(B, K), dk(B, K), dy(num_maps * B, C);
    std::optional<RecurrenceBwd<A>> step, refresh;
    if (call) step.emplace(call->cell, B, /*has_scan=*/true, /*has_refresh=*/false);
    if (call && num_maps == 2) refresh.emplace(call->cell, B, /*has_scan=*/false, /*has_refresh=*/true);

    const auto correlate = [&](int64_t b, int64_t begin, int64_t end) {
      for_few_channels(g, 3, begin, end, [&](int64_t c0, int64_t c1) {
        const Plane<const T> of = sample(g, b).channels(c0, c1);
        const auto at = [c0](const Matrix<A>& sums, int64_t row) { return sums.rows.from(row).right(c0); };
        map_kernels<T>().correlate(of, nullptr, sample(layer.x, b).channels(c0, c1), layer.W, at(with_x, b * 9));
        if (rows == 0) return;
        const Plane<const T> before = sample(layer.before(), b).channels(c0, c1);
        if (rows == 9)
          map_kernels<T>().correlate(of, nullptr, before, layer.W, at(with_before, b * 9));
        else
          map_kernels<T>().dot(of, before, with_before[b] + c0);
      });
    };
    const auto attend = [&](int64_t b0, int64_t nb) {
      for (int64_t i = 0; i < num_maps; ++i) std::fill_n(dy[i * B + b0], nb * C, A(0));
      std::fill_n(d[b0], nb * C, A(1));
      for (int64_t b = b0; b < b0 + nb; ++b) {
        Matrix<A> dgate(1, C);
        std::fill_n(dgate[0], C, A(0));
        for (int k = 0; k < 9; ++k)
          for (int64_t c = 0; c < C; ++c) dgate[0][c] += layer.v[k][c] * with_x[b * 9 + k][c];
        layer.gate(y[b], gate[b]);
        layer.gate.backward(y[b], dgate[0], dy[b], dq[b], dk[b]);
        for (int64_t c = 0; c < C && rows; ++c) dd[b][c] = layer.lam[c] * with_before[b * rows + rows / 2][c];
      }
      if (call) {
        const RuleKernels<A>& rule = call->rule;
        const States<A> states = call->states_of(saved);
        const auto add = [&](const Matrix<A>& from, int64_t row) {
          for (int64_t i = 0; i < nb * C; ++i) dy[row][i] += from[0][i];
        };
        auto at_step = step->begin(b0, nb, y.from(b0));
        if (refresh) {
          auto at_refresh = refresh->begin(b0, nb, y.from(B + b0));
          Matrix<A> fed(nb, C);
          if (!rule.saves_h) rule.feed(nb, C, states.c_at(0, b0), fed.rows);
          refresh->refresh(at_refresh, rule.saves_h ? states.h_at(0, b0) : fed.rows, states.c_at(0, b0),
                           dd.rows.from(b0), d.rows.from(b0));
          add(refresh->finish(at_refresh), B + b0);
          std::copy_n(at_refresh.dh.data, nb * C, at_step.dh.data);
          std::copy_n(at_refresh.dc.data, nb * C, at_step.dc.data);
        }
        step->scan(at_step, call->start, states, call->states_of(incoming));
        add(step->finish(at_step), b0);
      }
      for (int64_t i = 0; i < num_maps; ++i)
        for (int64_t j = 0; j < nb * C; ++j) dy[i * B + b0][j] /= A(layer.x.HW);
    };
    const auto filter = [&](int64_t b, int64_t begin, int64_t end) {
      for_few_channels(g, 3, begin, end, [&](int64_t c0, int64_t c1) {
        const Plane<const T> of = sample(g, b).channels(c0, c1);
        for (int64_t i = 0; i < num_maps; ++i) {
          const Plane<T> to = sample(dx[i], b).channels(c0, c1);
          const Matrix<A> taps = i ? layer.taps_before(d[b], c0, c1, true) : layer.own_taps(gate[b], c0, c1, true);
          const A* e = dy[i * B + b] + c0;
          if (i && rows == 1) {
            map_kernels<T>().scale(of, taps[0], e, to, false);
            continue;
          }
          StencilArgs<T> args{};
          args.x = of, args.taps = taps.rows, args.e = e, args.out = to, args.W = layer.W;
          map_kernels<T>().stencil(args);
        }
      });
    };

    if (layer.by_samples()) {
      Blocks(B, layer.bytes(1 + num_maps)).run([&](int64_t b0, int64_t nb) {
        for (int64_t b = b0; b < b0 + nb; ++b) correlate(b, 0, C);
        attend(b0, nb);
        for (int64_t b = b0; b < b0 + nb; ++b) filter(b, 0, C);
      });
    } else {
      for_each_plane(1, B, C, [&](int64_t, auto... at) { correlate(at...); });
      layer.blocks(attend);
      for_each_plane(1, B, C, [&](int64_t, auto... at) { filter(at...); });
    }

    // Over the samples, in their order.
    const Matrix<A> dv(9, C), de(9, C);
    const Tensor dlam = empty<A>({C});
    parallel_for(C, [&](int64_t c0, int64_t c1) {
      for (int k = 0; k < 9; ++k) {
        std::fill(dv[k] + c0, dv[k] + c1, A(0)), std::fill(de[k] + c0, de[k] + c1, A(0));
        for (int64_t b = 0; b < B; ++b)
          for (int64_t c = c0; c < c1; ++c) dv[k][c] += gate[b][c] * with_x[b * 9 + k][c];
        for (int64_t b = 0; b < B && rows == 9; ++b)
          for (int64_t c = c0; c < c1; ++c) de[k][c] += with_before[b * 9 + k][c];
      }
      A* sum = write<A>(dlam);
      std::fill(sum + c0, sum + c1, A(0));
      for (int64_t b = 0; b < B && rows; ++b)
        for (int64_t c = c0; c < c1; ++c) sum[c] += d[b][c] * with_before[b * rows + rows / 2][c];
      for (int k = 0; k < 9 && rows == 9; ++k)
        for (int64_t c = c0; c < c1; ++c) sum[c] += layer.e[k][c] * de[k][c], de[k][c] *= layer.lam[c];
    });
    Tensors dfilters{sum_of_parts(dq, B, K), sum_of_parts(dk, B, K), from_tap_rows(dv, C), dlam};
    if (filters.size() == 5) dfilters.push_back(from_tap_rows(de, C));

    Tensors dweights = call ? step->weight_gradients() : Tensors{};
    if (refresh) add_to<A>(dweights, refresh->weight_gradients());
    restore_layout(maps, dmaps);
    return {dmaps, dfilters, dweights, call ? step->state_gradients(call->start) : Tensors{}};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("light_step", TORCH_BOX(&light_step));
  m.impl("light_step_bwd", TORCH_BOX(&light_step_bwd));
}

}  // namespace cpu
}  // namespace dla
