#include <tuple>

#include "map_arguments.h"
#include "norm_add_args.h"
#include "weight_gradients.h"

namespace dla {
namespace cuda {
namespace {

// The norm of a call: its arguments, and the tensors that these point into.
template <class A>
struct NormOf {
  Tensors held;
  NormArgs<A> args;

  NormOf(const Tensor& o, const Tensor& moments, const Tensor& gamma, const Tensor& beta, const Tensors& keep,
         double eps, bool relu) {
    const int64_t C = o.size(1);
    check_tensor("moments", moments, {2, C}, dtype_of<A>(), o);
    check_tensor("gamma", gamma, {C}, dtype_of<A>(), o);
    check_tensor("beta", beta, {C}, dtype_of<A>(), o);
    STD_TORCH_CHECK(keep.size() <= 1, "keep: expected one tensor or none, got ", keep.size());
    for (const Tensor& k : keep) check_tensor("keep", k, {o.size(0)}, dtype_of<A>(), o);
    held = as_contiguous(Tensors{moments, gamma, beta});
    for (const Tensor& k : keep) held.push_back(as_contiguous(k));
    args = {data<A>(held[0]), data<A>(held[1]), data<A>(held[2]), data_or_null<A>(held, 3), A(eps), relu};
  }
};

}  // namespace

Tensor norm_add(const Tensor& x_in, const Tensor& o_in, const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                const Tensors& keep, double eps, bool relu) {
  check_maps("x", {x_in});
  check_like_maps("o", {o_in}, {x_in});
  return dispatch_maps(x_in.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const OnDevice device(x_in);
    const NormOf<accumulate_t<T>> norm(o_in, moments, gamma, beta, keep, eps, relu);
    const int64_t B = x_in.size(0);
    const ReadMaps<T> x({x_in}), o({o_in}, &x);
    Tensors out;
    const auto to = empty_maps(x, out);
    NormAddArgs<T> args{pieces_of(x.views, B), norm.args, {}};
    enter_map(o.views[0], kIn, B, args.layer);
    enter_map(x.views[0], kShortcut, B, args.layer);
    enter_map(to[0], kSum, B, args.layer);
    run(device, args, launch_of<T>(args.pieces));
    restore_layout({x_in}, out);
    return out[0];
  });
}

std::tuple<Tensor, Tensor, Tensor> norm_add_bwd(const Tensor& dout_in, const Tensor& o_in, const Tensor& moments,
                                                const Tensor& gamma, const Tensor& beta, const Tensors& keep,
                                                double eps, bool relu, bool batch_moments) {
  check_maps("o", {o_in});
  check_like_maps("dout", {dout_in}, {o_in});
  return dispatch_maps(o_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const OnDevice device(o_in);
    const NormOf<A> norm(o_in, moments, gamma, beta, keep, eps, relu);
    const int64_t B = o_in.size(0), C = o_in.size(1);
    const ReadMaps<T> o({o_in}), dout({dout_in}, &o);
    Tensors dos;
    const auto to = empty_maps(o, dos);
    const Tensor dgamma = empty<A>(o_in, {C}), dbeta = empty<A>(o_in, {C}), sums = empty<A>(o_in, {2, B, C});

    NormAddSumsArgs<T> first{pieces_of(o.views, B), norm.args, data<A>(sums), {}};
    enter_map(o.views[0], kIn, B, first.layer);
    enter_map(dout.views[0], kGradOut, B, first.layer);
    run(device, first, launch_of<T>(first.pieces));
    WeightGradients<A> over_batch;
    over_batch.add_column_sums(data<A>(dbeta), C, first.sums, C, B);
    over_batch.add_column_sums(data<A>(dgamma), C, first.sums + B * C, C, B);
    over_batch.run(device);

    NormAddBwdArgs<T> args{first.pieces, norm.args, batch_moments, data<A>(dgamma), data<A>(dbeta), first.layer};
    enter_map(to[0], kGradIn, B, args.layer);
    run(device, args, launch_of<T>(args.pieces));
    restore_layout({o_in}, dos);
    return {dos[0], dgamma, dbeta};
  });
}

DLA_REGISTER(m) {
  m.impl("norm_add", TORCH_BOX(&norm_add));
  m.impl("norm_add_bwd", TORCH_BOX(&norm_add_bwd));
}

}  // namespace cuda
}  // namespace dla
