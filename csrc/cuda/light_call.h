// The gates of a light cell in a call, and the gradients of their weights.
#pragma once

#include "held.h"
#include "light_scan_args.h"
#include "weight_gradients.h"

namespace dla {
namespace cuda {

// From wy, wh, b, the last three of weights, each [NG*C].
template <class A>
LightGates<A> light_gates(const Tensors& weights) {
  const auto at = [&](size_t from_last) { return data<A>(weights[weights.size() - from_last]); };
  return {at(3), at(2), at(1)};
}

// The sums over the batch, N = NG*C numbers each, of what the samples contribute.
template <class A>
class LightGradients {
 public:
  LightFactors<A> factors{};

  LightGradients(int64_t B, int64_t N, const Tensor& like) : B_(B), N_(N) {
    for (A** factor : {&factors.dwy, &factors.dwh, &factors.db}) held_.want(*factor, B * N);
    held_.allocate(like);
  }
  // To the last three of dweights.
  void add_to(WeightGradients<A>& products, const Tensors& dweights) const {
    const LightGates<A> to = light_gates<A>(dweights);
    products.add_column_sums(const_cast<A*>(to.wy), N_, factors.dwy, N_, B_);
    products.add_column_sums(const_cast<A*>(to.wh), N_, factors.dwh, N_, B_);
    products.add_column_sums(const_cast<A*>(to.b), N_, factors.db, N_, B_);
  }

 private:
  int64_t B_, N_;
  Held<A> held_;
};

}  // namespace cuda
}  // namespace dla
