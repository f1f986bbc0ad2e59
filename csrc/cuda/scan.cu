#include "scan.cuh"

#include "launch.h"

namespace dla {
namespace cuda {

DLA_LAUNCH_ROWS(scan_kernel, ScanArgs)
DLA_LAUNCH_ROWS(scan_bwd_kernel, ScanBwdArgs)

}  // namespace cuda
}  // namespace dla
