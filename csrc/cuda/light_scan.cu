#include "light_scan.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(light_scan_kernel, LightScanArgs)
DLA_LAUNCH_ROWS(light_scan_bwd_kernel, LightScanBwdArgs)

}  // namespace cuda
}  // namespace dla
