// How the blocks of a group, and their threads, share a tile of a matrix product.
#pragma once

#include <cstdint>

#include "plan.h"

namespace dla {
namespace cuda {

constexpr int kTile = 32;  // a group's result is kTile x kTile
constexpr int kPatch = 4;  // a thread's kPatch x kPatch
constexpr int kSlab = 32;  // terms that are staged at once
constexpr int kParts = 4;  // of a block, which share the terms of a slab
constexpr int kPartThreads = (kTile / kPatch) * (kTile / kPatch);
constexpr int kProductThreads = kParts * kPartThreads;

template <class A>
constexpr int64_t product_shared_bytes() {
  return (2 * kSlab * kTile > kParts * kTile * kTile ? 2 * kSlab * kTile : kParts * kTile * kTile) * sizeof(A);
}
DLA_HOST_DEVICE int64_t tiles_of(int64_t M, int64_t N) { return divide_up(M, kTile) * divide_up(N, kTile); }

}  // namespace cuda
}  // namespace dla
