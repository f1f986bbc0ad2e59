// The microkernels: every inner loop of the CPU backend, compiled once per instruction set and reached
// through a table of function pointers. Everything above them is ordinary code compiled once.
#pragma once

#include <cstdint>
#include <string>

#include "../common.h"

namespace dla {
namespace cpu {

// Rows of a matrix; ld is the distance between rows, 0 where one row serves all.
template <class A>
struct Rows {
  A* data = nullptr;
  int64_t ld = 0;

  DLA_HOST_DEVICE A* operator[](int64_t row) const { return data + row * ld; }
  DLA_HOST_DEVICE Rows from(int64_t row) const { return {data + row * ld, ld}; }
  DLA_HOST_DEVICE Rows right(int64_t col) const { return {data + col, ld}; }
  operator Rows<const A>() const { return {data, ld}; }
};

// One sample of one feature map, [C, HW]: sc and sp are the distances between channels and between
// pixels, one of which is 1 (planar: sp, interleaved: sc).
template <class T>
struct Plane {
  T* data;
  int64_t C, HW, sc, sp;

  Plane channels(int64_t c0, int64_t c1) const { return {data + c0 * sc, c1 - c0, HW, sc, sp}; }
};

// The pointwise rule of one cell over M rows of n channels: a and da hold NG gates at distance C, all
// others are [M, n]. (n = C, or a part of the channels.)
template <class A>
struct RuleKernels {
  const char* name;
  int NG;
  bool saves_h, saves_c;
  A start_h;  // h before the first step where no state is given
  // h = act(c): what the projection sees of a state saved as c alone
  void (*feed)(int64_t M, int64_t n, Rows<const A> c, Rows<A> h);
  // dc += act'(c) dh
  void (*feed_bwd)(int64_t M, int64_t n, Rows<const A> c, Rows<const A> dh, Rows<A> dc);
  // New state and output from gates and old state. h_new, c_new, out: any may be absent.
  void (*step)(int64_t M, int64_t n, int64_t C, Rows<const A> a, Rows<const A> h, Rows<const A> c, Rows<A> h_new,
               Rows<A> c_new, Rows<A> out);
  // da from the gradient (dh, dc) of the new state; dc becomes the gradient of the old c.
  void (*step_bwd)(int64_t M, int64_t n, int64_t C, Rows<const A> a, Rows<const A> h, Rows<const A> c, Rows<const A> dh,
                   Rows<A> dc, Rows<A> da);
  // da from the gradient dd of the output alone; adds the gradient of the old c to dc; the output
  // itself goes to out, which may be absent.
  void (*output_bwd)(int64_t M, int64_t n, int64_t C, Rows<const A> a, Rows<const A> h, Rows<const A> c,
                     Rows<const A> dd, Rows<A> dc, Rows<A> da, Rows<A> out);
  // out: what the cell shows of a state; and what its gradient dd adds to that of the state. h, c may be absent.
  void (*show)(int64_t M, int64_t n, Rows<const A> h, Rows<const A> c, Rows<A> out);
  void (*show_bwd)(int64_t M, int64_t n, Rows<const A> c, Rows<const A> dd, Rows<A> dh, Rows<A> dc);
};

// Gate columns in one panel of a packed W2 (weights.h).
constexpr int64_t kPanel = 64;

template <class A>
struct RowKernels {
  // microkernels/gemm.h
  void (*dots)(int64_t M, int64_t N, int64_t K, Rows<const A> x, Rows<const A> w, Rows<const A> init, Rows<A> out);
  void (*axpys)(int64_t M, int64_t N, int64_t K, const A* x, int64_t x_row, int64_t x_col, Rows<const A> w,
                Rows<const A> init, Rows<A> out);
  // panel [R, kPanel] = w [n, R]^T, n <= kPanel
  void (*pack)(int64_t n, int64_t R, Rows<const A> w, Rows<A> panel);
  const RuleKernels<A>* rules;
  int num_rules;
};

// out[c, p] = e[c] + sum over k of taps[k, c] (x + e_in)[c, neighbour k of p], and the same for a second map,
// `before`, with taps of its own, whose number is 9, or 1 (of the pixel itself alone), or 0 (no such map). The nine
// neighbours are numbered row by row; those beyond the map are zero, e_in included. e and e_in may be absent.
template <class T>
struct StencilArgs {
  using A = accumulate_t<T>;
  Plane<const T> x;
  Rows<const A> taps;  // [9, C]
  Plane<const T> before;
  Rows<const A> taps_before;  // [9, C] or [1, C]
  int rows_before;
  const A *e_in, *e;
  Plane<T> out;
  int64_t W;
};
// norm(o) = o a + b per channel, with the mean that is in b; f = relu or nothing follows it.
template <class A>
struct NormRows {
  const A *mean, *a, *b;
  bool relu;
};

template <class T>
struct MapKernels {
  using A = accumulate_t<T>;
  // y[c] = mean over HW of x[c, :]
  void (*mean)(Plane<const T> x, A* y);
  // sum[c] = sum over HW of x[c, :] * y[c, :]
  void (*dot)(Plane<const T> x, Plane<const T> y, A* sum);
  // sum[c] = sum over HW of (x[c, :] - y[c])^2
  void (*spread)(Plane<const T> x, const A* y, A* sum);
  // out[c, :] = x[c, :] * d[c] + e[c]; e may be absent. stream: write past the cache.
  void (*scale)(Plane<const T> x, const A* d, const A* e, Plane<T> out, bool stream);
  // out[c, :] = y[c, :] + f(x[c, :] * d[c] + e[c]), f = relu where asked for; e and stream as in scale
  void (*add_scaled)(Plane<const T> y, Plane<const T> x, const A* d, const A* e, bool relu, Plane<T> out, bool stream);
  // microkernels/recalibrate.h: out[c, :] = f(before[c, :] + x[c, :] * d[c]); before may be absent, stream as in scale
  void (*recalibrate)(Plane<const T> x, const A* d, Plane<const T> before, bool relu, Plane<T> out, bool stream);
  // g = dout where a relu let out through: sum[c] of g x over HW
  void (*passed_dot)(Plane<const T> dout, Plane<const T> out, Plane<const T> x, A* sum);
  // dx[c, :] = g[c, :] * d[c] + e[c], and g itself to dbefore, which may be absent
  void (*passed_scale)(Plane<const T> dout, Plane<const T> out, const A* d, const A* e, Plane<T> dx, Plane<T> dbefore);
  // out[c, :] = sum over m < M of xs[m][c, :] * coef[m, c]
  void (*mix)(const Plane<const T>* xs, int64_t M, Rows<const A> coef, Plane<T> out);
  // microkernels/norm.h: dz = dout where f passes it on. sum[c] of dz, sum_off[c] of dz (o - mean), over HW.
  void (*masked_sums)(Plane<const T> dout, Plane<const T> o, NormRows<A> norm, A* sum, A* sum_off);
  // out[c, :] = dz[c, :] * factor[c] + (o[c, :] - mean[c]) * slope[c] + shift[c]
  void (*masked_scale)(Plane<const T> dout, Plane<const T> o, NormRows<A> norm, const A* factor, const A* slope,
                       const A* shift, Plane<T> out);
  // microkernels/stencil.h
  void (*stencil)(const StencilArgs<T>& args);
  // sums [9, C]: of (dout + e)[c, p] * x[c, neighbour k of p] over the pixels p; e may be absent
  void (*correlate)(Plane<const T> dout, const A* e, Plane<const T> x, int64_t W, Rows<A> sums);
};

// The tables of the best instruction set this machine has; the environment variable
// DLA_KERNELS_ISA=baseline|x86-64-v3|x86-64-v4 asks for a lower one.
template <class A>
const RowKernels<A>& row_kernels();
template <class T>
const MapKernels<T>& map_kernels();
const std::string& isa();

// The microkernels of the named cell rule; an error that lists the rules if there is none of that name.
template <class A>
const RuleKernels<A>& find_rule(const std::string& name);

}  // namespace cpu
}  // namespace dla
