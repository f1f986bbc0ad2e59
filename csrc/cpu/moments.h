// Mean and biased variance of each channel over batch and pixels, from those of each sample: no large numbers
// cancel, and samples are taken in one fixed order.
#pragma once

#include "maps.h"
#include "tensors.h"

namespace dla {
namespace cpu {

template <class T>
class Moments {
 public:
  using A = accumulate_t<T>;

  Moments(bool wanted, int64_t B, int64_t C, int64_t HW) : B_(B), C_(C), HW_(HW) {
    if (wanted) rows_ = Matrix<A>(2 * B, C);
  }
  // Of channels c0 .. c1 of sample b, as they now are.
  void take(const MapView<T>& o, int64_t b, int64_t c0, int64_t c1) const {
    if (!rows_.exists()) return;
    const Plane<T> plane = sample(o, b).channels(c0, c1);
    const Plane<const T> written{plane.data, plane.C, plane.HW, plane.sc, plane.sp};
    map_kernels<T>().mean(written, rows_[b] + c0);
    map_kernels<T>().spread(written, rows_[b] + c0, rows_[B_ + b] + c0);
  }
  // [moments], or [] where nobody wanted them
  Tensors finish() const {
    if (!rows_.exists()) return {};
    const Tensor moments = empty<A>({2, C_});
    A* out = write<A>(moments);
    for (int64_t c = 0; c < C_; ++c) {
      double mean = 0, spread = 0;
      for (int64_t b = 0; b < B_; ++b) mean += rows_[b][c];
      mean /= double(B_);
      for (int64_t b = 0; b < B_; ++b) {
        const double off = rows_[b][c] - mean;
        spread += rows_[B_ + b][c] + double(HW_) * off * off;
      }
      out[c] = A(mean), out[C_ + c] = A(spread / double(B_ * HW_));
    }
    return {moments};
  }

 private:
  const int64_t B_, C_, HW_;
  Matrix<A> rows_;  // [2 * B, C]: means, then spreads
};

}  // namespace cpu
}  // namespace dla
