#include "norm_add.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(norm_add_kernel, NormAddArgs)
DLA_LAUNCH_MAPS(norm_add_sums_kernel, NormAddSumsArgs)
DLA_LAUNCH_MAPS(norm_add_bwd_kernel, NormAddBwdArgs)

}  // namespace cuda
}  // namespace dla
