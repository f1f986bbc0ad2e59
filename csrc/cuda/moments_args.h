// What the kernel is told that puts moments together.
#pragma once

#include <cstdint>

namespace dla {
namespace cuda {

// What a channel's mean and variance over the batch are put together from: planes [2, B, C], the mean of each plane
// and the sum of the squared distances from it.
constexpr int kMomentsChannels = 8;  // of a block
template <class A>
struct MomentsArgs {
  int64_t B, C;
  int HW;
  const A* planes;  // [2, B, C]
  A* moments;       // [2, C] written
};

}  // namespace cuda
}  // namespace dla
