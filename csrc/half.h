// Between the 16-bit storage types and the accumulate types, for host, SIMD microkernels and device alike.
#pragma once

#include <cstring>
#include <type_traits>

#include "common.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#elif defined(__F16C__)
#include <immintrin.h>
#endif

namespace dla {

// Always inlined, so that each instruction set of the CPU microkernels gets its own.

DLA_HOST_DEVICE float widen(float x) { return x; }
DLA_HOST_DEVICE double widen(double x) { return x; }
DLA_HOST_DEVICE float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  return memcpy(&f, &bits, sizeof f), f;
}
DLA_HOST_DEVICE float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#elif defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  uint32_t bits;
  float f;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {  // normal: rebias the exponent
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {  // subnormal: magnitude * 2^-24
    f = float(magnitude) * 5.9604644775390625e-8f;
    memcpy(&bits, &f, sizeof f);
    bits |= sign;
  }
  return memcpy(&f, &bits, sizeof f), f;
#endif
}

// Round to nearest, ties to even, as torch does.
template <class T>
DLA_HOST_DEVICE T narrow(accumulate_t<T> x) {
  return x;
}
template <>
DLA_HOST_DEVICE BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
  return {rounded};
#else
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return {uint16_t(0x7fc0)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
DLA_HOST_DEVICE Half narrow<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#elif defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, 0))};
#else
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {uint16_t(sign | 0x7e00)};   // NaN
  if (bits >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to infinity
  if (bits < 0x38800000) {                                   // subnormal: let fp32 addition round
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    return {uint16_t(sign | (bits - 0x3f000000))};
  }
  bits += 0xfff + (bits >> 13 & 1);
  return {uint16_t(sign | (bits - (112u << 23)) >> 13)};
#endif
}

// Two of 16 bits in a word, the first in its lower half: how they lie in memory, and what one instruction rounds.
template <class T>
DLA_HOST_DEVICE float widen_of(uint32_t pair, int which) {
  return widen(T{uint16_t(pair >> 16 * which)});
}
template <>
DLA_HOST_DEVICE float widen_of<BFloat16>(uint32_t pair, int which) {
  const uint32_t bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float f;
  return memcpy(&f, &bits, sizeof f), f;
}
template <class T>
DLA_HOST_DEVICE uint32_t narrow_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if (std::is_same<T, BFloat16>::value)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return narrow<T>(first).bits | uint32_t(narrow<T>(second).bits) << 16;
#endif
}

}  // namespace dla
