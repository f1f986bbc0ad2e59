// The 3x3 neighbours of every pixel: filters over planes, and the sums from which the gradients of filters come.
// A thread walks down a piece of one column of a channel and keeps the rows it has met in registers. So it reads a
// map three times, twice from the first-level cache, and it makes no difference how far apart pixels lie.
#pragma once

#include "gather.cuh"
#include "planes.cuh"

namespace dla {
namespace cuda {

// One channel of a plane: pixel p is data[p * pixel]. `plus` is added to every pixel, but not to the zeros around.
template <class T>
struct Source {
  const T* data;
  int64_t pixel;
  accumulate_t<T> plus;

  DLA_DEVICE accumulate_t<T> operator[](int p) const { return widen(data[p * pixel]) + plus; }
};
template <class T>
struct Target {
  T* data;
  int64_t pixel;

  DLA_DEVICE accumulate_t<T> store(int p, accumulate_t<T> x) const {  // returns x as stored
    const T rounded = narrow<T>(x);
    data[p * pixel] = rounded;
    return widen(rounded);
  }
};
template <class T>
DLA_DEVICE Source<T> source(const Layer& layer, const Plane<const T>& of, int c, accumulate_t<T> plus = 0) {
  return {of.data + (layer.interleaved ? c : c * of.stride), layer.interleaved ? of.stride : 1, plus};
}
template <class T>
DLA_DEVICE Target<T> target(const Layer& layer, const Plane<T>& of, int c) {
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

// For each of the block's cs channels: each = begin(c, maps), which fills in the kMaps sources that are to be read
// with their neighbours; each(few, p, arounds) for every pixel p, arounds(m, a, b) being those of map m; then
// done(c, S). kAhead: rows in flight, as many as there are registers for. scratch: as Team::together wants it.
template <class T, class S, int kMaps, int kAhead, class Begin, class Done>
DLA_DEVICE void stencil(const Layer& layer, int W, int cs, accumulate_t<T>* scratch, Begin begin, Done done) {
  using A = accumulate_t<T>;
  constexpr int kStrip = 16;  // most rows that a thread walks at once
  if (cs == 0) return;
  const int H = layer.HW / W, strips = (H + kStrip - 1) / kStrip, strip = (H + strips - 1) / strips;
  const Team team(layer.interleaved, cs, strips * W);
  for (int c0 = 0; c0 < cs; c0 += team.slots) {  // all threads take every turn: putting together needs them
    const int c = at_most(c0 + team.slot, cs - 1);
    const bool mine = c0 + team.slot < cs;
    Source<T> maps[kMaps];
    const auto each = begin(c, maps);
    S found;
    for (int u = team.part; u < strips * W && mine; u += team.parts) {
      const int j = u % W, top = u / W * strip, end = at_most(top + strip, H);
      A window[kMaps][kAhead + 2][3];  // rows i - 1 .. i + kAhead
      const auto read = [&](int m, int row, int i) {
        const T* const middle = maps[m].data + (i * W + j) * maps[m].pixel;
        const bool inside = i >= 0 && i < H && i <= end;
        window[m][row][0] = inside && j > 0 ? widen(middle[-maps[m].pixel]) + maps[m].plus : A(0);
        window[m][row][1] = inside ? widen(middle[0]) + maps[m].plus : A(0);
        window[m][row][2] = inside && j + 1 < W ? widen(middle[maps[m].pixel]) + maps[m].plus : A(0);
      };
      typename S::Few few;
#pragma unroll
      for (int m = 0; m < kMaps; ++m) read(m, 0, top - 1), read(m, 1, top);
      for (int i = top; i < end; i += kAhead) {
#pragma unroll
        for (int r = 0; r < kAhead; ++r)
#pragma unroll
          for (int m = 0; m < kMaps; ++m) read(m, r + 2, i + r + 1);
#pragma unroll
        for (int r = 0; r < kAhead; ++r)
          if (i + r < end) each(few, (i + r) * W + j, [&](int m, int a, int b) { return window[m][r + a][b]; });
#pragma unroll
        for (int m = 0; m < kMaps; ++m)
#pragma unroll
          for (int b = 0; b < 3; ++b)
            window[m][0][b] = window[m][kAhead][b], window[m][1][b] = window[m][kAhead + 1][b];
      }
      found.merge(few);
    }
    const S all = team.together(found, scratch);
    if (S::kSize > 0 && team.part == 0 && mine) done(c, all);
  }
}

}  // namespace cuda
}  // namespace dla
