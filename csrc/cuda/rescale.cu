#include "rescale.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(rescale_kernel, RescaleArgs)
DLA_LAUNCH_MAPS(rescale_bwd_kernel, RescaleBwdArgs)

}  // namespace cuda
}  // namespace dla
