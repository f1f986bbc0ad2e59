// mix: o = sum over m of coef_m values_m, one pass over all maps; and its gradients.
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "moments.h"

namespace dla {
namespace cpu {
namespace {

void check_mix(const Tensors& values, const Tensor& coef) {
  check_maps("values", values);
  for (const Tensor& value : values) check_alike("values", value, values[0]);
  check_tensor("coef", coef, {int64_t(values.size()), values[0].size(0), values[0].size(1)},
               accumulate_dtype(values[0].scalar_type()), values[0]);
}

}  // namespace

std::tuple<Tensor, Tensors> mix(const Tensors& values, const Tensor& coef_in, bool wanted) {
  check_mix(values, coef_in);
  const Tensor coef = as_contiguous(coef_in);
  return dispatch_maps(values[0].scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensors> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t M = values.size(), B = values[0].size(0), C = values[0].size(1);
    const bool interleaved = is_interleaved(values[0]);
    const ReadMaps<T> all(values, interleaved), first({all.held[0]}, interleaved);
    Tensors out;
    const MapView<T> o = empty_maps(first, out)[0];
    const Moments<T> moments(wanted, B, C, o.HW);
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t begin, int64_t end) {
      for_few_channels(o, 2, begin, end, [&](int64_t c0, int64_t c1) {
        std::vector<Plane<const T>> planes;
        for (const auto& view : all.views) planes.push_back(sample(view, b).channels(c0, c1));
        map_kernels<T>().mix(planes.data(), M, {read<A>(coef) + b * C + c0, B * C}, sample(o, b).channels(c0, c1));
        moments.take(o, b, c0, c1);
      });
    });
    restore_layout({values[0]}, out);
    return {out[0], moments.finish()};
  });
}

std::tuple<Tensors, Tensor> mix_bwd(const Tensor& dout, const Tensors& later, const Tensors& values,
                                    const Tensor& coef_in) {
  check_mix(values, coef_in);
  check_alike("dout", dout, values[0]);
  if (!later.empty()) check_like_maps("later", later, values);
  const Tensor coef = as_contiguous(coef_in);
  return dispatch_maps(values[0].scalar_type(), [&](auto element) -> std::tuple<Tensors, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t M = values.size(), B = values[0].size(0), C = values[0].size(1);
    const bool interleaved = is_interleaved(values[0]);
    const ReadMaps<T> all(values, interleaved), from_later(later, interleaved), grads({dout}, interleaved);
    const MapView<const T>& g = grads.views[0];
    Tensors dvalues;
    const auto to = empty_maps(all, dvalues);
    const Tensor dcoef = empty<A>({M, B, C});
    const bool stream = bytes_of(to, B) > kStreamBytes;
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t begin, int64_t end) {
      for_few_channels(g, 2, begin, end, [&](int64_t c0, int64_t c1) {
        const Plane<const T> of = sample(g, b).channels(c0, c1);
        for (int64_t m = 0; m < M; ++m) {  // dout stays in cache while all maps pass by
          const int64_t at = (m * B + b) * C + c0;
          const A* share = read<A>(coef) + at;
          const Plane<T> dvalue = sample(to[m], b).channels(c0, c1);
          map_kernels<T>().dot(of, sample(all.views[m], b).channels(c0, c1), write<A>(dcoef) + at);
          if (later.empty())
            map_kernels<T>().scale(of, share, nullptr, dvalue, stream);
          else
            map_kernels<T>().add_scaled(sample(from_later.views[m], b).channels(c0, c1), of, share, nullptr, false,
                                        dvalue, stream);
        }
      });
    });
    restore_layout(values, dvalues);
    return {dvalues, dcoef};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("mix", TORCH_BOX(&mix));
  m.impl("mix_bwd", TORCH_BOX(&mix_bwd));
}

}  // namespace cpu
}  // namespace dla
