// The plan of a CUDA launch, for those who want to know: needs no device, so it is part of the CPU library.
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "planner.h"

namespace dla {
namespace cuda {

// device: processors, shared memory per block and per processor, L2, largest cluster, threads; blocks and samples of a
// tile, 0 for the plan to decide; whether the cell runs a phase a launch, -1 likewise. Returns JSON.
std::string cuda_plan(bool backward, const std::string& projection, int64_t NG, int64_t T, int64_t B, int64_t C,
                      int64_t R, int64_t sample_bytes, int64_t accumulate_bytes, const std::vector<int64_t>& device) {
  STD_TORCH_CHECK(device.size() == 9, "device: expected 9 numbers, got ", device.size());
  STD_TORCH_CHECK(T <= kMaxLayers, "T: expected at most ", kMaxLayers, " layers, which one launch takes, got ", T);
  const bool recurs = projection != "squeeze" && projection != "light";  // else y alone goes through products
  const Projection kind = !recurs                 ? Projection::kSqueeze
                          : projection == "joint" ? Projection::kJoint
                          : projection == "split" ? Projection::kSplit
                                                  : Projection::kDense;
  const Problem problem{backward ? Pass::kBackward : Pass::kForward,
                        kind,
                        recurs ? int(NG) : 1,
                        T,
                        B,
                        C,
                        R,
                        sample_bytes,
                        int(accumulate_bytes),
                        /*attention=*/false,
                        /*scans=*/recurs};
  const Device described{int(device[0]), device[1],      device[2],      device[3],     int(device[4]),
                         int(device[5]), int(device[6]), int(device[7]), int(device[8])};
  const Plan plan = make_plan(problem, described);
  const bool phases = in_phases(problem, described);
  const char* paths[] = {"portable", "on-chip", "weights-bound"};
  std::ostringstream out;
  out << "{\"path\": \"" << (phases ? "in-phases" : paths[int(plan.path)])
      << "\", \"us_in_phases\": " << std::lround(plan_detail::cost_in_phases(problem, described, B))
      << ", \"us_in_one_launch\": "
      << std::lround(
             plan_detail::best_of(problem, described, kMaxGroup).cost(problem, described, B, plan.samples_per_tile))
      << ", \"blocks_per_tile\": " << plan.blocks_per_tile << ", \"samples_per_tile\": " << plan.samples_per_tile
      << ", \"channels_per_block\": " << plan.channels << ", \"layers_per_exchange\": " << plan.chunk_layers
      << ", \"tiles_in_flight\": " << plan.tiles_in_flight << ", \"threads\": " << plan.threads
      << ", \"shared_bytes\": " << plan.shared_bytes << ", \"workspace_bytes\": " << plan.workspace_bytes
      << ", \"weights_in_shared\": " << (plan.stages_weights ? "true" : "false")
      << ", \"hot_steps\": " << (plan.hot ? "true" : "false") << "}";
  return out.str();
}

STABLE_TORCH_LIBRARY_IMPL(dla, CompositeExplicitAutograd, m) { m.impl("cuda_plan", TORCH_BOX(&cuda_plan)); }

}  // namespace cuda
}  // namespace dla
