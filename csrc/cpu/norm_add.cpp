// norm_add: x + keep f(norm(o)), what follows a step of layer attention, f = relu or nothing; and its gradients.
#include <cmath>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "maps.h"
#include "tensors.h"

namespace dla {
namespace cpu {
namespace {

// norm(o) = (o - mean) rstd gamma + beta = o a + b, per channel.
template <class A>
struct Norm {
  const int64_t C;
  const Tensor moments_held, gamma_held, beta_held;
  const Tensors keep_held;
  const A *mean, *gamma, *keeps;
  Matrix<A> rstd, a, b;  // [1, C]

  Norm(const Tensor& moments, const Tensor& gamma_in, const Tensor& beta, const Tensors& keep, double eps)
      : C(gamma_in.size(0)),
        moments_held(as_contiguous(moments)),
        gamma_held(as_contiguous(gamma_in)),
        beta_held(as_contiguous(beta)),
        keep_held(as_contiguous(keep)),
        mean(read<A>(moments_held)),
        gamma(read<A>(gamma_held)),
        keeps(keep_held.empty() ? nullptr : read<A>(keep_held[0])),
        rstd(1, C),
        a(1, C),
        b(1, C) {
    const A* beta_of = read<A>(beta_held);
    for (int64_t c = 0; c < C; ++c) {
      rstd[0][c] = 1 / std::sqrt(mean[C + c] + A(eps));
      a[0][c] = gamma[c] * rstd[0][c];
      b[0][c] = beta_of[c] - mean[c] * a[0][c];
    }
  }
  NormRows<A> rows(int64_t c0, bool relu) const { return {mean + c0, a[0] + c0, b[0] + c0, relu}; }
  A keep(int64_t sample) const { return keeps ? keeps[sample] : A(1); }
};

void check_norm_add(const Tensor& o, const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                    const Tensors& keep) {
  check_maps("o", {o});
  const ScalarType dtype = accumulate_dtype(o.scalar_type());
  check_tensor("moments", moments, {2, o.size(1)}, dtype, o);
  check_tensor("gamma", gamma, {o.size(1)}, dtype, o);
  check_tensor("beta", beta, {o.size(1)}, dtype, o);
  STD_TORCH_CHECK(keep.size() <= 1, "keep: expected one tensor or none, got ", keep.size());
  for (const Tensor& k : keep) check_tensor("keep", k, {o.size(0)}, dtype, o);
}

}  // namespace

Tensor norm_add(const Tensor& x_in, const Tensor& o_in, const Tensor& moments, const Tensor& gamma, const Tensor& beta,
                const Tensors& keep, double eps, bool relu) {
  check_norm_add(o_in, moments, gamma, beta, keep);
  check_alike("x", x_in, o_in);
  return dispatch_maps(o_in.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = o_in.size(0), C = o_in.size(1);
    const Norm<A> norm(moments, gamma, beta, keep, eps);
    const ReadMaps<T> xs({x_in}), os({o_in}, &xs);
    Tensors out;
    const MapView<T> to = empty_maps(xs, out)[0];
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t c0, int64_t c1) {
      const Matrix<A> scaled(2, c1 - c0);  // keep >= 0, so it may stand inside the relu
      for (int64_t c = c0; c < c1; ++c) {
        scaled[0][c - c0] = norm.keep(b) * norm.a[0][c];
        scaled[1][c - c0] = norm.keep(b) * norm.b[0][c];
      }
      map_kernels<T>().add_scaled(sample(xs.views[0], b).channels(c0, c1), sample(os.views[0], b).channels(c0, c1),
                                  scaled[0], scaled[1], relu, sample(to, b).channels(c0, c1), /*stream=*/false);
    });
    restore_layout({x_in}, out);
    return out[0];
  });
}

std::tuple<Tensor, Tensor, Tensor> norm_add_bwd(const Tensor& dout, const Tensor& o_in, const Tensor& moments,
                                                const Tensor& gamma, const Tensor& beta, const Tensors& keep,
                                                double eps, bool relu, bool batch_moments) {
  check_norm_add(o_in, moments, gamma, beta, keep);
  check_alike("dout", dout, o_in);
  return dispatch_maps(o_in.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const int64_t B = o_in.size(0), C = o_in.size(1);
    const Norm<A> norm(moments, gamma, beta, keep, eps);
    const ReadMaps<T> os({o_in}), grads({dout}, &os);
    const MapView<const T>&o = os.views[0], &g = grads.views[0];
    Tensors out;
    const MapView<T> to = empty_maps(os, out)[0];
    // Over pixels: of dz = dout keep [norm > 0] and of dz (o - mean), keep left out, for each sample.
    const Matrix<A> dz(B, C), dz_off(B, C);
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t c0, int64_t c1) {
      map_kernels<T>().masked_sums(sample(g, b).channels(c0, c1), sample(o, b).channels(c0, c1), norm.rows(c0, relu),
                                   dz[b] + c0, dz_off[b] + c0);
    });
    const Tensor dgamma_held = empty<A>({C}), dbeta_held = empty<A>({C});
    A *dgamma = write<A>(dgamma_held), *dbeta = write<A>(dbeta_held);
    const Matrix<A> shift(1, C), slope(1, C);  // do = a dz + slope (o - mean) + shift
    Matrix<A> sums(2, C);
    std::fill_n(sums[0], 2 * C, A(0));
    for (int64_t b = 0; b < B; ++b)
      for (int64_t c = 0; c < C; ++c) {
        sums[0][c] += norm.keep(b) * dz[b][c];
        sums[1][c] += norm.keep(b) * dz_off[b][c];
      }
    for (int64_t c = 0; c < C; ++c) {
      const A sum = sums[0][c], sum_off = sums[1][c];
      const A rstd = norm.rstd[0][c], a = norm.a[0][c], pixels = A(B * o.HW);
      dbeta[c] = sum, dgamma[c] = sum_off * rstd;
      slope[0][c] = batch_moments ? -a * rstd * rstd * sum_off / pixels : A(0);
      shift[0][c] = batch_moments ? -a * sum / pixels : A(0);
    }
    for_each_plane(1, B, C, [&](int64_t, int64_t b, int64_t c0, int64_t c1) {
      const Matrix<A> factor(1, c1 - c0);
      for (int64_t c = c0; c < c1; ++c) factor[0][c - c0] = norm.keep(b) * norm.a[0][c];
      map_kernels<T>().masked_scale(sample(g, b).channels(c0, c1), sample(o, b).channels(c0, c1), norm.rows(c0, relu),
                                    factor[0], slope[0] + c0, shift[0] + c0, sample(to, b).channels(c0, c1));
    });
    restore_layout({o_in}, out);
    return {out[0], dgamma_held, dbeta_held};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("norm_add", TORCH_BOX(&norm_add));
  m.impl("norm_add_bwd", TORCH_BOX(&norm_add_bwd));
}

}  // namespace cpu
}  // namespace dla
