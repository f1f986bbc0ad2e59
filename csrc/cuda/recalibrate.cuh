// recalibrate: out = f(shortcut + a h), h being what a step of a cell shows after the mean of a; and its gradients. As
// in layer_update a group takes its samples through everything: the second reading of a finds it near.
#pragma once

#include "../cells/shown.h"
#include "heads.cuh"
#include "light_cell.cuh"
#include "recalibrate_args.h"
#include "recalibrate_maps.cuh"
#include "recurrence_bwd.cuh"
#include "stacks.cuh"

namespace dla {
namespace cuda {

// f(the rule, i, j) for sample i of a tile and channel j of the block.
template <class A, class F>
DLA_DEVICE void for_states(const Tile<A>& tile, F f) {
  with_rule(tile.args.rule, [&](auto rule) { tile.for_each(tile.nb, tile.cs, [&](int i, int j) { f(rule, i, j); }); });
}
// Sample i's row of a tensor [B, C], all channels of it.
template <class A>
DLA_DEVICE Channels<A> row_of(const Tile<A>& tile, const A* rows, int i) {
  return {rows + (tile.b0 + i) * tile.C, int(tile.C)};
}
// The block's channels of sample i.
template <class T, class A>
DLA_DEVICE Plane<T> map_of(const Tile<A>& tile, const Layer& layer, int which, int i) {
  return plane<T>(layer, which, tile.b0 + i, tile.c0);
}

// ---- forward ----

// From s in kQ, and the state in kH, kC: the step of a light cell, and what it shows, to kD.
template <class T>
DLA_DEVICE void light_cell_step(const RecalibrateArgs<T>& args, const Tile<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  for_states(tile, [&](auto rule, int i, int j) {
    using Rule = decltype(rule);
    const int at_ij = tile.of_channel(i, j);
    const int64_t at = tile.at_sample(i, j);
    const LightCell<Rule, A> cell(args.shown.light, tile.C, tile.c0 + j);
    const State<A> before{tile.buffer(kH)[at_ij], tile.buffer(kC)[at_ij]};
    A a[Rule::NG];
    cell.gates_of(tile.buffer(kQ)[at_ij], before.h, a);
    const State<A> state = Rule::step(a, before);
    if (Rule::kSavesH) args.states_h[at] = state.h;
    if (Rule::kSavesC) args.states_c[at] = state.c;
    tile.buffer(kD)[at_ij] = Rule::output(state);
  });
}

// From the state in kH, kC: what the cell shows of it, to kD.
template <class A>
DLA_DEVICE void show_state(const Tile<A>& tile) {
  for_states(tile, [&](auto rule, int i, int j) {
    const int at_ij = tile.of_channel(i, j);
    tile.buffer(kD)[at_ij] = decltype(rule)::output(State<A>{tile.buffer(kH)[at_ij], tile.buffer(kC)[at_ij]});
  });
}

// A state as it is saved.
template <class Rule, class A>
DLA_DEVICE State<A> saved_state(const A* states_h, const A* states_c, int64_t at) {
  const A c = Rule::kSavesC ? states_c[at] : A(0);
  return {Rule::kSavesH ? states_h[at] : Rule::feed(c), c};
}
// From the state as it is saved, or from a: what is shown, to kD. Barriers: on return kD is not known.
template <class A>
DLA_DEVICE void show_known(const ShownArgs<A>& shown, const Tile<A>& tile, const A* states_h, const A* states_c) {
  if (shown.by == Shows::kSqueeze)
    tile.for_each(tile.nb, tile.cs, [&](int i, int j) {
      tile.buffer(kD)[tile.of_channel(i, j)] = sigmoid(shown.a[tile.at_sample(i, j)]);
    });
  else
    for_states(tile, [&](auto rule, int i, int j) {
      using Rule = decltype(rule);
      const State<A> state = saved_state<Rule>(states_h, states_c, tile.at_sample(i, j));
      tile.buffer(kD)[tile.of_channel(i, j)] = Rule::output(state);
    });
}

// From kY, and args.y, which are just written: the new state, and what the cell shows of it, to kD. Barriers, of the
// group: kH and kC are free when it is called; on return kD is known.
template <class T>
DLA_DEVICE void show(const RecalibrateArgs<T>& args, Recurrence<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  // Buffers are looked up where they are used: an address that is kept across a scan is one register less for it.
  if (args.shown.by == Shows::kTaps) {
    group_barrier();  // a filter needs the y of other blocks
    tile.for_each(tile.nb, tile.cs, [&](int i, int j) {
      const Channels<A> y = row_of(tile, static_cast<const A*>(args.y), i);
      const A a = y.filtered(args.shown.taps, args.shown.K, int(tile.c0) + j);
      tile.buffer(kD)[tile.of_channel(i, j)] = sigmoid(a);
    });
  } else {
    tile.load_start(tile.buffer(kH), tile.buffer(kC));
    block_barrier();
    tile.hoist(nullptr);
    if (args.shown.by == Shows::kSqueeze) {
      tile.for_each(tile.nb, tile.cs, [&](int i, int j) {
        const int at_ij = tile.of_channel(i, j);
        tile.buffer(kD)[at_ij] = sigmoid(tile.buffer(kQ)[at_ij]);
      });
    } else if (args.shown.by == Shows::kLightCell) {
      light_cell_step(args, tile);
    } else {
      tile.scan(args.states_h, args.states_c);
      show_state(tile);
    }
  }
  block_barrier();
}

template <class T>
DLA_KERNEL(recalibrate_kernel, T, RecalibrateArgs<T>) {
  using A = accumulate_t<T>;
  const Layer& layer = args.layer;
  Recurrence<A> tile(args.cell);
  while (tile.next()) {
    const int nb = tile.nb, cs = not_before(tile.cs);  // what follows of it is not kept for the next tile
    if (args.shown.part == Part::kAfterStep) {
      show_known(args.shown, tile, args.states_h, args.states_c);
      block_barrier();
    } else {
      A* const y = tile.buffer(kY);
      for (int i = 0; i < nb; ++i)
        sums<false, T>(&layer, 0, 1, tile.b0 + i, tile.c0, cs, kIn, kIn, tile.buffer(kScratch),
                       [&](int, int c, A sum) { y[i * cs + c] = args.y[tile.at_sample(i, c)] = sum / A(layer.HW); });
      show(args, tile);
    }
    for (int i = 0; i < nb && cs > 0; ++i) {
      const A* const d = tile.buffer(kD) + i * cs;
      const auto of_channel = [d](int c) { return d[c]; };
      const auto made = [&](A sum) { return OfEach<A, 1>{{args.relu ? relu(sum) : sum}}; };
      const auto a = map_of<const T>(tile, layer, kIn, i);
      const auto out = map_of<T>(tile, layer, kSum, i);
      if (args.adds)
        write_maps(SideBySide<T, 2, 1>(layer, cs, {a, map_of<const T>(tile, layer, kShortcut, i)}, {out}), of_channel,
                   [&](A d, const OfEach<A, 2>& x) { return made(fma(x.of[0], d, x.of[1])); });
      else
        write_maps(SideBySide<T, 1, 1>(layer, cs, {a}, {out}), of_channel,
                   [&](A d, const OfEach<A, 1>& x) { return made(x.of[0] * d); });
    }
  }
}

// ---- backward ----

// Of one sample: what the block's channels say of the taps, dtaps [K]; da: the gradient of what these make of y.
template <class A>
DLA_DEVICE void gradient_of_taps(const Channels<A>& y, const Channels<A>& da, int c0, int cs, int K, A* dtaps) {
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  for (int k0 = 0; k0 < K; k0 += num_threads() / kWarp) {  // all threads take every turn: the shuffles need them
    const int k = k0 + warp;
    A sum = A(0);
    for (int c = c0 + lane; c < c0 + cs; c += kWarp) sum = fma(da[c], y[c + k - K / 2], sum);
    sum = sum_lanes(sum, kWarp);
    if (lane == 0 && k < K) dtaps[k] = sum;
  }
}

// back(), where taps show it. Barriers, of the group: as back.
template <class T>
DLA_DEVICE void back_to_taps(const RecalibrateBwdArgs<T>& args, const RecurrenceBwd<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  const A *const dd = tile.buffer(kDD), *const taps = args.shown.taps, *const da = args.da;
  A *const d = tile.buffer(kD), *const dy = tile.buffer(kDY);
  const int K = not_before(args.shown.K), nb = tile.nb, cs = not_before(tile.cs), c0 = int(tile.c0);
  tile.for_each(nb, cs, [&](int i, int j) {
    const int at_ij = tile.of_channel(i, j);
    const A a = row_of(tile, args.y, i).filtered(taps, K, c0 + j);
    d[at_ij] = sigmoid(a);
    args.da[tile.at_sample(i, j)] = Sigmoid::grad(a, dd[at_ij]);
  });
  group_barrier();  // a filter needs the da of other blocks
  tile.for_each(nb, cs, [&](int i, int j) {
    dy[tile.of_channel(i, j)] = row_of(tile, da, i).unfiltered(taps, K, c0 + j) / A(args.branch.HW);
  });
  for (int i = 0; i < nb; ++i)
    gradient_of_taps(row_of(tile, args.y, i), row_of(tile, da, i), c0, cs, K,
                     args.dtaps + ((tile.b0 + i) * tile.ranks + tile.rank) * K);
  block_barrier();
}

// The step of a light cell: from the gradient in kDH, kDC of the state that it shows, and that of the state as it is
// kept, to those of the state before, there, and of s, in kDQ. A thread has the same channels as in for_states.
template <class T>
DLA_DEVICE void light_step_back(const RecalibrateBwdArgs<T>& args, const RecurrenceBwd<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  const RecurrenceGrads<A>& grads = args.grads;
  for_states(tile, [&](auto rule, int i, int j) {
    using Rule = decltype(rule);
    A *const dh = tile.buffer(kDH), *const dc = tile.buffer(kDC), *const ds = tile.buffer(kDQ);
    const int at_ij = tile.of_channel(i, j);
    const int64_t at = tile.at_sample(i, j);
    const LightCell<Rule, A> cell(args.shown.light, tile.C, tile.c0 + j);
    const A s = tile.buffer(kQ)[at_ij];
    const State<A> before{tile.template start_h<Rule>(at), tile.start_c(at)};
    State<A> after{dh[at_ij], dc[at_ij]};
    if (grads.dstates_h) after.h += grads.dstates_h[at];
    if (grads.dstates_c) after.c += grads.dstates_c[at];
    A a[Rule::NG], da[Rule::NG];
    cell.gates_of(s, before.h, a);
    dc[at_ij] = Rule::step_bwd(a, before, after, da);
    dh[at_ij] = cell.to_h(da);
    ds[at_ij] = grads.factors.da_scan[at] = cell.to_s(da);
    LightSums<Rule, A> sums;
    sums.add(da, s, before.h);
    sums.store(args.factors, tile.C, tile.b0 + i, tile.c0 + j);
  });
}

// From kDH, kDC, and what arrives at the state itself: its gradient, as far as it is saved.
template <class T>
DLA_DEVICE void keep_dstate(const RecalibrateBwdArgs<T>& args, const Tile<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  const RecurrenceGrads<A>& grads = args.grads;
  tile.for_each(tile.nb, tile.cs, [&](int i, int j) {
    const int at_ij = tile.of_channel(i, j);
    const int64_t at = tile.at_sample(i, j);
    if (args.dh) args.dh[at] = tile.buffer(kDH)[at_ij] + (grads.dstates_h ? grads.dstates_h[at] : A(0));
    if (args.dc) args.dc[at] = tile.buffer(kDC)[at_ij] + (grads.dstates_c ? grads.dstates_c[at] : A(0));
  });
}

// From kDD: what is shown, to kD; what the mean gives back to each pixel, to kDY; and what the gradients of weights and
// state are made of. Before the step no more than what arrives there. Barriers, of the group: kDD is known, and all
// other buffers are free, when it is called; on return kD and kDY are known.
template <class T>
DLA_DEVICE void back(const RecalibrateBwdArgs<T>& args, RecurrenceBwd<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  const RecurrenceGrads<A>& grads = args.grads;
  const bool whole = args.shown.part == Part::kWhole;
  if (args.shown.by == Shows::kTaps) return back_to_taps(args, tile);
  if (whole) {
    tile.load_rows(args.y, tile.buffer(kY));
    block_barrier();
    tile.begin();
  }
  if (args.shown.by == Shows::kSqueeze) {
    tile.for_each(tile.nb, tile.cs, [&](int i, int j) {
      const int at_ij = tile.of_channel(i, j);
      const int64_t at = tile.at_sample(i, j);
      const A a = whole ? tile.buffer(kQ)[at_ij] : args.shown.a[at], da = Sigmoid::grad(a, tile.buffer(kDD)[at_ij]);
      tile.buffer(kD)[at_ij] = sigmoid(a);
      grads.factors.da_scan[at] = da;
      if (whole) tile.buffer(kDQ)[at_ij] = da;
    });
  } else {
    for_states(tile, [&](auto rule, int i, int j) {
      using Rule = decltype(rule);
      const int at_ij = tile.of_channel(i, j);
      const State<A> state = saved_state<Rule>(grads.states_h, grads.states_c, tile.at_sample(i, j));
      const State<A> dstate = output_grad<Rule>(state, tile.buffer(kDD)[at_ij]);
      tile.buffer(kD)[at_ij] = Rule::output(state);
      tile.buffer(kDH)[at_ij] = dstate.h, tile.buffer(kDC)[at_ij] = dstate.c;
    });
    block_barrier();
    if (!whole) return keep_dstate(args, tile);
    args.shown.by == Shows::kCell ? tile.scan() : light_step_back(args, tile);
    tile.keep_start();
  }
  if (whole) tile.finish([&](int, A dy) { return dy / A(args.branch.HW); });
}

// What is shown, to kD, and what the mean gives back to each pixel, to kDY. Barriers: both are known on return.
template <class T>
DLA_DEVICE void back_from_step(const RecalibrateBwdArgs<T>& args, const Tile<accumulate_t<T>>& tile) {
  using A = accumulate_t<T>;
  show_known(args.shown, tile, args.grads.states_h, args.grads.states_c);
  tile.for_each(tile.nb, tile.cs, [&](int i, int j) {
    tile.buffer(kDY)[tile.of_channel(i, j)] = args.dy[tile.at_sample(i, j)] / A(args.branch.HW);
  });
  block_barrier();
}

// What arrives at the sum of the shortcut and a h is g = dout, but where a relu let nothing through.

// dd = sum over HW of g a, to kDD. Barriers: kScratch and kDD are free when it is called, and kScratch on return; kDD
// is not known.
template <class T>
DLA_DEVICE void sum_gradients(const RecalibrateBwdArgs<T>& args, const Tile<accumulate_t<T>>& tile, int i) {
  using A = accumulate_t<T>;
  const Layer &branch = args.branch, &beside = args.beside;
  const int cs = not_before(tile.cs);
  A *const scratch = tile.buffer(kScratch), *const dd = tile.buffer(kDD) + i * cs;
  if (args.masked)
    sum_maps(
        SideBySide<T, 3, 1>(branch, cs,
                            {map_of<const T>(tile, branch, kIn, i), map_of<const T>(tile, branch, kGradOut, i),
                             map_of<const T>(tile, beside, kResult, i)},
                            {Plane<T>{}}),
        scratch, [](A sum, const OfEach<A, 3>& x) { return fma(x.of[0], relu_grad(x.of[2], x.of[1]), sum); },
        [dd](int c, A sum) { dd[c] = sum; });
  else
    sums<true, T>(&branch, 0, 1, tile.b0 + i, tile.c0, cs, kIn, kGradOut, scratch,
                  [dd](int, int c, A sum) { dd[c] = sum; });
}

// da = g d + dy / HW, and g itself, for the shortcut, from kD and kDY.
template <class T>
DLA_DEVICE void write_gradients(const RecalibrateBwdArgs<T>& args, const Tile<accumulate_t<T>>& tile, int i) {
  using A = accumulate_t<T>;
  const Layer &branch = args.branch, &beside = args.beside;
  const int cs = not_before(tile.cs);
  const A *const d = tile.buffer(kD) + i * cs, *const dy = tile.buffer(kDY) + i * cs;
  if (args.masked)
    write_maps(
        SideBySide<T, 2, 2>(
            branch, cs, {map_of<const T>(tile, branch, kGradOut, i), map_of<const T>(tile, beside, kResult, i)},
            {map_of<T>(tile, branch, kGradIn, i), args.adds ? map_of<T>(tile, beside, kGradShortcut, i) : Plane<T>{}}),
        [d, dy](int c) { return OfEach<A, 2>{{d[c], dy[c]}}; },
        [](const OfEach<A, 2>& channel, const OfEach<A, 2>& x) {
          const A g = relu_grad(x.of[1], x.of[0]);
          return OfEach<A, 2>{{fma(g, channel.of[0], channel.of[1]), g}};
        });
  else
    scale<true, T>(&branch, 0, 1, tile.b0 + i, tile.c0, cs, kGradOut, kGradIn, d, dy, 0);
}

template <class T>
DLA_KERNEL(recalibrate_bwd_kernel, T, RecalibrateBwdArgs<T>) {
  RecurrenceBwd<accumulate_t<T>> tile(args.cell, args.grads);
  while (tile.next()) {
    if (args.shown.part == Part::kAfterStep) {
      back_from_step(args, tile);
    } else {
      for (int i = 0; i < tile.nb && tile.cs > 0; ++i) sum_gradients(args, tile, i);
      block_barrier();
      back(args, tile);
      if (args.shown.part == Part::kBeforeStep) continue;
    }
    for (int i = 0; i < tile.nb && tile.cs > 0; ++i) write_gradients(args, tile, i);
  }
}

}  // namespace cuda
}  // namespace dla
