// A plane by a warp, which is what rung 3 adds: its lanes read neighbours in memory, and add up by shuffles.
#pragma once

#include "common.h"

namespace ladder {

// N neighbours, which one instruction reads.
template <int N>
struct alignas(N * sizeof(float)) Vector {
  float v[N];
};

// Of x [HW], a plane, in every lane of the warp.
template <int N>
DLA_DEVICE float sum_of_plane(const float* x, int HW) {
  float sum = 0;
  for (int i = thread_index() % kWarp; i < HW / N; i += kWarp) {
    const Vector<N> some = reinterpret_cast<const Vector<N>*>(x)[i];
    for (int j = 0; j < N; ++j) sum += some.v[j];
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// out [HW] = x [HW] * d, by the lanes of a warp.
template <int N>
DLA_DEVICE void scale_plane(const float* x, float d, float* out, int HW) {
  for (int i = thread_index() % kWarp; i < HW / N; i += kWarp) {
    Vector<N> some = reinterpret_cast<const Vector<N>*>(x)[i];
    for (int j = 0; j < N; ++j) some.v[j] *= d;
    reinterpret_cast<Vector<N>*>(out)[i] = some;
  }
}

}  // namespace ladder
