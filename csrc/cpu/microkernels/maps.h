// Feature maps: channel sums and the channel-wise rescale, for both layouts. A map is large, so each
// of its elements is touched by vector loads only; sums are folded at several levels, so that the
// rounding error stays near that of a pairwise sum even over hundreds of thousands of pixels.
#pragma once

#include "../microkernels.h"
#include "long_sums.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// What is summed: x itself, x * y, or (x - y)^2. Lanes beyond the last element are zero in both.
struct Itself {
  template <class V>
  static DLA_HOST_DEVICE V add(V sum, V x, V) {
    return sum + x;
  }
};
struct Product {
  template <class V>
  static DLA_HOST_DEVICE V add(V sum, V x, V y) {
    return multiply_add(x, y, sum);
  }
};
struct SquaredDistance {
  template <class V>
  static DLA_HOST_DEVICE V add(V sum, V x, V y) {
    return multiply_add(x - y, x - y, sum);
  }
};

// Sum over one run of n neighbours, its lanes still apart; y(i, lanes) is the other operand at i.
template <class Term, class T, class Y>
DLA_HOST_DEVICE Vec<accumulate_t<T>> sum_run(const T* x, Y y, int64_t n) {
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
        sum[k] = Term::add(sum[k], load(x + j), y(j, 0));
      }
    for (; i + V::kLanes <= end; i += V::kLanes) sum[0] = Term::add(sum[0], load(x + i), y(i, 0));
    if (i < end) {
      const int rest = int(end - i);
      sum[1] = Term::add(sum[1], load_n(x + i, rest), y(i, rest));
      i = end;
    }
    total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  return total;
}

// Sum over pixels of kV vectors of neighbouring channels; rest > 0: one vector of that many lanes.
// y(p, c, lanes) is the other operand at pixel p and channel c.
template <class Term, int kV, class T, class Y>
DLA_HOST_DEVICE void sum_pixels(Plane<const T> x, Y y, int64_t c, int rest, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const int lanes = kV == 1 ? rest : 0;
  LongSums<kV, A> sum;
  sum.run(x.HW, [&](int64_t p) __attribute__((always_inline)) {
    for (int v = 0; v < kV; ++v) {
      const int64_t j = c + v * V::kLanes;
      sum.few[v] = Term::add(sum.few[v], read(x.data + p * x.sp + j, lanes), y(p, j, lanes));
    }
  });
  for (int v = 0; v < kV; ++v) write(sums + c + v * V::kLanes, sum.all[v], lanes);
}

// One sum per channel. run(c) gives the other operand of a planar channel, pixel that of interleaved ones.
template <class Term, class T, class Run, class Pixel>
void sum_plane(Plane<const T> x, bool interleaved, Run run, Pixel pixel, accumulate_t<T>* sums) {
  using V = Vec<accumulate_t<T>>;
  int64_t c = 0;
  if (interleaved) {
    constexpr int kV = 4;
    for (; c + kV * V::kLanes <= x.C; c += kV * V::kLanes) sum_pixels<Term, kV>(x, pixel, c, 0, sums);
    for (; c < x.C; c += V::kLanes) sum_pixels<Term, 1>(x, pixel, c, c + V::kLanes <= x.C ? 0 : int(x.C - c), sums);
    return;
  }
  const auto sum = [&](int64_t c)
                       __attribute__((always_inline)) { return sum_run<Term>(x.data + c * x.sc, run(c), x.HW); };
  for (; c + 4 <= x.C; c += 4) {  // small planes cost as much to fold as to read: fold four at once
    const V four[4] = {sum(c), sum(c + 1), sum(c + 2), sum(c + 3)};
    lane_sum4(four, sums + c);
  }
  for (; c < x.C; ++c) sums[c] = lane_sum(sum(c));
}

template <class T>
void mean(Plane<const T> x, accumulate_t<T>* y) {
  using V = Vec<accumulate_t<T>>;
  const auto none = [](auto...) { return V(accumulate_t<T>(0)); };
  sum_plane<Itself>(x, x.sc == 1, [none](int64_t) { return none; }, none, y);
  for (int64_t c = 0; c < x.C; ++c) y[c] /= accumulate_t<T>(x.HW);
}
// Both maps planar, or both interleaved.
template <class T>
void dot(Plane<const T> x, Plane<const T> y, accumulate_t<T>* sum) {
  const auto run = [y](int64_t c) {
    return [row = y.data + c * y.sc](int64_t i, int lanes) { return read(row + i, lanes); };
  };
  const auto pixel = [y](int64_t p, int64_t c, int lanes) { return read(y.data + p * y.sp + c, lanes); };
  sum_plane<Product>(x, x.sc == 1 && y.sc == 1, run, pixel, sum);
}
template <class T>
void spread(Plane<const T> x, const accumulate_t<T>* y, accumulate_t<T>* sum) {
  using V = Vec<accumulate_t<T>>;
  const auto run = [y](int64_t c) {
    return [of_c = y[c]](int64_t, int lanes) {
      V v = of_c;
      for (int i = lanes; lanes && i < V::kLanes; ++i) v.v[i] = 0;
      return v;
    };
  };
  const auto pixel = [y](int64_t, int64_t c, int lanes) { return read(y + c, lanes); };
  sum_plane<SquaredDistance>(x, x.sc == 1, run, pixel, sum);
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
        const auto at = [c, lanes](const A* p) { return read(p + c, lanes); };
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

template <bool kStream, class T>
void add_scaled_plane(Plane<const T> y, Plane<const T> x, const accumulate_t<T>* d, const accumulate_t<T>* e,
                      bool relu_, Plane<T> out) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const auto run = [relu_](const T* y, const T* x, T* out, int64_t n, auto d_at, auto e_at) {
    map_run<kStream>(x, out, n, [&](int64_t i, V v, int lanes) {
      const V scaled = multiply_add(v, d_at(i, lanes), e_at(i, lanes));
      return read(y + i, lanes) + (relu_ ? relu(scaled) : scaled);
    });
  };
  if (y.sc == 1 && x.sc == 1 && out.sc == 1) {
    const auto at = [](const A* p) { return [p](int64_t i, int lanes) { return p ? read(p + i, lanes) : V(A(0)); }; };
    for (int64_t p = 0; p < x.HW; ++p)
      run(y.data + p * y.sp, x.data + p * x.sp, out.data + p * out.sp, x.C, at(d), at(e));
    return;
  }
  for (int64_t c = 0; c < x.C; ++c) {
    const V dc = d[c], ec = e ? e[c] : A(0);
    run(
        y.data + c * y.sc, x.data + c * x.sc, out.data + c * out.sc, x.HW, [dc](int64_t, int) { return dc; },
        [ec](int64_t, int) { return ec; });
  }
}

template <class T>
void add_scaled(Plane<const T> y, Plane<const T> x, const accumulate_t<T>* d, const accumulate_t<T>* e, bool relu,
                Plane<T> out, bool stream) {
  if (stream && sizeof(T) >= 4) {  // as in scale
    add_scaled_plane<true>(y, x, d, e, relu, out);
    stream_fence();
  } else {
    add_scaled_plane<false>(y, x, d, e, relu, out);
  }
}

template <class T>
void mix(const Plane<const T>* xs, int64_t M, Rows<const accumulate_t<T>> coef, Plane<T> out) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  // A few vectors at a time, each through all maps; at(m, i) are the maps' runs, d(m, i, lanes) their factors.
  const auto run = [M](T* out, int64_t n, auto at, auto d) {
    constexpr int kV = 4;
    int64_t i = 0;
    for (; i + kV * V::kLanes <= n; i += kV * V::kLanes) {
      V sum[kV];
      for (int v = 0; v < kV; ++v) sum[v] = A(0);
      for (int64_t m = 0; m < M; ++m)
        for (int v = 0; v < kV; ++v) {
          const int64_t j = i + v * V::kLanes;
          sum[v] = multiply_add(load(at(m) + j), d(m, j, 0), sum[v]);
        }
      for (int v = 0; v < kV; ++v) store(out + i + v * V::kLanes, sum[v]);
    }
    for (; i < n; i += V::kLanes) {
      const int lanes = n - i < V::kLanes ? int(n - i) : 0;
      V sum = A(0);
      for (int64_t m = 0; m < M; ++m) sum = multiply_add(read(at(m) + i, lanes), d(m, i, lanes), sum);
      write(out + i, sum, lanes);
    }
  };
  if (xs[0].sc == 1 && out.sc == 1) {
    for (int64_t p = 0; p < out.HW; ++p)
      run(
          out.data + p * out.sp, out.C, [&](int64_t m) { return xs[m].data + p * xs[m].sp; },
          [&](int64_t m, int64_t i, int lanes) { return read(coef[m] + i, lanes); });
    return;
  }
  for (int64_t c = 0; c < out.C; ++c)
    run(
        out.data + c * out.sc, out.HW, [&](int64_t m) { return xs[m].data + c * xs[m].sc; },
        [&](int64_t m, int64_t, int) { return V(coef[m][c]); });
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
