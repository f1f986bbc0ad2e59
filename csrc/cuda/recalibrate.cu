#include "recalibrate.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(recalibrate_kernel, RecalibrateArgs)

}  // namespace cuda
}  // namespace dla
