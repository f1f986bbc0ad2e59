// The state of a cell at one channel: h, what the projection sees next; c, the memory.
#pragma once

#include "activation.h"

namespace dla {

// step_bwd gets the state before: c alone of a cell that saves it, else h.
template <class A>
struct State {
  A h, c;
};

// The gated memory that LSTM, DIA and DSU share; a holds the gate rows i, f, g (, o):
//   c' = sig(f) c + sig(i) tanh(g)
struct Memory {
  template <class A>
  static DLA_HOST_DEVICE A step(const A* a, A c) {
    return sigmoid(a[1]) * c + sigmoid(a[0]) * tanh(a[2]);
  }

  // dc is the gradient of c'; fills da[0..2] and returns the gradient of c.
  template <class A>
  static DLA_HOST_DEVICE A step_bwd(const A* a, A c, A dc, A* da) {
    const A i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]);
    da[0] = dc * g * i * (A(1) - i);
    da[1] = dc * c * f * (A(1) - f);
    da[2] = dc * i * (A(1) - g * g);
    return dc * f;
  }
};

}  // namespace dla
