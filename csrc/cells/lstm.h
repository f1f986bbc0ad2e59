// lstm:  c' = sig(f) c + sig(i) tanh(g),  h' = sig(o) tanh(c'),  output h'
#pragma once

#include "state.h"

namespace dla {

// An LSTM whose squash of c' is a parameter: tanh here, sigmoid or relu in dia.h.
template <class Squash>
struct OutputGated {
  static constexpr int NG = 4;
  static constexpr bool kSavesH = true, kSavesC = true;

  template <class A>
  static DLA_HOST_DEVICE A start_h() {
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE A feed(A) {  // h is saved, never derived from c
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE A feed_bwd(A, A) {
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE State<A> step(const A* a, State<A> s) {
    const A c = Memory::step(a, s.c);
    return {sigmoid(a[3]) * Squash::value(c), c};
  }
  template <class A>
  static DLA_HOST_DEVICE A output(State<A> s) {
    return s.h;
  }
  template <class A>
  static DLA_HOST_DEVICE A step_bwd(const A* a, State<A> s, State<A> ds, A* da) {
    const A c = Memory::step(a, s.c);
    const A o = sigmoid(a[3]);
    da[3] = ds.h * Squash::value(c) * o * (A(1) - o);
    return Memory::step_bwd(a, s.c, ds.c + Squash::grad(c, ds.h * o), da);
  }
  template <class A>
  static DLA_HOST_DEVICE A output_bwd(const A* a, State<A> s, A dd, A* da) {
    return step_bwd(a, s, {dd, A(0)}, da);
  }
};

using Lstm = OutputGated<Tanh>;

}  // namespace dla
