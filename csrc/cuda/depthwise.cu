#include "depthwise.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(depthwise_kernel, DepthwiseArgs)
DLA_LAUNCH_MAPS(depthwise_bwd_kernel, DepthwiseBwdArgs)

}  // namespace cuda
}  // namespace dla
