// dsu:  c' = sig(f) c + sig(i) tanh(g),  h' = act(c'),  output c' (paper) or sig(c') (released)
#pragma once

#include <type_traits>

#include "state.h"

namespace dla {

template <class Act, class Out>
struct Dsu {
  static constexpr int NG = 3;
  static constexpr bool kSavesH = false, kSavesC = true;  // h is recomputed from c

  // Without an initial state c = 0; the paper then feeds act(0), the released code feeds 0.
  template <class A>
  static DLA_HOST_DEVICE A start_h() {
    return std::is_same<Out, Identity>::value ? Act::value(A(0)) : A(0);
  }
  template <class A>
  static DLA_HOST_DEVICE A feed(A c) {
    return Act::value(c);
  }
  template <class A>
  static DLA_HOST_DEVICE A feed_bwd(A c, A dh) {
    return Act::grad(c, dh);
  }
  template <class A>
  static DLA_HOST_DEVICE State<A> step(const A* a, State<A> s) {
    const A c = Memory::step(a, s.c);
    return {Act::value(c), c};
  }
  template <class A>
  static DLA_HOST_DEVICE A output(State<A> s) {
    return Out::value(s.c);
  }
  template <class A>
  static DLA_HOST_DEVICE A step_bwd(const A* a, State<A> s, State<A> ds, A* da) {
    const A c = Memory::step(a, s.c);
    return Memory::step_bwd(a, s.c, ds.c + Act::grad(c, ds.h), da);
  }
  // The output is read off c, so nothing arrives at h.
  template <class A>
  static DLA_HOST_DEVICE A output_bwd(const A* a, State<A> s, A dd, A* da) {
    return Memory::step_bwd(a, s.c, Out::grad(Memory::step(a, s.c), dd), da);
  }
};

}  // namespace dla
