#include "refresh.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(refresh_kernel, RefreshArgs)
DLA_LAUNCH_ROWS(refresh_bwd_kernel, RefreshBwdArgs)

}  // namespace cuda
}  // namespace dla
