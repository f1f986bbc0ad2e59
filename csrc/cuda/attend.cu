#include "attend.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(attend_kernel, AttendArgs)
DLA_LAUNCH_ROWS(attend_bwd_kernel, AttendBwdArgs)

}  // namespace cuda
}  // namespace dla
