#include "moments.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(moments_kernel, MomentsArgs)

}  // namespace cuda
}  // namespace dla
