// From maps to what kernels are told of them: which blocks take which channels, and the moments of what they write.
#pragma once

#include <algorithm>
#include <vector>

#include "../maps.h"
#include "gap_args.h"
#include "host.h"
#include "moments_args.h"
#include "pieces.h"

namespace dla {
namespace cuda {

inline void check_layers(const Tensors& xs) {
  STD_TORCH_CHECK(xs.size() <= size_t(kMaxLayers), "xs: expected at most ", kMaxLayers,
                  " layers in one launch on CUDA, got ", xs.size());
}

// Blocks of an op on maps alone take about 64 KB each; pieces of whole vectors of channels.
template <class T>
Pieces pieces_of(const std::vector<MapView<const T>>& maps, int64_t B) {
  int64_t HW = 1;
  for (const auto& map : maps) HW = std::max(HW, map.HW);
  const int64_t C = maps[0].C, wanted = (64 << 10) / int64_t(sizeof(T)) / HW;
  const int64_t channels = std::min(divide_up(std::max<int64_t>(wanted, 1), 8) * 8, divide_up(C, 8) * 8);
  return {int64_t(maps.size()), B, C, int(channels)};
}
template <class T>
Launch launch_of(const Pieces& pieces) {
  const int threads = current_device().threads;
  return {pieces.blocks(), 1, threads, threads * 8 * int64_t(sizeof(accumulate_t<T>))};
}

// Fills y [T, B, C] with the means of maps, in a launch of its own.
template <class T>
void run_means(const OnDevice& device, const std::vector<MapView<const T>>& maps, int64_t B, accumulate_t<T>* y) {
  GapArgs<T> args{pieces_of<T>(maps, B), y, {}};
  enter_maps(maps, kIn, B, args.layers);
  run(device, args, launch_of<T>(args.pieces));
}

// moments [2, C] from `planes` [2, B, C], which a kernel is filling, for maps of HW pixels.
template <class A>
Tensors moments_of(const OnDevice& device, const Tensor& planes, int64_t HW) {
  const int64_t B = planes.size(1), C = planes.size(2);
  const Tensor moments = empty<A>(planes, {2, C});
  const int threads = current_device().threads;
  run(device, MomentsArgs<A>{B, C, int(HW), data<A>(planes), data<A>(moments)},
      Launch{divide_up(C, kMomentsChannels), 1, threads, threads * 8 * int64_t(sizeof(A))});
  return {moments};
}

}  // namespace cuda
}  // namespace dla
