#include "phases.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(phase_kernel, PhaseArgs)

}  // namespace cuda
}  // namespace dla
