// What a kernel is told of how a recurrence is laid out on a device: how many blocks share a sample, how many samples
// share a tile, and where each buffer lies. How that is decided: planner.h.
#pragma once

#include <cstdint>

#include "../common.h"

namespace dla {
namespace cuda {

constexpr int kThreads = 256;        // of a block on a device
constexpr int kMaxLayers = 256;      // their table travels as a kernel argument
constexpr int kMaxSamples = 8;       // per tile
constexpr int kMaxGroup = 8;         // blocks per tile: what every device with clusters grants
constexpr int kScratchOfThread = 8;  // values, of the buffer kScratch; 9 with attention

struct Device {
  int processors;            // SMs
  int64_t shared_per_block;  // the most one block may ask for, bytes
  int64_t shared_per_processor;
  int64_t l2;
  int largest_cluster;  // 1 before sm_90
  int threads;          // per block; a multiple of 32
  int group = 0;        // blocks per tile, if not the plan shall decide; and
  int samples = 0;      // samples per tile
  int phases = -1;      // whether the cell runs a phase a launch, 0 or 1, if not the plan shall decide
};

DLA_HOST_DEVICE int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Rows in shared memory are read four neighbours at a time: how long one of n is that consists of such; and of weights,
// an odd number of them, so that the same column of eight neighbouring rows lies in different banks.
DLA_HOST_DEVICE int in_fours(int n) { return (n + 3) / 4 * 4; }
DLA_HOST_DEVICE int in_odd_fours(int n) { return in_fours(n) | 4; }

enum class Path { kPortable, kOnChip, kWeightsBound };

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
  kScratch,      // sums over parts of a block: kScratchOfThread for each thread, such as a vector of channels
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

}  // namespace cuda
}  // namespace dla
