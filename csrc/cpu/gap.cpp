// gap: y_t = mean over HW of x_t.
#include <torch/csrc/stable/library.h>

#include "maps.h"
#include "tensors.h"

namespace dla {
namespace cpu {

Tensor gap(const Tensors& xs) {
  check_maps("xs", xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t layers = xs.size(), B = xs[0].size(0), C = xs[0].size(1);
    const ReadMaps<T> x(xs);
    const Tensor y = empty<A>({layers, B, C});
    for_each_plane(layers, B, C, [&](int64_t t, int64_t b, int64_t c0, int64_t c1) {
      map_kernels<T>().mean(sample(x.views[t], b).channels(c0, c1), write<A>(y) + (t * B + b) * C + c0);
    });
    return y;
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) { m.impl("gap", TORCH_BOX(&gap)); }

}  // namespace cpu
}  // namespace dla
