// Vectors along the rows of a planar map, with the neighbours of their pixels to the left and right, zeros beyond the
// row. A strip is the columns of one vector. Narrow rows fill half of one: then it takes those of two planes.
#pragma once

#include "../microkernels.h"
#include "simd.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

// Lane i of the result is lane at[i] of x; zero where at[i] = kLanes.
template <class A>
DLA_HOST_DEVICE Vec<A> permute(Vec<A> x, typename Vec<A>::Mask at) {
  Vec<A> r = A(0);
  for (int i = 0; i < Vec<A>::kLanes; ++i)
    if (at[i] < Vec<A>::kLanes) r.v[i] = x.v[at[i]];
  return r;
}
// The lower halves of two, and the upper half of one in the lower one's place.
template <class A>
DLA_HOST_DEVICE Vec<A> join(Vec<A> low, Vec<A> high) {
  for (int i = 0, half = Vec<A>::kLanes / 2; i < half; ++i) low.v[half + i] = high.v[i];
  return low;
}
template <class A>
DLA_HOST_DEVICE Vec<A> upper_half(Vec<A> x) {
  for (int i = 0, half = Vec<A>::kLanes / 2; i < half; ++i) x.v[i] = x.v[half + i];
  return x;
}
#if defined(__AVX512F__)
template <>
DLA_HOST_DEVICE Vec<float> permute<float>(Vec<float> x, Vec<float>::Mask at) {
  return Vec<float>::Lanes(_mm512_permutex2var_ps((__m512)x.v, (__m512i)at, _mm512_setzero_ps()));
}
template <>
DLA_HOST_DEVICE Vec<float> join<float>(Vec<float> low, Vec<float> high) {
  return Vec<float>::Lanes(_mm512_insertf32x8((__m512)low.v, _mm512_castps512_ps256((__m512)high.v), 1));
}
template <>
DLA_HOST_DEVICE Vec<float> upper_half<float>(Vec<float> x) {
  return Vec<float>::Lanes(_mm512_shuffle_f32x4((__m512)x.v, (__m512)x.v, 0xee));
}
#elif defined(__AVX2__)
template <>
DLA_HOST_DEVICE Vec<float> permute<float>(Vec<float> x, Vec<float>::Mask at) {
  const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), (__m256i)at);
  return Vec<float>::Lanes(
      _mm256_and_ps(_mm256_permutevar8x32_ps((__m256)x.v, (__m256i)at), _mm256_castsi256_ps(there)));
}
template <>
DLA_HOST_DEVICE Vec<float> join<float>(Vec<float> low, Vec<float> high) {
  return Vec<float>::Lanes(_mm256_permute2f128_ps((__m256)low.v, (__m256)high.v, 0x20));
}
template <>
DLA_HOST_DEVICE Vec<float> upper_half<float>(Vec<float> x) {
  return Vec<float>::Lanes(_mm256_permute2f128_ps((__m256)x.v, (__m256)x.v, 0x11));
}
#endif

// The columns j .. j + n of each row; of kPlanes = 2 planes, whose rows are no wider than half a vector, all of them.
template <int kPlanes, class T>
class Strip {
 public:
  using A = accumulate_t<T>;
  using V = Vec<A>;
  static constexpr int kLanes = V::kLanes, kHalf = kLanes / 2, kRoom = kPlanes == 2 ? kHalf : kLanes;
  static constexpr int planes = kPlanes;
  const bool first, last;  // of its row

  Strip(int64_t W, int64_t j = 0)
      : first(j == 0), last(j + kRoom >= W), j_(j), n_(last ? int(W - j) : kRoom), lanes_(n_ == kLanes ? 0 : n_) {
    typename V::Mask lane, column;
    for (int i = 0; i < kLanes; ++i) lane[i] = i, column[i] = i % kRoom;
    const typename V::Mask none = kLanes - lane + lane;
    left_ = (column > 0) & (column < n_) ? lane - 1 : none;
    right_ = column + 1 < n_ ? lane + 1 : none;
  }

  // The pixels of a row; those of the other plane lie `plane` further. Lanes without a pixel are zero.
  DLA_HOST_DEVICE V pixels(const T* row, int64_t plane) const {
    if constexpr (kPlanes == 2) return join(load_n(row, n_), load_n(row + plane, n_));
    return read(row + j_, lanes_);
  }
  // x: of each pixel, plus shift, the left neighbour, itself, the right one.
  DLA_HOST_DEVICE void neighbours(const T* row, int64_t plane, V shift, V* x) const {
    x[1] = pixels(row, plane) + shift;
    if (kPlanes == 1 && !first && lanes_ == 0) {
      x[0] = load(row + j_ - 1) + shift;
    } else {
      x[0] = permute(x[1], left_);
      if (kPlanes == 1 && !first) x[0].v[0] = widen(row[j_ - 1]) + shift.v[0];
    }
    x[2] = kPlanes == 2 || last ? permute(x[1], right_) : load(row + j_ + 1) + shift;
  }
  DLA_HOST_DEVICE void put(T* row, int64_t plane, V x) const {
    if constexpr (kPlanes == 2) return store_n(row, x, n_), store_n(row + plane, upper_half(x), n_);
    write(row + j_, x, lanes_);
  }
  // done(i, the sums of x[i] over the lanes of each plane) for i < n.
  template <class F>
  static DLA_HOST_DEVICE void lane_sums(const V* x, int n, F done) {
    for (int i = 0; i < n; i += 4) {
      V four[4] = {x[i], A(0), A(0), A(0)};
      for (int k = 1; k < 4 && i + k < n; ++k) four[k] = x[i + k];
      A sums[kPlanes][4];
      if constexpr (kPlanes == 2)
        half_sum4(four, sums[0], sums[1]);
      else
        lane_sum4(four, sums[0]);
      for (int k = 0; k < 4 && i + k < n; ++k) {
        const A of_planes[2] = {sums[0][k], sums[kPlanes - 1][k]};
        done(i + k, of_planes);
      }
    }
  }
  // What its planes have each one of, in the lanes of each.
  static DLA_HOST_DEVICE V of_planes(const A* each) { return kPlanes == 2 ? join(V(each[0]), V(each[1])) : V(each[0]); }

 private:
  const int64_t j_;
  const int n_, lanes_;  // lanes_: as for read and write, 0 for all
  typename V::Mask left_, right_;
};

// f(c, strip) for all strips of all planes: of channel c, or of c and c + 1.
template <class T, class F>
DLA_HOST_DEVICE void for_strips(int64_t C, int64_t W, F f) {
  using Two = Strip<2, T>;
  int64_t c = 0;
  if constexpr (Quads<accumulate_t<T>>::kCount > 1)
    if (W <= Two::kHalf)
      for (const Two strip(W); c + 2 <= C; c += 2) f(c, strip);
  for (; c < C; ++c)
    for (int64_t j = 0; j < W; j += Two::kLanes) f(c, Strip<1, T>(W, j));
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
