// What of an op a launch does. Where weights are many, the step of the cell that follows the means of maps has launches
// of its own (phases.cuh); then the op's own kernel has what comes before them, or after.
#pragma once

namespace dla {
namespace cuda {

enum class Part { kWhole, kBeforeStep, kAfterStep };

}  // namespace cuda
}  // namespace dla
