// rescale: x_t' = x_t * d_t, broadcast over HW.
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "maps.h"
#include "tensors.h"

namespace dla {
namespace cpu {
namespace {

template <class T>
void scale_maps(const std::vector<MapView<const T>>& x, const Tensor& d, const std::vector<MapView<T>>& out,
                bool stream) {
  using A = accumulate_t<T>;
  const int64_t B = d.size(1), C = d.size(2);
  for_each_plane(x.size(), B, C, [&](int64_t t, int64_t b, int64_t c0, int64_t c1) {
    map_kernels<T>().scale(sample(x[t], b).channels(c0, c1), read<A>(d) + (t * B + b) * C + c0, nullptr,
                           sample(out[t], b).channels(c0, c1), stream);
  });
}

Tensor check_rescale(const Tensors& xs, const Tensor& d) {
  check_maps("xs", xs);
  check_tensor("d", d, {int64_t(xs.size()), xs[0].size(0), xs[0].size(1)}, accumulate_dtype(xs[0].scalar_type()),
               xs[0]);
  return as_contiguous(d);
}

}  // namespace

Tensors rescale(const Tensors& xs, const Tensor& d_in) {
  const Tensor d = check_rescale(xs, d_in);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    const ReadMaps<T> x(xs);
    Tensors out;
    const auto views = empty_maps(x, out);
    scale_maps<T>(x.views, d, views, bytes_of(views, xs[0].size(0)) > kStreamBytes);
    restore_layout(xs, out);
    return out;
  });
}

void rescale_(const Tensors& xs, const Tensor& d_in) {
  const Tensor d = check_rescale(xs, d_in);
  dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto views = mutable_maps<T>(xs);
    scale_maps<T>(ReadMaps<T>(xs).views, d, views, false);
  });
}

std::tuple<Tensors, Tensor> rescale_bwd(const Tensors& dout, const Tensors& xs, const Tensor& d_in) {
  const Tensor d = check_rescale(xs, d_in);
  check_like_maps("dout", dout, xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = d.size(1), C = d.size(2);
    const ReadMaps<T> x(xs), dy(dout, &x);
    Tensors dxs;
    const auto dx = empty_maps(x, dxs);
    const Tensor dd = empty<A>({d.size(0), B, C});
    const bool stream = bytes_of(dx, B) > kStreamBytes;
    for_each_plane(xs.size(), B, C, [&](int64_t t, int64_t b, int64_t begin, int64_t end) {
      for_few_channels(x.views[t], 4, begin, end, [&](int64_t c0, int64_t c1) {
        const int64_t row = (t * B + b) * C + c0;
        const auto grad = sample(dy.views[t], b).channels(c0, c1);
        map_kernels<T>().dot(grad, sample(x.views[t], b).channels(c0, c1), write<A>(dd) + row);
        map_kernels<T>().scale(grad, read<A>(d) + row, nullptr, sample(dx[t], b).channels(c0, c1), stream);
      });
    });
    restore_layout(xs, dxs);
    return {dxs, dd};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("rescale", TORCH_BOX(&rescale));
  m.impl("rescale_", TORCH_BOX(&rescale_));
  m.impl("rescale_bwd", TORCH_BOX(&rescale_bwd));
}

}  // namespace cpu
}  // namespace dla
