// depthwise: the value of layer attention, dwconv(x; v), with the means of x and of the value; and its gradients.
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "heads.h"
#include "maps.h"

namespace dla {
namespace cpu {
namespace {

void check_depthwise(const Tensor& x, const Tensor& v) {
  check_maps("x", {x});
  check_tensor("v", v, {x.size(1), 1, 3, 3}, accumulate_dtype(x.scalar_type()), x);
}

}  // namespace

std::tuple<Tensor, Tensor> depthwise(const Tensor& x_in, const Tensor& v) {
  check_depthwise(x_in, v);
  return dispatch_maps(x_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = x_in.size(0), C = x_in.size(1), W = x_in.size(3);
    const ReadMaps<T> xs({x_in});
    const MapView<const T>& x = xs.views[0];
    Tensors out;
    const MapView<T> value = empty_maps(xs, out)[0];
    const Tensor y = empty<A>({2, B, C});
    const Matrix<A> taps = tap_rows<A>(v, C);
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t begin, int64_t end) {
      for_few_channels(x, 2, begin, end, [&](int64_t c0, int64_t c1) {
        const Plane<T> to = sample(value, b).channels(c0, c1);
        StencilArgs<T> args{};
        args.x = sample(x, b).channels(c0, c1), args.taps = taps.rows.right(c0);
        args.out = to, args.W = W;
        map_kernels<T>().mean(args.x, write<A>(y) + b * C + c0);
        map_kernels<T>().stencil(args);
        map_kernels<T>().mean({to.data, to.C, to.HW, to.sc, to.sp}, write<A>(y) + (B + b) * C + c0);
      });
    });
    restore_layout({x_in}, out);
    return {out[0], y};
  });
}

std::tuple<Tensor, Tensor> depthwise_bwd(const Tensor& dvalue, const Tensor& dy_in, const Tensor& x_in,
                                         const Tensor& v) {
  check_depthwise(x_in, v);
  check_alike("dvalue", dvalue, x_in);
  check_tensor("dy", dy_in, {2, x_in.size(0), x_in.size(1)}, accumulate_dtype(x_in.scalar_type()), x_in);
  return dispatch_maps(x_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = x_in.size(0), C = x_in.size(1), W = x_in.size(3);
    const ReadMaps<T> xs({x_in}), grads({dvalue}, &xs);
    const MapView<const T>& x = xs.views[0];
    Tensors out;
    const MapView<T> dx = empty_maps(xs, out)[0];
    const Tensor dy_held = as_contiguous(dy_in);
    Matrix<A> turned(9, C), share(2 * B, C);  // what each pixel has of dy
    const Matrix<A> taps = tap_rows<A>(v, C), sums(B * 9, C), dv(9, C);
    for (int k = 0; k < 9; ++k) std::copy_n(taps[k], C, turned[8 - k]);
    const A* dy = read<A>(dy_held);
    for (int64_t i = 0; i < 2 * B * C; ++i) share[0][i] = dy[i] / A(x.HW);
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t begin, int64_t end) {
      for_few_channels(x, 3, begin, end, [&](int64_t c0, int64_t c1) {
        const A* e_in = share[B + b] + c0;
        StencilArgs<T> args{};
        args.x = sample(grads.views[0], b).channels(c0, c1), args.taps = turned.rows.right(c0);
        args.e_in = e_in, args.e = share[b] + c0;
        args.out = sample(dx, b).channels(c0, c1), args.W = W;
        map_kernels<T>().correlate(args.x, e_in, sample(x, b).channels(c0, c1), W, sums.rows.from(b * 9).right(c0));
        map_kernels<T>().stencil(args);
      });
    });
    std::fill_n(dv[0], 9 * C, A(0));
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = 0; i < 9 * C; ++i) dv[0][i] += sums[b * 9][i];
    restore_layout({x_in}, out);
    return {out[0], from_tap_rows(dv, C)};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("depthwise", TORCH_BOX(&depthwise));
  m.impl("depthwise_bwd", TORCH_BOX(&depthwise_bwd));
}

}  // namespace cpu
}  // namespace dla
