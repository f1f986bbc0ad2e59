// Feature maps over the threads, as planes of one sample.
#pragma once

#include <algorithm>
#include <vector>

#include "../maps.h"
#include "microkernels.h"
#include "threads.h"

namespace dla {
namespace cpu {

template <class T>
Plane<T> sample(const MapView<T>& map, int64_t b) {
  return {map.data + b * map.sb, map.C, map.HW, map.sc, map.sp};
}

template <class T>
int64_t bytes_of(const std::vector<MapView<T>>& maps, int64_t B) {
  int64_t pixels = 0;
  for (const auto& map : maps) pixels += map.HW;
  return B * pixels * (maps.empty() ? 0 : maps[0].C) * int64_t(sizeof(T));
}

// Outputs larger than this leave the cache before anyone reads them: write them past it.
constexpr int64_t kStreamBytes = 8 << 20;

// Calls f(t, b, c0, c1) for every layer, sample and range of channels, shared over the threads.
template <class F>
void for_each_plane(int64_t T, int64_t B, int64_t C, F f) {
  constexpr int64_t kChannels = 64;
  const int64_t chunks = (C + kChannels - 1) / kChannels;
  parallel_for(T * B * chunks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t tb = i / chunks, first = i % chunks, last = std::min(chunks, first + end - i);
      f(tb / B, tb % B, first * kChannels, std::min(C, last * kChannels));
      i += last - first;
    }
  });
}

// Calls f(c0, c1) for a few channels at a time, so that what f reads of them twice is in cache the second time;
// `planes` is how many planes f touches of a channel. Interleaved maps have all channels side by side: all at once.
template <class T, class F>
void for_few_channels(const MapView<T>& map, int64_t planes, int64_t begin, int64_t end, F f) {
  const int64_t few = cache_bytes() / 2 / (planes * map.HW * int64_t(sizeof(T)));
  const int64_t step = map.interleaved ? end - begin : std::max<int64_t>(few, 1);
  for (int64_t c0 = begin; c0 < end; c0 += step) f(c0, std::min(end, c0 + step));
}

}  // namespace cpu
}  // namespace dla
