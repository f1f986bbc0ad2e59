// The steps of the scan, forward and backward, where all that they need again and again lies in shared memory
// (Plan::hot). A step is a chain: the time that it takes is that of its instructions, one after the other. So what does
// not change from step to step is worked out before the first, a channel's gates meet in the thread that steps the
// channel, and two barriers of the block are enough.
//
// Where a group is several blocks, they *send* each other their partial sums, each into a place of its own in every
// block, and all add up what came in order of rank. Letters of the next step go to other places, and to another
// letterbox: nobody sends them before he has had all letters of this step, which are sent once those of the step before
// have been read.
#pragma once

#include "tile.cuh"

namespace dla {
namespace cuda {

// Four neighbours.
template <class A>
struct Four {
  static constexpr int kPieces = 4 / kQuad<A>;
  Neighbours<A, kQuad<A>> piece[kPieces];

  DLA_DEVICE void load(const A* p) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) piece[i].load(p + i * kQuad<A>);
  }
  DLA_DEVICE A& operator[](int i) { return piece[i / kQuad<A>].v[i % kQuad<A>]; }
  DLA_DEVICE A operator[](int i) const { return piece[i / kQuad<A>].v[i % kQuad<A>]; }
};

// How threads share n pieces of work: as many neighbours have one together as there are for all to be done in one turn.
struct Shares {
  int log_lanes, lane, first, at_once;

  DLA_DEVICE Shares(int n, int log_fewest, int log_most) {
    const int idle = floor_log2(num_threads()) - ceil_log2(n);
    log_lanes = at_most(idle > log_fewest ? idle : log_fewest, log_most);
    lane = thread_index() & (lanes() - 1), first = thread_index() >> log_lanes, at_once = num_threads() >> log_lanes;
  }
  DLA_DEVICE int lanes() const { return 1 << log_lanes; }
};

// Of four sums, each in parts with `lanes` neighbours, at least four: thread `lane` gets number lane % 4.
template <class A>
DLA_DEVICE A sum_of_four(const Four<A>& x, int lanes) {
  const bool odd = thread_index() & 1, high = thread_index() & 2;
  const A low = (odd ? x[1] : x[0]) + shuffle_xor(odd ? x[0] : x[1], 1);
  const A rest = (odd ? x[3] : x[2]) + shuffle_xor(odd ? x[2] : x[3], 1);
  A sum = (high ? rest : low) + shuffle_xor(high ? low : rest, 2);
#pragma unroll
  for (int mask = 4; mask < kWarp; mask *= 2)
    if (mask < lanes) sum += shuffle_xor(sum, mask);
  return sum;
}

template <class A>
class Steps {
 public:
  // Barriers, of the group: at any time; on return the letterboxes are known.
  DLA_DEVICE explicit Steps(const Tile<A>& tile) {
    if (!tile.args.plan.hot || alone(tile)) return;
    if (thread_index() < kLetterTurns) open_letterbox(letterbox(tile, thread_index()));
    group_barrier();
  }

  // From kH, kC to the state after the scan's last layer; kKept and states_h are filled where they are saved. Barriers:
  // kH, kC and what hoist made are known when it is called; on return kH, kC and kKept are.
  template <class Rule>
  DLA_DEVICE void forward(const Tile<A>& tile, A* states_h) {
    A *const h = tile.shared(kH), *const c = tile.shared(kC), *const u = tile.shared(kU);
    const A *const w1h = tile.shared(kW1h), *const w2h = tile.shared(kW2h);
    A* const kept = tile.buffer(kKept);  // the states of all steps: writes to global memory are waited for only once
    const int R = tile.R, cs = not_before(tile.cs), units = not_before(in_fours(R)), nb = tile.nb;
    const int ld_w1 = in_odd_fours(cs), ld_w2 = in_odd_fours(R);
    const Shares of_units(R, 0, at_most(ceil_log2(cs / 4), floor_log2(kWarp)));
    const Shares of_channels(cs, 0, at_most(ceil_log2(units / 4), floor_log2(kWarp)));
    const auto to_u = [&](int i, int r, A sum) { u[i * units + r] = relu(sum); };
    for (int i = thread_index(); i < nb; i += num_threads())  // what fills up a four stays zero
#pragma unroll 1
      for (int r = R; r < units; ++r) u[i * units + r] = A(0);
    for (int t = 0; t < tile.args.scan_end; ++t) {
      expect(tile);
      for (int i = 0; i < nb; ++i)
        for (int r0 = 0; r0 < R; r0 += of_units.at_once) {  // all threads take every turn: the shuffles need them
          const int r = r0 + of_units.first, row = at_most(r, R - 1);
          const A ahead = ahead_of_h(tile, t * nb + i, row);
          A part = A(0);
#pragma unroll 4
          for (int k = of_units.lane * 4; k < cs; k += of_units.lanes() * 4)
            part = dot(w1h + row * ld_w1 + k, h + tile.of_channel(i, k), part);
          part = sum_lanes(part, of_units.lanes());
          if (r < R) give(tile, i, r, part + ahead, of_units.lane, of_units.lanes(), to_u);
        }
      meet(tile, to_u);
      for (int i = 0; i < nb; ++i)
        for (int j0 = 0; j0 < cs; j0 += of_channels.at_once) {
          const int j = j0 + of_channels.first, row = at_most(j, cs - 1), m = t * nb + i;
          A a[Rule::NG] = {}, ahead[Rule::NG];
          ahead_of_u<Rule>(tile, m, row, ahead);
#pragma unroll 2
          for (int k = of_channels.lane * 4; k < units; k += of_channels.lanes() * 4) {
            Four<A> x;
            x.load(u + i * units + k);
#pragma unroll
            for (int g = 0; g < Rule::NG; ++g) a[g] = dot(w2h + (g * cs + row) * ld_w2 + k, x, a[g]);
          }
#pragma unroll
          for (int mask = kWarp / 2; mask > 0; mask /= 2)  // as sum_lanes, of all gates at once
            if (mask < of_channels.lanes())
#pragma unroll
              for (int g = 0; g < Rule::NG; ++g) a[g] += shuffle_xor(a[g], mask);
#pragma unroll
          for (int g = 0; g < Rule::NG; ++g) a[g] += ahead[g];
          if (of_channels.lane > 0 || j >= cs) continue;
          const int at = tile.of_channel(i, j);
          const State<A> s = Rule::step(a, State<A>{h[at], c[at]});
          h[at] = s.h, c[at] = s.c;
          kept[tile.of_channel(m, j)] = Rule::kSavesC ? s.c : s.h;
          if (Rule::kSavesC && Rule::kSavesH) states_h[tile.at(t, i, j)] = s.h;
        }
      block_barrier();
      ++step_;
    }
  }

  // Back from the gradient of the last state in kDH, kDC, the gates in kGates and u in kUScan, to the gradient of the
  // state before layer 1, da in kDaScan and ds in kDsScan. The state before each layer is kCBefore, or kHBefore, and
  // the gradients that arrive at its states, where there are any, are kDStatesH and kDStatesC. Barriers: all of these
  // are known when it is called, and on return.
  template <class Rule>
  DLA_DEVICE void backward(const Tile<A>& tile, bool dstates_h, bool dstates_c) {
    A *const dh = tile.shared(kDH), *const dc = tile.shared(kDC), *const gates = tile.shared(kGates);
    const A* const u = tile.shared(kUScan);
    A* const ds = tile.shared(kDsScan);
    const A *const w1h = tile.shared(kW1h), *const w2h = tile.shared(kW2h);
    const A *const before = tile.buffer(kHBefore), *const arrive_h = tile.buffer(kDStatesH);
    const A* const arrive_c = tile.buffer(kDStatesC);
    const int R = tile.R, cs = not_before(tile.cs), fours = not_before(in_fours(R)) / 4, nb = tile.nb;
    const int ld_w1 = in_odd_fours(cs), ld_w2 = in_odd_fours(R), K = Rule::NG * cs;
    const Shares of_units(fours, 2, floor_log2(kWarp)), of_channels(cs / 4, 2, floor_log2(kWarp));
    for (int t = tile.args.scan_end - 1; t >= 0; --t) {
      const auto to_ds = [&](int i, int r, A sum) {
        const int at = tile.of_unit(t * nb + i, r);
        ds[at] = relu_grad(u[at], sum);
      };
      expect(tile);
      for (int i = 0; i < nb; ++i)
        for (int j0 = 0; j0 < cs / 4; j0 += of_channels.at_once) {  // by who wrote the channel's dh: no barrier between
          const int j = (j0 + of_channels.first) * 4 + of_channels.lane, m = t * nb + i;
          if (of_channels.lane >= 4 || j >= cs) continue;
          const int at = tile.of_channel(i, j), at_m = tile.of_channel(m, j);
          State<A> d{dh[at], dc[at]};
          if (dstates_h) d.h += arrive_h[at_m];
          if (dstates_c) d.c += arrive_c[at_m];
          A a[Rule::NG], da[Rule::NG];
#pragma unroll
          for (int g = 0; g < Rule::NG; ++g) a[g] = gates[tile.of_gate(m, g, j)];
          const State<A> s = Rule::kSavesC ? State<A>{A(0), before[at_m]} : State<A>{before[at_m], A(0)};
          dc[at] = Rule::step_bwd(a, s, d, da);
#pragma unroll
          for (int g = 0; g < Rule::NG; ++g) gates[tile.of_gate(m, g, j)] = da[g];
        }
      block_barrier();
      for (int i = 0; i < nb; ++i)
        for (int r0 = 0; r0 < fours; r0 += of_units.at_once) {
          const int four = r0 + of_units.first, m = t * nb + i, column = at_most(four, fours - 1) * 4;
          const A* const da = gates + m * K;
          Four<A> parts{};
#pragma unroll 4
          for (int n = of_units.lane; n < K; n += of_units.lanes()) add(da[n], w2h + n * ld_w2 + column, parts);
          const A part = sum_of_four(parts, of_units.lanes());
          const int r = four * 4 + of_units.lane % 4;
          if (r < R) give(tile, i, r, part, of_units.lane / 4, of_units.lanes() / 4, to_ds);
        }
      meet(tile, to_ds);
      for (int i = 0; i < nb; ++i)
        for (int j0 = 0; j0 < cs / 4; j0 += of_channels.at_once) {
          const int four = j0 + of_channels.first, m = t * nb + i, column = at_most(four, cs / 4 - 1) * 4;
          Four<A> sums{};
#pragma unroll 4
          for (int r = of_channels.lane; r < R; r += of_channels.lanes())
            add(ds[tile.of_unit(m, r)], w1h + r * ld_w1 + column, sums);
          const A sum = sum_of_four(sums, of_channels.lanes());
          if (of_channels.lane < 4 && four < cs / 4) dh[tile.of_channel(i, four * 4 + of_channels.lane)] = sum;
        }
      ++step_;
    }
    block_barrier();
  }

 private:
  static constexpr int kLetterTurns = 2;  // letters of this step, and of the next
  int step_ = 0;                          // how many there have been, of all tiles

  static DLA_DEVICE bool alone(const Tile<A>& tile) { return tile.ranks == 1; }

  // What y alone adds to row m of W1h h, in this block; and to a gate of W2h u.
  DLA_DEVICE A ahead_of_h(const Tile<A>& tile, int m, int r) const {
    if (tile.args.projection == Projection::kJoint) return tile.buffer(kP)[tile.of_unit(m, r)];
    return tile.rank == 0 ? tile.args.b1h[r] : A(0);
  }
  template <class Rule>
  DLA_DEVICE void ahead_of_u(const Tile<A>& tile, int m, int c, A* ahead) const {
    const bool joint = tile.args.projection == Projection::kJoint;
    const A* const from = joint ? tile.shared(kBias) : tile.buffer(kQ) + m * tile.gates();
#pragma unroll
    for (int g = 0; g < Rule::NG; ++g) ahead[g] = from[g * tile.cs + c];
  }
  static DLA_DEVICE A dot(const A* w, const Four<A>& x, A sum) {
    Four<A> weight;
    weight.load(w);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = fma(x[i], weight[i], sum);
    return sum;
  }
  static DLA_DEVICE A dot(const A* w, const A* p, A sum) {
    Four<A> x;
    x.load(p);
    return dot(w, x, sum);
  }
  static DLA_DEVICE void add(A x, const A* w, Four<A>& sums) {
    Four<A> weight;
    weight.load(w);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = fma(x, weight[i], sums[i]);
  }

  // ---- letters ----

  static DLA_DEVICE Letterbox* letterbox(const Tile<A>& tile, int turn) {
    return reinterpret_cast<Letterbox*>(tile.shared(kLetterboxes)) + turn;
  }
  DLA_DEVICE int turn() const { return step_ % kLetterTurns; }
  // Where the letters of this step from block `rank` lie, for sample i: [R].
  DLA_DEVICE A* letters(const Tile<A>& tile, int rank, int i) const {
    return tile.shared(kLetters) + ((turn() * tile.ranks + rank) * tile.args.plan.samples_per_tile + i) * tile.R;
  }
  // What all blocks, this one too, will send at this step. Barriers: all of this one have met at the step before.
  DLA_DEVICE void expect(const Tile<A>& tile) const {
    if (alone(tile) || thread_index() > 0) return;
    expect_letters(letterbox(tile, turn()), tile.ranks * tile.nb * tile.R * int(sizeof(A)));
  }
  // The block's part of a sum, of unit r and sample i, known to threads 0, 1, .. others - 1: f of it, or on its way to
  // all.
  template <class F>
  DLA_DEVICE void give(const Tile<A>& tile, int i, int r, A part, int number, int others, F f) const {
    if (!alone(tile))
      for (int to = number; to < tile.ranks; to += others)
        send_letter(letters(tile, tile.rank, i) + r, part, letterbox(tile, turn()), to);
    else if (number == 0)
      f(i, r, part);
  }
  // f(i, r, the sum of what was given), where no other did it. Barriers: on return what f wrote is known.
  template <class F>
  DLA_DEVICE void meet(const Tile<A>& tile, F f) const {
    if (!alone(tile)) {
      wait_for_letters(letterbox(tile, turn()), step_ / kLetterTurns % 2);
      for (int i = 0; i < tile.nb; ++i)
        for (int r = thread_index(); r < tile.R; r += num_threads()) {
          A sum = A(0);
#pragma unroll 2
          for (int rank = 0; rank < tile.ranks; ++rank) sum += letters(tile, rank, i)[r];
          f(i, r, sum);
        }
    }
    block_barrier();
  }
};

}  // namespace cuda
}  // namespace dla
