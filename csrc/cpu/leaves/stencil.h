// Depthwise 3x3 filters, one per channel, zeros around the map: filtered maps, and the nine sums that are the
// gradient of a filter. A planar map is copied plane by plane into a frame of zeros, widened on the way, so that
// its borders need no care; channels-last maps have a vector of channels at every pixel and read what is there.
#pragma once

#include "../leaves.h"
#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// framed [H + 2, W + 2] = x [H, W] + shift, zeros around it.
template <class T, class A>
void frame(const T* x, int64_t H, int64_t W, A shift, A* framed) {
  using V = Vec<A>;
  const int64_t P = W + 2;
  for (int64_t j = 0; j < P; ++j) framed[j] = framed[(H + 1) * P + j] = 0;
  for (int64_t i = 0; i < H; ++i) {
    const T* from = x + i * W;
    A* to = framed + (i + 1) * P;
    *to++ = 0;
    int64_t j = 0;
    for (; j + V::kLanes <= W; j += V::kLanes) store(to + j, load(from + j) + V(shift));
    if (j < W) store_n(to + j, load_n(from + j, int(W - j)) + V(shift), int(W - j));
    to[W] = 0;
  }
}

// sum[r] += what the filter makes of row r; `at` is the framed pixel up and left of the first.
template <int kRows, class A>
DLA_HOST_DEVICE void filter_rows(const A* at, int64_t P, const Vec<A>* taps, Vec<A>* sum) {
  for (int i = 0; i < kRows + 2; ++i)
    for (int dj = 0; dj < 3; ++dj) {
      const Vec<A> x = load(at + i * P + dj);
      for (int r = 0; r < kRows; ++r)
        if (i - r >= 0 && i - r < 3) sum[r] = multiply_add(x, taps[(i - r) * 3 + dj], sum[r]);
    }
}

// How the map before enters: not at all, pixel by pixel, or through a filter of its own.
enum class Before { kNone, kScaled, kFiltered };

template <Before kBefore, class T>
void stencil_planar(const StencilArgs<T>& args) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const int64_t H = args.x.HW / args.W, W = args.W, P = W + 2;
  for (int64_t c = 0; c < args.x.C; ++c) {
    V taps[9], taps_before[9];
    for (int k = 0; k < 9; ++k) taps[k] = args.taps[k][c];
    for (int k = 0; k < 9 && kBefore == Before::kFiltered; ++k) taps_before[k] = args.taps_before[k][c];
    if (kBefore == Before::kScaled) taps_before[0] = args.taps_before[0][c];
    const V e = args.e ? args.e[c] : A(0);
    const T* before = args.before.data + (kBefore == Before::kNone ? 0 : c * args.before.sc);
    A *framed = args.scratch, *framed_before = framed + framed_size<A>(H, W);
    frame(args.x.data + c * args.x.sc, H, W, args.e_in ? args.e_in[c] : A(0), framed);
    if (kBefore == Before::kFiltered) frame(before, H, W, A(0), framed_before);
    T* out = args.out.data + c * args.out.sc;
    const auto rows = [&](auto height, int64_t i) __attribute__((always_inline)) {
      constexpr int kRows = decltype(height)::value;
      for (int64_t j = 0; j < W; j += V::kLanes) {
        const int lanes = W - j < V::kLanes ? int(W - j) : 0;
        V sum[kRows];
        for (int r = 0; r < kRows; ++r) sum[r] = e;
        filter_rows<kRows>(framed + i * P + j, P, taps, sum);
        if (kBefore == Before::kFiltered) filter_rows<kRows>(framed_before + i * P + j, P, taps_before, sum);
        for (int r = 0; r < kRows; ++r) {
          const int64_t at = (i + r) * W + j;
          if (kBefore == Before::kScaled) sum[r] = multiply_add(read(before + at, lanes), taps_before[0], sum[r]);
          write(out + at, sum[r], lanes);
        }
      }
    };
    int64_t i = 0;
    for (; i + 4 <= H; i += 4) rows(Constant<4>(), i);
    for (; i + 2 <= H; i += 2) rows(Constant<2>(), i);
    for (; i < H; ++i) rows(Constant<1>(), i);
  }
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
void correlate(Plane<const T> dout, const accumulate_t<T>* e, Plane<const T> x, int64_t W, accumulate_t<T>* scratch,
               Rows<accumulate_t<T>> sums) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const int64_t H = x.HW / W, P = W + 2, C = x.C;
  constexpr int kRows = 8;  // so many rows' sums are taken by themselves: long sums stay exact
  if (x.sc == 1 && dout.sc == 1) {
    for (int64_t c = 0; c < C; c += V::kLanes) {
      const auto run = [&](auto tail) __attribute__((always_inline)) {
        const int lanes = decltype(tail)::value ? int(C - c) : 0;
        const V shift = e ? read(e + c, lanes) : V(A(0));
        V all[9];
        for (int k = 0; k < 9; ++k) all[k] = A(0);
        for (int64_t i = 0; i < H;) {
          V some[9];
          for (int k = 0; k < 9; ++k) some[k] = A(0);
          for (const int64_t end = i + kRows < H ? i + kRows : H; i < end; ++i)
            for (int64_t j = 0; j < W; ++j) {
              const V g = read(dout.data + (i * W + j) * dout.sp + c, lanes) + shift;
              for_neighbours(i, j, H, W, [&](int k, int64_t p) __attribute__((always_inline)) {
                some[k] = multiply_add(g, read(x.data + p * x.sp + c, lanes), some[k]);
              });
            }
          for (int k = 0; k < 9; ++k) all[k] += some[k];
        }
        for (int k = 0; k < 9; ++k) write(sums[k] + c, all[k], lanes);
      };
      c + V::kLanes <= C ? run(Constant<0>()) : run(Constant<1>());
    }
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
    frame(x.data + c * x.sc, H, W, A(0), scratch);
    const T* g_plane = dout.data + c * dout.sc;
    V all[9], shift = e ? e[c] : A(0);
    for (int k = 0; k < 9; ++k) all[k] = A(0);
    for (int64_t i = 0; i < H;) {
      V some[9];
      for (int k = 0; k < 9; ++k) some[k] = A(0);
      for (const int64_t end = i + kRows < H ? i + kRows : H; i < end; ++i) {
        const auto add = [&](V g, int64_t j, auto load_x) __attribute__((always_inline)) {
          for (int k = 0; k < 9; ++k) some[k] = multiply_add(g, load_x(scratch + (i + k / 3) * P + j + k % 3), some[k]);
        };
        int64_t j = 0;
        for (; j + V::kLanes <= W; j += V::kLanes)
          add(load(g_plane + i * W + j) + shift, j, [](const A* p) { return load(p); });
        if (const int rest = int(W - j))  // lanes beyond the row are zero on one side: no product comes of them
          add(load_n(g_plane + i * W + j, rest) + shift, j, [rest](const A* p) { return load_n(p, rest); });
      }
      for (int k = 0; k < 9; ++k) all[k] += some[k];
    }
    for (int k = 0; k < 9; ++k) sums[k][c] = lane_sum(all[k]);
  }
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
