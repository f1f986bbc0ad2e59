// How a recurrence is laid out on a device: which path, how many blocks share a sample, how many samples
// share a tile, and where each buffer lies. Host code without CUDA and without torch, so that it can be
// tested and asked (`python -m dla_kernels plan`) anywhere.
//
// Results do not depend on the batch: the blocks per tile decide the order of sums, so they are chosen
// without looking at B. The samples per tile and the number of tiles in flight are free.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common.h"

namespace dla {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kMaxLayers = 256;  // their table travels as a kernel argument
constexpr int kMaxSamples = 8;   // per tile
constexpr int kMaxGroup = 8;     // blocks per tile: what every device with clusters grants

struct Device {
  int processors;            // SMs
  int64_t shared_per_block;  // the most one block may ask for, bytes
  int64_t shared_per_processor;
  int64_t l2;
  int largest_cluster;  // 1 before sm_90
  int threads;          // per block; a multiple of 32
};

enum class Pass { kForward, kBackward };
enum class Path { kPortable, kOnChip, kWeightsBound };

struct Problem {
  Pass pass;
  Projection projection;
  int NG;
  int64_t T, B, C, R;
  int64_t sample_bytes;  // of all maps that are read, for one sample; 0 where there are none
  int accumulate_bytes;  // 4 or 8

  bool bottleneck() const { return projection != Projection::kDense; }
  int64_t weight_bytes() const {  // what a step of the scan reads
    return accumulate_bytes * (bottleneck() ? (1 + NG) * C * R : NG * C * C);
  }
};

// What a block keeps between phases, hottest first: in shared memory while that lasts, then in the block's
// piece of a workspace in global memory. nb samples, `rows` = T * nb, `chunk` rows at a time, cs channels.
enum Buffer {
  kExchange,  // [2, chunk, R] partial sums that the blocks of a group exchange
  kU,         // [chunk, R]
  kH,         // [nb, cs] the state
  kC,         // [nb, cs]
  kDH,        // [nb, cs] backward: gradient of the state
  kDC,        // [nb, cs]
  kScratch,   // sums over parts of a block: kRows, or a vector of channels, for each thread
  kW1h,       // [R, cs] copies of weights; never in the workspace
  kShared,    // [nb, R] W1h h of the last state; dense: [nb, NG * cs]
  kP,         // [rows, R] this block's part of W1y y
  kGates,     // [chunk, NG, cs]; backward: [rows, NG, cs]
  kW2h,       // [NG * cs, R]
  kD,         // [chunk, cs]; backward: [rows, cs]
  kY,         // [rows, cs]
  kQ,         // [rows, NG, cs]; not joint
  kUScan,     // [rows, R] backward
  kURefresh,  // [rows, R]
  kDP,        // [rows, R]
  kUY,        // [rows, R] split
  kLast,      // [nb, R]; dense: [nb, NG * cs]
  kDD,        // [rows, cs]
  kDY,        // [rows, cs]
  kHBefore,   // [rows, cs]
  kDQ,        // [rows, NG, cs]; not joint
  kNumBuffers
};

struct Plan {
  Path path;
  int blocks_per_tile;   // G: a cluster, where there is more than one
  int samples_per_tile;  // NB
  int channels;          // of one block; the last may have fewer
  int chunk_layers;      // layers whose partial sums are exchanged at once
  int tiles_in_flight;   // groups that are launched
  int threads;
  int64_t shared_bytes;
  int64_t workspace_bytes;  // of one block
  // Where a buffer begins: bytes into shared memory, or, negative, -1 - bytes into the workspace.
  int64_t place[kNumBuffers];

  bool has(Buffer b) const { return place[b] != kAbsent; }
  static constexpr int64_t kAbsent = INT64_MAX;
};

inline int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

namespace plan_detail {

inline int64_t elements(Buffer buffer, const Problem& p, const Plan& plan) {
  const bool back = p.pass == Pass::kBackward, split = p.projection == Projection::kSplit, low = p.bottleneck();
  const int64_t nb = plan.samples_per_tile, cs = plan.channels, rows = p.T * nb, chunk = plan.chunk_layers * nb;
  const int64_t gates = p.NG * cs, shared_row = low ? p.R : gates;
  switch (buffer) {
    case kExchange:
      return low ? 2 * chunk * p.R : 0;
    case kU:
      return low ? chunk * p.R : 0;
    case kH:
    case kC:
      return nb * cs;
    case kDH:
    case kDC:
      return back ? nb * cs : 0;
    case kScratch:
      return int64_t(plan.threads) * 8;
    case kW1h:
      return low ? p.R * cs : 0;
    case kShared:
      return nb * shared_row;
    case kP:
      return p.projection == Projection::kJoint ? rows * p.R : 0;
    case kGates:
      return (back ? rows : chunk) * gates;
    case kW2h:
      return low ? gates * p.R : 0;
    case kD:
      return (back ? rows : chunk) * cs;
    case kY:
      return rows * cs;
    case kQ:
      return p.projection == Projection::kJoint ? 0 : rows * gates;
    case kUScan:
    case kURefresh:
    case kDP:
      return back && low ? rows * p.R : 0;
    case kUY:
      return back && split ? rows * p.R : 0;
    case kLast:
      return back ? nb * shared_row : 0;
    case kDD:
    case kDY:
    case kHBefore:
      return back ? rows * cs : 0;
    case kDQ:
      return back && p.projection != Projection::kJoint ? rows * gates : 0;
    case kNumBuffers:
      break;
  }
  return 0;
}

// Places the buffers; false if the exchange, which other blocks must reach, found no room.
inline bool place(const Problem& p, int64_t budget, Plan& plan) {
  constexpr int64_t kAlign = 128;
  plan.shared_bytes = plan.workspace_bytes = 0;
  for (int i = 0; i < kNumBuffers; ++i) {
    const Buffer buffer = Buffer(i);
    const int64_t bytes = divide_up(elements(buffer, p, plan) * p.accumulate_bytes, kAlign) * kAlign;
    const bool copy = buffer == kW1h || buffer == kW2h;
    if (bytes == 0) {
      plan.place[i] = Plan::kAbsent;
    } else if (plan.shared_bytes + bytes <= budget) {
      plan.place[i] = plan.shared_bytes;
      plan.shared_bytes += bytes;
    } else if (copy) {
      plan.place[i] = Plan::kAbsent;
    } else {
      if (buffer == kExchange && plan.blocks_per_tile > 1) return false;
      plan.place[i] = -1 - plan.workspace_bytes;
      plan.workspace_bytes += bytes;
    }
  }
  return true;
}

inline bool stages_weights(const Plan& plan) {
  return plan.place[kW1h] != Plan::kAbsent && plan.place[kW2h] != Plan::kAbsent;
}

// The plan with so many blocks on a processor.
inline Plan with_blocks(const Problem& p, const Device& device, int largest_group, int blocks_per_processor) {
  Plan plan{};
  plan.threads = device.threads;
  constexpr int64_t kReserved = 1024;  // the system's own part of each block's shared memory
  const int64_t budget =
      std::min(device.shared_per_block, device.shared_per_processor / blocks_per_processor - kReserved);
  const int in_flight = device.processors * blocks_per_processor;

  // Blocks per tile: as few as keep the maps in flight within half the second-level cache, where the second
  // reading then finds them, and a step's weights within the blocks' shared memory; if that cannot be, as many
  // as there may be: the fewer samples in flight, the more of them is still there. A slice of fewer than 8
  // channels wastes its vectors. Dense cells would exchange whole states, so one block does it all.
  constexpr int kFewestChannels = 8;
  int most = p.bottleneck() ? std::min({device.largest_cluster, largest_group, kMaxGroup}) : 1;
  while (most > 1 && p.C / most < kFewestChannels) most /= 2;
  int group = 1;
  const auto fits = [&](int g) {
    return p.sample_bytes * (in_flight / g) <= device.l2 / 2 && p.weight_bytes() / g <= budget * 3 / 4;
  };
  while (group * 2 <= most && !fits(group)) group *= 2;

  // So many samples in a tile, and as many layers exchanged at once as an eighth of the budget holds.
  const auto place_with = [&](int samples) {
    plan.samples_per_tile = samples;
    const int64_t layer_bytes = 2 * samples * std::max<int64_t>(p.R, 1) * p.accumulate_bytes;
    plan.chunk_layers = int(std::max<int64_t>(1, std::min(p.T, budget / 8 / layer_bytes)));
    return place(p, budget, plan);
  };
  for (;; group /= 2) {
    plan.blocks_per_tile = group;
    plan.channels = int(divide_up(divide_up(p.C, group), 8) * 8);
    if (place_with(1)) break;  // always, once a block has nobody to exchange with
  }
  // Samples share a tile where its weights must come from the cache anew at every step, as long as three
  // quarters of the device stay busy.
  while (!stages_weights(plan) && 2 * plan.samples_per_tile <= kMaxSamples &&
         4 * divide_up(p.B, 2 * plan.samples_per_tile) * group >= 3 * in_flight) {
    if (place_with(2 * plan.samples_per_tile)) continue;
    place_with(plan.samples_per_tile / 2);
    break;
  }
  plan.path = plan.samples_per_tile > 1 ? Path::kWeightsBound : group > 1 ? Path::kOnChip : Path::kPortable;
  const int64_t tiles = divide_up(p.B, plan.samples_per_tile);
  plan.tiles_in_flight = int(std::max<int64_t>(1, std::min<int64_t>(tiles, in_flight / group)));
  return plan;
}

}  // namespace plan_detail

// `largest_group` limits the blocks per tile below what the device could: 1 is the portable path.
inline Plan make_plan(const Problem& p, const Device& device, int largest_group = kMaxGroup) {
  // Two blocks on a processor: one streams maps while the other waits for its scan. One, with all the shared
  // memory, where only that holds the weights.
  const Plan two = plan_detail::with_blocks(p, device, largest_group, 2);
  if (!p.bottleneck() || plan_detail::stages_weights(two)) return two;
  const Plan one = plan_detail::with_blocks(p, device, largest_group, 1);
  return plan_detail::stages_weights(one) ? one : two;
}

}  // namespace cuda
}  // namespace dla
