// Gradients through f(o a + b) per channel, f = relu or nothing: dz is dout where f passes it on.
#pragma once

#include "../microkernels.h"
#include "long_sums.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

template <class T>
void masked_sums(Plane<const T> dout, Plane<const T> o, NormRows<accumulate_t<T>> norm, accumulate_t<T>* sum,
                 accumulate_t<T>* sum_off) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  constexpr int64_t kFew = 64;  // vectors whose sums are taken by themselves: long sums stay exact
  const auto masked = [&norm](V g, V x, V a, V b) __attribute__((always_inline)) {
    return norm.relu ? relu_grad(multiply_add(x, a, b), g) : g;
  };
  if (dout.sc == 1 && o.sc == 1) {
    for (int64_t c = 0; c < o.C; c += V::kLanes) {
      const int lanes = o.C - c < V::kLanes ? int(o.C - c) : 0;
      const V a = read(norm.a + c, lanes), b = read(norm.b + c, lanes), mean = read(norm.mean + c, lanes);
      LongSums<2, A> sums;
      sums.run(o.HW, [&](int64_t p) __attribute__((always_inline)) {
        const V x = read(o.data + p * o.sp + c, lanes);
        const V dz = masked(read(dout.data + p * dout.sp + c, lanes), x, a, b);
        sums.few[0] += dz, sums.few[1] = multiply_add(dz, x - mean, sums.few[1]);
      });
      write(sum + c, sums.all[0], lanes), write(sum_off + c, sums.all[1], lanes);
    }
    return;
  }
  for (int64_t c = 0; c < o.C; ++c) {
    const T *g = dout.data + c * dout.sc, *x = o.data + c * o.sc;
    const V a = norm.a[c], b = norm.b[c], mean = norm.mean[c];
    V all = A(0), all_off = A(0);
    for (int64_t i = 0; i < o.HW;) {
      V some = A(0), some_off = A(0);
      const int64_t end = i + kFew * V::kLanes < o.HW ? i + kFew * V::kLanes : o.HW;
      for (; i < end; i += V::kLanes) {  // beyond the last pixel dout reads as zero
        const int lanes = o.HW - i < V::kLanes ? int(o.HW - i) : 0;
        const V at = read(x + i, lanes), dz = masked(read(g + i, lanes), at, a, b);
        some += dz, some_off = multiply_add(dz, at - mean, some_off);
      }
      all += some, all_off += some_off;
    }
    sum[c] = lane_sum(all), sum_off[c] = lane_sum(all_off);
  }
}

template <class T>
void masked_scale(Plane<const T> dout, Plane<const T> o, NormRows<accumulate_t<T>> norm, const accumulate_t<T>* factor,
                  const accumulate_t<T>* slope, const accumulate_t<T>* shift, Plane<T> out) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const auto run = [&norm](const T* g, const T* x, T* to, int64_t n, auto at, const A* rows[6]) {
    const auto a = at(rows[0]), b = at(rows[1]), mean = at(rows[2]), k = at(rows[3]), m = at(rows[4]), s = at(rows[5]);
    for (int64_t i = 0; i < n; i += V::kLanes) {
      const int lanes = n - i < V::kLanes ? int(n - i) : 0;
      const V o_i = read(x + i, lanes);
      V dz = read(g + i, lanes);
      if (norm.relu) dz = relu_grad(multiply_add(o_i, a(i, lanes), b(i, lanes)), dz);
      const V off = multiply_add(o_i - mean(i, lanes), m(i, lanes), s(i, lanes));
      write(to + i, multiply_add(dz, k(i, lanes), off), lanes);
    }
  };
  const A* rows[6] = {norm.a, norm.b, norm.mean, factor, slope, shift};
  if (dout.sc == 1 && o.sc == 1 && out.sc == 1) {
    const auto at = [](const A* p) { return [p](int64_t i, int lanes) { return read(p + i, lanes); }; };
    for (int64_t p = 0; p < o.HW; ++p)
      run(dout.data + p * dout.sp, o.data + p * o.sp, out.data + p * out.sp, o.C, at, rows);
    return;
  }
  for (int64_t c = 0; c < o.C; ++c) {
    const auto at = [c](const A* p) { return [v = V(p[c])](int64_t, int) { return v; }; };
    run(dout.data + c * dout.sc, o.data + c * o.sc, out.data + c * out.sc, o.HW, at, rows);
  }
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
