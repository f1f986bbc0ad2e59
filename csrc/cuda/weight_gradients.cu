#include "weight_gradients.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(weight_gradients_kernel, WeightGradientArgs)

}  // namespace cuda
}  // namespace dla
