#include <tuple>

#include "attend_args.h"
#include "host.h"
#include "weight_gradients.h"

namespace dla {
namespace cuda {
namespace {

// What both passes read, and the tensors that this points into.
template <class A>
struct Inputs {
  Tensors held;
  Tensor shares;
  Attended<A> args{};

  Inputs(const Tensor& y, const Tensor& q, const Tensor& k, const Tensors& past, int64_t heads) {
    const int64_t M = check_past(past, y), B = y.size(0), C = y.size(1);
    check_heads(q, k, C, heads, y.scalar_type(), y);
    for (const Tensor& x : {y, q, k}) held.push_back(as_contiguous(x));
    for (const Tensor& x : past) held.push_back(as_contiguous(x));
    shares = empty<A>(y, {B, M + 1, heads});
    args = {data<A>(held[0]),
            data<A>(held[1]),
            data<A>(held[2]),
            data_or_null<A>(held, 3),
            data_or_null<A>(held, 4),
            data_or_null<A>(held, 5),
            M,
            B,
            C,
            int(q.size(0)),
            int(heads),
            data<A>(shares)};
  }
  Launch launch() const { return {args.B, 1, current_device().threads, 0}; }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attend(const Tensor& y, const Tensor& q, const Tensor& k, const Tensors& past,
                                          int64_t heads) {
  check_pooled("y", y);
  return dispatch_rows(y.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor, Tensor> {
    using A = decltype(element);
    const OnDevice device(y);
    const Inputs<A> in(y, q, k, past, heads);
    const std::vector<int64_t> shape{in.args.M + 1, in.args.B, in.args.C};
    const Tensor coef = empty<A>(y, shape), keys = empty<A>(y, shape), scale = empty<A>(y, shape);
    run(device, AttendArgs<A>{in.args, data<A>(coef), data<A>(keys), data<A>(scale)}, in.launch());
    return {coef, keys, scale};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensors> attend_bwd(const Tensor& dcoef, const Tensor& dkeys, const Tensor& dscale,
                                                       const Tensor& y, const Tensor& q, const Tensor& k,
                                                       const Tensors& past, int64_t heads) {
  check_pooled("y", y);
  return dispatch_rows(y.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor, Tensor, Tensors> {
    using A = decltype(element);
    const OnDevice device(y);
    const Inputs<A> in(y, q, k, past, heads);
    const int64_t M = in.args.M, B = in.args.B, C = in.args.C, K = in.args.K;
    const Tensors arriving = as_contiguous(Tensors{dcoef, dkeys, dscale});
    for (const Tensor& x : arriving) check_tensor("dcoef, dkeys, dscale", x, {M + 1, B, C}, dtype_of<A>(), y);
    Tensors dpast;
    for (const Tensor& x : past) dpast.push_back(empty<A>(y, sizes_of(x)));
    const Tensor dy = empty<A>(y, {B, C}), dq = empty<A>(y, {K}), dk = empty<A>(y, {K});
    const Tensor dtaps = empty<A>(y, {B, 2, K}), dshares = empty<A>(y, {B, M + 1, heads}),
                 dqk_rows = empty<A>(y, {B, 2, C});
    run(device,
        AttendBwdArgs<A>{in.args, data<A>(arriving[0]), data<A>(arriving[1]), data<A>(arriving[2]),
                         data_or_null<A>(dpast, 0), data_or_null<A>(dpast, 1), data_or_null<A>(dpast, 2), data<A>(dy),
                         data<A>(dtaps), data<A>(dshares), data<A>(dqk_rows)},
        in.launch());
    WeightGradients<A> sums;
    sums.add_column_sums(data<A>(dq), K, data<A>(dtaps), 2 * K, B);
    sums.add_column_sums(data<A>(dk), K, data<A>(dtaps) + K, 2 * K, B);
    sums.run(device);
    return {dy, dq, dk, dpast};
  });
}

DLA_REGISTER(m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_bwd", TORCH_BOX(&attend_bwd));
}

}  // namespace cuda
}  // namespace dla
