// The blocks of an op on maps alone: for each layer and sample, pieces of some channels.
#pragma once

#include <cstdint>

#include "plan.h"

namespace dla {
namespace cuda {

struct Pieces {
  int64_t T, B, C;
  int channels;

  int64_t blocks() const { return T * B * divide_up(C, channels); }
};

}  // namespace cuda
}  // namespace dla
