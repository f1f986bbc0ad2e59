// Apart from layer_update.cu, since it takes longest to compile.
#include "launch.h"
#include "layer_update.cuh"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(layer_update_bwd_kernel, LayerUpdateBwdArgs)

}  // namespace cuda
}  // namespace dla
