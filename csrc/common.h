// What host and device code share: function qualifiers and the accumulate type of each storage type.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DLA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DLA_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace dla {

// 16-bit storage. Arithmetic never happens in these types: they are widened on load, rounded on store.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// How y and h become gate pre-activations: docs/notation.md. kSqueeze: y alone does, through a bottleneck.
enum class Projection { kJoint, kSplit, kDense, kSqueeze };

// fp64 accumulates in fp64, everything else in fp32.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

}  // namespace dla
