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

constexpr int kThreads = 256;    // of a block on a device
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
  int group = 0;        // blocks per tile, if not the plan shall decide; and
  int samples = 0;      // samples per tile
};

inline int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Rows in shared memory are read four neighbours at a time: how long one of n is that consists of such; and of weights,
// an odd number of them, so that the same column of eight neighbouring rows lies in different banks.
DLA_HOST_DEVICE int in_fours(int n) { return (n + 3) / 4 * 4; }
DLA_HOST_DEVICE int in_odd_fours(int n) { return in_fours(n) | 4; }

enum class Pass { kForward, kBackward };
enum class Path { kPortable, kOnChip, kWeightsBound };

struct Problem {
  Pass pass;
  Projection projection;
  int NG;
  int64_t T, B, C, R;
  int64_t sample_bytes;  // of all maps that are read, for one sample; 0 where there are none
  int accumulate_bytes;  // 4 or 8
  bool attention = false;
  bool scans = true;

  bool bottleneck() const { return projection != Projection::kDense; }
  int64_t weight_bytes() const {  // what a step of the scan reads
    return accumulate_bytes * (bottleneck() ? (1 + NG) * C * R : NG * C * C);
  }
};

// What a block keeps between phases, hottest first: in shared memory while that lasts, then in the block's
// piece of a workspace in global memory. nb samples, `rows` = T * nb, `chunk` rows at a time, cs channels.
enum Buffer {
  kExchange,     // [2, chunk, R] partial sums that the blocks of a group exchange
  kLetters,      // [2, G, nb, R] what each block of a group sends this one at a step of the scan
  kLetterboxes,  // and what counts that, of 8 bytes, 2
  kU,            // [chunk, R in fours]; in rows of R, but for hot steps
  kH,            // [nb, cs] the state
  kC,            // [nb, cs]
  kDH,           // [nb, cs] backward: gradient of the state
  kDC,           // [nb, cs]
  kBias,         // [NG, cs] what q holds besides y
  kScratch,      // sums over parts of a block: kRows, or a vector of channels, or 18 for every two, for each thread
  kW1h,          // [R, cs] copies of weights, in odd fours; never in the workspace
  kLastProduct,  // [nb, R] W1h h of the last state; dense: [nb, NG * cs]
  kP,            // [rows, R] this block's part of W1y y
  kGates,        // [chunk, NG, cs]; backward: [rows, NG, cs]
  kW2h,          // [NG * cs, R]
  kD,            // [chunk, cs]; backward: [rows, cs]
  kY,            // [rows, cs]
  kQ,            // [rows, NG, cs]; not joint
  kUScan,        // [rows, R] backward
  kDsScan,       // [rows, R]
  kURefresh,     // [rows, R]
  kDP,           // [rows, R]
  kUY,           // [rows, R] split
  kLastSum,      // [nb, R]; dense: [nb, NG * cs]
  kDD,           // [rows, cs]
  kDY,           // [rows, cs]
  kHBefore,      // [rows, cs]
  kDQ,           // [rows, NG, cs]; not joint
  kGate,         // [nb, cs] attention: of the value
  kMiddle,       // [nb, cs] attention, backward: the sum over pixels of dout o_prev
  kNumBuffers
};
// What some of them hold later in a pass.
constexpr Buffer kKept = kY;           // [rows, cs] forward: the states that a scan saves, once y is hoisted
constexpr Buffer kDaScan = kGates;     // [rows, NG, cs] each once the step that it is of has read its gates
constexpr Buffer kDaRefresh = kGates;  // [chunk, NG, cs]
constexpr Buffer kCBefore = kHBefore;  // [rows, cs] once the gates are known, where the steps are hot; and with it
constexpr Buffer kDStatesH = kDD;      // [rows, cs]
constexpr Buffer kDStatesC = kDY;      // [rows, cs]

struct Plan {
  Path path;
  int blocks_per_tile;   // G: a cluster, where there is more than one
  int samples_per_tile;  // NB
  int channels;          // of one block; the last may have fewer
  int chunk_layers;      // layers whose partial sums are exchanged at once
  bool stages_weights;   // W1h and W2h lie in shared memory
  bool hot;              // and so does all else that each step of the scan needs: steps.cuh. All blocks are alike then
  int tiles_in_flight;   // groups that are launched
  int threads;
  int64_t shared_bytes;
  int64_t workspace_bytes;  // of one block
  // Where a buffer begins: bytes into shared memory, or, negative, -1 - bytes into the workspace.
  int64_t place[kNumBuffers];

  static constexpr int64_t kAbsent = INT64_MAX;
};

// How many groups run at once where there is room for so many blocks. A cluster lies within one of the parts of a
// chip, which are not of one size: an H100 holds 132 of 2 blocks, 62 of 4 and 30 of 8 (measured), of 264 blocks.
inline int fitting(int blocks, int group) { return group <= 2 ? blocks / group : blocks / group * 10 / 11; }

namespace plan_detail {

inline int64_t elements(Buffer buffer, const Problem& p, const Plan& plan) {
  const bool back = p.pass == Pass::kBackward, split = p.projection == Projection::kSplit, low = p.bottleneck();
  const int64_t nb = plan.samples_per_tile, cs = plan.channels, rows = p.T * nb, chunk = plan.chunk_layers * nb;
  const int64_t gates = p.NG * cs, shared_row = low ? p.R : gates, fours = in_fours(int(p.R));
  switch (buffer) {
    case kExchange:
      return low ? 2 * chunk * p.R : 0;
    case kLetters:
      return plan.hot && plan.blocks_per_tile > 1 ? 2 * plan.blocks_per_tile * nb * p.R : 0;
    case kLetterboxes:
      return plan.hot && plan.blocks_per_tile > 1 ? 2 * 8 / p.accumulate_bytes : 0;
    case kU:
      return low ? chunk * fours : 0;
    case kH:
    case kC:
      return nb * cs;
    case kDH:
    case kDC:
      return back ? nb * cs : 0;
    case kBias:
      return gates;
    case kScratch:
      return int64_t(plan.threads) * (p.attention ? 9 : 8);
    case kW1h:
      return plan.stages_weights ? p.R * in_odd_fours(int(cs)) : 0;
    case kLastProduct:
      return nb * shared_row;
    case kP:
      return p.projection == Projection::kJoint ? rows * p.R : 0;
    case kGates:
      return (back ? rows : chunk) * gates;
    case kW2h:
      return plan.stages_weights ? gates * in_odd_fours(int(p.R)) : 0;
    case kD:
      return (back ? rows : chunk) * cs;
    case kY:
      return rows * cs;
    case kQ:
      return p.projection == Projection::kJoint ? 0 : rows * gates;
    case kUScan:
    case kDsScan:
    case kURefresh:
    case kDP:
      return back && low ? rows * p.R : 0;
    case kUY:
      return back && split ? rows * p.R : 0;
    case kLastSum:
      return back ? nb * shared_row : 0;
    case kDD:
    case kDY:
    case kHBefore:
      return back ? rows * cs : 0;
    case kDQ:
      return back && p.projection != Projection::kJoint ? rows * gates : 0;
    case kGate:
      return p.attention ? nb * cs : 0;
    case kMiddle:
      return p.attention && back ? nb * cs : 0;
    case kNumBuffers:
      break;
  }
  return 0;
}

// What hot steps reach in shared memory, beside the copies of weights.
inline bool in_hot_steps(Buffer buffer, Pass pass) {
  switch (buffer) {
    case kU:
    case kH:
    case kC:
    case kBias:
      return pass == Pass::kForward;
    case kDH:
    case kDC:
    case kGates:
    case kUScan:
    case kDsScan:
      return pass == Pass::kBackward;
    case kLetters:
    case kLetterboxes:
      return true;
    default:
      return false;
  }
}

// What must lie in shared memory: the exchange, which other blocks must reach, copies of weights, and what hot steps
// reach.
inline bool must_be_shared(Buffer buffer, const Problem& p, const Plan& plan) {
  if (buffer == kExchange) return plan.blocks_per_tile > 1;
  return buffer == kW1h || buffer == kW2h || (plan.hot && in_hot_steps(buffer, p.pass));
}

// Places the buffers, those first that must lie in shared memory; false if these find no room there.
inline bool place(const Problem& p, int64_t budget, Plan& plan) {
  constexpr int64_t kAlign = 128;
  plan.shared_bytes = plan.workspace_bytes = 0;
  for (const bool must : {true, false})
    for (int i = 0; i < kNumBuffers; ++i) {
      if (must_be_shared(Buffer(i), p, plan) != must) continue;
      const int64_t bytes = divide_up(elements(Buffer(i), p, plan) * p.accumulate_bytes, kAlign) * kAlign;
      if (bytes == 0) {
        plan.place[i] = Plan::kAbsent;
      } else if (plan.shared_bytes + bytes <= budget) {
        plan.place[i] = plan.shared_bytes;
        plan.shared_bytes += bytes;
      } else if (must) {
        return false;
      } else {
        plan.place[i] = -1 - plan.workspace_bytes;
        plan.workspace_bytes += bytes;
      }
    }
  return true;
}

// One way to run: so many blocks a tile, and so many resident on a processor. Whether weights are staged and steps hot
// is decided for one sample a tile, so that it does not depend on the batch.
class Candidate {
 public:
  Plan plan{};
  bool possible;

  Candidate(const Problem& p, const Device& device, int group, int resident) : resident_(resident) {
    constexpr int64_t kReserved = 1024;  // the system's own part of each block's shared memory
    budget_ = std::min(device.shared_per_block, device.shared_per_processor / resident - kReserved);
    plan.threads = device.threads;
    plan.blocks_per_tile = group;
    plan.channels = int(divide_up(divide_up(p.C, group), 8) * 8);
    plan.stages_weights = p.bottleneck();
    plan.hot = plan.stages_weights && p.scans && p.R > 0 && int64_t(plan.channels) * group == p.C;
    possible = place_with(p, 1);
    for (bool* const kept : {&plan.hot, &plan.stages_weights}) {
      if (possible || !*kept) continue;
      *kept = false;
      possible = place_with(p, 1);
    }
  }

  // So many samples in a tile, and as many layers exchanged at once as an eighth of the budget holds.
  bool place_with(const Problem& p, int samples) {
    plan.samples_per_tile = samples;
    const int64_t layer_bytes = 2 * samples * std::max<int64_t>(p.R, 1) * p.accumulate_bytes;
    plan.chunk_layers = int(std::max<int64_t>(1, std::min(p.T, budget_ / 8 / layer_bytes)));
    return place(p, budget_, plan);
  }
  // At once, where there are enough of them.
  int tiles_that_fit(const Device& device) const {
    return std::max(1, fitting(device.processors * resident_, plan.blocks_per_tile));
  }
  int tiles_in_flight(const Device& device, int64_t B, int samples) const {
    return int(std::max<int64_t>(1, std::min<int64_t>(divide_up(B, samples), tiles_that_fit(device))));
  }

  // Microseconds for B samples. The constants are of an H100: its bandwidth, a processor's share (bench/machine.cu),
  // and what a step of the kernels took there (bench/results) before any was hot. The second reading misses the cache
  // as far as the maps of all samples in flight outgrow it. Tiles that run at once wait for their scans at once; then
  // come the next.
  double cost(const Problem& p, const Device& device, int64_t B, int samples) const {
    const double kMemory = 22e3, kBlock = 15e3;   // bytes a microsecond: of a processor, and of a block alone on one
    const double kExchange = 1, kOverhead = 3.5;  // microseconds: of a cluster's exchange, and for each sample
    const double kProducts = 9e3;                 // multiplications a microsecond, of a processor
    const double kCache = 40e3;                   // bytes a microsecond: of weights that are not staged, likewise
    const bool forward = p.pass == Pass::kForward;
    const double group = plan.blocks_per_tile, tiles = tiles_in_flight(device, B, samples);
    const double maps = double(p.sample_bytes), cached = 0.8 * double(device.l2) / (tiles * samples);
    const double missed = maps > cached ? 1 - cached / maps : 0;
    const double moved = double(B) * (forward ? maps * (2 + missed) : maps * (1.5 + 0.5 * missed));
    const double streamed = moved / std::min(device.processors * kMemory, tiles * group * kBlock);
    // Everything is multiplied by the weights twice: in the scan, and ahead of it or after.
    const double products = 2.0 * double(p.weight_bytes() / p.accumulate_bytes) * samples / group;
    const double unstaged = plan.stages_weights ? 0 : 2.0 * double(p.weight_bytes()) / group;
    const double step =
        (group > 1 ? kExchange : 0) + kOverhead * samples + (products / kProducts + unstaged / kCache) * resident_;
    const double waves = double(divide_up(divide_up(B, samples), tiles_that_fit(device)));
    return streamed + waves * double(p.T) * step * (forward ? 1 : 2.2);
  }
  // The cheapest number of samples per tile.
  int best_samples(const Problem& p, const Device& device, int64_t B) const {
    int best = 1;
    Candidate tried = *this;
    for (int samples = 2; samples <= kMaxSamples && samples <= B && tried.place_with(p, samples); ++samples)
      if (cost(p, device, B, samples) < cost(p, device, B, best)) best = samples;
    return best;
  }

 private:
  int resident_;
  int64_t budget_;  // shared memory of one block
};

}  // namespace plan_detail

// `largest_group` limits the blocks per tile below what the device could: 1 is the portable path.
inline Plan make_plan(const Problem& p, const Device& device, int largest_group = kMaxGroup) {
  using plan_detail::Candidate;
  // A slice of fewer than 8 channels wastes its vectors. Dense cells would exchange whole states, so one block
  // does it all.
  constexpr int kFewestChannels = 8;
  int most = p.bottleneck() ? std::min({device.largest_cluster, largest_group, kMaxGroup}) : 1;
  if (device.group > 0) most = std::min(most, device.group);
  while (most > 1 && p.C / most < kFewestChannels) most /= 2;

  // The blocks per tile decide the order of sums, so a usual batch decides on them, not this one.
  constexpr int64_t kUsualBatch = 128;
  const auto cost = [&](const Candidate& c) {
    return c.cost(p, device, kUsualBatch, c.best_samples(p, device, kUsualBatch));
  };
  Candidate best(p, device, 1, 2);  // possible: it has nobody to exchange with
  for (const int resident : {2, 1})
    for (int group = 1; group <= most; group *= 2) {
      const Candidate other(p, device, group, resident);
      const bool demanded = device.group > 0 && group > best.plan.blocks_per_tile;
      const bool excluded = device.group > 0 && group < best.plan.blocks_per_tile;
      if (other.possible && !excluded && (demanded || cost(other) < cost(best))) best = other;
    }
  int samples = device.samples > 0 ? device.samples : best.best_samples(p, device, p.B);
  while (!best.place_with(p, samples)) --samples;  // one sample fits
  Plan& plan = best.plan;
  plan.path = plan.samples_per_tile > 1  ? Path::kWeightsBound
              : plan.blocks_per_tile > 1 ? Path::kOnChip
                                         : Path::kPortable;
  plan.tiles_in_flight = best.tiles_in_flight(device, p.B, plan.samples_per_tile);
  return plan;
}

}  // namespace cuda
}  // namespace dla
