#include "mix.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_MAPS(mix_kernel, MixArgs)
DLA_LAUNCH_MAPS(mix_bwd_kernel, MixBwdArgs)

}  // namespace cuda
}  // namespace dla
