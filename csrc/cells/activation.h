// The squashing functions a cell is built from: value(x) and grad(x, dy) = d value/dx * dy.
// A is an accumulate type: float, double, or a SIMD vector of either.
#pragma once

#include "math.h"

namespace dla {

struct Sigmoid {
  template <class A>
  static DLA_HOST_DEVICE A value(A x) {
    return sigmoid(x);
  }
  template <class A>
  static DLA_HOST_DEVICE A grad(A x, A dy) {
    const A s = sigmoid(x);
    return dy * s * (A(1) - s);
  }
};

struct Tanh {
  template <class A>
  static DLA_HOST_DEVICE A value(A x) {
    return tanh(x);
  }
  template <class A>
  static DLA_HOST_DEVICE A grad(A x, A dy) {
    const A t = tanh(x);
    return dy * (A(1) - t * t);
  }
};

struct Relu {
  template <class A>
  static DLA_HOST_DEVICE A value(A x) {
    return relu(x);
  }
  template <class A>
  static DLA_HOST_DEVICE A grad(A x, A dy) {
    return relu_grad(x, dy);
  }
};

struct Identity {
  template <class A>
  static DLA_HOST_DEVICE A value(A x) {
    return x;
  }
  template <class A>
  static DLA_HOST_DEVICE A grad(A, A dy) {
    return dy;
  }
};

}  // namespace dla
