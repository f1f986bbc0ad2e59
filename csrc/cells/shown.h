// Where the gradient of what a cell shows of its state goes: to h, but for a dsu, whose output is read off c.
#pragma once

#include "dsu.h"

namespace dla {

template <class Rule>
struct OutputGrad {
  template <class A>
  static DLA_HOST_DEVICE State<A> of(State<A>, A dd) {
    return {dd, A(0)};
  }
};
template <class Act, class Out>
struct OutputGrad<Dsu<Act, Out>> {
  template <class A>
  static DLA_HOST_DEVICE State<A> of(State<A> s, A dd) {
    return {A(0), Out::grad(s.c, dd)};
  }
};

// The gradient of state s where dd arrives at Rule::output(s).
template <class Rule, class A>
DLA_HOST_DEVICE State<A> output_grad(State<A> s, A dd) {
  return OutputGrad<Rule>::of(s, dd);
}

}  // namespace dla
