#include "map_arguments.h"

namespace dla {
namespace cuda {

Tensor gap(const Tensors& xs) {
  check_maps("xs", xs);
  check_layers(xs);
  return dispatch_maps(xs[0].scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(xs[0]);
    const int64_t B = xs[0].size(0);
    const ReadMaps<T> x(xs);
    const Tensor y = empty<A>(xs[0], {int64_t(xs.size()), B, xs[0].size(1)});
    run_means<T>(device, x.views, B, data<A>(y));
    return y;
  });
}

DLA_REGISTER(m) { m.impl("gap", TORCH_BOX(&gap)); }

#if defined(DLA_SIMT)
int64_t count_launches() { return launches; }

STABLE_TORCH_LIBRARY_IMPL(dla_simt, CompositeExplicitAutograd, m) { m.impl("launches", TORCH_BOX(&count_launches)); }
#endif

}  // namespace cuda
}  // namespace dla
