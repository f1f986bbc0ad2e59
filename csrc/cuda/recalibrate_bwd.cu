// Apart from recalibrate.cu, since it takes longest to compile.
#include "launch.h"
#include "recalibrate.cuh"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(recalibrate_bwd_kernel, RecalibrateBwdArgs)

}  // namespace cuda
}  // namespace dla
