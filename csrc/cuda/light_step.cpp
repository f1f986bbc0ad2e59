#include <tuple>

#include "gradients.h"
#include "light_step_args.h"
#include "map_arguments.h"
#include "phases.h"

namespace dla {
namespace cuda {
namespace {

// maps: x, and o_prev where there is one.
void check_maps_of_step(const Tensors& maps) {
  check_maps("maps", maps);
  STD_TORCH_CHECK(maps.size() <= 2, "maps: expected x, or x and o_prev, got ", maps.size(), " maps");
  check_like_maps("maps", maps, Tensors(maps.size(), maps[0]));
}

// The filters of a call: its arguments, and the tensors that these point into.
template <class A>
struct Filters {
  Tensors held;
  LightFilters<A> args{};

  Filters(const Tensors& filters, int64_t heads, const Tensor& x) {
    check_filters(filters, x.size(1), heads, dtype_of<A>(), x);
    held = as_contiguous(filters);
    args = {data<A>(held[0]), data<A>(held[1]),     data<A>(held[2]), data_or_null<A>(held, 4),
            data<A>(held[3]), int(held[0].size(0)), int(heads)};
  }
};

// The scan runs over x alone, the refresh over o_prev. Without weights there is no cell.
template <class A>
CellCall<A> cell_of(const Tensors& maps, const Tensors& weights, const Tensors& state, const std::string& rule) {
  const int64_t T = int64_t(maps.size()), B = maps[0].size(0), C = maps[0].size(1);
  if (!weights.empty()) return CellCall<A>(rule, weights, state, T, B, C, /*scan_end=*/1, /*refresh_begin=*/1, maps[0]);
  STD_TORCH_CHECK(state.empty() && rule.empty(), "weights: none, but a ", state.empty() ? "rule" : "state",
                  " is given");
  return CellCall<A>(T, B, C);
}

template <class T>
int64_t bytes_of_sample(const MapView<const T>& map) {
  return map.C * map.HW * int64_t(sizeof(T));
}

// Row m of rows [maps, B, C], where there is one.
template <class A>
A* row_of(const Tensor& rows, int64_t m) {
  return m < rows.size(0) ? data<A>(rows) + m * rows.size(1) * rows.size(2) : nullptr;
}

// The means y [maps, B, C], and from there the cell's step in launches of its own: states, and d, which is returned.
template <class T>
Tensor step_ahead(const OnDevice& device, const ReadMaps<T>& maps, const CellCall<accumulate_t<T>>& cell,
                  const Tensor& y, const Tensors& states) {
  using A = accumulate_t<T>;
  run_means<T>(device, maps.views, cell.args.B, data<A>(y));
  const Tensor d = empty<A>(y, sizes_of(y));
  Phases<A>(device, cell, data<A>(y), y).forward(cell.h_of(states), cell.c_of(states), data<A>(d));
  return d;
}

}  // namespace

std::tuple<Tensor, Tensors, Tensor, Tensors> light_step(const Tensors& maps, const Tensors& filters_in,
                                                        const Tensors& weights, const Tensors& state,
                                                        const std::string& rule, int64_t heads, bool moments) {
  check_maps_of_step(maps);
  const Tensor& x = maps[0];
  return dispatch_maps(x.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors, Tensor, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    using Args = LightStepArgs<T>;
    const OnDevice device(x);
    const Filters<A> filters(filters_in, heads, x);
    CellCall<A> cell = cell_of<A>(maps, weights, state, rule);
    const int64_t M = cell.args.T, B = cell.args.B, C = cell.args.C;
    const ReadMaps<T> in(maps, is_interleaved(x)), first({x});
    Tensors out, found;
    const auto o = empty_maps(first, out);
    const Tensor y = empty<A>(x, {M, B, C}), planes = empty<A>(x, {2, moments ? B : 0, C});
    const Tensors states = cell.empty_states(x, {B, C});
    const int64_t read = M * bytes_of_sample(in.views[0]);
    const bool apart = !weights.empty() && cell.in_phases(Pass::kForward, read, /*attention=*/true);
    const Tensor d = apart ? step_ahead<T>(device, in, cell, y, states) : empty<A>(x, {0, B, C});
    CellCall<A> planned = apart ? cell.of_maps() : cell;
    const Launch how = planned.template prepare<Args>(Pass::kForward, read, x, /*attention=*/true);
    Args args{
        planned.args, filters.args,      int(x.size(3)),    apart ? Part::kAfterStep : Part::kWhole, row_of<A>(d, 1),
        data<A>(y),   cell.h_of(states), cell.c_of(states), moments ? data<A>(planes) : nullptr,     {}};
    for (size_t m = 0; m < maps.size(); ++m) enter_map(in.views[m], kIn, B, args.layers[m]);
    enter_map(o[0], kOut, B, args.layers[0]);
    run(device, args, how);
    if (moments) found = moments_of<A>(device, planes, o[0].HW);
    restore_layout({x}, out);
    return {out[0], states, y, found};
  });
}

std::tuple<Tensors, Tensors, Tensors, Tensors> light_step_bwd(const Tensor& dout_in, const Tensors& dstates_in,
                                                              const Tensors& maps, const Tensors& filters_in,
                                                              const Tensors& weights, const Tensors& state,
                                                              const Tensor& y_in, const Tensors& states_in,
                                                              const std::string& rule, int64_t heads) {
  check_maps_of_step(maps);
  const Tensor& x = maps[0];
  check_like_maps("dout", {dout_in}, {x});
  return dispatch_maps(x.scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensors, Tensors, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    using Args = LightStepBwdArgs<T>;
    const OnDevice device(x);
    const Filters<A> filters(filters_in, heads, x);
    CellCall<A> cell = cell_of<A>(maps, weights, state, rule);
    const int64_t M = cell.args.T, B = cell.args.B, C = cell.args.C, K = filters.args.K;
    check_tensor("y", y_in, {M, B, C}, dtype_of<A>(), x);
    cell.check("states", states_in, /*may_be_absent=*/false, {B, C}, x);
    cell.check("dstates", dstates_in, /*may_be_absent=*/true, {B, C}, x);
    const Tensor y = as_contiguous(y_in);
    const Tensors states = as_contiguous(states_in), dstates = as_contiguous(dstates_in);
    const ReadMaps<T> in(maps, is_interleaved(x)), dout({dout_in}, is_interleaved(x));
    Tensors dmaps;
    const auto to = empty_maps(in, dmaps);

    Gradients<A> grads(cell, x);
    grads.use_states(states, dstates);
    const int64_t read = (M + 1) * bytes_of_sample(in.views[0]);
    const bool apart = !weights.empty() && cell.in_phases(Pass::kBackward, read, /*attention=*/true);
    CellCall<A> planned = apart ? cell.of_maps() : cell;
    const Launch how = planned.template prepare<Args>(Pass::kBackward, read, x, /*attention=*/true);
    const int64_t groups = planned.args.plan.blocks_per_tile;
    const Tensor dv = empty<A>(x, {B, 9 * C}), de = empty<A>(x, {filters.args.e ? B : 0, 9 * C});
    const Tensor dlam = empty<A>(x, {B, C}), dtaps = empty<A>(x, {B * groups, 2 * K});
    const Tensor dgates = empty<A>(x, {B, C}), dscores = empty<A>(x, {B, heads});
    Args args{};
    args.cell = planned.args, args.grads = grads.args, args.filters = filters.args, args.W = int(x.size(3));
    args.y = data<A>(y), args.dv = data<A>(dv), args.de = data<A>(de), args.dlam = data<A>(dlam);
    args.dtaps = data<A>(dtaps), args.dgates = data<A>(dgates), args.dscores = data<A>(dscores);
    for (size_t m = 0; m < maps.size(); ++m) {
      enter_map(in.views[m], kIn, B, args.layers[m]);
      enter_map(to[m], kGradIn, B, args.layers[m]);
    }
    enter_map(dout.views[0], kGradOut, B, args.layers[0]);
    if (!apart) {
      run(device, args, how);
    } else {
      const Tensor d = empty<A>(x, {M, B, C}), dd = empty<A>(x, {M, B, C}), dy = empty<A>(x, {M, B, C});
      const Tensor middle = empty<A>(x, {B, C});
      args.part = Part::kBeforeStep, args.dd = row_of<A>(dd, 1), args.middle = data<A>(middle);
      run(device, args, how);
      Phases<A>(device, cell, args.y, x).backward(grads.args, data<A>(dd), data<A>(d), data<A>(dy));
      args.part = Part::kAfterStep, args.d = row_of<A>(d, 1), args.dy = data<A>(dy);
      run(device, args, how);
    }

    Tensors dfilters;
    for (const Tensor& f : filters.held) dfilters.push_back(torch::stable::new_empty(f, sizes_of(f)));
    WeightGradients<A> sums;
    const int64_t of_before = M > 1 ? B : 0;  // samples with an o_prev
    sums.add_column_sums(data<A>(dfilters[0]), K, args.dtaps, 2 * K, B * groups);
    sums.add_column_sums(data<A>(dfilters[1]), K, args.dtaps + K, 2 * K, B * groups);
    sums.add_column_sums(data<A>(dfilters[2]), 9 * C, args.dv, 9 * C, B);
    sums.add_column_sums(data<A>(dfilters[3]), C, args.dlam, C, of_before);
    if (filters.args.e) sums.add_column_sums(data<A>(dfilters[4]), 9 * C, args.de, 9 * C, of_before);
    if (!weights.empty()) grads.weight_gradients(args.y, sums);
    sums.run(device);
    restore_layout(maps, dmaps);
    return {dmaps, dfilters, grads.dweights, grads.dstate};
  });
}

DLA_REGISTER(m) {
  m.impl("light_step", TORCH_BOX(&light_step));
  m.impl("light_step_bwd", TORCH_BOX(&light_step_bwd));
}

}  // namespace cuda
}  // namespace dla
