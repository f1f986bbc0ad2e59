#include <tuple>

#include "map_arguments.h"
#include "mix_args.h"

namespace dla {
namespace cuda {
namespace {

// M maps of one size, and coef [M, B, C].
void check_values(const Tensors& values, const Tensor& coef) {
  check_maps("values", values);
  check_layers(values);
  check_like_maps("values", values, Tensors(values.size(), values[0]));
  check_tensor("coef", coef, {int64_t(values.size()), values[0].size(0), values[0].size(1)},
               accumulate_dtype(values[0].scalar_type()), values[0]);
}

}  // namespace

std::tuple<Tensor, Tensors> mix(const Tensors& values, const Tensor& coef_in, bool moments) {
  check_values(values, coef_in);
  return dispatch_maps(values[0].scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(values[0]);
    const int64_t B = values[0].size(0), C = values[0].size(1);
    const Tensor coef = as_contiguous(coef_in);
    const ReadMaps<T> first({values[0]}), all(values, first.views[0].interleaved);
    Tensors out, found;
    const auto o = empty_maps(first, out);
    const Tensor planes = empty<A>(coef, {2, moments ? B : 0, C});
    MixArgs<T> args{};
    args.pieces = pieces_of(first.views, B);
    args.M = int(values.size());
    args.coef = data<A>(coef), args.planes = moments ? data<A>(planes) : nullptr;
    enter_map(o[0], kOnly, B, args.out);
    enter_maps(all.views, kIn, B, args.values);
    int& piece = args.values.at[0].piece;  // all are read together
    piece = std::min(piece, args.out.piece);
    for (int m = 1; m < args.M; ++m) piece = std::min(piece, args.values.at[m].piece);
    run(device, args, launch_of<T>(args.pieces));
    if (moments) found = moments_of<A>(device, planes, o[0].HW);
    restore_layout({values[0]}, out);
    return {out[0], found};
  });
}

std::tuple<Tensors, Tensor> mix_bwd(const Tensor& dout_in, const Tensors& later_in, const Tensors& values,
                                    const Tensor& coef_in) {
  check_values(values, coef_in);
  check_like_maps("dout", {dout_in}, {values[0]});
  if (!later_in.empty()) check_like_maps("later", later_in, values);
  return dispatch_maps(values[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(values[0]);
    const int64_t B = values[0].size(0), C = values[0].size(1), M = int64_t(values.size());
    const Tensor coef = as_contiguous(coef_in), dcoef = empty<A>(coef, {M, B, C});
    const bool interleaved = is_interleaved(values[0]);
    const ReadMaps<T> all(values, interleaved), later(later_in, interleaved), dout({dout_in}, interleaved);
    Tensors dvalues;
    const auto to = empty_maps(all, dvalues);
    MixBwdArgs<T> args{};
    args.pieces = pieces_of(dout.views, B);
    args.M = int(M), args.has_later = !later_in.empty();
    args.coef = data<A>(coef), args.dcoef = data<A>(dcoef);
    enter_map(dout.views[0], kOnly, B, args.dout);
    enter_maps(all.views, kIn, B, args.values);
    enter_maps(later.views, kGradOut, B, args.values);
    enter_maps(to, kGradIn, B, args.values);
    for (int m = 0; m < args.M; ++m) args.values.at[m].piece = std::min(args.values.at[m].piece, args.dout.piece);
    run(device, args, launch_of<T>(args.pieces));
    restore_layout(values, dvalues);
    return {dvalues, dcoef};
  });
}

DLA_REGISTER(m) {
  m.impl("mix", TORCH_BOX(&mix));
  m.impl("mix_bwd", TORCH_BOX(&mix_bwd));
}

}  // namespace cuda
}  // namespace dla
