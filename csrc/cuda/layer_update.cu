#include "layer_update.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(layer_update_kernel, LayerUpdateArgs)

}  // namespace cuda
}  // namespace dla
