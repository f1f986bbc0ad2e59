// All leaves of one instruction set, and where to find each set.
#pragma once

#include "../leaves.h"

namespace dla {
namespace cpu {

struct Tables {
  Leaves<float> fp32;
  Leaves<double> fp64;
  MapLeaves<float> map_fp32;
  MapLeaves<double> map_fp64;
  MapLeaves<BFloat16> map_bf16;
  MapLeaves<Half> map_fp16;
};

namespace baseline {
const Tables& tables();
}
#if defined(DLA_X86_64_V3)
namespace x86_64_v3 {
const Tables& tables();
}
#endif
#if defined(DLA_X86_64_V4)
namespace x86_64_v4 {
const Tables& tables();
}
#endif

}  // namespace cpu
}  // namespace dla
