// A feature map as all kernels see it, in either layout. No torch.
#pragma once

#include <cstdint>

namespace dla {

// A map [B, C, H, W] whose channels or pixels are neighbours in memory.
template <class T>
struct MapView {
  T* data;
  int64_t C, HW, sb, sc, sp;
  bool interleaved;
};

}  // namespace dla
