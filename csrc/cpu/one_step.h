// What a cell makes of the mean of one map: a step, and what it shows then. One class for each way from y to gates.
#pragma once

#include <memory>
#include <string>

#include "bottleneck.h"
#include "cell_call.h"
#include "heads.h"
#include "light_scan.h"
#include "recurrence_bwd.h"

namespace dla {
namespace cpu {

// Rows are those of samples b0 .. b0 + nb throughout, contiguous; states [B, C] each, as they are saved.
template <class A>
class OneStep {
 public:
  const int64_t B, C;

  OneStep(int64_t B, int64_t C) : B(B), C(C) {}
  virtual ~OneStep() = default;
  // Whether the weights outgrow a core's cache, so that all samples are best taken at once.
  virtual bool wide() const { return false; }
  virtual size_t num_states() const { return 0; }
  // From y [nb, C]: the new state, and shown [nb, C].
  virtual void forward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors& states, Rows<A> shown) const = 0;
  // shown again, and from its gradient and that of the new state (dstates may be empty) dy; all [nb, C].
  virtual void backward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors& states, const Tensors& dstates,
                        Rows<const A> dshown, Rows<A> shown, Rows<A> dy) const = 0;
  // After backward of all samples, in the order of weights and of the state.
  virtual Tensors weight_gradients() const = 0;
  virtual Tensors state_gradients() const { return {}; }

  // f(b0, nb) over blocks of samples
  template <class F>
  void blocks(F f) const {
    if (wide() && B > 0) return f(0, B);
    Blocks(B, 8 * C * int64_t(sizeof(A))).run(f);
  }
};

// ---- a recurrence, of one layer ----

template <class A>
class RecurrentStep : public OneStep<A> {
 public:
  using OneStep<A>::B, OneStep<A>::C;

  RecurrentStep(const Tensors& weights, const Tensors& state, const std::string& rule, int64_t B, int64_t C,
                const Tensor& like, bool backward)
      : OneStep<A>(B, C), call_(weights, state, rule, /*may_start=*/true, /*T=*/1, B, C, like) {
    if (backward) bwd_ = std::make_unique<RecurrenceBwd<A>>(call_.cell, B, /*has_scan=*/true, /*has_refresh=*/false);
  }
  bool wide() const override { return call_.cell.wide; }
  size_t num_states() const override { return call_.num_states(); }

  void forward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors& states, Rows<A> shown) const override {
    const Recurrence<A>& cell = call_.cell;
    const States<A> all = call_.states_of(states);
    const Matrix<A> h = cell.scan(b0, nb, cell.hoist(nb, y), call_.start, all);
    call_.rule.show(nb, C, h.rows, all.c_at(0, b0), shown);
  }
  void backward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors& states, const Tensors& dstates,
                Rows<const A> dshown, Rows<A> shown, Rows<A> dy) const override {
    const States<A> all = call_.states_of(states);
    call_.rule.show(nb, C, all.h_at(0, b0), all.c_at(0, b0), shown);
    auto block = bwd_->begin(b0, nb, y);
    call_.rule.show_bwd(nb, C, all.c_at(0, b0), dshown, block.dh, block.dc);
    bwd_->scan(block, call_.start, all, call_.states_of(dstates));
    std::copy_n(bwd_->finish(block)[0], nb * C, dy.data);
  }
  Tensors weight_gradients() const override { return bwd_->weight_gradients(); }
  Tensors state_gradients() const override { return bwd_->state_gradients(call_.start); }

 private:
  const CellCall<A> call_;
  std::unique_ptr<RecurrenceBwd<A>> bwd_;
};

// ---- y alone through a bottleneck, of which sig is shown ----

// sig of rows, as one kind of cell shows it of its memory
template <class A>
const RuleKernels<A>& sigmoid_of_rows() {
  return find_rule<A>("dsu-sigmoid-sigmoid");
}
template <class A>
void sigmoid_bwd(int64_t nb, int64_t C, Rows<const A> a, Rows<const A> dshown, Rows<A> da) {
  const Matrix<A> unused(nb, C);
  std::fill_n(unused[0], nb * C, A(0)), std::fill_n(da.data, nb * C, A(0));
  sigmoid_of_rows<A>().show_bwd(nb, C, a, dshown, unused.rows, da);
}

template <class A>
class SqueezeStep : public OneStep<A> {
 public:
  using OneStep<A>::B, OneStep<A>::C;

  SqueezeStep(const Tensors& weights, int64_t B, int64_t C, const Tensor& like, bool backward)
      : OneStep<A>(B, C), bottleneck_(weights, B, C, like, backward) {}
  bool wide() const override { return bottleneck_.wide; }

  void forward(int64_t, int64_t nb, Rows<const A> y, const Tensors&, Rows<A> shown) const override {
    const Matrix<A> u(nb, bottleneck_.R), s(nb, C);
    bottleneck_.forward(nb, y, u.rows, s.rows);
    sigmoid_of_rows<A>().show(nb, C, {}, s.rows, shown);
  }
  void backward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors&, const Tensors&, Rows<const A> dshown,
                Rows<A> shown, Rows<A> dy) const override {
    const Matrix<A> s(nb, C), ds(nb, C);
    bottleneck_.forward_again(b0, nb, y, s.rows);
    sigmoid_of_rows<A>().show(nb, C, {}, s.rows, shown);
    sigmoid_bwd<A>(nb, C, s.rows, dshown, ds.rows);
    bottleneck_.backward(b0, nb, ds.rows, dy);
  }
  Tensors weight_gradients() const override { return bottleneck_.weight_gradients(); }

 private:
  const Bottleneck<A> bottleneck_;
};

// ---- a filter over the channels ----

template <class A>
class TapsStep : public OneStep<A> {
 public:
  using OneStep<A>::B, OneStep<A>::C;

  TapsStep(const Tensors& weights, int64_t B, int64_t C, const Tensor& like, bool backward)
      : OneStep<A>(B, C), filter_(checked(weights, like), C) {
    if (backward) dtaps_ = Matrix<A>(B, filter_.K);
  }

  void forward(int64_t, int64_t nb, Rows<const A> y, const Tensors&, Rows<A> shown) const override {
    const Matrix<A> a(nb, C);
    for (int64_t b = 0; b < nb; ++b) filter_(y[b], a[b]);
    sigmoid_of_rows<A>().show(nb, C, {}, a.rows, shown);
  }
  void backward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors&, const Tensors&, Rows<const A> dshown,
                Rows<A> shown, Rows<A> dy) const override {
    const Matrix<A> a(nb, C), da(nb, C);
    for (int64_t b = 0; b < nb; ++b) filter_(y[b], a[b]);
    sigmoid_of_rows<A>().show(nb, C, {}, a.rows, shown);
    sigmoid_bwd<A>(nb, C, a.rows, dshown, da.rows);
    std::fill_n(dy.data, nb * C, A(0));
    for (int64_t b = 0; b < nb; ++b) filter_.backward(y[b], da[b], dy[b], dtaps_[b0 + b]);
  }
  Tensors weight_gradients() const override { return {sum_of_parts(dtaps_, B, filter_.K)}; }

 private:
  const ChannelFilter<A> filter_;
  Matrix<A> dtaps_;

  static const Tensor& checked(const Tensors& weights, const Tensor& like) {
    check_taps(weights, dtype_of<A>(), like);
    return weights[0];
  }
};

// ---- a bottleneck, and then elementwise ----

template <class A>
class LightCellStep : public OneStep<A> {
 public:
  using OneStep<A>::B, OneStep<A>::C;

  LightCellStep(const Tensors& weights, const Tensors& state, const std::string& rule, int64_t B, int64_t C,
                const Tensor& like, bool backward)
      : OneStep<A>(B, C),
        bottleneck_({weights.begin(), weights.begin() + 4}, B, C, like, backward),
        cell_({weights.begin() + 4, weights.end()}, state, rule, /*T=*/1, B, C, like, backward),
        s_(B, C) {}
  bool wide() const override { return bottleneck_.wide; }
  size_t num_states() const override { return cell_.num_states(); }

  void forward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors& states, Rows<A> shown) const override {
    const Matrix<A> u(nb, bottleneck_.R);
    bottleneck_.forward(nb, y, u.rows, s_.rows.from(b0));
    const States<A> all = cell_.states_of(states);
    cell_.forward(b0, nb, s_[0], all);
    cell_.rule.show(nb, C, all.h_at(0, b0), all.c_at(0, b0), shown);
  }
  void backward(int64_t b0, int64_t nb, Rows<const A> y, const Tensors& states, const Tensors& dstates,
                Rows<const A> dshown, Rows<A> shown, Rows<A> dy) const override {
    const States<A> all = cell_.states_of(states);
    cell_.rule.show(nb, C, all.h_at(0, b0), all.c_at(0, b0), shown);
    bottleneck_.forward_again(b0, nb, y, s_.rows.from(b0));
    cell_.rule.show_bwd(nb, C, all.c_at(0, b0), dshown, cell_.dh(b0), cell_.dc(b0));
    const Matrix<A> ds(B, C);
    cell_.backward(b0, nb, s_[0], all, cell_.states_of(dstates), ds[0]);
    bottleneck_.backward(b0, nb, ds.rows.from(b0), dy);
  }
  Tensors weight_gradients() const override {
    Tensors out = bottleneck_.weight_gradients();
    for (const Tensor& w : cell_.weight_gradients(s_[0])) out.push_back(w);
    return out;
  }
  Tensors state_gradients() const override { return cell_.state_gradients(); }

 private:
  const Bottleneck<A> bottleneck_;
  const LightScan<A> cell_;
  const Matrix<A> s_;  // [B, C]
};

// ---- by the name of the rule, and the number of weights ----

template <class A>
std::unique_ptr<OneStep<A>> one_step(const Tensors& weights, const Tensors& state, const std::string& rule, int64_t B,
                                     int64_t C, const Tensor& like, bool backward) {
  if (rule == "se" || rule == "eca") {
    STD_TORCH_CHECK(state.empty(), "state: expected none with rule ", rule, ", got ", state.size(), " tensors");
    STD_TORCH_CHECK(!weights.empty(), "weights: expected those of ", rule, ", got none");
    if (rule == "se") return std::make_unique<SqueezeStep<A>>(weights, B, C, like, backward);
    return std::make_unique<TapsStep<A>>(weights, B, C, like, backward);
  }
  if (is_light(weights)) return std::make_unique<LightCellStep<A>>(weights, state, rule, B, C, like, backward);
  return std::make_unique<RecurrentStep<A>>(weights, state, rule, B, C, like, backward);
}

}  // namespace cpu
}  // namespace dla
