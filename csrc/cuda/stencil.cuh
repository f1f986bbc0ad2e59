// The 3x3 neighbours of every pixel: filters over planes, and the sums from which the gradients of filters come.
// A thread walks down a strip of a channel, four columns at once where rows are made of fours, and keeps the rows it
// has met in registers: of each row one piece and the two pixels beside it. All rows of a turn are asked for before the
// first is used; what lies outside the map is not read, and is zero.
#pragma once

#include "gather.cuh"
#include "planes.cuh"

namespace dla {
namespace cuda {

constexpr int kFours = 4;

// One channel of a plane: pixel p is data[p * pixel].
template <class T>
struct Channel {
  T* data;
  int64_t pixel;
};
template <class T>
DLA_DEVICE Channel<T> channel(const Layer& layer, const Plane<T>& of, int c) {
  return {of.data + (layer.interleaved ? c : c * of.stride), layer.interleaved ? of.stride : 1};
}

// Tap a * 3 + b meets the pixel a - 1 rows below and b - 1 columns to the right.
constexpr int kTaps = 9, kMiddleTap = 4;
template <class A>
struct Taps {
  A at[kTaps];

  // The filter at a pixel, added to sum; around(a, b) are its neighbours.
  template <class Around>
  DLA_DEVICE A filter(const Around& around, A sum = A(0)) const {
#pragma unroll
    for (int s = 0; s < kTaps; ++s) sum = fma(at[s], around(s / 3, s % 3), sum);
    return sum;
  }
  // Its transpose: what a pixel gets from its neighbours' filters.
  template <class Around>
  DLA_DEVICE A transposed(const Around& around, A sum = A(0)) const {
    return filter([&](int a, int b) { return around(2 - a, 2 - b); }, sum);
  }
};
template <class A>
DLA_DEVICE Taps<A> load_taps(const A* from) {
  Taps<A> taps;
#pragma unroll
  for (int s = 0; s < kTaps; ++s) taps.at[s] = from[s];
  return taps;
}
// The gradient of the taps, as far as it comes from a pixel x; around: the gradient of what was filtered.
template <class A, class Around>
DLA_DEVICE void correlate(A x, const Around& around, A* sums) {
#pragma unroll
  for (int s = 0; s < kTaps; ++s) sums[s] = fma(x, around(2 - s / 3, 2 - s % 3), sums[s]);
}

// kWide pixels of a row as they lie in memory. Packed: on an address that one access takes.
template <class T, int kWide>
struct alignas(kWide * sizeof(T) < 16 ? kWide * sizeof(T) : 16) Piece {
  T at[kWide];
};
template <bool kPacked, int kWide, class T>
DLA_DEVICE Piece<T, kWide> load_piece(const T* from, bool there) {
  if constexpr (kPacked) {
    return load_or_zero(reinterpret_cast<const Piece<T, kWide>*>(from), there);
  } else {
    Piece<T, kWide> x;
#pragma unroll
    for (int i = 0; i < kWide; ++i) x.at[i] = load_or_zero(from + i, there);
    return x;
  }
}
template <bool kPacked, int kWide, class T>
DLA_DEVICE void store_piece(T* to, const Piece<T, kWide>& x) {
  if constexpr (kPacked) {
    *reinterpret_cast<Piece<T, kWide>*>(to) = x;
  } else {
#pragma unroll
    for (int i = 0; i < kWide; ++i) to[i] = x.at[i];
  }
}

// What a stencil reads and writes of a channel: kNear maps with the neighbours of each pixel, kHere maps at the pixel
// alone, and kWritten maps that it writes.
template <class T, int kNear, int kHere, int kWritten>
struct StencilMaps {
  Channel<const T> near[kNear], here[kHere > 0 ? kHere : 1];
  Channel<T> out[kWritten > 0 ? kWritten : 1];
  accumulate_t<T> plus = 0;  // for every pixel of the first near map, but not for the zeros around it
};

// kWide pixels of a row: their neighbours, what other maps have in their place, and the results.
template <class T, int kWide, int kNear, int kHere, int kWritten>
struct Row {
  using A = accumulate_t<T>;
  static constexpr int kPixels = kWide;
  A window[kNear][3][kWide + 2];  // the row, the ones above and below it, and a column more on both sides
  A here_[kHere > 0 ? kHere : 1][kWide];
  Piece<T, kWide> out_[kWritten > 0 ? kWritten : 1];

  DLA_DEVICE A near(int m, int k, int a, int b) const { return window[m][a][k + b]; }
  DLA_DEVICE A here(int m, int k) const { return here_[m][k]; }
  // x becomes what is stored.
  DLA_DEVICE void write(int m, A (&x)[kWide]) {
    if constexpr (sizeof(T) == 2 && kWide % 2 == 0) {
      uint32_t pairs[kWide / 2];
#pragma unroll
      for (int k = 0; k < kWide; k += 2) {
        pairs[k / 2] = narrow_pair<T>(x[k], x[k + 1]);
        x[k] = widen_of<T>(pairs[k / 2], 0), x[k + 1] = widen_of<T>(pairs[k / 2], 1);
      }
      memcpy(&out_[m], pairs, sizeof pairs);
    } else {
#pragma unroll
      for (int k = 0; k < kWide; ++k) out_[m].at[k] = narrow<T>(x[k]), x[k] = widen(out_[m].at[k]);
    }
  }
};

// A thread's way down the rows top .. end, at columns j .. j + kWide; kAhead rows of each map are in flight.
template <int kWide, bool kPacked, bool kPlus, int kAhead, class T, int kNear, int kHere, int kWritten, class Each,
          class Few>
DLA_DEVICE void walk(const StencilMaps<T, kNear, kHere, kWritten>& maps, int H, int W, int top, int end, int j,
                     const Each& each, Few& few) {
  using A = accumulate_t<T>;
  using Pixels = Piece<T, kWide>;
  const bool has_left = j > 0, has_right = j + kWide < W;
  const auto pixel_of = [](const auto& channel) { return kWide > 1 ? int64_t(1) : channel.pixel; };
  const T *near[kNear], *here[kHere > 0 ? kHere : 1];
  T* out[kWritten > 0 ? kWritten : 1];
#pragma unroll
  for (int m = 0; m < kNear; ++m) near[m] = maps.near[m].data + (int64_t(top - 1) * W + j) * pixel_of(maps.near[m]);
#pragma unroll
  for (int m = 0; m < kHere; ++m) here[m] = maps.here[m].data + (int64_t(top) * W + j) * pixel_of(maps.here[m]);
#pragma unroll
  for (int m = 0; m < kWritten; ++m) out[m] = maps.out[m].data + (int64_t(top) * W + j) * pixel_of(maps.out[m]);

  struct Raw {
    Pixels piece;
    T left, right;
  };
  // Reads a row of map m and moves on to the next; what is outside the map is zero.
  const auto read = [&](int m, bool inside) {
    const int64_t pixel = pixel_of(maps.near[m]);
    const Raw raw{load_piece<kPacked, kWide>(near[m], inside), load_or_zero(near[m] - pixel, inside && has_left),
                  load_or_zero(near[m] + kWide * pixel, inside && has_right)};
    near[m] += W * pixel;
    return raw;
  };
  Row<T, kWide, kNear, kHere, kWritten> row;
  const auto take = [&](int m, int a, const Raw& raw, bool inside) {
    const A plus = kPlus && m == 0 ? maps.plus : A(0);
    const auto of = [&](const T& x, bool there) { return kPlus && m == 0 ? there ? widen(x) + plus : A(0) : widen(x); };
    A* const to = row.window[m][a];
#pragma unroll
    for (int k = 0; k < kWide; ++k) to[k + 1] = of(raw.piece.at[k], inside);
    to[0] = of(raw.left, inside && has_left);
    to[kWide + 1] = of(raw.right, inside && has_right);
  };

  Raw before[kNear][2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int m = 0; m < kNear; ++m) before[m][r] = read(m, r > 0 || top > 0);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int m = 0; m < kNear; ++m) take(m, r, before[m][r], r > 0 || top > 0);

  const int last = at_most(end, H - 1);  // from here on nobody needs the row below
  for (int i = top; i < end; i += kAhead) {
    Raw raw[kAhead][kNear];
    Pixels at[kAhead][kHere > 0 ? kHere : 1];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
#pragma unroll
      for (int m = 0; m < kNear; ++m) raw[r][m] = read(m, i + r < last);
#pragma unroll
      for (int m = 0; m < kHere; ++m) {
        at[r][m] = load_piece<kPacked, kWide>(here[m], i + r < end);
        here[m] += W * pixel_of(maps.here[m]);
      }
    }
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
#pragma unroll
      for (int m = 0; m < kNear; ++m) take(m, 2, raw[r][m], i + r < last);
      if (i + r < end) {
#pragma unroll
        for (int m = 0; m < kHere; ++m)
#pragma unroll
          for (int k = 0; k < kWide; ++k) row.here_[m][k] = widen(at[r][m].at[k]);
        each(few, row);
#pragma unroll
        for (int m = 0; m < kWritten; ++m) {
          store_piece<kPacked>(out[m], row.out_[m]);
          out[m] += W * pixel_of(maps.out[m]);
        }
      }
#pragma unroll
      for (int m = 0; m < kNear; ++m)
#pragma unroll
        for (int k = 0; k < kWide + 2; ++k)
          row.window[m][0][k] = row.window[m][1][k], row.window[m][1][k] = row.window[m][2][k];
    }
  }
}

template <class T>
DLA_DEVICE bool is_packed(const Channel<T>& of) {
  return reinterpret_cast<uintptr_t>(of.data) % sizeof(Piece<T, kFours>) == 0;
}

// For each of the block's cs channels: each = begin(c, maps), which fills in the maps; each(few, row) for every
// Row of pixels; then done(c, S). kAhead: rows in flight, as many as there are registers for. scratch: as
// Team::together wants it. `planar`: whether all maps are. Barriers: as Team::together.
template <class T, class S, int kNear, int kHere, int kWritten, int kAhead, bool kPlus = false, class Begin, class Done>
DLA_DEVICE void stencil(const Layer& layer, bool planar, int W, int cs, accumulate_t<T>* scratch, Begin begin,
                        Done done) {
  constexpr int kStrip = 16;  // most rows that a thread walks at once
  if (cs == 0) return;
  W = not_before(W), cs = not_before(cs);
  const bool fours = planar && W % kFours == 0;  // not by alignment, which the order of sums must not depend on
  const int H = layer.HW / W, strips = (H + kStrip - 1) / kStrip, strip = (H + strips - 1) / strips;
  const int wide = fours ? kFours : 1, across = W / wide;
  const Team team(layer.interleaved, cs, strips * across);
  for (int c0 = 0; c0 < cs; c0 += team.slots) {  // all threads take every turn: putting together needs them
    const int c = at_most(c0 + team.slot, cs - 1);
    const bool mine = c0 + team.slot < cs;
    StencilMaps<T, kNear, kHere, kWritten> maps;
    const auto each = begin(c, maps);
    bool packed = fours;
#pragma unroll
    for (int m = 0; m < kNear; ++m) packed = packed && is_packed(maps.near[m]);
#pragma unroll
    for (int m = 0; m < kHere; ++m) packed = packed && is_packed(maps.here[m]);
#pragma unroll
    for (int m = 0; m < kWritten; ++m) packed = packed && is_packed(maps.out[m]);
    S found;
    for (int u = team.part; u < strips * across && mine; u += team.parts) {
      const int j = u % across * wide, top = u / across * strip, end = at_most(top + strip, H);
      typename S::Few few;
      if (packed)
        walk<kFours, true, kPlus, kAhead>(maps, H, W, top, end, j, each, few);
      else if (fours)
        walk<kFours, false, kPlus, kAhead / 2>(maps, H, W, top, end, j, each, few);
      else
        walk<1, false, kPlus, kAhead>(maps, H, W, top, end, j, each, few);
      found.merge(few);
    }
    const S all = team.together(found, scratch);
    if (S::kSize > 0 && team.part == 0 && mine) done(c, all);
  }
}

}  // namespace cuda
}  // namespace dla
