// rnn:  h' = tanh(a),  output h'
#pragma once

#include "state.h"

namespace dla {

struct Rnn {
  static constexpr int NG = 1;
  static constexpr bool kSavesH = true, kSavesC = false;

  template <class A>
  static DLA_HOST_DEVICE A start_h() {
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE A feed(A) {  // h from c: an RNN has no c
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE A feed_bwd(A, A) {
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE State<A> step(const A* a, State<A>) {
    return {tanh(a[0]), A(0)};
  }
  template <class A>
  static DLA_HOST_DEVICE A output(State<A> s) {
    return s.h;
  }
  // ds: gradient of the new state; fills da, returns the gradient of the old c.
  template <class A>
  static DLA_HOST_DEVICE A step_bwd(const A* a, State<A>, State<A> ds, A* da) {
    da[0] = Tanh::grad(a[0], ds.h);
    return A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE A output_bwd(const A* a, State<A> s, A dd, A* da) {
    return step_bwd(a, s, {dd, A(0)}, da);
  }
};

}  // namespace dla
