// The cases of cuda_harness.cpp: an op, its sizes, and the device that it is planned for.
#pragma once

#include <vector>

#include "cuda/plan.h"

using namespace dla;
using namespace dla::cuda;

struct Case {
  const char* name;
  const char* op;
  const char* rule;
  Projection projection;
  int64_t T, B, C, R;
  std::vector<int> HW;  // of the maps, in turn
  bool interleaved;
  Device device;
  bool mixed = false;  // every other map the other way
};

static Device device_of(int processors, int64_t shared, int64_t l2, int cluster, int threads, int samples = 1) {
  return {processors, shared, 2 * (shared + 1024), l2, cluster, threads, cluster, samples};
}

static const char *kLstm = "lstm", *kDsu = "dsu-sigmoid-context";
constexpr Projection kJoint = Projection::kJoint, kSplit = Projection::kSplit, kDense = Projection::kDense,
                     kSqueeze = Projection::kSqueeze;
static const std::vector<Case> kCases = {
    // Devices: processors, shared bytes, L2 (1: as large a cluster as there is), largest cluster, threads
    {"cluster", "layer_update", kDsu, kJoint, 3, 3, 37, 5, {15, 16}, false, device_of(2, 6000, 1, 4, 64)},
    {"cluster, channels last", "layer_update", kLstm, kSplit, 3, 2, 36, 5, {15, 4}, true, device_of(2, 9000, 1, 4, 64)},
    {"a block", "layer_update", kLstm, kSplit, 3, 5, 17, 5, {15}, false, device_of(1, 9000, 1, 1, 96)},
    {"a block, channels last", "layer_update", kDsu, kJoint, 2, 5, 17, 5, {15}, true, device_of(1, 6000, 1, 1, 96)},
    {"dense", "layer_update", kLstm, kDense, 3, 3, 17, 0, {15, 1}, false, device_of(1, 9000, 1, 4, 64)},
    {"dense, tiny", "layer_update", kDsu, kDense, 3, 5, 8, 0, {4}, true, device_of(1, 300, 1, 4, 32, 4)},
    {"samples share a tile", "layer_update", kDsu, kJoint, 3, 9, 17, 5, {15}, true, device_of(1, 1024, 1, 1, 32, 8)},
    {"in a cluster too", "layer_update", kDsu, kSplit, 3, 9, 36, 8, {15}, false, device_of(2, 700, 1, 4, 32, 4)},
    {"hot steps", "layer_update", kLstm, kSplit, 3, 5, 24, 5, {15}, false, device_of(1, 24000, 1, 1, 96, 2)},
    {"hot steps, cluster", "layer_update", kDsu, kJoint, 4, 5, 32, 5, {15}, false, device_of(2, 24000, 1, 4, 64, 2)},
    {"hot steps, many turns", "scan", kLstm, kJoint, 4, 3, 144, 38, {}, false, device_of(2, 200000, 1, 2, 32, 2)},
    {"bf16", "layer_update, bf16", kDsu, kJoint, 2, 3, 17, 5, {15, 600}, false, device_of(1, 6000, 1, 1, 64)},
    {"bf16, cluster", "layer_update, bf16", kLstm, kSplit, 2, 2, 40, 5, {15}, true, device_of(2, 6000, 1, 4, 64)},
    {"alike", "layer_update", kDsu, kJoint, 3, 3, 20, 5, {15}, false, device_of(2, 6000, 1, 4, 64)},
    {"alike, whole planes", "layer_update", kLstm, kSplit, 3, 2, 16, 5, {16}, false, device_of(1, 9000, 1, 1, 64)},
    {"alike, bf16", "layer_update, bf16", kDsu, kJoint, 2, 3, 24, 5, {49}, false, device_of(2, 6000, 1, 2, 64)},
    {"planes within a vector",
     "layer_update, bf16",
     kDsu,
     kJoint,
     2,
     2,
     20,
     5,
     {11},
     false,
     device_of(1, 6000, 1, 2, 64)},
    {"slabs and others", "layer_update", kDsu, kJoint, 3, 3, 20, 5, {15, 5}, false, device_of(1, 6000, 1, 1, 64), true},
    {"large slabs", "layer_update", kDsu, kJoint, 2, 2, 8, 4, {301}, false, device_of(1, 6000, 1, 1, 32)},
    {"large maps", "layer_update", kDsu, kJoint, 1, 2, 8, 4, {700}, false, device_of(1, 6000, 1, 1, 32)},
    {"many pixels", "layer_update", kDsu, kJoint, 1, 2, 8, 4, {700}, true, device_of(1, 6000, 1, 1, 32)},
    {"scan, chunks", "scan", kDsu, kJoint, 5, 3, 20, 7, {}, false, device_of(2, 800, 1, 2, 64)},
    {"scan, split", "scan", kLstm, kSplit, 4, 3, 24, 8, {}, false, device_of(2, 9000, 0, 2, 64)},
    {"scan, cluster", "scan", kDsu, kSplit, 4, 3, 64, 16, {}, false, device_of(2, 4000, 0, 8, 64)},
    {"scan, dense", "scan", kLstm, kDense, 4, 3, 12, 0, {}, false, device_of(1, 6000, 0, 1, 64)},
    {"refresh, chunks", "refresh", kDsu, kJoint, 5, 3, 20, 7, {}, false, device_of(2, 800, 1, 2, 64)},
    {"refresh, split", "refresh", kLstm, kSplit, 4, 3, 24, 8, {}, false, device_of(2, 9000, 0, 2, 64)},
    {"refresh, cluster", "refresh", kDsu, kSplit, 4, 3, 64, 16, {}, false, device_of(2, 4000, 0, 8, 64)},
    {"refresh, dense", "refresh", kLstm, kDense, 4, 3, 12, 0, {}, false, device_of(1, 6000, 0, 1, 64)},
    {"light", "light_step", kDsu, kJoint, 2, 3, 38, 5, {15}, false, device_of(2, 6000, 1, 4, 64)},
    {"light, channels last", "light_step", kLstm, kSplit, 2, 2, 38, 5, {15}, true, device_of(2, 9000, 1, 4, 64)},
    {"light, dense", "light_step", kLstm, kDense, 2, 3, 16, 0, {15}, true, device_of(1, 9000, 1, 1, 96)},
    {"light, no cell", "light_step", "", kJoint, 2, 3, 38, 0, {15}, false, device_of(2, 6000, 1, 4, 64)},
    {"light, first", "light_step", "", kJoint, 1, 3, 16, 0, {15}, true, device_of(1, 6000, 1, 1, 64)},
    {"light, a tile", "light_step", kDsu, kJoint, 2, 9, 16, 5, {15}, true, device_of(1, 1024, 1, 1, 32, 8)},
    {"end of a block", "recalibrate", kLstm, kSplit, 1, 3, 38, 5, {15}, false, device_of(2, 6000, 1, 4, 64)},
    {"end, dense", "recalibrate", kLstm, kDense, 1, 3, 17, 0, {15}, true, device_of(1, 9000, 1, 1, 96)},
    {"end, joint, tiles", "recalibrate", kDsu, kJoint, 1, 9, 16, 5, {15}, true, device_of(1, 1024, 1, 1, 32, 8)},
    {"end, light", "recalibrate", kDsu, kSqueeze, 1, 3, 38, 5, {15}, true, device_of(2, 6000, 1, 4, 64)},
    {"end, light, tiles", "recalibrate", kLstm, kSqueeze, 1, 9, 16, 5, {15}, false, device_of(1, 1024, 1, 1, 32, 8)},
    {"squeeze", "recalibrate", "se", kSqueeze, 1, 5, 38, 5, {15}, false, device_of(2, 6000, 1, 4, 64)},
    {"squeeze, tiles", "recalibrate", "se", kSqueeze, 1, 9, 20, 5, {15}, true, device_of(1, 1024, 1, 1, 32, 8)},
    {"squeeze alone", "recalibrate", "se", kSqueeze, 1, 3, 38, 5, {15}, true, device_of(2, 6000, 1, 4, 64), true},
    {"taps", "recalibrate", "eca", kJoint, 1, 3, 38, 0, {15}, false, device_of(2, 6000, 1, 4, 64)},
    {"taps, tiles", "recalibrate", "eca", kJoint, 1, 9, 20, 0, {15}, true, device_of(1, 1024, 1, 1, 32, 8)},
    {"attend", "attend", kDsu, kDense, 3, 3, 18, 0, {}, false, device_of(1, 300, 0, 1, 96)},
    {"planes", "planes", kDsu, kDense, 3, 3, 17, 0, {15}, true, device_of(1, 300, 0, 1, 96)},
    {"weight gradients", "weight_gradients", kDsu, kDense, 1, 1, 1, 0, {}, false, device_of(1, 300, 0, 1, 32)},
};
