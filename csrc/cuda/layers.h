// The table of feature maps that a kernel is given, and how a map is entered there. Host code without CUDA and without
// torch, so that the harness of the tests enters maps by the same rules as the operators.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../map_view.h"
#include "plan.h"

namespace dla {
namespace cuda {

// stride: between channels of a planar map, between pixels of an interleaved one.
struct MapPointer {
  void* data;
  int64_t sample, stride;
};
// Where the maps of a layer stand. Forward a kernel reads kIn and writes kOut; backward it reads kIn and the gradient
// that arrives at the result, kGradOut, and writes that of the input, kGradIn.
enum Slot { kIn = 0, kOut = 1, kGradOut = 1, kGradIn = 2 };
constexpr int kMapsPerLayer = 3;
constexpr int kOnly = 0;  // of a layer that is one map: what mix writes, and the gradient that arrives there
constexpr int kShortcut = 1, kSum = 2;  // of norm_add forward, beside kIn, which is normed
// The maps of one layer. `piece`: the widest access, in bytes, at which every row of every one of them begins.
struct Layer {
  MapPointer map[kMapsPerLayer];
  int HW, piece;
  bool interleaved;
  int slab;  // 0, or where the channels of every map follow each other without a gap, none smaller than 16 bytes: 16 if
             // every eighth of them begins on 16 bytes, else 1
};
struct Layers {
  Layer at[kMaxLayers];
  bool alike;  // all are planar, of one size, at the same distances, and read 16 bytes at a time: stacks.cuh
};

// Enters a map at its slot, kIn (or the only one) first, and narrows the layer's piece to what it allows.
template <class T>
void enter_map(const MapView<T>& map, int which, int64_t B, Layer& layer) {
  const int64_t stride = map.interleaved ? map.sp : map.sc;
  const bool one_row = (map.interleaved ? map.HW : map.C) == 1;
  layer.map[which] = {const_cast<void*>(static_cast<const void*>(map.data)), map.sb, stride};
  layer.HW = int(map.HW);
  layer.interleaved = map.interleaved;
  int piece = which == 0 ? 16 : layer.piece;
  const auto narrow_to = [&](uint64_t bytes) {
    while (bytes % piece != 0) piece /= 2;
  };
  narrow_to(reinterpret_cast<uintptr_t>(map.data));
  if (B > 1) narrow_to(uint64_t(map.sb) * sizeof(T));
  if (!one_row) narrow_to(uint64_t(stride) * sizeof(T));
  layer.piece = piece;
  const bool on_16 = reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && (B == 1 || map.sb * sizeof(T) % 16 == 0);
  const bool gapless = !map.interleaved && (map.C == 1 || stride == map.HW) && map.HW >= int64_t(16 / sizeof(T));
  layer.slab = !gapless || (which > 0 && layer.slab == 0) ? 0 : on_16 && (which == 0 || layer.slab == 16) ? 16 : 1;
}
// The same for each layer.
template <class T>
void enter_maps(const std::vector<MapView<T>>& maps, int which, int64_t B, Layers& layers) {
  if (which == 0) layers.alike = !maps.empty();
  const Layer& first = layers.at[0];
  for (size_t t = 0; t < maps.size(); ++t) {
    Layer& layer = layers.at[t];
    enter_map(maps[t], which, B, layer);
    layers.alike = layers.alike && !layer.interleaved && layer.HW == first.HW && layer.slab == first.slab &&
                   layer.map[which].sample == first.map[which].sample &&
                   layer.map[which].stride == first.map[which].stride && (layer.slab == 16 || layer.piece == 16);
  }
}

}  // namespace cuda
}  // namespace dla
