// Depthwise 3x3 filters, one per channel, zeros around the map: filtered maps, and the nine sums that are the
// gradient of a filter. Planar maps go strip by strip, downwards: each row enters three rows of the result as it
// passes. Channels-last maps have a vector of channels at every pixel and read what is there.
#pragma once

#include "../microkernels.h"
#include "long_sums.h"
#include "strip.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// How the map before enters: not at all, pixel by pixel, or through a filter of its own.
enum class Before { kNone, kScaled, kFiltered };

// sums[r] += what row 2 - r of the filter makes of a row's neighbours x.
template <class V>
DLA_HOST_DEVICE void filter_row(const V* x, const V* taps, V* sums) {
  for (int dj = 0; dj < 3; ++dj)
    for (int r = 0; r < 3; ++r) sums[r] = multiply_add(x[dj], taps[(2 - r) * 3 + dj], sums[r]);
}

template <Before kBefore, class T>
void stencil_planar(const StencilArgs<T>& args) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const int64_t W = args.W, H = args.x.HW / W;
  for_strips<T>(args.x.C, W, [&](int64_t c, const auto& strip) __attribute__((always_inline)) {
    V taps[9], taps_before[9];
    for (int k = 0; k < 9; ++k) taps[k] = strip.of_planes(args.taps[k] + c);
    for (int k = 0; k < 9 && kBefore == Before::kFiltered; ++k)
      taps_before[k] = strip.of_planes(args.taps_before[k] + c);
    if (kBefore == Before::kScaled) taps_before[0] = strip.of_planes(args.taps_before[0] + c);
    const V e = args.e ? strip.of_planes(args.e + c) : V(A(0));
    const V e_in = args.e_in ? strip.of_planes(args.e_in + c) : V(A(0));
    const T* x = args.x.data + c * args.x.sc;
    const T* before = args.before.data + (kBefore == Before::kNone ? 0 : c * args.before.sc);
    T* out = args.out.data + c * args.out.sc;

    V sums[3] = {e, e, e};  // of the rows i - 1, i, i + 1
    const auto finish = [&](int64_t i, V sum) __attribute__((always_inline)) {
      if (kBefore == Before::kScaled)
        sum = multiply_add(strip.pixels(before + i * W, args.before.sc), taps_before[0], sum);
      strip.put(out + i * W, args.out.sc, sum);
    };
    for (int64_t i = 0; i < H; ++i) {
      V at[3];
      strip.neighbours(x + i * W, args.x.sc, e_in, at);
      filter_row(at, taps, sums);
      if (kBefore == Before::kFiltered) {
        strip.neighbours(before + i * W, args.before.sc, A(0), at);
        filter_row(at, taps_before, sums);
      }
      if (i > 0) finish(i - 1, sums[0]);
      sums[0] = sums[1], sums[1] = sums[2], sums[2] = e;
    }
    finish(H - 1, sums[0]);
  });
}

// Calls f(tap, pixel) for the neighbours of pixel (i, j) that the map has.
template <class F>
DLA_HOST_DEVICE void for_neighbours(int64_t i, int64_t j, int64_t H, int64_t W, F f) {
  const int64_t p = i * W + j;
  if (i > 0 && i + 1 < H && j > 0 && j + 1 < W) {
    for (int k = 0; k < 9; ++k) f(k, p + (k / 3 - 1) * W + k % 3 - 1);
    return;
  }
  for (int k = 0; k < 9; ++k) {
    const int64_t ni = i + k / 3 - 1, nj = j + k % 3 - 1;
    if (ni >= 0 && ni < H && nj >= 0 && nj < W) f(k, ni * W + nj);
  }
}

template <Before kBefore, class T>
void stencil_interleaved(const StencilArgs<T>& args) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const int64_t H = args.x.HW / args.W, W = args.W, C = args.x.C;
  for (int64_t c = 0; c < C; c += V::kLanes) {
    const auto run = [&](auto tail) __attribute__((always_inline)) {
      const int lanes = decltype(tail)::value ? int(C - c) : 0;
      V taps[9], taps_before[9];
      for (int k = 0; k < 9; ++k) taps[k] = read(args.taps[k] + c, lanes);
      for (int k = 0; k < 9 && kBefore == Before::kFiltered; ++k) taps_before[k] = read(args.taps_before[k] + c, lanes);
      if (kBefore == Before::kScaled) taps_before[0] = read(args.taps_before[0] + c, lanes);
      const V e = args.e ? read(args.e + c, lanes) : V(A(0));
      const V e_in = args.e_in ? read(args.e_in + c, lanes) : V(A(0));
      const T *x = args.x.data + c, *before = args.before.data + (kBefore == Before::kNone ? 0 : c);
      for (int64_t i = 0; i < H; ++i)
        for (int64_t j = 0; j < W; ++j) {
          V sum = e;
          for_neighbours(i, j, H, W, [&](int k, int64_t p) __attribute__((always_inline)) {
            sum = multiply_add(read(x + p * args.x.sp, lanes) + e_in, taps[k], sum);
            if (kBefore == Before::kFiltered)
              sum = multiply_add(read(before + p * args.before.sp, lanes), taps_before[k], sum);
          });
          const int64_t p = i * W + j;
          if (kBefore == Before::kScaled)
            sum = multiply_add(read(before + p * args.before.sp, lanes), taps_before[0], sum);
          write(args.out.data + p * args.out.sp + c, sum, lanes);
        }
    };
    c + V::kLanes <= C ? run(Constant<0>()) : run(Constant<1>());
  }
}

template <class T>
void stencil(const StencilArgs<T>& args) {
  const bool interleaved = args.x.sc == 1 && args.out.sc == 1;
  const auto run = [&](auto before) {
    constexpr Before kBefore = Before(decltype(before)::value);
    interleaved ? stencil_interleaved<kBefore>(args) : stencil_planar<kBefore>(args);
  };
  switch (args.rows_before) {
    case 9:
      return run(Constant<int(Before::kFiltered)>());
    case 1:
      return run(Constant<int(Before::kScaled)>());
    default:
      return run(Constant<int(Before::kNone)>());
  }
}

// sums [9, C]: of (dout + e)[p] * x[p + neighbour k], over the pixels p.
template <class T>
void correlate(Plane<const T> dout, const accumulate_t<T>* e, Plane<const T> x, int64_t W, Rows<accumulate_t<T>> sums) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const int64_t H = x.HW / W, C = x.C;
  if (x.sc == 1 && dout.sc == 1) {
    for (int64_t c = 0; c < C; c += V::kLanes) {
      const auto run = [&](auto tail) __attribute__((always_inline)) {
        const int lanes = decltype(tail)::value ? int(C - c) : 0;
        const V shift = e ? read(e + c, lanes) : V(A(0));
        LongSums<9, A> sum;
        int64_t i = 0, j = 0;
        sum.run(x.HW, [&](int64_t p) __attribute__((always_inline)) {
          const V g = read(dout.data + p * dout.sp + c, lanes) + shift;
          for_neighbours(i, j, H, W, [&](int k, int64_t at) __attribute__((always_inline)) {
            sum.few[k] = multiply_add(g, read(x.data + at * x.sp + c, lanes), sum.few[k]);
          });
          if (++j == W) j = 0, ++i;
        });
        for (int k = 0; k < 9; ++k) write(sums[k] + c, sum.all[k], lanes);
      };
      c + V::kLanes <= C ? run(Constant<0>()) : run(Constant<1>());
    }
    return;
  }
  // Of a channel, its lanes apart: so far, and of its last few strips. So many strips' sums are taken by themselves,
  // and of a strip so many rows': long sums stay exact.
  constexpr int kStrips = 32, kRows = 8;
  V total[9], few[9];
  int strips = 0;
  const auto move = [](V* from, V* to) __attribute__((always_inline)) {
    for (int k = 0; k < 9; ++k) to[k] += from[k], from[k] = A(0);
  };
  for_strips<T>(C, W, [&](int64_t c, const auto& strip) __attribute__((always_inline)) {
    if (strip.first) {
      for (int k = 0; k < 9; ++k) total[k] = few[k] = A(0);
      strips = 0;
    }
    const T *g_plane = dout.data + c * dout.sc, *x_plane = x.data + c * x.sc;
    const V shift = e ? strip.of_planes(e + c) : V(A(0));  // also where no pixel is: there x is zero
    const auto g_row = [&](int64_t i)
                           __attribute__((always_inline)) { return strip.pixels(g_plane + i * W, dout.sc) + shift; };
    V all[9], some[9], above = A(0), here = g_row(0);
    for (int k = 0; k < 9; ++k) all[k] = some[k] = A(0);
    for (int64_t i = 0; i < H; move(some, all))
      for (const int64_t end = i + kRows < H ? i + kRows : H; i < end; ++i) {
        V at[3];
        strip.neighbours(x_plane + i * W, x.sc, A(0), at);
        const auto add = [&](int row, V g) __attribute__((always_inline)) {
          for (int dj = 0; dj < 3; ++dj) some[row * 3 + dj] = multiply_add(g, at[dj], some[row * 3 + dj]);
        };
        if (i > 0) add(2, above);  // this row of x is below that one of dout
        add(1, here);
        above = here;
        if (i + 1 < H) add(0, here = g_row(i + 1));
      }
    move(all, few);
    if (++strips % kStrips == 0 || strip.last) move(few, total);
    if (!strip.last) return;
    strip.lane_sums(total, 9, [&](int k, const A* of_planes) __attribute__((always_inline)) {
      for (int plane = 0; plane < strip.planes; ++plane) sums[k][c + plane] = of_planes[plane];
    });
  });
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
