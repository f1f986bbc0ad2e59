// Apart from light_step.cu, since it takes longest to compile.
#include "launch.h"
#include "light_step.cuh"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(light_step_bwd_kernel, LightStepBwdArgs)

}  // namespace cuda
}  // namespace dla
