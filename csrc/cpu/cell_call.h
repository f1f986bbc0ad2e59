// The cell of a call: its weights and state, checked, and the recurrence that they make over T layers of B samples.
#pragma once

#include <string>

#include "recurrence.h"

namespace dla {
namespace cpu {

template <class A>
struct CellCall {
  const int64_t T, B, C;
  const RuleKernels<A>& rule;
  const CellWeights<A> weights;
  const Recurrence<A> cell;
  const Start<A> start;  // the state before the first layer, or the one that a refresh is given

  // may_start: without a state it starts by itself.
  CellCall(const Tensors& weights, const Tensors& state, const std::string& name, bool may_start, int64_t T, int64_t B,
           int64_t C, const Tensor& like)
      : T(T),
        B(B),
        C(C),
        rule(checked_rule(weights, state, name, may_start, B, C, like)),
        weights(weights, C, rule),
        cell(rule, this->weights, T),
        start(state, rule, C) {}

  // f(b0, nb) over blocks of samples, one after another within a thread.
  template <class F>
  void blocks(F f) const {
    cell.blocks(B, f);
  }
  Matrix<A> scratch(int64_t nb) const { return {nb * T, C}; }  // sample-major rows of one block
  // y [T, B, C] to sample-major rows [nb * T, C] of one block, and back.
  Matrix<A> gather(int64_t b0, int64_t nb, const Tensor& y) const {
    Matrix<A> rows = scratch(nb);
    const A* const from = read<A>(y);
    for (int64_t b = 0; b < nb; ++b)
      for (int64_t t = 0; t < T; ++t) std::copy_n(from + (t * B + b0 + b) * C, C, rows[b * T + t]);
    return rows;
  }
  void scatter(int64_t b0, int64_t nb, const Matrix<A>& rows, const Tensor& y) const {
    A* const to = write<A>(y);
    for (int64_t b = 0; b < nb; ++b)
      for (int64_t t = 0; t < T; ++t) std::copy_n(rows[b * T + t], C, to + (t * B + b0 + b) * C);
  }

  // ---- states as they are saved, of each layer ----

  size_t num_states() const { return size_t(rule.saves_h + rule.saves_c); }
  Tensors empty_states(const std::vector<int64_t>& shape) const {
    Tensors states;
    for (size_t i = 0; i < num_states(); ++i) states.push_back(empty<A>(shape));
    return states;
  }
  void check(const char* name, const Tensors& states, bool may_be_absent, const std::vector<int64_t>& shape,
             const Tensor& like) const {
    check_states(name, states, num_states(), may_be_absent, shape, dtype_of<A>(), like);
  }
  States<A> states_of(const Tensors& tensors) const {
    States<A> states{nullptr, nullptr, B, C};
    if (tensors.empty()) return states;
    if (rule.saves_h) states.h = write<A>(tensors.front());
    if (rule.saves_c) states.c = write<A>(tensors.back());
    return states;
  }

 private:
  static const RuleKernels<A>& checked_rule(const Tensors& weights, const Tensors& state, const std::string& name,
                                            bool may_start, int64_t B, int64_t C, const Tensor& like) {
    const RuleKernels<A>& rule = find_rule<A>(name);
    check_weights(weights, rule.NG, C, dtype_of<A>(), like);
    check_state("state", state, rule.saves_h, rule.saves_c, may_start, B, C, dtype_of<A>(), like);
    return rule;
  }
};

// f(call, y) for the cell over given rows y [T, B, C], contiguous.
template <class F>
auto over_rows(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& name,
               bool may_start, F f) {
  check_rows("y", y_in);
  const Tensor y = as_contiguous(y_in);
  return dispatch_rows(y.scalar_type(), [&](auto element) {
    using A = decltype(element);
    return f(CellCall<A>(weights, state, name, may_start, y.size(0), y.size(1), y.size(2), y), y);
  });
}

}  // namespace cpu
}  // namespace dla
