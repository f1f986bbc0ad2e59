#include "map_gradients.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(gate_gradients_kernel, GateGradientsArgs)
DLA_LAUNCH_MAPS(map_gradients_kernel, MapGradientsArgs)

}  // namespace cuda
}  // namespace dla
