// light_step: o = gate dwconv(x; v) + lam (d o_prev + dwconv(o_prev; e)), one filter per sample and map; and its
// gradients. As in layer_update a group takes its samples through everything: pooling, the gate, a scan over layer 0
// (x) and a refresh of layer 1 (o_prev), the filters. The result, and the gradient that arrives, are of layer 0 alone.
#pragma once

#include "heads.cuh"
#include "light_step_args.h"
#include "recurrence_bwd.cuh"
#include "stacks.cuh"
#include "stencil.cuh"

namespace dla {
namespace cuda {

// The filters of one channel of a sample: on x gate v, on o_prev lam (e + d in the middle).
template <class A, int kMaps>
struct LightTaps {
  Taps<A> of[kMaps];
  bool whole;  // without an e there is just the middle

  DLA_DEVICE LightTaps(const LightFilters<A>& filters, int64_t c, A gate, A d) : whole(filters.e != nullptr) {
#pragma unroll
    for (int s = 0; s < kTaps; ++s) of[0].at[s] = gate * filters.v[c * kTaps + s];
    if constexpr (kMaps > 1) {
      const A lam = filters.lam[c];
#pragma unroll
      for (int s = 0; s < kTaps; ++s)
        of[1].at[s] = lam * ((whole ? filters.e[c * kTaps + s] : A(0)) + (s == kMiddleTap ? d : A(0)));
    }
  }
  template <class Around>
  DLA_DEVICE A filter(int m, const Around& around, A sum) const {
    return m == 0 || whole ? of[m].filter(around, sum) : fma(of[m].at[kMiddleTap], around(1, 1), sum);
  }
  template <class Around>
  DLA_DEVICE A transposed(int m, const Around& around, A sum) const {
    return m == 0 || whole ? of[m].transposed(around, sum) : fma(of[m].at[kMiddleTap], around(1, 1), sum);
  }
};

template <int kMaps>
DLA_DEVICE bool planar(const Layer* layers) {
  return !layers[0].interleaved && !layers[kMaps - 1].interleaved;
}

// o of sample i of the tile. d [cs]; null for ones.
template <int kMaps, class S, class T>
DLA_DEVICE void light_filter(const LightStepArgs<T>& args, const Recurrence<accumulate_t<T>>& tile, int i,
                             const accumulate_t<T>* d) {
  using A = accumulate_t<T>;
  const int64_t b = tile.b0 + i;
  const A* const gate = tile.buffer(kGate) + i * tile.cs;
  stencil<T, S, kMaps, 0, 1, kMaps == 1 ? 8 : 4>(
      args.layers[0], planar<kMaps>(args.layers), args.W, tile.cs, tile.buffer(kScratch),
      [&](int c, auto& maps) {
#pragma unroll
        for (int m = 0; m < kMaps; ++m)
          maps.near[m] = channel(args.layers[m], plane<const T>(args.layers[m], kIn, b, tile.c0), c);
        maps.out[0] = channel(args.layers[0], plane<T>(args.layers[0], kOut, b, tile.c0), c);
        const LightTaps<A, kMaps> taps(args.filters, tile.c0 + c, gate[c], d ? d[c] : A(1));
        return [=](typename S::Few& few, auto& row) {
          constexpr int kPixels = std::decay_t<decltype(row)>::kPixels;
          A sum[kPixels] = {};
#pragma unroll
          for (int k = 0; k < kPixels; ++k)
#pragma unroll
            for (int m = 0; m < kMaps; ++m)
              sum[k] = taps.filter(m, [&](int a, int b) { return row.near(m, k, a, b); }, sum[k]);
          row.write(0, sum);
          if constexpr (S::kSize > 0) few.add(sum);
        };
      },
      [&](int c, const auto& of_plane) {
        if constexpr (S::kSize > 0) {
          const int64_t at = tile.at_sample(i, c);
          args.planes[at] = of_plane.mean, args.planes[tile.B * tile.C + at] = of_plane.m2;
        }
      });
}

template <class T>
DLA_KERNEL(light_step_kernel, T, LightStepArgs<T>) {
  using A = accumulate_t<T>;
  Recurrence<A> tile(args.cell);
  const bool has_cell = args.cell.NG > 0;
  while (tile.next()) {
    const int nb = tile.nb, cs = tile.cs;
    A *const y = tile.buffer(kY), *const gate = tile.buffer(kGate);
    if (args.part != Part::kAfterStep) {
      for (int m = 0; m < tile.rows(); ++m) {
        sums<false, T>(
            args.layers, tile.layer_of(m), 1, tile.b0 + tile.sample_of(m), tile.c0, cs, kIn, kIn, tile.buffer(kScratch),
            [&](int t, int c, A sum) { y[m * cs + c] = args.y[tile.at(m, c)] = sum / A(args.layers[t].HW); });
      }
      tile.load_start(tile.buffer(kH), tile.buffer(kC));
      group_barrier();  // the gate needs the y of other blocks
    }
    for (int i = 0; i < nb && cs > 0; ++i)
      Attention<A>(args.filters, tile.C, args.y + (tile.b0 + i) * tile.C, tile.c0, cs).gates(gate + i * cs);
    block_barrier();
    if (has_cell) {
      tile.hoist(nullptr);
      tile.scan(args.states_h, args.states_c);
      tile.refresh([](int, int, const A*) {});  // of one layer, so all of d is in kD; or of none
    }
    for (int i = 0; i < nb; ++i) {
      const A* const of_sample = has_cell ? tile.buffer(kD) + i * cs : args.d ? args.d + tile.at_sample(i, 0) : nullptr;
      if (tile.T > 1)
        args.planes ? light_filter<2, Moments<A>>(args, tile, i, of_sample)
                    : light_filter<2, Nothing<A>>(args, tile, i, of_sample);
      else
        args.planes ? light_filter<1, Moments<A>>(args, tile, i, nullptr)
                    : light_filter<1, Nothing<A>>(args, tile, i, nullptr);
    }
  }
}

// ---- backward ----

// What dout says of the filters of sample i: its sums with every map, moved by every tap, and what follows of them.
template <int kMaps, class T>
DLA_DEVICE void light_correlate(const LightStepBwdArgs<T>& args, const Recurrence<accumulate_t<T>>& tile, int i) {
  using A = accumulate_t<T>;
  using S = Sums<A, kMaps * kTaps>;
  const int64_t b = tile.b0 + i;
  const LightFilters<A>& filters = args.filters;
  const int nb = tile.nb, cs = tile.cs;
  stencil<T, S, 1, kMaps, 0, kMaps == 1 ? 4 : 2>(
      args.layers[0], planar<kMaps>(args.layers), args.W, cs, tile.buffer(kScratch),
      [&](int c, auto& maps) {
        maps.near[0] = channel(args.layers[0], plane<const T>(args.layers[0], kGradOut, b, tile.c0), c);
#pragma unroll
        for (int m = 0; m < kMaps; ++m)
          maps.here[m] = channel(args.layers[m], plane<const T>(args.layers[m], kIn, b, tile.c0), c);
        return [=](S& few, auto& row) {
#pragma unroll
          for (int k = 0; k < row.kPixels; ++k)
#pragma unroll
            for (int m = 0; m < kMaps; ++m)
              correlate(row.here(m, k), [&](int a, int b) { return row.near(0, k, a, b); }, few.v + m * kTaps);
        };
      },
      [&](int c, const S& sums) {
        const int64_t at = tile.at_sample(i, c), of_filters = (tile.c0 + c) * kTaps;
        const A gate = tile.buffer(kGate)[i * cs + c];
        A dgate = A(0);
#pragma unroll
        for (int s = 0; s < kTaps; ++s) {
          dgate = fma(sums.v[s], filters.v[of_filters + s], dgate);
          args.dv[at * kTaps + s] = gate * sums.v[s];
        }
        args.dgates[at] = dgate;
        if constexpr (kMaps > 1) {
          const A lam = filters.lam[tile.c0 + c], middle = sums.v[kTaps + kMiddleTap];
          A dlam = A(0);
          if (filters.e)
#pragma unroll
            for (int s = 0; s < kTaps; ++s) {
              dlam = fma(sums.v[kTaps + s], filters.e[of_filters + s], dlam);
              args.de[at * kTaps + s] = lam * sums.v[kTaps + s];
            }
          args.dlam[at] = dlam;  // but for d, which is not known yet
          if (args.middle) args.middle[at] = middle, args.dd[at] = lam * middle;
          tile.buffer(kMiddle)[i * cs + c] = middle;
          tile.buffer(kDD)[(nb + i) * cs + c] = lam * middle;
        }
      });
}

// The gradients of sample i's maps. dy [maps, ...]: what comes from pooling, for each pixel, rows of nb * cs.
template <int kMaps, class T>
DLA_DEVICE void light_back(const LightStepBwdArgs<T>& args, const Recurrence<accumulate_t<T>>& tile, int i,
                           const accumulate_t<T>* d, const accumulate_t<T>* dy) {
  using A = accumulate_t<T>;
  const int64_t b = tile.b0 + i;
  const A* const gate = tile.buffer(kGate) + i * tile.cs;
  const int next = tile.nb * tile.cs;
  stencil<T, Nothing<A>, 1, 0, kMaps, 4>(
      args.layers[0], planar<kMaps>(args.layers), args.W, tile.cs, tile.buffer(kScratch),
      [&](int c, auto& maps) {
        maps.near[0] = channel(args.layers[0], plane<const T>(args.layers[0], kGradOut, b, tile.c0), c);
        const LightTaps<A, kMaps> taps(args.filters, tile.c0 + c, gate[c], d ? d[c] : A(1));
        struct {
          A of[kMaps];
        } plus;
#pragma unroll
        for (int m = 0; m < kMaps; ++m) {
          maps.out[m] = channel(args.layers[m], plane<T>(args.layers[m], kGradIn, b, tile.c0), c);
          plus.of[m] = dy[m * next + c];
        }
        return [=](Nothing<A>&, auto& row) {
          constexpr int kPixels = std::decay_t<decltype(row)>::kPixels;
#pragma unroll
          for (int m = 0; m < kMaps; ++m) {
            A sum[kPixels];
#pragma unroll
            for (int k = 0; k < kPixels; ++k)
              sum[k] = taps.transposed(m, [&](int a, int b) { return row.near(0, k, a, b); }, plus.of[m]);
            row.write(m, sum);
          }
        };
      },
      [](int, Nothing<A>) {});
}

template <class T>
DLA_KERNEL(light_step_bwd_kernel, T, LightStepBwdArgs<T>) {
  using A = accumulate_t<T>;
  RecurrenceBwd<A> tile(args.cell, args.grads);
  const bool has_cell = args.cell.NG > 0, two = args.cell.T > 1;
  while (tile.next()) {
    const int nb = tile.nb, cs = tile.cs;
    A *const gate = tile.buffer(kGate), *const dy = tile.buffer(kDY);
    const auto attention = [&](int i) {
      return Attention<A>(args.filters, tile.C, args.y + (tile.b0 + i) * tile.C, tile.c0, cs);
    };
    const auto dscores = [&](int i) { return args.dscores + (tile.b0 + i) * args.filters.heads; };
    for (int i = 0; i < nb && cs > 0; ++i) attention(i).gates(gate + i * cs);
    block_barrier();
    if (args.part != Part::kAfterStep) {
      for (int i = 0; i < nb; ++i) two ? light_correlate<2>(args, tile, i) : light_correlate<1>(args, tile, i);
      group_barrier();  // a head's gate is that of channels of several blocks
      for (int i = 0; i < nb && cs > 0; ++i)
        attention(i).score_gradients(gate + i * cs, args.dgates + (tile.b0 + i) * tile.C, dscores(i));
      if (args.part == Part::kBeforeStep) continue;
      group_barrier();  // and a filter reaches into heads of others
    }
    if (has_cell) {
      tile.load_rows(args.y, tile.buffer(kY));
      block_barrier();
      tile.begin();
      tile.load_last();
      if (two) tile.refresh();
      tile.scan();
      tile.keep_start();
      tile.finish();
    }
    const A* const d = has_cell && two ? tile.buffer(kD) + nb * cs : nullptr;
    tile.for_each(tile.rows(), cs, [&](int m, int c) {
      A sum = has_cell ? dy[m * cs + c] : args.dy ? args.dy[tile.at(m, c)] : A(0);
      if (m < nb) {
        sum += attention(m).y_gradient(dscores(m), int(tile.c0) + c);
      } else {
        const int i = m - nb;
        const int64_t at = tile.at_sample(i, c);
        const A of_o = d ? d[i * cs + c] : args.d ? args.d[at] : A(1);
        args.dlam[at] += of_o * (args.middle ? args.middle[at] : tile.buffer(kMiddle)[i * cs + c]);
      }
      dy[m * cs + c] = sum / A(args.layers[0].HW);
    });
    for (int i = 0; i < nb; ++i)
      attention(i).filter_gradients(dscores(i),
                                    args.dtaps + ((tile.b0 + i) * tile.ranks + tile.rank) * 2 * args.filters.K);
    block_barrier();
    for (int i = 0; i < nb; ++i) {
      const A* const of_sample = d ? d + i * cs : args.d ? args.d + tile.at_sample(i, 0) : nullptr;
      two ? light_back<2>(args, tile, i, of_sample, dy + i * cs) : light_back<1>(args, tile, i, of_sample, dy + i * cs);
    }
  }
}

}  // namespace cuda
}  // namespace dla
