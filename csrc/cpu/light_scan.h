// The recurrence of a light cell, a = wy s + wh h + b: elementwise, so that all it does to a sample is one pass.
#pragma once

#include <string>

#include "recurrence.h"

namespace dla {
namespace cpu {

template <class A>
class LightScan {
 public:
  const RuleKernels<A>& rule;
  const int64_t T, B, C, N;

  // weights: wy, wh, b. backward: whether there is to be a backward pass.
  LightScan(const Tensors& weights, const Tensors& state, const std::string& name, int64_t T, int64_t B, int64_t C,
            const Tensor& like, bool backward)
      : rule(find_rule<A>(name)),
        T(T),
        B(B),
        C(C),
        N(rule.NG * C),
        held_(checked(weights, state, like)),
        wy_(read<A>(held_[0])),
        wh_(read<A>(held_[1])),
        b_(read<A>(held_[2])),
        start_(state, rule, C) {
    if (!backward) return;
    da_ = Matrix<A>(T * B, N), h_ = Matrix<A>(T * B, C), dstate_ = Matrix<A>(2 * B, C);
    std::fill_n(dstate_[0], 2 * B * C, A(0));
  }

  size_t num_states() const { return size_t(rule.saves_h + rule.saves_c); }
  States<A> states_of(const Tensors& tensors) const {
    States<A> states{nullptr, nullptr, B, C};
    if (tensors.empty()) return states;
    if (rule.saves_h) states.h = write<A>(tensors.front());
    if (rule.saves_c) states.c = write<A>(tensors.back());
    return states;
  }
  // What has arrived at the last state of samples b0 on: [nb, C] each.
  Rows<A> dh(int64_t b0) const { return dstate_.rows.from(b0); }
  Rows<A> dc(int64_t b0) const { return dstate_.rows.from(B + b0); }

  // From s [T, B, C] to states, of samples b0 .. b0 + nb.
  void forward(int64_t b0, int64_t nb, const A* s, const States<A>& states) const {
    const Matrix<A> a(nb, N), fed(nb, C);
    Rows<const A> h = start_.h(b0), c = rule.saves_c ? start_.c(b0) : Rows<const A>{};
    for (int64_t t = 0; t < T; ++t) {
      gates(nb, layer(s, t, b0), h, a.rows);
      const Rows<A> h_new = rule.saves_h ? states.h_at(t, b0) : fed.rows, c_new = states.c_at(t, b0);
      rule.step(nb, C, C, a.rows, h, c, h_new, c_new, {});
      h = h_new, c = c_new;
    }
  }
  // The same back: dh and dc become the gradients of the state before. ds [T, B, C]
  void backward(int64_t b0, int64_t nb, const A* s, const States<A>& states, const States<A>& dstates, A* ds) const {
    for (int64_t t = T - 1; t >= 0; --t) {
      add(nb, dstates.h_at(t, b0), dh(b0)), add(nb, dstates.c_at(t, b0), dc(b0));
      const Rows<A> h = h_.rows.from(t * B + b0), a = da_.rows.from(t * B + b0);
      if (t > 0 && !rule.saves_h)
        rule.feed(nb, C, states.c_at(t - 1, b0), h);
      else
        copy(nb, t > 0 ? Rows<const A>(states.h_at(t - 1, b0)) : start_.h(b0), h);
      const Rows<const A> c = !rule.saves_c ? Rows<const A>{}
                              : t > 0       ? Rows<const A>(states.c_at(t - 1, b0))
                                            : start_.c(b0);
      gates(nb, layer(s, t, b0), h, a);
      rule.step_bwd(nb, C, C, a, h, c, dh(b0), dc(b0), a);
      through(nb, a, wy_, {ds + (t * B + b0) * C, C}), through(nb, a, wh_, dh(b0));
    }
  }
  // After backward of all samples: those of wy, wh and b, each summed over layers and samples in their order.
  Tensors weight_gradients(const A* s) const {
    const Tensors out{empty<A>({N}), empty<A>({N}), empty<A>({N})};
    A *const dwy = write<A>(out[0]), *const dwh = write<A>(out[1]), *const db = write<A>(out[2]);
    parallel_for(C, [&](int64_t begin, int64_t end) {
      for (int64_t g = 0; g < rule.NG; ++g) {
        for (A* sum : {dwy, dwh, db}) std::fill(sum + g * C + begin, sum + g * C + end, A(0));
        for (int64_t m = 0; m < T * B; ++m)
          for (int64_t c = begin, n = g * C + begin; c < end; ++c, ++n) {
            const A da = da_[m][n];
            dwy[n] += da * s[m * C + c], dwh[n] += da * h_[m][c], db[n] += da;
          }
      }
    });
    return out;
  }
  // The gradients of the state that was given, in the form in which it was.
  Tensors state_gradients() const {
    if (start_.from_c()) rule.feed_bwd(B, C, start_.c(0), dh(0), dc(0));
    Tensors out;
    for (size_t i = 0; i < start_.size; ++i) {
      out.push_back(empty<A>({B, C}));
      std::copy_n((i == 1 || start_.from_c() ? dc(0) : dh(0)).data, B * C, write<A>(out.back()));
    }
    return out;
  }

 private:
  const Tensors held_;
  const A *const wy_, *const wh_, *const b_;
  const Start<A> start_;
  Matrix<A> da_, h_;  // [T * B, N], [T * B, C]: gradients of gates, and what each layer's saw
  Matrix<A> dstate_;  // dh then dc, [2B, C]

  Tensors checked(const Tensors& weights, const Tensors& state, const Tensor& like) const {
    check_light_gates(weights, rule.NG, C, dtype_of<A>(), like);
    check_state("state", state, rule.saves_h, rule.saves_c, /*may_be_absent=*/true, B, C, dtype_of<A>(), like);
    return as_contiguous(weights);
  }
  Rows<const A> layer(const A* rows, int64_t t, int64_t b0) const { return {rows + (t * B + b0) * C, C}; }
  void gates(int64_t nb, Rows<const A> s, Rows<const A> h, Rows<A> a) const {
    for (int64_t b = 0; b < nb; ++b)
      for (int64_t g = 0; g < rule.NG; ++g)
        for (int64_t c = 0, n = g * C; c < C; ++c, ++n) a[b][n] = wy_[n] * s[b][c] + (wh_[n] * h[b][c] + b_[n]);
  }
  // to = sum over gates of da w
  void through(int64_t nb, Rows<const A> da, const A* w, Rows<A> to) const {
    for (int64_t b = 0; b < nb; ++b) {
      std::fill_n(to[b], C, A(0));
      for (int64_t g = 0; g < rule.NG; ++g)
        for (int64_t c = 0, n = g * C; c < C; ++c, ++n) to[b][c] += da[b][n] * w[n];
    }
  }
  void add(int64_t nb, Rows<A> from, Rows<A> to) const {
    for (int64_t b = 0; b < nb && from.data; ++b)
      for (int64_t c = 0; c < C; ++c) to[b][c] += from[b][c];
  }
  void copy(int64_t nb, Rows<const A> from, Rows<A> to) const {
    for (int64_t b = 0; b < nb; ++b) std::copy_n(from[b], C, to[b]);
  }
};

}  // namespace cpu
}  // namespace dla
