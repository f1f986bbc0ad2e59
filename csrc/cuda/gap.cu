#include "gap.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(gap_kernel, GapArgs)

}  // namespace cuda
}  // namespace dla
