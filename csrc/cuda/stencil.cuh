// The 3x3 neighbours of every pixel: filters over planes, and the sums from which the gradients of filters come.
// A thread walks down a strip of a channel, four columns at once where rows are made of fours, and keeps the rows it
// has met in registers: of each row one piece and the two pixels beside it. All rows of a turn are asked for before the
// first is used, from addresses that are clamped into the map; what lies outside becomes zero afterwards.
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

  // The filter at a pixel; around(a, b) are its neighbours.
  template <class Around>
  DLA_DEVICE A filter(const Around& around) const {
    A sum = A(0);
#pragma unroll
    for (int s = 0; s < kTaps; ++s) sum = fma(at[s], around(s / 3, s % 3), sum);
    return sum;
  }
  // Its transpose: what a pixel gets from its neighbours' filters.
  template <class Around>
  DLA_DEVICE A transposed(const Around& around) const {
    return filter([&](int a, int b) { return around(2 - a, 2 - b); });
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
DLA_DEVICE Piece<T, kWide> load_piece(const T* from) {
  Piece<T, kWide> x;
  if constexpr (kPacked) {
    x = *reinterpret_cast<const Piece<T, kWide>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kWide; ++i) x.at[i] = from[i];
  }
  return x;
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

// One pixel: its neighbours, itself in other maps, and its results.
template <class T, int kNear, int kHere, int kWritten>
struct Pixel {
  using A = accumulate_t<T>;
  A near_[kNear][3][3], here_[kHere > 0 ? kHere : 1];
  T out_[kWritten > 0 ? kWritten : 1] = {};

  DLA_DEVICE A near(int m, int a, int b) const { return near_[m][a][b]; }
  DLA_DEVICE A here(int m) const { return here_[m]; }
  DLA_DEVICE A write(int m, A x) {  // returns x as stored
    out_[m] = narrow<T>(x);
    return widen(out_[m]);
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
  for (int m = 0; m < kNear; ++m)
    near[m] = maps.near[m].data + (int64_t(top > 0 ? top - 1 : 0) * W + j) * pixel_of(maps.near[m]);
#pragma unroll
  for (int m = 0; m < kHere; ++m) here[m] = maps.here[m].data + (int64_t(top) * W + j) * pixel_of(maps.here[m]);
#pragma unroll
  for (int m = 0; m < kWritten; ++m) out[m] = maps.out[m].data + (int64_t(top) * W + j) * pixel_of(maps.out[m]);

  struct Raw {
    Pixels piece;
    T left, right;
  };
  // Reads row i of map m and moves on to the next; the last row of the map is read again instead of what is below it.
  const auto read = [&](int m, int i) {
    const int64_t pixel = pixel_of(maps.near[m]);
    const Raw raw{load_piece<kPacked, kWide>(near[m]), near[m][has_left ? -pixel : 0],
                  near[m][(has_right ? kWide : kWide - 1) * pixel]};
    near[m] += i >= 0 && i + 1 < H ? W * pixel : 0;
    return raw;
  };
  A window[kNear][3][kWide + 2];  // rows i - 1 .. i + 1
  const auto take = [&](int m, int row, const Raw& raw, int i) {
    const bool inside = i >= 0 && i < H, left = inside && has_left, right = inside && has_right;
    const A plus = kPlus && m == 0 ? maps.plus : A(0);
    A* const to = window[m][row];
#pragma unroll
    for (int k = 0; k < kWide; ++k)
      to[k + 1] = inside ? kPlus ? widen(raw.piece.at[k]) + plus : widen(raw.piece.at[k]) : A(0);
    to[0] = left ? kPlus ? widen(raw.left) + plus : widen(raw.left) : A(0);
    to[kWide + 1] = right ? kPlus ? widen(raw.right) + plus : widen(raw.right) : A(0);
  };

  Raw before[kNear][2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int m = 0; m < kNear; ++m) before[m][r] = read(m, top - 1 + r);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int m = 0; m < kNear; ++m) take(m, r, before[m][r], top - 1 + r);

  for (int i = top; i < end; i += kAhead) {
    Raw raw[kAhead][kNear];
    Pixels at[kAhead][kHere > 0 ? kHere : 1];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
#pragma unroll
      for (int m = 0; m < kNear; ++m) raw[r][m] = read(m, i + r + 1);
#pragma unroll
      for (int m = 0; m < kHere; ++m) {
        at[r][m] = load_piece<kPacked, kWide>(here[m]);
        here[m] += i + r + 1 < end ? W * pixel_of(maps.here[m]) : 0;
      }
    }
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
#pragma unroll
      for (int m = 0; m < kNear; ++m) take(m, 2, raw[r][m], i + r + 1);
      if (i + r < end) {
        Pixels results[kWritten > 0 ? kWritten : 1];
#pragma unroll
        for (int k = 0; k < kWide; ++k) {
          Pixel<T, kNear, kHere, kWritten> pixel;
#pragma unroll
          for (int m = 0; m < kNear; ++m)
#pragma unroll
            for (int s = 0; s < kTaps; ++s) pixel.near_[m][s / 3][s % 3] = window[m][s / 3][k + s % 3];
#pragma unroll
          for (int m = 0; m < kHere; ++m) pixel.here_[m] = widen(at[r][m].at[k]);
          each(few, pixel);
#pragma unroll
          for (int m = 0; m < kWritten; ++m) results[m].at[k] = pixel.out_[m];
        }
#pragma unroll
        for (int m = 0; m < kWritten; ++m) {
          store_piece<kPacked>(out[m], results[m]);
          out[m] += W * pixel_of(maps.out[m]);
        }
      }
#pragma unroll
      for (int m = 0; m < kNear; ++m)
#pragma unroll
        for (int k = 0; k < kWide + 2; ++k) window[m][0][k] = window[m][1][k], window[m][1][k] = window[m][2][k];
    }
  }
}

template <class T>
DLA_DEVICE bool is_packed(const Channel<T>& of) {
  return reinterpret_cast<uintptr_t>(of.data) % sizeof(Piece<T, kFours>) == 0;
}

// For each of the block's cs channels: each = begin(c, maps), which fills in the maps; each(few, pixel) for every
// pixel; then done(c, S). kAhead: rows in flight, as many as there are registers for. scratch: as Team::together
// wants it. `planar`: whether all maps are. Barriers: as Team::together.
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
