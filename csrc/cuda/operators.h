// What the operators (<op>.cpp) share: from tensors to the kernels' arguments. Compiled for CUDA tensors, or,
// with DLA_SIMT, for CPU tensors that the shim works on, in a library of operators of its own.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>

#if defined(DLA_SIMT)
#define DLA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(dla_simt, CPU, m)
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define DLA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(dla, CUDA, m)
#endif

#include "../cells/cells.h"
#include "../maps.h"
#include "../tensors.h"
#include "args.h"

namespace dla {
namespace cuda {

// While it lives, the device of `like` is the current one, and its current stream is ours.
class OnDevice {
 public:
#if defined(DLA_SIMT)
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& like) : index_(like.get_device_index()), guard_(index_) { use_device(index_); }
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

template <class Args>
void run(const OnDevice& device, const Args& args, const Launch& how) {
  if (how.blocks == 0) return;
  const char* error = launch(args, how, device.stream());
  STD_TORCH_CHECK(error == nullptr, "dla_kernels: a CUDA launch of ", how.blocks, " blocks of ", how.threads,
                  " threads with ", how.shared_bytes, " bytes of shared memory failed: ", error);
}

template <class A>
Tensor empty(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape, dtype_of<A>());
}
template <class A>
A* data(const Tensor& x) {  // x is contiguous
  return static_cast<A*>(x.data_ptr());
}
template <class A>
A* data_or_null(const Tensors& xs, size_t i) {
  return i < xs.size() ? data<A>(xs[i]) : nullptr;
}

// ---- maps ----

inline void check_layers(const Tensors& xs) {
  STD_TORCH_CHECK(xs.size() <= size_t(kMaxLayers), "xs: expected at most ", kMaxLayers,
                  " layers in one launch on CUDA, got ", xs.size());
}

// Blocks of an op on maps alone take about 64 KB each; pieces of whole vectors of channels.
template <class T>
Pieces pieces_of(const std::vector<MapView<const T>>& maps, int64_t B) {
  int64_t HW = 1;
  for (const auto& map : maps) HW = std::max(HW, map.HW);
  const int64_t C = maps[0].C, wanted = (64 << 10) / int64_t(sizeof(T)) / HW;
  const int64_t channels = std::min(divide_up(std::max<int64_t>(wanted, 1), 8) * 8, divide_up(C, 8) * 8);
  return {int64_t(maps.size()), B, C, int(channels)};
}
template <class T>
Launch launch_of(const Pieces& pieces) {
  const int threads = current_device().threads;
  return {pieces.blocks(), 1, threads, threads * 8 * int64_t(sizeof(accumulate_t<T>))};
}

// moments [2, C] from `planes` [2, B, C], which a kernel is filling, for maps of HW pixels.
template <class A>
Tensors moments_of(const OnDevice& device, const Tensor& planes, int64_t HW) {
  const int64_t B = planes.size(1), C = planes.size(2);
  const Tensor moments = empty<A>(planes, {2, C});
  const int threads = current_device().threads;
  run(device, MomentsArgs<A>{B, C, int(HW), data<A>(planes), data<A>(moments)},
      Launch{divide_up(C, kMomentsChannels), 1, threads, threads * 8 * int64_t(sizeof(A))});
  return {moments};
}

// ---- recurrences ----

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

struct Rule {
  int number, NG;
  bool saves_h, saves_c;

  Rule() : number(kNumRules), NG(0), saves_h(false), saves_c(false) {}  // of no cell
  explicit Rule(const std::string& name) : number(rule_number(name.c_str())) {
    std::string known;
    for (const char* rule : kRuleNames) known += std::string(known.empty() ? "" : ", ") + rule;
    STD_TORCH_CHECK(number < kNumRules, "rule: expected one of ", known, ", got '", name, "'");
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
// path) and how many samples make one.
inline Device planned_device() {
  Device device = current_device();
  if (const char* group = std::getenv("DLA_KERNELS_GROUP")) device.group = std::atoi(group);
  if (const char* samples = std::getenv("DLA_KERNELS_SAMPLES")) device.samples = std::atoi(samples);
  return device;
}

// Whether a state given for this rule begins with an h: all do, but for the c of a dsu alone.
inline bool gives_h(const Rule& rule, const Tensors& state) { return state.size() == (rule.saves_c ? 2 : 1); }

// The cell of a call: its arguments, and the tensors that these point into.
template <class A>
struct Cell {
  Rule rule;
  CellArgs<A> args{};
  Tensors weights, state;
  Tensor workspace;

  // No cell, but its plan: who takes which channels of which sample.
  Cell(int64_t T, int64_t B, int64_t C) {
    args.projection = Projection::kJoint;
    args.T = T, args.B = B, args.C = C;
    args.refresh_begin = int(T);
  }
  // The scan runs over layers [0, scan_end), the refresh over [refresh_begin, T).
  Cell(const std::string& name, const Tensors& given, const Tensors& start, int64_t T, int64_t B, int64_t C,
       int64_t scan_end, int64_t refresh_begin, const Tensor& like)
      : rule(name) {
    check_weights(given, rule.NG, C, dtype_of<A>(), like);
    check_state("state", start, rule.saves_h, rule.saves_c, /*may_be_absent=*/scan_end > 0, B, C, dtype_of<A>(), like);
    for (const Tensor& w : given) weights.push_back(aligned(w));
    state = dense(start);
    args.rule = rule.number, args.NG = rule.NG, args.saves_h = rule.saves_h, args.saves_c = rule.saves_c;
    args.projection = projection_of(given);
    args.T = T, args.B = B, args.C = C;
    args.scan_end = int(scan_end), args.refresh_begin = int(refresh_begin);
    args.h0 = gives_h(rule, state) ? data<A>(state[0]) : nullptr;
    args.c0 = rule.saves_c && !state.empty() ? data<A>(state.back()) : nullptr;
    args.start_h = rule.template start_h<A>();
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
    }
  }

  // Decides how a kernel with these Args runs, and gives it its workspace.
  template <class Args>
  Launch prepare(Pass pass, int64_t sample_bytes, const Tensor& like, bool attention = false) {
    Problem problem{pass, args.projection, args.NG, args.T, 1, args.C, args.R, sample_bytes, sizeof(A), attention};
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
  // Of states as they are saved.
  A* h_of(const Tensors& states) const { return rule.saves_h && !states.empty() ? data<A>(states.front()) : nullptr; }
  A* c_of(const Tensors& states) const { return rule.saves_c && !states.empty() ? data<A>(states.back()) : nullptr; }
};

// Gradients of weights, all by one launch: sums over rows that earlier launches left in global memory.
template <class A>
class WeightGradients {
 public:
  // to [M, N] in rows of ld = the sum of both products.
  void add(A* to, int64_t M, int64_t N, int64_t ld, Product<A> a, Product<A> b) {
    args_.of[args_.count++] = {to, M, N, ld, {a, b}, tiles_};
    tiles_ += tiles_of(M, N);
  }
  // to [M] = the sums of the columns of g [rows, M], whose rows lie ld apart.
  void add_column_sums(A* to, int64_t M, const A* g, int64_t ld, int64_t rows) {
    add(to, M, 1, 1, {g, nullptr, ld, 0, rows}, {});
  }
  void run(const OnDevice& device) const {
    // As many blocks as share a tile's rows.
    const int group = std::min(current_device().largest_cluster, kMaxGroup);
    Launch how{tiles_ * group, group, kGradientThreads, gradient_shared_bytes<A>()};
    if (clusters_that_fit<WeightGradientArgs<A>>(how) == 0) how.blocks = tiles_, how.cluster = 1;
    cuda::run(device, args_, how);
  }

 private:
  WeightGradientArgs<A> args_{};
  int64_t tiles_ = 0;
};

// A backward pass: its gradients, the factors of the weight gradients, and their products.
template <class A>
struct Gradients {
  RecurrenceGrads<A> args{};
  Tensors dstate, dweights;

  Gradients(const Cell<A>& cell, const Tensor& like) : cell_(cell) {
    const int64_t B = cell.args.B, C = cell.args.C, R = cell.args.R, N = cell.args.NG * C, rows = cell.args.T * B;
    const bool low = cell.args.projection != Projection::kDense, split = cell.args.projection == Projection::kSplit;
    const bool has_scan = cell.args.scan_end > 0, has_refresh = cell.args.refresh_begin < cell.args.T;
    for (size_t i = 0; i < cell.state.size(); ++i) dstate.push_back(empty<A>(like, {B, C}));
    args.dh0 = cell.args.h0 ? data<A>(dstate.front()) : nullptr;
    args.dc0 = cell.args.c0 ? data<A>(dstate.back()) : nullptr;

    Factors<A>& f = args.factors;
    std::vector<std::pair<A**, int64_t>> wanted;
    const auto want = [&](bool needed, A** pointer, int64_t size) {
      if (needed) wanted.emplace_back(pointer, size);
    };
    want(has_scan, &f.h, rows * C);
    want(has_scan, &f.da_scan, rows * N);
    want(has_refresh, &f.da_refresh, rows * N);
    want(has_scan && low, &f.u_scan, rows * R);
    want(has_scan && low, &f.ds_scan, rows * R);
    want(has_refresh && low, &f.u_refresh, rows * R);
    want(has_refresh && low, &f.ds_refresh, rows * R);
    want(split, &f.uy, rows * R);
    want(split, &f.dsy, rows * R);
    want(has_refresh, &f.h_last, B * C);
    want(has_refresh, &f.last_sum, B * (low ? R : N));
    int64_t size = 0;
    for (const auto& factor : wanted) size += factor.second;
    held_ = empty<A>(like, {size});
    int64_t at = 0;
    for (const auto& factor : wanted) *factor.first = data<A>(held_) + at, at += factor.second;
  }

  // dweights, in the order of the weights; y [T, B, C].
  void weight_gradients(const A* y, WeightGradients<A>& products) {
    const CellArgs<A>& cell = cell_.args;
    const Factors<A>& f = args.factors;
    const int64_t C = cell.C, R = cell.R, N = cell.NG * C, rows = cell.T * cell.B;
    const int64_t scanned = cell.scan_end * cell.B, first = cell.refresh_begin * cell.B;  // of the refreshed rows
    const int64_t last = first < rows ? cell.B : 0;
    for (const Tensor& w : cell_.weights) dweights.push_back(torch::stable::new_empty(w, sizes_of(w)));
    const auto out = [&](size_t i) { return data<A>(dweights[i]); };

    const auto of_scan = [&](const A* g, int64_t ldg, const A* x, int64_t ldx) {
      return Product<A>{g, x, ldg, ldx, scanned};
    };
    const auto of_refresh = [&](const A* g, int64_t ldg, const A* x, int64_t ldx) {
      if (first == rows) return Product<A>{};
      return Product<A>{g + first * ldg, x ? x + first * ldx : nullptr, ldg, ldx, rows - first};
    };
    const auto both = [&](const A* g_scan, const A* g_refresh, int64_t ldg, const A* x_scan, const A* x_refresh,
                          int64_t ldx, A* to, int64_t ld) {
      products.add(to, ldg, ldx, ld, of_scan(g_scan, ldg, x_scan, ldx), of_refresh(g_refresh, ldg, x_refresh, ldx));
    };
    const auto with_h = [&](const A* g_scan, int64_t ldg, A* to, int64_t ld) {
      products.add(to, ldg, C, ld, of_scan(g_scan, ldg, f.h, C), {f.last_sum, f.h_last, ldg, C, last});
    };
    const auto column_sums = [&](const A* g_scan, const A* g_refresh, int64_t ldg, A* to) {
      products.add(to, ldg, 1, 1, of_scan(g_scan, ldg, nullptr, 0), of_refresh(g_refresh, ldg, nullptr, 0));
    };
    switch (cell.projection) {
      case Projection::kJoint:
        with_h(f.ds_scan, R, out(0), 2 * C);
        both(f.ds_scan, f.ds_refresh, R, y, y, C, out(0) + C, 2 * C);
        both(f.da_scan, f.da_refresh, N, f.u_scan, f.u_refresh, R, out(1), R);
        column_sums(f.da_scan, f.da_refresh, N, out(2));
        break;
      case Projection::kSplit:
        products.add(out(0), R, C, C, {f.dsy, y, R, C, rows}, {});
        products.add_column_sums(out(1), R, f.dsy, R, rows);
        both(f.da_scan, f.da_refresh, N, f.uy, f.uy, R, out(2), R);
        column_sums(f.da_scan, f.da_refresh, N, out(3));
        with_h(f.ds_scan, R, out(4), C);
        column_sums(f.ds_scan, f.ds_refresh, R, out(5));
        both(f.da_scan, f.da_refresh, N, f.u_scan, f.u_refresh, R, out(6), R);
        column_sums(f.da_scan, f.da_refresh, N, out(7));
        break;
      case Projection::kDense:
        both(f.da_scan, f.da_refresh, N, y, y, C, out(0), C);
        column_sums(f.da_scan, f.da_refresh, N, out(1));
        with_h(f.da_scan, N, out(2), C);
        column_sums(f.da_scan, f.da_refresh, N, out(3));
        break;
    }
  }
  // The same, where there are no other weights.
  void weight_gradients(const OnDevice& device, const A* y) {
    WeightGradients<A> products;
    weight_gradients(y, products);
    products.run(device);
  }

 private:
  const Cell<A>& cell_;
  Tensor held_;
};

}  // namespace cuda
}  // namespace dla
