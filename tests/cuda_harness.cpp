// The CUDA kernels of a copy of csrc, run through the SIMT shim without torch: test_cuda_mutations.py makes the copy
// and says in it where a barrier can be left out (`skipped`) and a buffer made too small (`shortened`).
#include <climits>
#include <cmath>
#include <cstdio>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "simt.h"

static int skipped = -1, shortened = -1;
#define LEFT_OUT(site) (skipped == (site))

// With AddressSanitizer there is a gap behind every buffer of a plan, and it is out of bounds.
inline int64_t exact(int buffer, int64_t bytes, int element);
inline int64_t sized(int buffer, int64_t bytes, int element) {
  bytes = exact(buffer, bytes, element);
  return bytes == 0 ? 0 : (bytes + 127) / 128 * 128 SIMT_ASAN(+128);
}

#include "cuda/attend.cuh"
#include "cuda/depthwise.cuh"
#include "cuda/launching.h"
#include "cuda/layer_update.cuh"
#include "cuda/light_step.cuh"
#include "cuda/mix.cuh"
#include "cuda/moments.cuh"
#include "cuda/planner.h"
#include "cuda/recalibrate.cuh"
#include "cuda/refresh.cuh"
#include "cuda/scan.cuh"
#include "cuda/weight_gradients.cuh"
#include "cuda_harness_cases.h"
#include "cuda_harness_memory.h"

using namespace dla;
using namespace dla::cuda;

// What a buffer takes. One that is shortened: an element less, or for copies of weights, whose rows may be padded, a
// few.
inline int64_t exact(int buffer, int64_t bytes, int element) {
  if (bytes > 0 && buffer == shortened) bytes -= (buffer == kW1h || buffer == kW2h ? 8 : 1) * element;
  return bytes;
}

// ---- launching ----

template <class Args>
void start(void (*kernel)(const Args&), const Args& args, const Launch& how) {
  simt::launch(kernel, int(how.blocks), how.cluster, how.threads, size_t(how.shared_bytes), args);
}

template <class Args>
void start(void (*kernel)(const Args&), Args args, const Problem& problem, const Device& device) {
  const Plan plan = args.cell.plan = make_plan(problem, device);
  const int64_t blocks = int64_t(plan.tiles_in_flight) * plan.blocks_per_tile;
  std::vector<unsigned char> workspace(blocks * plan.workspace_bytes, 0xff);
  args.cell.workspace = reinterpret_cast<float*>(workspace.data());
  const Launch how{blocks, plan.blocks_per_tile, plan.threads, plan.shared_bytes};
#if defined(__SANITIZE_ADDRESS__)
  const auto gaps = [&](unsigned char* memory, bool shared) {
    for (int i = 0; i < kNumBuffers; ++i) {
      const int64_t place = plan.place[i];
      if (place == Plan::kAbsent || (place >= 0) != shared) continue;
      const int64_t bytes = plan_detail::elements(Buffer(i), problem, plan) * problem.accumulate_bytes;
      const int64_t begin = (shared ? place : -1 - place) + exact(i, bytes, problem.accumulate_bytes);
      const int64_t end = (begin + 127) / 128 * 128 + 128;
      ASAN_POISON_MEMORY_REGION(memory + begin, end - begin);
    }
  };
  for (int64_t b = 0; b < blocks; ++b) gaps(workspace.data() + b * plan.workspace_bytes, false);
  const auto guarded = [&](const Args& a) {
    gaps(shared_memory(), true);
    kernel(a);
    if (simt::detail::me->block->live == 1) ASAN_UNPOISON_MEMORY_REGION(shared_memory(), how.shared_bytes);
  };
  simt::launch(guarded, int(how.blocks), how.cluster, how.threads, size_t(how.shared_bytes), args);
  ASAN_UNPOISON_MEMORY_REGION(workspace.data(), workspace.size());
#else
  start(kernel, args, how);
#endif
}

// ---- the calls of a case ----

struct Call {
  const Case& of;
  Pool& memory;
  CellArgs<float> cell{};
  RecurrenceGrads<float> grads{};
  int64_t rows = of.T * of.B, C = of.C, state = of.B * of.C;

  Call(const Case& of, Pool& memory) : of(of), memory(memory) {
    cell.rule = rule_number(of.rule);
    with_rule(cell.rule, [&](auto rule) {
      using Of = decltype(rule);
      cell.NG = Of::NG, cell.saves_h = Of::kSavesH, cell.saves_c = Of::kSavesC;
      cell.start_h = Of::template start_h<float>();
    });
    cell.projection = of.projection;
    cell.T = of.T, cell.B = of.B, cell.C = C;
    const int64_t R = of.R, N = cell.NG * C;
    const float wide = 1.5f / std::sqrt(float(C)), narrow = 1.5f / std::sqrt(float(R > 0 ? R : 1));
    if (of.projection == Projection::kJoint) {
      const float* w1 = memory.drawn(R * 2 * C, wide);
      cell.R = R, cell.ld_w1 = 2 * C, cell.w1h = w1, cell.w1y = w1 + C;
      cell.w2h = memory.drawn(N * R, narrow), cell.q0 = memory.drawn(N, 0.5f);
    } else if (of.projection == Projection::kSplit) {
      cell.R = R, cell.ld_w1 = C;
      cell.w1y = memory.drawn(R * C, wide), cell.b1y = memory.drawn(R, 0.5f), cell.w2y = memory.drawn(N * R, narrow);
      cell.w1h = memory.drawn(R * C, wide), cell.b1h = memory.drawn(R, 0.5f), cell.w2h = memory.drawn(N * R, narrow);
      cell.q0 = memory.drawn(N, 0.5f), cell.q1 = memory.drawn(N, 0.5f);
    } else if (of.projection == Projection::kSqueeze) {
      cell.R = R, cell.ld_w1 = C, cell.NG = 1;
      cell.w1y = memory.drawn(R * C, wide), cell.b1y = memory.drawn(R, 0.5f), cell.w2y = memory.drawn(C * R, narrow);
      cell.q0 = memory.drawn(C, 0.5f);
    } else {
      cell.ld_w1 = C;
      cell.w1y = memory.drawn(N * C, wide), cell.w1h = memory.drawn(N * C, wide);
      cell.q0 = memory.drawn(N, 0.5f), cell.q1 = memory.drawn(N, 0.5f);
    }
    cell.h0 = memory.drawn(state, 0.7f), cell.c0 = memory.drawn(state, 0.7f);
  }

  Problem problem(Pass pass, int64_t sample_bytes, bool attention = false) const {
    return {pass,   cell.projection, cell.NG,       cell.T,    cell.B,           cell.C,
            cell.R, sample_bytes,    sizeof(float), attention, cell.scan_end > 0};
  }
  // What launches over maps before a step and after it are told of the cell.
  void without_weights() {
    CellArgs<float> maps{};
    maps.rule = cell.rule, maps.projection = Projection::kJoint;
    maps.T = of.T, maps.B = of.B, maps.C = C, maps.refresh_begin = int(of.T);
    cell = maps;
  }
  // Which layers scan and refresh take: forward and backward.
  void take(int64_t scan_end, int64_t refresh_begin) {
    cell.scan_end = int(scan_end), cell.refresh_begin = int(refresh_begin);
  }
  void prepare_grads() {
    const bool has_scan = cell.scan_end > 0, has_refresh = cell.refresh_begin < cell.T;
    if (cell.rule < kNumRules) grads.dh0 = memory.result(state), grads.dc0 = memory.result(state);
    const bool low = of.projection != Projection::kDense, squeeze = of.projection == Projection::kSqueeze;
    const int64_t R = of.R, N = cell.NG * C;
    Factors<float>& f = grads.factors;
    const int64_t scanned = cell.scan_end * of.B, first = cell.refresh_begin * of.B;
    const auto of_scan = [&](int64_t width) { return has_scan ? memory.result(scanned * width) : nullptr; };
    const auto of_refresh = [&](int64_t width) {
      return has_refresh ? memory.result((rows - first) * width) - first * width : nullptr;
    };
    f.h = of_scan(C), f.da_scan = of_scan(N), f.da_refresh = of_refresh(N);
    if (has_refresh) f.h_last = memory.result(state), f.last_sum = memory.result(of.B * (low ? R : N));
    if (low) f.u_scan = of_scan(R), f.ds_scan = of_scan(R), f.u_refresh = of_refresh(R), f.ds_refresh = of_refresh(R);
    if (of.projection == Projection::kSplit || squeeze) f.uy = memory.result(rows * R), f.dsy = memory.result(rows * R);
    if (squeeze) f.da_scan = memory.result(rows * C);
  }
  void give_states(const float* h, const float* c) {
    grads.states_h = h, grads.states_c = c;
    if (h) grads.dstates_h = memory.drawn(rows * C, 1);
    if (c) grads.dstates_c = memory.drawn(rows * C, 1);
  }

  void scan() {
    take(of.T, of.T);
    const float* y = memory.drawn(rows * C, 1);
    float *h = cell.saves_h ? memory.result(rows * C) : nullptr, *c = cell.saves_c ? memory.result(rows * C) : nullptr;
    start(scan_kernel<float>, ScanArgs<float>{cell, y, h, c}, problem(Pass::kForward, 0), of.device);
    prepare_grads();
    give_states(h, c);
    start(scan_bwd_kernel<float>, ScanBwdArgs<float>{cell, grads, y, memory.result(rows * C)},
          problem(Pass::kBackward, 0), of.device);
  }

  void refresh() {
    take(0, 0);
    const float *y = memory.drawn(rows * C, 1), *dd = memory.drawn(rows * C, 1);
    start(refresh_kernel<float>, RefreshArgs<float>{cell, y, memory.result(rows * C)}, problem(Pass::kForward, 0),
          of.device);
    prepare_grads();
    start(refresh_bwd_kernel<float>, RefreshBwdArgs<float>{cell, grads, y, dd, memory.result(rows * C)},
          problem(Pass::kBackward, 0), of.device);
  }

  template <class T>
  MapView<T> map(int t, T* data) const {
    const int64_t HW = of.HW[t % of.HW.size()];
    const bool interleaved = of.interleaved != (of.mixed && t % 2 == 1);
    return {data, C, HW, C * HW, interleaved ? 1 : HW, interleaved ? C : 1, interleaved};
  }

  template <class T>
  void layer_update() {
    take(of.T, 0);
    int64_t sample_bytes = 0;
    LayerUpdateArgs<T> forward{};
    LayerUpdateBwdArgs<T> backward{};
    std::vector<MapView<T>> x, out, dout, dx;
    for (int t = 0; t < of.T; ++t) {
      const int64_t size = state * of.HW[t % of.HW.size()];
      sample_bytes += size / of.B * int64_t(sizeof(T));
      x.push_back(map(t, memory.drawn_map(size, T{})));
      out.push_back(map(t, memory.result_map(size, T{})));
      dout.push_back(map(t, memory.drawn_map(size, T{})));
      dx.push_back(map(t, memory.result_map(size, T{})));
    }
    enter_maps(x, kIn, of.B, forward.layers), enter_maps(out, kOut, of.B, forward.layers);
    enter_maps(x, kIn, of.B, backward.layers);
    enter_maps(dout, kGradOut, of.B, backward.layers), enter_maps(dx, kGradIn, of.B, backward.layers);
    forward.cell = cell;
    backward.y = forward.y = memory.result(rows * C);
    forward.states_h = cell.saves_h ? memory.result(rows * C) : nullptr;
    forward.states_c = cell.saves_c ? memory.result(rows * C) : nullptr;
    start(layer_update_kernel<T>, forward, problem(Pass::kForward, sample_bytes), of.device);
    prepare_grads();
    give_states(forward.states_h, forward.states_c);
    backward.cell = cell, backward.grads = grads;
    start(layer_update_bwd_kernel<T>, backward, problem(Pass::kBackward, 2 * sample_bytes), of.device);
  }

  // T = 1: x alone; T = 2: x and o_prev. Maps have 5 columns.
  void light_step() {
    constexpr int64_t K = 3, heads = 2, W = 5;
    const int64_t size = state * of.HW[0], sample_bytes = of.T * C * of.HW[0] * int64_t(sizeof(float));
    const LightFilters<float> filters{memory.drawn(K, 1),
                                      memory.drawn(K, 1),
                                      memory.drawn(9 * C, 1),
                                      memory.drawn(9 * C, 1),
                                      memory.drawn(C, 1),
                                      int(K),
                                      int(heads)};
    LightStepArgs<float> forward{};
    LightStepBwdArgs<float> backward{};
    for (int m = 0; m < of.T; ++m) {
      const MapView<float> x = map(m, memory.drawn(size, 1));
      enter_map(x, kIn, of.B, forward.layers[m]);
      enter_map(x, kIn, of.B, backward.layers[m]);
      enter_map(map(m, memory.result(size)), kGradIn, of.B, backward.layers[m]);
    }
    enter_map(map(0, memory.result(size)), kOut, of.B, forward.layers[0]);
    enter_map(map(0, memory.drawn(size, 1)), kGradOut, of.B, backward.layers[0]);
    take(cell.NG > 0 ? 1 : 0, cell.NG > 0 ? 1 : of.T);
    forward.cell = cell, forward.filters = filters, forward.W = W;
    backward.y = forward.y = memory.result(rows * C);
    forward.states_h = cell.saves_h ? memory.result(state) : nullptr;
    forward.states_c = cell.saves_c ? memory.result(state) : nullptr;
    forward.planes = memory.result(2 * state);
    start(light_step_kernel<float>, forward, problem(Pass::kForward, sample_bytes, true), of.device);
    if (cell.NG > 0) prepare_grads();
    give_states(forward.states_h, forward.states_c);
    backward.cell = cell, backward.grads = grads, backward.filters = filters, backward.W = W;
    backward.dv = memory.result(9 * state);
    if (of.T > 1) backward.de = memory.result(9 * state), backward.dlam = memory.result(state);
    const Problem back = problem(Pass::kBackward, sample_bytes, true);
    backward.dtaps = memory.result(of.B * make_plan(back, of.device).blocks_per_tile * 2 * K);
    backward.dgates = memory.result(state), backward.dscores = memory.result(of.B * heads);
    start(light_step_bwd_kernel<float>, backward, back, of.device);
    if (cell.NG == 0) return;

    // The same with the step apart.
    without_weights();
    forward.cell = backward.cell = cell, forward.part = Part::kAfterStep, backward.part = Part::kBeforeStep;
    forward.d = memory.drawn(state, 1), forward.planes = memory.result(2 * state);
    enter_map(map(0, memory.result(size)), kOut, of.B, forward.layers[0]);
    start(light_step_kernel<float>, forward, problem(Pass::kForward, sample_bytes, true), of.device);
    backward.dv = memory.result(9 * state), backward.de = memory.result(9 * state);
    backward.dlam = memory.result(state), backward.dd = memory.result(state), backward.middle = memory.result(state);
    backward.dgates = memory.result(state), backward.dscores = memory.result(of.B * heads);
    const Problem apart = problem(Pass::kBackward, sample_bytes, true);
    backward.dtaps = memory.result(of.B * make_plan(apart, of.device).blocks_per_tile * 2 * K);
    start(light_step_bwd_kernel<float>, backward, apart, of.device);
    backward.part = Part::kAfterStep, backward.d = memory.drawn(state, 1), backward.dy = memory.drawn(rows * C, 1);
    for (int m = 0; m < of.T; ++m) enter_map(map(m, memory.result(size)), kGradIn, of.B, backward.layers[m]);
    start(light_step_bwd_kernel<float>, backward, apart, of.device);
  }

  // T = 1. By the rule's name and the projection: taps, a squeeze, a light cell, or a recurrence.
  void recalibrate() {
    constexpr int64_t K = 3;
    const bool taps = std::string(of.rule) == "eca", squeeze = of.projection == Projection::kSqueeze;
    const bool light = squeeze && cell.rule < kNumRules, relu = !of.mixed, adds = !of.mixed;
    const int64_t size = state * of.HW[0], sample_bytes = C * of.HW[0] * int64_t(sizeof(float));
    take(taps || squeeze ? 0 : 1, 1);
    ShownArgs<float> shown{};
    shown.by = taps ? Shows::kTaps : light ? Shows::kLightCell : squeeze ? Shows::kSqueeze : Shows::kCell;
    int64_t N = 0;
    with_rule(cell.rule, [&](auto rule) { N = decltype(rule)::NG * C; });
    if (light) shown.light = {memory.drawn(N, 1), memory.drawn(N, 1), memory.drawn(N, 1)};
    if (taps) shown.taps = memory.drawn(K, 1), shown.K = int(K);

    RecalibrateArgs<float> forward{cell, shown, memory.result(state), nullptr, nullptr, adds, relu, {}};
    if (cell.saves_h) forward.states_h = memory.result(state);
    if (cell.saves_c) forward.states_c = memory.result(state);
    const MapView<float> a = map(0, memory.drawn(size, 1)), out = map(0, memory.result(size));
    enter_map(a, kIn, of.B, forward.layer), enter_map(out, kSum, of.B, forward.layer);
    if (adds) enter_map(map(0, memory.drawn(size, 1)), kShortcut, of.B, forward.layer);
    start(recalibrate_kernel<float>, forward, problem(Pass::kForward, sample_bytes), of.device);

    if (!taps) prepare_grads();
    give_states(forward.states_h, forward.states_c);
    RecalibrateBwdArgs<float> backward{};
    backward.cell = cell, backward.grads = grads, backward.shown = shown, backward.y = forward.y;
    backward.masked = relu, backward.adds = adds;
    const Problem back = problem(Pass::kBackward, (relu ? 3 : 2) * sample_bytes);
    if (light) backward.factors = {memory.result(of.B * N), memory.result(of.B * N), memory.result(of.B * N)};
    if (taps) {
      backward.da = memory.result(state);
      backward.dtaps = memory.result(of.B * make_plan(back, of.device).blocks_per_tile * K);
    }
    enter_map(a, kIn, of.B, backward.branch);
    enter_map(map(0, memory.drawn(size, 1)), kGradOut, of.B, backward.branch);
    enter_map(map(0, memory.result(size)), kGradIn, of.B, backward.branch);
    if (relu) enter_map(out, kResult, of.B, backward.beside);
    if (adds) enter_map(map(0, memory.result(size)), kGradShortcut, of.B, backward.beside);
    start(recalibrate_bwd_kernel<float>, backward, back, of.device);
    if (taps) return;

    // The same with the step apart.
    without_weights();
    forward.cell = backward.cell = cell;
    forward.shown.part = Part::kAfterStep, backward.shown.part = Part::kBeforeStep;
    forward.shown.a = backward.shown.a = memory.drawn(state, 1);
    enter_map(map(0, memory.result(size)), kSum, of.B, forward.layer);
    start(recalibrate_kernel<float>, forward, problem(Pass::kForward, sample_bytes), of.device);
    const Problem apart = problem(Pass::kBackward, (relu ? 3 : 2) * sample_bytes);
    if (forward.states_h) backward.dh = memory.result(state);
    if (forward.states_c) backward.dc = memory.result(state);
    if (squeeze && !light) backward.grads.factors.da_scan = memory.result(state);
    start(recalibrate_bwd_kernel<float>, backward, apart, of.device);
    backward.shown.part = Part::kAfterStep, backward.dy = memory.drawn(state, 1);
    enter_map(map(0, memory.result(size)), kGradIn, of.B, backward.branch);
    if (adds) enter_map(map(0, memory.result(size)), kGradShortcut, of.B, backward.beside);
    start(recalibrate_bwd_kernel<float>, backward, apart, of.device);
  }

  // T: this layer and T - 1 before it.
  void attend() {
    constexpr int64_t K = 3, heads = 2;
    const int64_t M = of.T - 1;
    const auto past = [&](int64_t of_layers) { return memory.drawn(of_layers * state, 1); };
    Attended<float> in{memory.drawn(state, 1), memory.drawn(K, 1), memory.drawn(K, 1), past(M), past(M), past(2 * M)};
    in.M = M, in.B = of.B, in.C = C, in.K = K, in.heads = heads, in.shares = memory.result(of.B * of.T * heads);
    const Launch how{of.B, 1, of.device.threads, 0};
    const auto all = [&] { return memory.result(rows * C); };
    start(attend_kernel<float>, AttendArgs<float>{in, all(), all(), all()}, how);
    AttendBwdArgs<float> backward{in, memory.drawn(rows * C, 1), memory.drawn(rows * C, 1), memory.drawn(rows * C, 1)};
    backward.dpast_keys = memory.result(M * state), backward.dpast_scale = memory.result(M * state);
    backward.dpast = memory.result(2 * M * state);
    backward.dy = memory.result(state), backward.dtaps = memory.result(of.B * 2 * K);
    backward.dshares = memory.result(of.B * of.T * heads), backward.dqk_rows = memory.result(2 * state);
    start(attend_bwd_kernel<float>, backward, how);
  }

  // depthwise's sums of planes, and moments of a mix.
  void planes() {
    const int64_t size = state * of.HW[0], shared = 9 * of.device.threads * int64_t(sizeof(float));
    const Pieces pieces{1, of.B, C, 8};
    const Launch how{pieces.blocks(), 1, of.device.threads, shared};
    DepthwiseBwdArgs<float> depthwise{pieces, 5, memory.drawn(9 * C, 1), memory.drawn(2 * state, 1), nullptr, {}};
    depthwise.dv = memory.result(9 * state);
    MixArgs<float> mix{};
    mix.pieces = pieces, mix.M = int(of.T);
    mix.coef = memory.drawn(rows * C, 1), mix.planes = memory.result(2 * state);
    for (int m = 0; m < of.T; ++m) enter_map(map(m, memory.drawn(size, 1)), kIn, of.B, mix.values.at[m]);
    enter_map(map(0, memory.result(size)), kOnly, of.B, mix.out);
    for (int which : {kIn, kGradOut}) enter_map(map(0, memory.drawn(size, 1)), which, of.B, depthwise.layer);
    enter_map(map(0, memory.result(size)), kGradIn, of.B, depthwise.layer);
    start(depthwise_bwd_kernel<float>, depthwise, how);
    start(mix_kernel<float>, mix, how);
    const MomentsArgs<float> moments{of.B, C, of.HW[0], mix.planes, memory.result(2 * C)};
    start(moments_kernel<float>, moments, Launch{(C + 7) / 8, 1, of.device.threads, shared});
  }

  void weight_gradients() {
    WeightGradientArgs<float> args{};
    const int64_t M = 40, N = 35, K = 70;
    args.count = 2;
    const float *g = memory.drawn(K * M, 1), *x = memory.drawn(K * N, 1);
    args.of[0] = {memory.result(M * N), M, N, N, {{g, x, M, N, K}, {g, x, M, N, 33}}, 0};
    args.of[1] = {memory.result(M), M, 1, 1, {{g, nullptr, M, 0, K}, {}}, tiles_of(M, N)};
    const int64_t tiles = tiles_of(M, N) + tiles_of(M, 1);
    for (const int group : {1, 4})
      start(weight_gradients_kernel<float>, args,
            Launch{tiles * group, group, kProductThreads, product_shared_bytes<float>()});
  }

  void operator()() {
    const std::string op = of.op;
    if (op == "scan") scan();
    if (op == "refresh") refresh();
    if (op == "layer_update") layer_update<float>();
    if (op == "layer_update, bf16") layer_update<BFloat16>();
    if (op == "light_step") light_step();
    if (op == "recalibrate") recalibrate();
    if (op == "attend") attend();
    if (op == "planes") planes();
    if (op == "weight_gradients") weight_gradients();
  }
};

struct Outcome {
  uint64_t hash = 0;
  int missing = 0;
  std::string error;
  bool operator!=(const Outcome& other) const { return hash != other.hash || error != other.error; }
};

static Outcome run(const Case& c, int seed) {
  simt::seed(seed);
  Pool memory;
  try {
    Call call(c, memory);
    call();
  } catch (const std::exception& e) {
    return {0, 0, e.what()};
  }
  return {memory.hash(), memory.missing(), ""};
}

// same SEEDS | skip SITE SEEDS | short BUFFER
int main(int count, char** argv) {
  const std::string mode = argv[1];
  const int number = count > 2 ? std::stoi(argv[2]) : 0, seeds = mode == "skip" ? std::stoi(argv[3]) : number;
  if (mode == "same")
    for (const Case& c : kCases) {
      std::set<uint64_t> hashes;
      Outcome last;
      for (int seed = 0; seed < seeds; ++seed) hashes.insert((last = run(c, seed)).hash);
      std::printf("%s: %d results, %d elements missing%s\n", c.name, int(hashes.size()), last.missing,
                  last.error.c_str());
    }
  if (mode == "short") {
    shortened = number;
    for (const Case& c : kCases) run(c, 0);
  }
  if (mode == "skip") {
    std::vector<Outcome> right;
    for (const Case& c : kCases) right.push_back(run(c, 0));
    skipped = number;
    for (int seed = 0; seed < seeds; ++seed)
      for (size_t i = 0; i < kCases.size(); ++i) {
        const Outcome mine = run(kCases[i], seed);
        if (!(mine != right[i])) continue;
        std::printf("caught by '%s' under seed %d %s\n", kCases[i].name, seed, mine.error.c_str());
        return 0;
      }
    std::printf("not caught\n");
  }
}
