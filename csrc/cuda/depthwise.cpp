#include <tuple>

#include "depthwise_args.h"
#include "map_arguments.h"
#include "weight_gradients.h"

namespace dla {
namespace cuda {
namespace {

void check_taps(const Tensor& v, ScalarType dtype, const Tensor& x) {
  check_tensor("v", v, {x.size(1), 1, 3, 3}, dtype, x);
}

}  // namespace

std::tuple<Tensor, Tensor> depthwise(const Tensor& x_in, const Tensor& v_in) {
  check_maps("x", {x_in});
  return dispatch_maps(x_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(x_in);
    check_taps(v_in, dtype_of<A>(), x_in);
    const int64_t B = x_in.size(0), C = x_in.size(1);
    const ReadMaps<T> x({x_in});
    const Tensor v = as_contiguous(v_in), y = empty<A>(x_in, {2, B, C});
    Tensors out;
    const auto value = empty_maps(x, out);
    DepthwiseArgs<T> args{pieces_of(x.views, B), int(x_in.size(3)), data<A>(v), data<A>(y), {}};
    enter_map(x.views[0], kIn, B, args.layer);
    enter_map(value[0], kOut, B, args.layer);
    run(device, args, launch_of<T>(args.pieces));
    restore_layout({x_in}, out);
    return {out[0], y};
  });
}

std::tuple<Tensor, Tensor> depthwise_bwd(const Tensor& dvalue, const Tensor& dy_in, const Tensor& x_in,
                                         const Tensor& v_in) {
  check_maps("x", {x_in});
  check_like_maps("dvalue", {dvalue}, {x_in});
  return dispatch_maps(x_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(x_in);
    check_taps(v_in, dtype_of<A>(), x_in);
    const int64_t B = x_in.size(0), C = x_in.size(1);
    check_tensor("dy", dy_in, {2, B, C}, dtype_of<A>(), x_in);
    const ReadMaps<T> x({x_in}), dout({dvalue}, &x);
    const Tensor v = as_contiguous(v_in), dy = as_contiguous(dy_in);
    const Tensor dv = torch::stable::new_empty(v, sizes_of(v)), dv_of_samples = empty<A>(x_in, {B, C, 9});
    Tensors dxs;
    const auto dx = empty_maps(x, dxs);
    DepthwiseBwdArgs<T> args{pieces_of(x.views, B), int(x_in.size(3)),      data<A>(v),
                             data<A>(dy),           data<A>(dv_of_samples), {}};
    enter_map(x.views[0], kIn, B, args.layer);
    enter_map(dout.views[0], kGradOut, B, args.layer);
    enter_map(dx[0], kGradIn, B, args.layer);
    run(device, args, launch_of<T>(args.pieces));
    WeightGradients<A> sums;
    sums.add_column_sums(data<A>(dv), 9 * C, args.dv, 9 * C, B);
    sums.run(device);
    restore_layout({x_in}, dxs);
    return {dxs[0], dv};
  });
}

DLA_REGISTER(m) {
  m.impl("depthwise", TORCH_BOX(&depthwise));
  m.impl("depthwise_bwd", TORCH_BOX(&depthwise_bwd));
}

}  // namespace cuda
}  // namespace dla
