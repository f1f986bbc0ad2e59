// f(before + x d), f = relu or nothing, which ends a block; and gradients through it.
#pragma once

#include "maps.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

template <bool kStream, class T>
void recalibrate_plane(Plane<const T> x, const accumulate_t<T>* d, Plane<const T> before, bool relu_, Plane<T> out) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const auto run = [relu_](const T* x, const T* before, T* out, int64_t n, auto d_at) {
    map_run<kStream>(x, out, n, [&](int64_t i, V v, int lanes) {
      const V sum = before ? multiply_add(v, d_at(i, lanes), read(before + i, lanes)) : v * d_at(i, lanes);
      return relu_ ? relu(sum) : sum;
    });
  };
  const auto from = [](Plane<const T> map, int64_t distance) { return map.data ? map.data + distance : nullptr; };
  if (x.sc == 1 && out.sc == 1) {
    const auto at = [d](int64_t i, int lanes) { return read(d + i, lanes); };
    for (int64_t p = 0; p < x.HW; ++p)
      run(x.data + p * x.sp, from(before, p * before.sp), out.data + p * out.sp, x.C, at);
    return;
  }
  for (int64_t c = 0; c < x.C; ++c)
    run(x.data + c * x.sc, from(before, c * before.sc), out.data + c * out.sc, x.HW,
        [v = V(d[c])](int64_t, int) { return v; });
}

template <class T>
void recalibrate(Plane<const T> x, const accumulate_t<T>* d, Plane<const T> before, bool relu, Plane<T> out,
                 bool stream) {
  if (stream && sizeof(T) >= 4) {  // as in scale
    recalibrate_plane<true>(x, d, before, relu, out);
    stream_fence();
  } else {
    recalibrate_plane<false>(x, d, before, relu, out);
  }
}

template <class T>
void passed_dot(Plane<const T> dout, Plane<const T> out, Plane<const T> x, accumulate_t<T>* sum) {
  const auto run = [dout, out](int64_t c) {
    return [g = dout.data + c * dout.sc, o = out.data + c * out.sc](int64_t i, int lanes) {
      return relu_grad(read(o + i, lanes), read(g + i, lanes));
    };
  };
  const auto pixel = [dout, out](int64_t p, int64_t c, int lanes) {
    return relu_grad(read(out.data + p * out.sp + c, lanes), read(dout.data + p * dout.sp + c, lanes));
  };
  sum_plane<Product>(x, x.sc == 1, run, pixel, sum);
}

template <class T>
void passed_scale(Plane<const T> dout, Plane<const T> out, const accumulate_t<T>* d, const accumulate_t<T>* e,
                  Plane<T> dx, Plane<T> dbefore) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const auto run = [](const T* dout, const T* out, T* dx, T* dbefore, int64_t n, auto d_at, auto e_at) {
    for (int64_t i = 0; i < n; i += V::kLanes) {
      const int lanes = n - i < V::kLanes ? int(n - i) : 0;
      const V g = relu_grad(read(out + i, lanes), read(dout + i, lanes));
      write(dx + i, multiply_add(g, d_at(i, lanes), e_at(i, lanes)), lanes);
      if (dbefore) write(dbefore + i, g, lanes);
    }
  };
  const auto from = [](Plane<T> map, int64_t distance) { return map.data ? map.data + distance : nullptr; };
  if (dout.sc == 1 && dx.sc == 1) {
    const auto at = [](const A* p) { return [p](int64_t i, int lanes) { return read(p + i, lanes); }; };
    for (int64_t p = 0; p < dx.HW; ++p)
      run(dout.data + p * dout.sp, out.data + p * out.sp, dx.data + p * dx.sp, from(dbefore, p * dbefore.sp), dx.C,
          at(d), at(e));
    return;
  }
  for (int64_t c = 0; c < dx.C; ++c) {
    const auto at = [c](const A* p) { return [v = V(p[c])](int64_t, int) { return v; }; };
    run(dout.data + c * dout.sc, out.data + c * out.sc, dx.data + c * dx.sc, from(dbefore, c * dbefore.sc), dx.HW,
        at(d), at(e));
  }
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
