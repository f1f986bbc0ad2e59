// y alone through a bottleneck.
#pragma once

#include "../checks.h"
#include "products.h"
#include "weight_products.h"

namespace dla {
namespace cpu {

// s = W2 relu(W1 y + b1) + b2, either bias absent, and its gradients.
template <class A>
class Bottleneck : public Products<A> {
 public:
  using Products<A>::axpys, Products<A>::dots;
  const int64_t C, R;

  // M: how many rows there are in all.
  Bottleneck(const Tensors& weights, int64_t M, int64_t C, const Tensor& like, bool backward)
      : Products<A>(2 * weights[0].numel() * int64_t(sizeof(A))),
        C(C),
        R(checked(weights, C, like)[0].size(0)),
        M_(M),
        held_(as_contiguous(weights)) {
    const SqueezePlaces in = in_squeeze(held_);
    const auto at = [&](int i) { return i < 0 ? nullptr : read<A>(held_[size_t(i)]); };
    w1_ = at(in.w1), b1_ = at(in.b1), w2_ = at(in.w2), b2_ = at(in.b2);
    if (backward) y_ = Matrix<A>(M, C), ds_ = Matrix<A>(M, C), u_ = Matrix<A>(M, R), du_ = Matrix<A>(M, R);
  }

  // f(m0, M) over blocks of rows, or all of them where the weights outgrow a core's cache.
  template <class F>
  void blocks(F f) const {
    if (this->wide && M_ > 0) return f(0, M_);
    Blocks(M_, 4 * C * int64_t(sizeof(A))).run(f);
  }
  // Of nb rows.
  void forward(int64_t nb, Rows<const A> y, Rows<A> u, Rows<A> s) const {
    dots(nb, R, C, y, {w1_, C}, {b1_, 0}, u);
    relu_(nb * R, u.data);
    dots(nb, C, R, u, {w2_, R}, {b2_, 0}, s);
  }
  // Of a forward pass whose gradients will be wanted: keeps what they need.
  void forward_again(int64_t m0, int64_t nb, Rows<const A> y, Rows<A> s) const {
    std::copy_n(y.data, nb * C, y_[m0]);
    forward(nb, y, u_.rows.from(m0), s);
  }
  void backward(int64_t m0, int64_t nb, Rows<const A> ds, Rows<A> dy) const {
    std::copy_n(ds.data, nb * C, ds_[m0]);
    const Rows<A> du = du_.rows.from(m0);
    axpys(nb, R, C, ds, {w2_, R}, du);
    mask<A>(nb, R, u_.rows.from(m0), du);
    axpys(nb, C, R, du, {w1_, C}, dy);
  }
  Tensors weight_gradients() const {
    WeightProducts<A> products;
    Tensors out{products.made({R, C}, {{du_.rows, y_.rows, M_}})};
    if (b1_) out.push_back(products.column_sums(M_, du_.rows, R));
    out.push_back(products.made({C, R}, {{ds_.rows, u_.rows, M_}}));
    if (b2_) out.push_back(products.column_sums(M_, ds_.rows, C));
    products.run();
    return out;
  }

 private:
  static const Tensors& checked(const Tensors& weights, int64_t C, const Tensor& like) {
    check_squeeze(weights, C, dtype_of<A>(), like);
    return weights;
  }
  const int64_t M_;
  const Tensors held_;
  const A *w1_, *b1_, *w2_, *b2_;
  Matrix<A> y_, u_, ds_, du_;
};

}  // namespace cpu
}  // namespace dla
