// Vec<A>: one native register of fp32 or fp64 lanes, with loads that widen 16-bit storage and stores
// that round it. This header is compiled once per instruction set; everything in it lives in the
// namespace DLA_ISA so that the copies never meet at link time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../../cells/cells.h"
#include "../../half.h"

#if defined(__AVX512F__)
#define DLA_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DLA_VECTOR_BYTES 32
#else
#define DLA_VECTOR_BYTES 16
#endif

namespace dla {
namespace cpu {
namespace DLA_ISA {

// The compiler's own vector types: N lanes, and as many integers to hold masks and bits.
template <class A>
struct Native;
template <>
struct Native<float> {
  typedef float Lanes __attribute__((vector_size(DLA_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(DLA_VECTOR_BYTES)));
};
template <>
struct Native<double> {
  typedef double Lanes __attribute__((vector_size(DLA_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(DLA_VECTOR_BYTES)));
};

template <int k>
struct Constant {
  static constexpr int value = k;
};

template <class A>
struct Vec {
  static constexpr int kLanes = DLA_VECTOR_BYTES / int(sizeof(A));
  using Lanes = typename Native<A>::Lanes;
  using Mask = typename Native<A>::Mask;

  Lanes v;

  Vec() = default;
  DLA_HOST_DEVICE Vec(Lanes lanes) : v(lanes) {}
  DLA_HOST_DEVICE Vec(A x) : v(x - Lanes{}) {}  // minus, not plus: keeps the sign of -0

  friend DLA_HOST_DEVICE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend DLA_HOST_DEVICE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend DLA_HOST_DEVICE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend DLA_HOST_DEVICE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  DLA_HOST_DEVICE Vec& operator+=(Vec b) { return v += b.v, *this; }
};

// a * b + c with one rounding wherever the machine can. Asked for outright where different paths must
// give the same bits: left to the compiler, one path is fused and another is not.
template <class A>
DLA_HOST_DEVICE Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return a * b + c;
}
#if defined(__AVX512F__)
template <>
DLA_HOST_DEVICE Vec<float> multiply_add<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>::Lanes(_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v));
}
template <>
DLA_HOST_DEVICE Vec<double> multiply_add<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>::Lanes(_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v));
}
#elif defined(__FMA__)
template <>
DLA_HOST_DEVICE Vec<float> multiply_add<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>::Lanes(_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v));
}
template <>
DLA_HOST_DEVICE Vec<double> multiply_add<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>::Lanes(_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v));
}
#endif

// Lane-wise choice; m is -1 (take a) or 0 (take b) in each lane.
template <class A>
DLA_HOST_DEVICE Vec<A> select(typename Vec<A>::Mask m, Vec<A> a, Vec<A> b) {
  return typename Vec<A>::Lanes(m ? a.v : b.v);
}

template <class A>
DLA_HOST_DEVICE Vec<A> relu(Vec<A> x) {
  return select<A>(x.v < Vec<A>(A(0)).v, A(0), x);
}
template <class A>
DLA_HOST_DEVICE Vec<A> relu_grad(Vec<A> x, Vec<A> dy) {
  return select<A>(x.v <= Vec<A>(A(0)).v, A(0), dy);
}
// NaN passes through both, as comparisons with it are false.
template <class A>
DLA_HOST_DEVICE Vec<A> at_most(Vec<A> x, A high) {
  return select<A>(x.v > Vec<A>(high).v, high, x);
}
template <class A>
DLA_HOST_DEVICE Vec<A> at_least(Vec<A> x, A low) {
  return select<A>(x.v < Vec<A>(low).v, low, x);
}
#if defined(__AVX512F__)  // one instruction each; with a NaN it returns its second operand
template <>
DLA_HOST_DEVICE Vec<float> at_most<float>(Vec<float> x, float high) {
  return Vec<float>::Lanes(_mm512_min_ps(_mm512_set1_ps(high), (__m512)x.v));
}
template <>
DLA_HOST_DEVICE Vec<float> at_least<float>(Vec<float> x, float low) {
  return Vec<float>::Lanes(_mm512_max_ps(_mm512_set1_ps(low), (__m512)x.v));
}
#endif

// exp(x) = 2^n (1 + tail) with tail = exp(r) - 1, |r| <= ln(2)/2.
struct SplitExp {
  Vec<float> n, tail;
};
DLA_HOST_DEVICE SplitExp split_exp(Vec<float> x) {
  const Vec<float> round_to_int = 12582912.0f;  // 1.5 * 2^23
  const Vec<float> n = x * Vec<float>(1.44269504088896341f) + round_to_int - round_to_int;
#if defined(__FMA__)
  const Vec<float> r = x - n * Vec<float>(0.69314718055994531f);
#else  // the product would round: take ln(2) in two parts, the first with bits to spare
  const Vec<float> r = x - n * Vec<float>(0.693145751953125f) - n * Vec<float>(1.42860682030941723e-6f);
#endif
  Vec<float> q = 0.0013948643f;  // (exp(r) - 1) / r, fitted: off by at most 2.5e-8
  q = q * r + Vec<float>(0.008369187f);
  q = q * r + Vec<float>(0.04166624f);
  q = q * r + Vec<float>(0.16666505f);
  q = q * r + Vec<float>(0.5f);
  q = q * r + Vec<float>(1.0f);
  return {n, q * r};
}
// x * 2^n for integer n in [-126, 127]
DLA_HOST_DEVICE Vec<float> scale_by_power(Vec<float> x, Vec<float> n) {
#if defined(__AVX512F__)
  return Vec<float>::Lanes(_mm512_scalef_ps((__m512)x.v, (__m512)n.v));
#else
  const Vec<float>::Mask exponent = (__builtin_convertvector(n.v, Vec<float>::Mask) + 127) << 23;
  return x * Vec<float>(Vec<float>::Lanes(exponent));
#endif
}
// 1/x to within an ulp or so: a quarter of a division's time where the machine gives 14 good bits to
// start from.
DLA_HOST_DEVICE Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  const Vec<float> guess = Vec<float>::Lanes(_mm512_rcp14_ps((__m512)x.v));
  return guess + guess * (Vec<float>(1.0f) - x * guess);
#else
  return Vec<float>(1.0f) / x;
#endif
}

DLA_HOST_DEVICE Vec<float> sigmoid(Vec<float> x) {
  const SplitExp e = split_exp(at_least(at_most(Vec<float>(0.0f) - x, 87.0f), -87.0f));
  return reciprocal(Vec<float>(1.0f) + scale_by_power(Vec<float>(1.0f) + e.tail, e.n));
}
// tanh |x| = 1 - 2 / (exp(2|x|) + 1) leaves only the rounding of the subtraction far from 0. Near 0 that
// would cancel: there it is x + x^3 P(x^2), fitted, off by at most 1.1e-8 of itself.
DLA_HOST_DEVICE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V::Mask sign = V::Mask(x.v) & int32_t(0x80000000);
  const V magnitude = V::Lanes(V::Mask(x.v) ^ sign);
  const SplitExp e = split_exp(at_most(magnitude + magnitude, 20.0f));
  const V r = reciprocal(scale_by_power(V(1.0f) + e.tail, e.n) + V(1.0f));
  const V z = magnitude * magnitude;
  V P = -0.00626912f;
  P = multiply_add(P, z, V(0.021110959f));
  P = multiply_add(P, z, V(-0.05387395f));
  P = multiply_add(P, z, V(0.13332915f));
  P = multiply_add(P, z, V(-0.3333333f));
  const V near_zero = multiply_add(magnitude * z, P, magnitude);
  const V result = select<float>(magnitude.v < V(0.6f).v, near_zero, multiply_add(V(-2.0f), r, V(1.0f)));
  return V::Lanes(V::Mask(result.v) | sign);
}

// fp64 is for checking, not for speed: the C library, lane by lane.
DLA_HOST_DEVICE Vec<double> sigmoid(Vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x.v[i] = 1.0 / (1.0 + ::exp(-x.v[i]));
  return x;
}
DLA_HOST_DEVICE Vec<double> tanh(Vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x.v[i] = ::tanh(x.v[i]);
  return x;
}

// ---- loads and stores -------------------------------------------------------------------------

template <class A>
DLA_HOST_DEVICE Vec<A> load(const A* p) {
  Vec<A> r;
  return memcpy(&r.v, p, sizeof r.v), r;
}
template <class A>
DLA_HOST_DEVICE void store(A* p, Vec<A> x) {
  memcpy(p, &x.v, sizeof x.v);
}

typedef uint16_t Bits16 __attribute__((vector_size(DLA_VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(DLA_VECTOR_BYTES)));

DLA_HOST_DEVICE Vec<float> load(const BFloat16* p) {
  Bits16 bits;
  memcpy(&bits, p, sizeof bits);
  return Vec<float>::Lanes(__builtin_convertvector(bits, Bits32) << 16);
}
DLA_HOST_DEVICE void store(BFloat16* p, Vec<float> x) {
  const Bits32 bits = Bits32(x.v);
  const Bits32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits32 nan = Bits32(x.v != x.v);
  const Bits16 out = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), Bits16);
  memcpy(p, &out, sizeof out);
}
DLA_HOST_DEVICE Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  return Vec<float>::Lanes(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)));
#elif defined(__F16C__)
  return Vec<float>::Lanes(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
#else
  Vec<float> r;
  for (int i = 0; i < Vec<float>::kLanes; ++i) r.v[i] = widen(p[i]);
  return r;
#endif
}
DLA_HOST_DEVICE void store(Half* p, Vec<float> x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Vec<float>::kLanes; ++i) p[i] = narrow<Half>(x.v[i]);
#endif
}

// The first n lanes, 0 < n < kLanes; the rest read as zero and are not touched in memory.
template <class T>
DLA_HOST_DEVICE Vec<accumulate_t<T>> load_n(const T* p, int n) {
  using V = Vec<accumulate_t<T>>;
  V r = accumulate_t<T>(0);
  for (int i = 0; i < n; ++i) r.v[i] = widen(p[i]);
  return r;
}
template <class T>
DLA_HOST_DEVICE void store_n(T* p, Vec<accumulate_t<T>> x, int n) {
  for (int i = 0; i < n; ++i) p[i] = narrow<T>(x.v[i]);
}
#if defined(__AVX512F__)
template <>
DLA_HOST_DEVICE Vec<float> load_n<float>(const float* p, int n) {
  return Vec<float>::Lanes(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
}
template <>
DLA_HOST_DEVICE void store_n<float>(float* p, Vec<float> x, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x.v);
}
template <>
DLA_HOST_DEVICE Vec<float> load_n<BFloat16>(const BFloat16* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
  return Vec<float>::Lanes((__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <>
DLA_HOST_DEVICE Vec<float> load_n<Half>(const Half* p, int n) {
  return Vec<float>::Lanes(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)));
}
template <>
DLA_HOST_DEVICE void store_n<BFloat16>(BFloat16* p, Vec<float> x, int n) {
  BFloat16 all[Vec<float>::kLanes];
  store(all, x);
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm256_loadu_si256((const __m256i*)all));
}
template <>
DLA_HOST_DEVICE void store_n<Half>(Half* p, Vec<float> x, int n) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm512_cvtps_ph((__m512)x.v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
DLA_HOST_DEVICE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
DLA_HOST_DEVICE Vec<float> load_n<float>(const float* p, int n) {
  return Vec<float>::Lanes(_mm256_maskload_ps(p, first_lanes(n)));
}
template <>
DLA_HOST_DEVICE void store_n<float>(float* p, Vec<float> x, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), (__m256)x.v);
}
#endif

// A full vector where lanes = 0, else the first so many lanes of one.
template <class T>
DLA_HOST_DEVICE Vec<accumulate_t<T>> read(const T* p, int lanes) {
  return lanes ? load_n(p, lanes) : load(p);
}
template <class T>
DLA_HOST_DEVICE void write(T* p, Vec<accumulate_t<T>> x, int lanes) {
  lanes ? store_n(p, x, lanes) : store(p, x);
}

// Past the cache: for outputs too large to be read back from it. p is aligned to what is written.
template <int kBytes>
DLA_HOST_DEVICE void stream_bytes(void* p, const void* from) {
#if defined(__AVX512F__)
  if (kBytes == 64) return _mm512_stream_si512((__m512i*)p, _mm512_loadu_si512(from));
#endif
#if defined(__AVX2__)
  if (kBytes == 32) return _mm256_stream_si256((__m256i*)p, _mm256_loadu_si256((const __m256i*)from));
#endif
#if defined(__SSE2__)
  if (kBytes == 16) return _mm_stream_si128((__m128i*)p, _mm_loadu_si128((const __m128i*)from));
#endif
  memcpy(p, from, kBytes);
}
template <class T>
DLA_HOST_DEVICE void stream(T* p, Vec<accumulate_t<T>> x) {
  T packed[Vec<accumulate_t<T>>::kLanes];
  store(packed, x);
  stream_bytes<sizeof packed>(p, packed);
}
// One element past the cache, where such a store exists (4 and 8 bytes).
template <class T>
DLA_HOST_DEVICE void stream_one(T* p, T x) {
#if defined(__SSE2__)
  if (sizeof(T) == 4) {
    int bits;
    memcpy(&bits, &x, 4);
    return _mm_stream_si32((int*)p, bits);
  }
#if defined(__x86_64__)
  if (sizeof(T) == 8) {
    long long bits;
    memcpy(&bits, &x, sizeof(T));
    return _mm_stream_si64((long long*)p, bits);
  }
#endif
#endif
  *p = x;
}
// Makes earlier streaming stores visible in order with later ordinary ones.
DLA_HOST_DEVICE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Sums of the lanes, always in the same order: inside each quad (0 + 2) + (1 + 3), then the quads likewise by halves.
template <class A>
struct Quads {
  static constexpr int kLanes = Vec<A>::kLanes, kQuad = kLanes < 4 ? kLanes : 4, kCount = kLanes / kQuad;
  A sums[kCount];

  explicit DLA_HOST_DEVICE Quads(Vec<A> x) {
    A lanes[kLanes];
    memcpy(lanes, &x.v, sizeof lanes);
    for (int q = 0; q < kCount; ++q) {
      const A* l = lanes + q * kQuad;
      sums[q] = kQuad == 4 ? (l[0] + l[2]) + (l[1] + l[3]) : l[0] + l[1];
    }
  }
  // of the quads q .. q + count
  DLA_HOST_DEVICE A sum(int q, int count) const {
    return count == 1   ? sums[q]
           : count == 2 ? sums[q] + sums[q + 1]
                        : (sums[q] + sums[q + count / 2]) + (sums[q + 1] + sums[q + count / 2 + 1]);
  }
};
template <class A>
DLA_HOST_DEVICE A lane_sum(Vec<A> x) {
  return Quads<A>(x).sum(0, Quads<A>::kCount);
}
// Four such sums at once.
template <class A>
DLA_HOST_DEVICE void lane_sum4(const Vec<A>* x, A* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = lane_sum(x[i]);
}
// Four sums of the lanes of the lower half, and four of the upper half's.
template <class A>
DLA_HOST_DEVICE void half_sum4(const Vec<A>* x, A* low, A* high) {
  constexpr int kHalf = Quads<A>::kCount / 2;
  static_assert(kHalf > 0, "a half has a quad");
  for (int i = 0; i < 4; ++i) {
    const Quads<A> quads(x[i]);
    low[i] = quads.sum(0, kHalf), high[i] = quads.sum(kHalf, kHalf);
  }
}
#if defined(__AVX512F__)
// Lane 4 q + i: the sum of quad q of x[i].
DLA_HOST_DEVICE __m512 quads4(const Vec<float>* x) {
  const __m512 a = (__m512)x[0].v, b = (__m512)x[1].v, c = (__m512)x[2].v, d = (__m512)x[3].v;
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d lo = _mm512_unpacklo_pd((__m512d)ab, (__m512d)cd), hi = _mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
  return _mm512_add_ps((__m512)lo, (__m512)hi);
}
DLA_HOST_DEVICE void store_sum_of_halves(__m256 quads, float* sums) {
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
}
template <>
DLA_HOST_DEVICE void lane_sum4<float>(const Vec<float>* x, float* sums) {
  const __m512 quads = quads4(x);
  store_sum_of_halves(_mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1)), sums);
}
template <>
DLA_HOST_DEVICE void half_sum4<float>(const Vec<float>* x, float* low, float* high) {
  const __m512 quads = quads4(x);
  store_sum_of_halves(_mm512_castps512_ps256(quads), low);
  store_sum_of_halves(_mm512_extractf32x8_ps(quads, 1), high);
}
#elif defined(__AVX2__)
DLA_HOST_DEVICE __m256 quads4(const Vec<float>* x) {
  const __m256 a = (__m256)x[0].v, b = (__m256)x[1].v, c = (__m256)x[2].v, d = (__m256)x[3].v;
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256d lo = _mm256_unpacklo_pd((__m256d)ab, (__m256d)cd), hi = _mm256_unpackhi_pd((__m256d)ab, (__m256d)cd);
  return _mm256_add_ps((__m256)lo, (__m256)hi);
}
template <>
DLA_HOST_DEVICE void lane_sum4<float>(const Vec<float>* x, float* sums) {
  const __m256 quads = quads4(x);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
}
template <>
DLA_HOST_DEVICE void half_sum4<float>(const Vec<float>* x, float* low, float* high) {
  const __m256 quads = quads4(x);
  _mm_storeu_ps(low, _mm256_castps256_ps128(quads)), _mm_storeu_ps(high, _mm256_extractf128_ps(quads, 1));
}
#endif

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
