// All microkernels of one instruction set, and where to find each set.
#pragma once

#include "../microkernels.h"

namespace dla {
namespace cpu {

struct Tables {
  RowKernels<float> fp32;
  RowKernels<double> fp64;
  MapKernels<float> map_fp32;
  MapKernels<double> map_fp64;
  MapKernels<BFloat16> map_bf16;
  MapKernels<Half> map_fp16;
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
