#include "layer_update.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(layer_update_kernel, LayerUpdateArgs)
DLA_LAUNCH_MAPS(layer_update_bwd_kernel, LayerUpdateBwdArgs)

}  // namespace cuda
}  // namespace dla
