// The cell of a call: from its rule, weights and state to what kernels are told of it, and to the plan of their launch.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "../cells/cells.h"
#include "cell_args.h"
#include "host.h"
#include "planner.h"

namespace dla {
namespace cuda {

struct Rule {
  int number, NG;
  bool saves_h, saves_c;

  Rule() : number(kNumRules), NG(0), saves_h(false), saves_c(false) {}  // of no cell
  // others: what else the op knows.
  explicit Rule(const std::string& name, const char* others = "") : number(rule_number(name.c_str())) {
    std::string known;
    for (const char* rule : kRuleNames) known += std::string(known.empty() ? "" : ", ") + rule;
    STD_TORCH_CHECK(number < kNumRules, "rule: expected one of ", known, others, ", got '", name, "'");
    with_rule(number, [&](auto rule) {
      using Of = decltype(rule);
      NG = Of::NG, saves_h = Of::kSavesH, saves_c = Of::kSavesC;
    });
  }
  size_t num_states() const { return size_t(saves_h + saves_c); }
  template <class A>
  A start_h() const {
    A h = A(0);
    with_rule(number, [&](auto rule) { h = decltype(rule)::template start_h<A>(); });
    return h;
  }
};

// Contiguous, from a 16-byte boundary on: a view into flat parameters may begin anywhere, and would be summed in
// another order.
inline Tensor aligned(const Tensor& w) {
  if (w.is_contiguous() && reinterpret_cast<uintptr_t>(w.data_ptr()) % 16 == 0) return w;
  Tensor copy = torch::stable::new_empty(w, sizes_of(w));
  torch::stable::copy_(copy, w);
  return copy;
}

// For measurements: DLA_KERNELS_GROUP and DLA_KERNELS_SAMPLES set how many blocks share a tile (1 is the portable
// path) and how many samples make one; DLA_KERNELS_PHASES=1 or 0 whether the cell runs a phase a launch.
inline Device planned_device() {
  Device device = current_device();
  if (const char* group = std::getenv("DLA_KERNELS_GROUP")) device.group = std::atoi(group);
  if (const char* phases = std::getenv("DLA_KERNELS_PHASES")) device.phases = std::atoi(phases);
  if (const char* samples = std::getenv("DLA_KERNELS_SAMPLES")) device.samples = std::atoi(samples);
  return device;
}

// Whether a state given for this rule begins with an h: all do, but for the c of a dsu alone.
inline bool gives_h(const Rule& rule, const Tensors& state) { return state.size() == (rule.saves_c ? 2 : 1); }

// The cell of a call: its arguments, and the tensors that these point into.
template <class A>
struct CellCall {
  Rule rule;
  CellArgs<A> args{};
  Tensors weights, state;
  Tensor workspace, zeros;

  // No cell, but its plan: who takes which channels of which sample.
  CellCall(int64_t T, int64_t B, int64_t C) {
    args.projection = Projection::kJoint;
    args.T = T, args.B = B, args.C = C;
    args.refresh_begin = int(T);
  }
  // The scan runs over layers [0, scan_end), the refresh over [refresh_begin, T).
  CellCall(const std::string& name, const Tensors& given, const Tensors& start, int64_t T, int64_t B, int64_t C,
           int64_t scan_end, int64_t refresh_begin, const Tensor& like)
      : rule(name) {
    check_weights(given, rule.NG, C, dtype_of<A>(), like);
    check_state("state", start, rule.saves_h, rule.saves_c, /*may_be_absent=*/scan_end > 0, B, C, dtype_of<A>(), like);
    for (const Tensor& w : given) weights.push_back(aligned(w));
    use_state(start);
    args.NG = rule.NG, args.projection = projection_of(given);
    args.T = T, args.B = B, args.C = C;
    args.scan_end = int(scan_end), args.refresh_begin = int(refresh_begin);
    const auto at = [&](size_t i) { return data<A>(weights[i]); };
    switch (args.projection) {
      case Projection::kJoint:
        args.R = weights[0].size(0), args.ld_w1 = 2 * C;
        args.w1h = at(0), args.w1y = at(0) + C, args.w2h = at(1), args.q0 = at(2);
        break;
      case Projection::kSplit:
        args.R = weights[0].size(0), args.ld_w1 = C;
        args.w1y = at(0), args.b1y = at(1), args.w2y = at(2), args.q0 = at(3);
        args.w1h = at(4), args.b1h = at(5), args.w2h = at(6), args.q1 = at(7);
        break;
      case Projection::kDense:
        args.ld_w1 = C;
        args.w1y = at(0), args.q0 = at(1), args.w1h = at(2), args.q1 = at(3);
        break;
      case Projection::kSqueeze:
        break;  // projection_of knows of none
    }
  }
  // Where y alone goes through a bottleneck, to one number for each channel, and the kernel says what follows of it.
  // given, which is checked, begins with the weights of the bottleneck.
  CellCall(const Rule& rule, const Tensors& given, const Tensors& start, int64_t T, int64_t B, int64_t C,
           const Tensor& like)
      : rule(rule) {
    check_state("state", start, rule.saves_h, rule.saves_c, /*may_be_absent=*/true, B, C, dtype_of<A>(), like);
    for (const Tensor& w : given) weights.push_back(aligned(w));
    use_state(start);
    const SqueezePlaces in = in_squeeze(weights);
    const int64_t R = weights[size_t(in.w1)].size(0);
    args.NG = 1, args.projection = Projection::kSqueeze;
    args.T = T, args.B = B, args.C = C, args.R = R, args.ld_w1 = C;
    args.scan_end = 0, args.refresh_begin = int(T);
    if (in.b1 < 0 || in.b2 < 0) zeros = torch::stable::new_zeros(like, {std::max(R, C)}, dtype_of<A>());
    const auto at = [&](int i) { return data<A>(i < 0 ? zeros : weights[size_t(i)]); };
    args.w1y = at(in.w1), args.b1y = at(in.b1), args.w2y = at(in.w2), args.q0 = at(in.b2);
  }

  // Whether the cell is to run a phase a launch.
  bool in_phases(Pass pass, int64_t sample_bytes, bool attention = false) const {
    const Problem problem{pass,   args.projection, args.NG,   args.T,    args.B,           args.C,
                          args.R, sample_bytes,    sizeof(A), attention, args.scan_end > 0};
    return cuda::in_phases(problem, planned_device());
  }
  // For a kernel over the maps before or after those phases: no weights, but how a state is shown. Its plan is that of
  // two readings of the maps, though it has one.
  CellCall of_maps() const {
    CellCall maps(args.T, args.B, args.C);
    maps.args.rule = args.rule;
    return maps;
  }
  // Decides how a kernel with these Args runs, and gives it its workspace.
  template <class Args>
  Launch prepare(Pass pass, int64_t sample_bytes, const Tensor& like, bool attention = false) {
    Problem problem{pass,         args.projection, args.NG,   args.T,           1, args.C, args.R,
                    sample_bytes, sizeof(A),       attention, args.scan_end > 0};
    const Device device = planned_device();
    const auto launch_of_plan = [&] {
      const Plan& plan = args.plan;
      return Launch{int64_t(plan.tiles_in_flight) * plan.blocks_per_tile, plan.blocks_per_tile, plan.threads,
                    plan.shared_bytes};
    };
    // Where so large clusters find no place, smaller ones: asked for one sample, so that the batch has no say.
    int largest = kMaxGroup;
    for (;; largest = args.plan.blocks_per_tile / 2) {
      args.plan = make_plan(problem, device, largest);
      if (args.plan.blocks_per_tile == 1 || clusters_that_fit<Args>(launch_of_plan()) > 0) break;
    }
    problem.B = args.B;
    args.plan = make_plan(problem, device, largest);
    // No more clusters than run at once: one more would start when the first ends, and take as long again.
    if (args.plan.blocks_per_tile > 1)
      args.plan.tiles_in_flight = std::min(args.plan.tiles_in_flight, clusters_that_fit<Args>(launch_of_plan()));
    Launch how = launch_of_plan();
    STD_TORCH_CHECK(how.blocks > 0 || args.B == 0, "dla_kernels: no cluster of ", args.plan.blocks_per_tile,
                    " blocks fits on this device; set DLA_KERNELS_GROUP=1");
    if (args.B == 0) how.blocks = 0;
    workspace = empty<A>(like, {how.blocks * args.plan.workspace_bytes / int64_t(sizeof(A))});
    args.workspace = data<A>(workspace);
    return how;
  }

  Tensors empty_states(const Tensor& like, const std::vector<int64_t>& shape) const {
    Tensors out;
    for (size_t i = 0; i < rule.num_states(); ++i) out.push_back(empty<A>(like, shape));
    return out;
  }
  void check(const char* name, const Tensors& states, bool may_be_absent, const std::vector<int64_t>& shape,
             const Tensor& like) const {
    check_states(name, states, rule.num_states(), may_be_absent, shape, dtype_of<A>(), like);
  }
  // Of states as they are saved.
  A* h_of(const Tensors& states) const { return rule.saves_h && !states.empty() ? data<A>(states.front()) : nullptr; }
  A* c_of(const Tensors& states) const { return rule.saves_c && !states.empty() ? data<A>(states.back()) : nullptr; }

 private:
  void use_state(const Tensors& start) {
    state = as_contiguous(start);
    args.rule = rule.number, args.saves_h = rule.saves_h, args.saves_c = rule.saves_c;
    args.h0 = gives_h(rule, state) ? data<A>(state[0]) : nullptr;
    args.c0 = rule.saves_c && !state.empty() ? data<A>(state.back()) : nullptr;
    args.start_h = rule.template start_h<A>();
  }
};

// f(an A, device, y, cell) for the cell over given rows y [T, B, C], contiguous: it scans them, or refreshes them.
template <class F>
auto over_rows(const Tensor& y_in, const Tensors& weights, const Tensors& state, const std::string& rule, bool scans,
               F f) {
  check_rows("y", y_in);
  return dispatch_rows(y_in.scalar_type(), [&](auto element) {
    using A = decltype(element);
    const OnDevice device(y_in);
    const Tensor y = as_contiguous(y_in);
    const int64_t T = y.size(0), scan_end = scans ? T : 0;
    CellCall<A> cell(rule, weights, state, T, y.size(1), y.size(2), scan_end, /*refresh_begin=*/scan_end, y);
    return f(element, device, y, cell);
  });
}

}  // namespace cuda
}  // namespace dla
