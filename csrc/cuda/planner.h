// How a recurrence is laid out on a device: which path, how many blocks share a sample, how many samples share a tile,
// and where each buffer lies. Host code without CUDA and without torch, so that it can be tested and asked
// (`python -m dla_kernels plan`) anywhere; kernels do not include it.
//
// Results do not depend on the batch: the blocks per tile decide the order of sums, so they are chosen
// without looking at B. The samples per tile and the number of tiles in flight are free.
#pragma once

#include <algorithm>
#include <cmath>

#include "plan.h"

namespace dla {
namespace cuda {

enum class Pass { kForward, kBackward };

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
  bool recurs() const { return projection != Projection::kSqueeze; }
  int64_t weight_bytes() const {  // what a step of the scan reads
    return accumulate_bytes * (bottleneck() ? (1 + NG) * C * R : NG * C * C);
  }
};

// How many groups run at once where there is room for so many blocks. A cluster lies within one of the parts of a
// chip, which are not of one size: an H100 holds 132 of 2 blocks, 62 of 4 and 30 of 8 (measured), of 264 blocks.
inline int fitting(int blocks, int group) { return group <= 2 ? blocks / group : blocks / group * 10 / 11; }

namespace plan_detail {

inline int64_t elements(Buffer buffer, const Problem& p, const Plan& plan) {
  const bool back = p.pass == Pass::kBackward, low = p.bottleneck();
  const bool y_apart = p.projection == Projection::kSplit || !p.recurs();
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
      return int64_t(plan.threads) * (p.attention ? 9 : kScratchOfThread);
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
      return back && low && p.recurs() ? rows * p.R : 0;
    case kUY:
      return back && y_apart ? rows * p.R : 0;
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
    plan.stages_weights = p.bottleneck() && p.recurs();
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

  // Microseconds for B samples. The constants are of an H100: its bandwidth, a processor's share, an exchange
  // (bench/machine.cu), what a step of the kernels took there before any was hot (bench/results), and, unmeasured, what
  // a hot one is taken for (bench/simulate.py). The second reading misses the cache as far as the maps of all samples
  // in flight outgrow it. Tiles that run at once wait for their scans at once; then come the next, and the last of all
  // may be few, who leave the chip idle.
  double cost(const Problem& p, const Device& device, int64_t B, int samples) const {
    const double kMemory = 22e3, kBlock = 15e3;  // bytes a microsecond: of a processor, and of a block alone on one
    const bool forward = p.pass == Pass::kForward;
    const double group = plan.blocks_per_tile, tiles = tiles_in_flight(device, B, samples);
    const double maps = double(p.sample_bytes), cached = 0.8 * double(device.l2) / (tiles * samples);
    const double missed = maps > cached ? 1 - cached / maps : 0;
    const double moved = double(B) * (forward ? maps * (2 + missed) : maps * (1.5 + 0.5 * missed));
    const auto at_once = [&](double n) { return std::min(device.processors * kMemory, n * group * kBlock); };
    const double number = double(divide_up(B, samples)), waves = std::ceil(number / tiles);
    const double rest = number - (waves - 1) * tiles;  // of the last wave, alone on the chip
    const double streamed = moved / number * ((number - rest) / at_once(tiles) + rest / at_once(rest));
    const double step = !p.recurs() ? bottleneck(p, samples) : plan.hot ? hot_step(p, samples) : cold_step(p, samples);
    return streamed + waves * double(p.T) * step;
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
  // Microseconds of a layer: everything is multiplied by the weights twice, in the scan, and ahead of it or after.
  double cold_step(const Problem& p, int samples) const {
    const double kExchange = 1, kOverhead = 3.5;  // of a cluster, and for each sample
    const double kProducts = 9e3;                 // multiplications a microsecond, of a processor
    const double kCache = 40e3;                   // bytes a microsecond: of weights that are not staged, likewise
    const double group = plan.blocks_per_tile, weights = double(p.weight_bytes()) / group;
    const double products = 2 * weights / p.accumulate_bytes * samples,
                 unstaged = plan.stages_weights ? 0 : 2 * weights;
    const double step =
        (group > 1 ? kExchange : 0) + kOverhead * samples + (products / kProducts + unstaged / kCache) * resident_;
    return p.pass == Pass::kForward ? step : 2.2 * step;
  }
  double bottleneck(const Problem& p, int samples) const {  // there, and backward there again and back
    const double kExchange = 1, kProducts = 40e3;
    const double group = plan.blocks_per_tile, passes = p.pass == Pass::kForward ? 1 : 2.5;
    const double products = double(p.weight_bytes()) / group / p.accumulate_bytes * samples;
    return passes * ((group > 1 ? kExchange : 0) + products / kProducts * resident_);
  }
  double hot_step(const Problem& p, int samples) const {
    const double kExchange = 0.43, kChain = 0.9;  // of letters; of instructions one after the other
    const double kShared = 100e3;                 // bytes of weights a microsecond, of a processor's shared memory
    const double kProducts = 40e3;                // multiplications a microsecond, of many rows at once
    const double group = plan.blocks_per_tile, weights = double(p.weight_bytes()) / group * samples;
    const double ahead_and_after = weights / p.accumulate_bytes / kProducts * (p.pass == Pass::kForward ? 1 : 3);
    return (group > 1 ? kExchange : 0) + kChain * (0.7 + 0.3 * samples) +
           (weights / kShared + ahead_and_after) * resident_;
  }

  int resident_;
  int64_t budget_;  // shared memory of one block
};

}  // namespace plan_detail

namespace plan_detail {

// The blocks per tile decide the order of sums, so a usual batch decides on them, not this one.
constexpr int64_t kUsualBatch = 128;

inline double usual_cost(const Candidate& c, const Problem& p, const Device& device) {
  return c.cost(p, device, kUsualBatch, c.best_samples(p, device, kUsualBatch));
}
inline Candidate best_of(const Problem& p, const Device& device, int largest_group) {
  // A slice of fewer than 8 channels wastes its vectors. Dense cells would exchange whole states, so one block
  // does it all.
  constexpr int kFewestChannels = 8;
  int most = p.bottleneck() ? std::min({device.largest_cluster, largest_group, kMaxGroup}) : 1;
  if (device.group > 0) most = std::min(most, device.group);
  while (most > 1 && p.C / most < kFewestChannels) most /= 2;
  Candidate best(p, device, 1, 2);  // possible: it has nobody to exchange with
  for (const int resident : {2, 1})
    for (int group = 1; group <= most; group *= 2) {
      const Candidate other(p, device, group, resident);
      const bool demanded = device.group > 0 && group > best.plan.blocks_per_tile;
      const bool excluded = device.group > 0 && group < best.plan.blocks_per_tile;
      if (other.possible && !excluded && (demanded || usual_cost(other, p, device) < usual_cost(best, p, device)))
        best = other;
    }
  return best;
}

// Microseconds where the cell runs in launches of its own, a phase each, that all blocks share: phases.cuh. The
// constants are of an H100, unmeasured but for its memory.
inline double cost_in_phases(const Problem& p, const Device& device, int64_t B) {
  const double kMemory = 22e3;    // bytes a microsecond, of a processor
  const double kProducts = 55e3;  // multiplications, likewise
  const double kLaunch = 2.5;     // from one launch to the next
  const bool forward = p.pass == Pass::kForward;
  const double maps = double(B * p.sample_bytes), found = std::min(0.5 * double(device.l2), maps);
  const double moved = forward ? 3 * maps - found : 2 * maps - found / 2;
  const double passes = (forward ? 1 : 2) * (p.recurs() ? 2 : 1);  // scan and refresh, and both back
  const double products = passes * double(p.T * B) * double(p.weight_bytes() / p.accumulate_bytes);
  const int64_t steps = p.attention ? 1 : p.T;  // of the scan
  const double launches = double(p.recurs() ? (forward ? 2 : 3) * steps + (forward ? 6 : 14) : forward ? 4 : 6);
  return (moved / kMemory + products / kProducts) / device.processors + kLaunch * launches;
}

}  // namespace plan_detail

// Whether the cell is to run a phase a launch: where weights are so many that a group of blocks would wait for them at
// every step. Decided without looking at B, as it decides the order of sums.
inline bool in_phases(const Problem& p, const Device& device) {
  using namespace plan_detail;
  if (device.phases >= 0) return device.phases > 0;
  return device.group == 0 &&
         cost_in_phases(p, device, kUsualBatch) < usual_cost(best_of(p, device, kMaxGroup), p, device);
}

// `largest_group` limits the blocks per tile below what the device could: 1 is the portable path.
inline Plan make_plan(const Problem& p, const Device& device, int largest_group = kMaxGroup) {
  plan_detail::Candidate best = plan_detail::best_of(p, device, largest_group);
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
