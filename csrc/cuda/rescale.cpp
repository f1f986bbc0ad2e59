#include <tuple>

#include "map_arguments.h"
#include "rescale_args.h"

namespace dla {
namespace cuda {
namespace {

template <class T>
void check_gates(const Tensor& d, const std::vector<MapView<const T>>& x, int64_t B, const Tensor& like) {
  check_tensor("d", d, {int64_t(x.size()), B, x[0].C}, dtype_of<accumulate_t<T>>(), like);
}

template <class T>
void rescale_to(const Tensors& xs, const Tensor& d_in, const ReadMaps<T>& x, const std::vector<MapView<T>>& out) {
  const OnDevice device(xs[0]);
  const int64_t B = xs[0].size(0);
  check_gates<T>(d_in, x.views, B, xs[0]);
  const Tensor d = as_contiguous(d_in);
  RescaleArgs<T> args{};
  args.pieces = pieces_of(x.views, B);
  args.d = data<accumulate_t<T>>(d);
  enter_maps(x.views, kIn, B, args.layers);
  enter_maps(out, kOut, B, args.layers);
  run(device, args, launch_of<T>(args.pieces));
}

}  // namespace

Tensors rescale(const Tensors& xs, const Tensor& d) {
  check_maps("xs", xs);
  check_layers(xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ReadMaps<T> x(xs);
    Tensors out;
    const auto views = empty_maps(x, out);
    rescale_to<T>(xs, d, x, views);
    restore_layout(xs, out);
    return out;
  });
}

void rescale_(const Tensors& xs, const Tensor& d) {
  check_maps("xs", xs);
  check_layers(xs);
  dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto views = mutable_maps<T>(xs);
    rescale_to<T>(xs, d, ReadMaps<T>(xs), views);
  });
}

std::tuple<Tensors, Tensor> rescale_bwd(const Tensors& dout, const Tensors& xs, const Tensor& d_in) {
  check_maps("xs", xs);
  check_layers(xs);
  check_like_maps("dout", dout, xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(xs[0]);
    const int64_t B = xs[0].size(0);
    const ReadMaps<T> x(xs), dy(dout, &x);
    check_gates<T>(d_in, x.views, B, xs[0]);
    const Tensor d = as_contiguous(d_in);
    Tensors dxs;
    const auto dx = empty_maps(x, dxs);
    RescaleBwdArgs<T> args{};
    args.pieces = pieces_of(x.views, B);
    const Tensor dd = empty<A>(xs[0], {args.pieces.T, B, args.pieces.C});
    args.d = data<A>(d), args.dd = data<A>(dd);
    enter_maps(x.views, kIn, B, args.layers);
    enter_maps(dy.views, kGradOut, B, args.layers);
    enter_maps(dx, kGradIn, B, args.layers);
    run(device, args, launch_of<T>(args.pieces));
    restore_layout(xs, dxs);
    return {dxs, dd};
  });
}

DLA_REGISTER(m) {
  m.impl("rescale", TORCH_BOX(&rescale));
  m.impl("rescale_", TORCH_BOX(&rescale_));
  m.impl("rescale_bwd", TORCH_BOX(&rescale_bwd));
}

}  // namespace cuda
}  // namespace dla
