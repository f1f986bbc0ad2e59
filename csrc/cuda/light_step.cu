#include "light_step.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(light_step_kernel, LightStepArgs)

}  // namespace cuda
}  // namespace dla
