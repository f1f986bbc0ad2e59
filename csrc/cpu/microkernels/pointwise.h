// A cell's pointwise rule (csrc/cells) over rows of channels, a vector of channels at a time.
#pragma once

#include "../../cells/shown.h"
#include "../microkernels.h"
#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// Calls f(channel, lanes) for each vector of channels; lanes = 0 means a full vector.
template <class A, class F>
DLA_HOST_DEVICE void for_channels(int64_t n, F f) {
  int64_t i = 0;
  for (; i + Vec<A>::kLanes <= n; i += Vec<A>::kLanes) f(i, 0);
  if (i < n) f(i, int(n - i));
}

template <class Rule, class A>
struct Pointwise {
  using V = Vec<A>;
  using S = State<V>;

  struct Gates {
    V a[Rule::NG];
  };
  static DLA_HOST_DEVICE Gates read_gates(const A* a, int64_t C, int64_t c, int lanes) {
    Gates gates;
    for (int g = 0; g < Rule::NG; ++g) gates.a[g] = read(a + g * C + c, lanes);
    return gates;
  }
  static DLA_HOST_DEVICE void write_gates(A* a, int64_t C, int64_t c, int lanes, const Gates& gates) {
    for (int g = 0; g < Rule::NG; ++g) write(a + g * C + c, gates.a[g], lanes);
  }
  static DLA_HOST_DEVICE S read_state(const A* h, const A* c_row, int64_t c, int lanes) {
    return {h ? read(h + c, lanes) : V(A(0)), c_row ? read(c_row + c, lanes) : V(A(0))};
  }

  static void feed(int64_t M, int64_t n, Rows<const A> c, Rows<A> h) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        write(h[m] + i, Rule::feed(read(c[m] + i, lanes)), lanes);
      });
  }

  static void feed_bwd(int64_t M, int64_t n, Rows<const A> c, Rows<const A> dh, Rows<A> dc) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        write(dc[m] + i, read(dc[m] + i, lanes) + Rule::feed_bwd(read(c[m] + i, lanes), read(dh[m] + i, lanes)), lanes);
      });
  }

  static void step(int64_t M, int64_t n, int64_t C, Rows<const A> a, Rows<const A> h, Rows<const A> c, Rows<A> h_new,
                   Rows<A> c_new, Rows<A> out) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const Gates gates = read_gates(a[m], C, i, lanes);
        const S s = Rule::step(gates.a, read_state(h[m], c[m], i, lanes));
        if (h_new.data) write(h_new[m] + i, s.h, lanes);
        if (c_new.data) write(c_new[m] + i, s.c, lanes);
        if (out.data) write(out[m] + i, Rule::output(s), lanes);
      });
  }

  static void step_bwd(int64_t M, int64_t n, int64_t C, Rows<const A> a, Rows<const A> h, Rows<const A> c,
                       Rows<const A> dh, Rows<A> dc, Rows<A> da) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const Gates gates = read_gates(a[m], C, i, lanes);
        Gates grads;
        const V dc_old =
            Rule::step_bwd(gates.a, read_state(h[m], c[m], i, lanes), read_state(dh[m], dc[m], i, lanes), grads.a);
        write_gates(da[m], C, i, lanes, grads);
        write(dc[m] + i, dc_old, lanes);
      });
  }

  static void output_bwd(int64_t M, int64_t n, int64_t C, Rows<const A> a, Rows<const A> h, Rows<const A> c,
                         Rows<const A> dd, Rows<A> dc, Rows<A> da, Rows<A> out) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const Gates gates = read_gates(a[m], C, i, lanes);
        const S s = read_state(h[m], c[m], i, lanes);
        if (out.data) write(out[m] + i, Rule::output(Rule::step(gates.a, s)), lanes);
        Gates grads;
        const V dc_old = Rule::output_bwd(gates.a, s, read(dd[m] + i, lanes), grads.a);
        write_gates(da[m], C, i, lanes, grads);
        write(dc[m] + i, read(dc[m] + i, lanes) + dc_old, lanes);
      });
  }

  static void show(int64_t M, int64_t n, Rows<const A> h, Rows<const A> c, Rows<A> out) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        write(out[m] + i, Rule::output(read_state(h[m], c[m], i, lanes)), lanes);
      });
  }

  static void show_bwd(int64_t M, int64_t n, Rows<const A> c, Rows<const A> dd, Rows<A> dh, Rows<A> dc) {
    for (int64_t m = 0; m < M; ++m)
      for_channels<A>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const S ds = output_grad<Rule>(read_state(nullptr, c[m], i, lanes), read(dd[m] + i, lanes));
        write(dh[m] + i, read(dh[m] + i, lanes) + ds.h, lanes);
        write(dc[m] + i, read(dc[m] + i, lanes) + ds.c, lanes);
      });
  }

  static RuleKernels<A> kernels(const char* name) {
    return {name,      Rule::NG,    Rule::kSavesH, Rule::kSavesC, Rule::template start_h<A>(), &feed, &feed_bwd, &step,
            &step_bwd, &output_bwd, &show,         &show_bwd};
  }
};

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
