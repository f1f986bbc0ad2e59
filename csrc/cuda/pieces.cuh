// Which piece of an op on maps a block takes.
#pragma once

#include "device.h"
#include "pieces.h"

namespace dla {
namespace cuda {

// f(t, b, c0, cs). kFromTheLast: what an earlier launch has read last is read first.
template <bool kFromTheLast = false, class F>
DLA_DEVICE void my_piece(const Pieces& p, F f) {
  const int64_t pieces = (p.C + p.channels - 1) / p.channels;
  const int64_t i = kFromTheLast ? num_blocks() - 1 - block_index() : block_index();
  const int64_t c0 = i % pieces * p.channels, tb = i / pieces;
  f(int(tb / p.B), tb % p.B, c0, int(p.C - c0 < p.channels ? p.C - c0 : p.channels));
}

}  // namespace cuda
}  // namespace dla
