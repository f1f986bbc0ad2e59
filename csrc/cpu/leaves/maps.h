// Feature maps: channel sums and the channel-wise rescale, for both layouts. A map is large, so each
// of its elements is touched by vector loads only; sums are folded at several levels, so that the
// rounding error stays near that of a pairwise sum even over hundreds of thousands of pixels.
#pragma once

#include "../leaves.h"
#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// What is summed: x itself, or x * y.
struct Itself {
  static constexpr bool kTwo = false;
  template <class V>
  static DLA_HOST_DEVICE V add(V sum, V x, V) {
    return sum + x;
  }
};
struct Product {
  static constexpr bool kTwo = true;
  template <class V>
  static DLA_HOST_DEVICE V add(V sum, V x, V y) {
    return multiply_add(x, y, sum);
  }
};

// Sum over one run of n neighbours, its lanes still apart.
template <class Term, class T>
DLA_HOST_DEVICE Vec<accumulate_t<T>> sum_run(const T* x, const T* y, int64_t n) {
  using V = Vec<accumulate_t<T>>;
  constexpr int kChains = 4, kBlock = kChains * V::kLanes * 16;
  const accumulate_t<T> zero = 0;
  V total = zero;
  int64_t i = 0;
  while (i < n) {
    const int64_t end = i + kBlock < n ? i + kBlock : n;
    V sum[kChains] = {zero, zero, zero, zero};
    for (; i + kChains * V::kLanes <= end; i += kChains * V::kLanes)
      for (int k = 0; k < kChains; ++k) {
        const int64_t j = i + k * V::kLanes;
        sum[k] = Term::add(sum[k], load(x + j), Term::kTwo ? load(y + j) : V(zero));
      }
    for (; i + V::kLanes <= end; i += V::kLanes)
      sum[0] = Term::add(sum[0], load(x + i), Term::kTwo ? load(y + i) : V(zero));
    if (i < end) {
      const int rest = int(end - i);
      sum[1] = Term::add(sum[1], load_n(x + i, rest), Term::kTwo ? load_n(y + i, rest) : V(zero));
      i = end;
    }
    total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  return total;
}

// Sum over pixels of kV vectors of neighbouring channels; rest > 0: one vector of that many lanes.
template <class Term, int kV, class T>
DLA_HOST_DEVICE void sum_pixels(Plane<const T> x, Plane<const T> y, int64_t c, int rest, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  // A channel has one chain of additions here, so it is folded at three levels: 32 pixels, 32 times 32,
  // and the rest.
  constexpr int64_t kFew = 32, kMany = kFew * kFew;
  const auto read = [rest](const T* p) { return kV == 1 && rest ? load_n(p, rest) : load(p); };
  const auto zero = [](V* sum) {
    for (int v = 0; v < kV; ++v) sum[v] = A(0);
  };
  const auto add = [](const V* from, V* to) {
    for (int v = 0; v < kV; ++v) to[v] += from[v];
  };
  V few[kV], many[kV], all[kV];
  zero(all), zero(many);
  for (int64_t p = 0; p < x.HW;) {
    zero(few);
    for (const int64_t end = p + kFew < x.HW ? p + kFew : x.HW; p < end; ++p)
      for (int v = 0; v < kV; ++v) {
        const int64_t j = c + v * V::kLanes;
        few[v] = Term::add(few[v], read(x.data + p * x.sp + j), Term::kTwo ? read(y.data + p * y.sp + j) : V(A(0)));
      }
    add(few, many);
    if (p % kMany == 0 || p == x.HW) add(many, all), zero(many);
  }
  for (int v = 0; v < kV; ++v)
    kV == 1 && rest ? store_n(sums + c, all[v], rest) : store(sums + c + v * V::kLanes, all[v]);
}

// Both maps planar, or both interleaved.
template <class Term, class T>
void sum_plane(Plane<const T> x, Plane<const T> y, accumulate_t<T>* sums) {
  using V = Vec<accumulate_t<T>>;
  if (x.sc == 1 && (!Term::kTwo || y.sc == 1)) {
    constexpr int kV = 4;
    int64_t c = 0;
    for (; c + kV * V::kLanes <= x.C; c += kV * V::kLanes) sum_pixels<Term, kV>(x, y, c, 0, sums);
    for (; c < x.C; c += V::kLanes) sum_pixels<Term, 1>(x, y, c, c + V::kLanes <= x.C ? 0 : int(x.C - c), sums);
  } else {
    const auto run = [&](int64_t c) __attribute__((always_inline)) {
      return sum_run<Term>(x.data + c * x.sc, Term::kTwo ? y.data + c * y.sc : nullptr, x.HW);
    };
    int64_t c = 0;
    for (; c + 4 <= x.C; c += 4) {  // small planes cost as much to fold as to read: fold four at once
      const V four[4] = {run(c), run(c + 1), run(c + 2), run(c + 3)};
      lane_sum4(four, sums + c);
    }
    for (; c < x.C; ++c) sums[c] = lane_sum(run(c));
  }
}

template <class T>
void mean(Plane<const T> x, accumulate_t<T>* y) {
  sum_plane<Itself>(x, x, y);
  for (int64_t c = 0; c < x.C; ++c) y[c] /= accumulate_t<T>(x.HW);
}
template <class T>
void dot(Plane<const T> x, Plane<const T> y, accumulate_t<T>* sum) {
  sum_plane<Product>(x, y, sum);
}

// out = f(x) over n neighbours; d(i, lanes) and e(i, lanes) give the factor and the summand at i.
template <bool kStream, class T, class F>
DLA_HOST_DEVICE void map_run(const T* x, T* out, int64_t n, F f) {
  using V = Vec<accumulate_t<T>>;
  int64_t i = 0;
  if (kStream)  // up to the first vector boundary
    for (; i < n && uintptr_t(out + i) % (V::kLanes * sizeof(T)); ++i)
      stream_one(out + i, narrow<T>(f(i, V(widen(x[i])), 1).v[0]));
  for (; i + V::kLanes <= n; i += V::kLanes) {
    const V value = f(i, load(x + i), 0);
    kStream ? stream(out + i, value) : store(out + i, value);
  }
  if (kStream)
    for (; i < n; ++i) stream_one(out + i, narrow<T>(f(i, V(widen(x[i])), 1).v[0]));
  else if (i < n)
    store_n(out + i, f(i, load_n(x + i, int(n - i)), int(n - i)), int(n - i));
}

template <bool kStream, bool kShift, class T>
void scale_plane(Plane<const T> x, const accumulate_t<T>* d, const accumulate_t<T>* e, Plane<T> out) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  if (x.sc == 1 && out.sc == 1) {
    for (int64_t p = 0; p < x.HW; ++p)
      map_run<kStream>(x.data + p * x.sp, out.data + p * out.sp, x.C, [&](int64_t c, V v, int lanes) {
        const auto at = [c, lanes](const A* p) { return lanes ? load_n(p + c, lanes) : load(p + c); };
        return kShift ? multiply_add(v, at(d), at(e)) : v * at(d);
      });
  } else {
    for (int64_t c = 0; c < x.C; ++c) {
      const V dc = d[c], ec = kShift ? e[c] : A(0);
      map_run<kStream>(x.data + c * x.sc, out.data + c * out.sc, x.HW,
                       [&](int64_t, V v, int) { return kShift ? multiply_add(v, dc, ec) : v * dc; });
    }
  }
}

template <class T>
void scale(Plane<const T> x, const accumulate_t<T>* d, const accumulate_t<T>* e, Plane<T> out, bool stream) {
  if (stream && sizeof(T) >= 4) {  // single 16-bit elements, at the ends of runs, have no streaming store
    e ? scale_plane<true, true>(x, d, e, out) : scale_plane<true, false>(x, d, e, out);
    stream_fence();
  } else {
    e ? scale_plane<false, true>(x, d, e, out) : scale_plane<false, false>(x, d, e, out);
  }
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
