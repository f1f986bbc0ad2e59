// norm_add: x + keep f(norm), where norm = (o - mean) / sqrt(var + eps) gamma + beta; and its gradients. Maps of the
// layer: 0 o; forward: 1 x, 2 the result; backward: 1 the gradient that arrives, 2 that of o.
#pragma once

#include "gap.cuh"
#include "pixels.cuh"

namespace dla {
namespace cuda {

// What the norm is for one channel.
template <class A>
struct Norm {
  A mean, scale, slope, beta;  // scale = 1 / sqrt(var + eps), slope = scale gamma

  DLA_DEVICE A operator()(A o) const { return fma(o - mean, slope, beta); }
};
template <class A>
DLA_DEVICE Norm<A> norm_of(const NormArgs<A>& args, int64_t C, int64_t c) {
  const A scale = inverse_root(args.moments[C + c] + args.eps);
  return {args.moments[c], scale, scale * args.gamma[c], args.beta[c]};
}

// The channels of a vector.
template <int kChannels, class A>
struct Norms {
  Norm<A> of[kChannels];
  DLA_DEVICE Norms(const NormArgs<A>& args, int64_t C, int64_t c, int n) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) of[i] = norm_of(args, C, c + at_most(i, n - 1));
  }
  DLA_DEVICE const Norm<A>& operator[](int i) const { return of[kChannels == 1 ? 0 : i]; }
};

template <class T>
DLA_KERNEL(norm_add_kernel, T, NormAddArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    constexpr int N = Vector<T>::N, kAlong = 2;
    const Layer& layer = args.layer;
    const auto o = plane<const T>(layer, 0, b, c0), x = plane<const T>(layer, 1, b, c0);
    const auto out = plane<T>(layer, 2, b, c0);
    const A keep = args.norm.keep ? args.norm.keep[b] : A(1);
    pixels<T, Nothing<A>, kAlong>(
        layer, cs, reinterpret_cast<A*>(shared_memory()),
        [&](const auto& at, int c, int n, Nothing<A>*) {
          constexpr int kChannels = std::decay_t<decltype(at[0])>::kChannels;
          Vector<T> os[kAlong], xs[kAlong];
#pragma unroll
          for (int j = 0; j < kAlong; ++j) os[j] = at[j].load(o), xs[j] = at[j].load(x);
          const Norms<kChannels, A> norm(args.norm, args.pieces.C, c0 + c, n);
#pragma unroll
          for (int j = 0; j < kAlong; ++j) {
            Vector<T> to;
#pragma unroll
            for (int i = 0; i < N; ++i) {
              const A z = norm[i](os[j][i]);
              to.v[i] = narrow<T>(fma(keep, args.norm.relu ? relu(z) : z, xs[j][i]));
            }
            at[j].store(out, to);
          }
        },
        [](int, Nothing<A>) {});
  });
}

// The gradient of the norm, where dout arrives at the result.
template <class A>
DLA_DEVICE A norm_gradient(const NormArgs<A>& args, const Norm<A>& norm, A keep, A o, A dout) {
  return args.relu ? relu_grad(norm(o), keep * dout) : keep * dout;
}

// Its sums over each plane, and those of it times (o - mean) / sqrt(var + eps).
template <class T>
DLA_KERNEL(norm_add_sums_kernel, T, NormAddSumsArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    constexpr int kAlong = sizeof(T) == 2 ? 1 : 2;  // registers
    const Layer& layer = args.layer;
    const auto o = plane<const T>(layer, 0, b, c0), dout = plane<const T>(layer, 1, b, c0);
    const A keep = args.norm.keep ? args.norm.keep[b] : A(1);
    const int64_t row = b * args.pieces.C + c0;
    pixels<T, Sums<A, 2>, kAlong>(
        layer, cs, reinterpret_cast<A*>(shared_memory()),
        [&](const auto& at, int c, int n, Sums<A, 2>* few) {
          constexpr int kChannels = std::decay_t<decltype(at[0])>::kChannels;
          Vector<T> os[kAlong], gs[kAlong];
#pragma unroll
          for (int j = 0; j < kAlong; ++j) os[j] = at[j].load(o), gs[j] = at[j].load(dout);
          const Norms<kChannels, A> norm(args.norm, args.pieces.C, c0 + c, n);
#pragma unroll
          for (int j = 0; j < kAlong; ++j)
            at[j].each([&](int i, int of) {
              const A dz = norm_gradient(args.norm, norm[i], keep, os[j][i], gs[j][i]);
              few[of].v[0] += dz, few[of].v[1] = fma(dz, os[j][i] - norm[i].mean, few[of].v[1]);
            });
        },
        [&](int c, const Sums<A, 2>& sums) {
          args.sums[row + c] = sums.v[0];
          args.sums[args.pieces.B * args.pieces.C + row + c] =
              norm_of(args.norm, args.pieces.C, c0 + c).scale * sums.v[1];
        });
  });
}

// do = slope (dz - [where the moments are the batch's own] (mean dz + n mean(dz n))), n = (o - mean) / sqrt(var + eps)
template <class T>
DLA_KERNEL(norm_add_bwd_kernel, T, NormAddBwdArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    constexpr int N = Vector<T>::N, kAlong = 2;
    const Layer& layer = args.layer;
    const auto o = plane<const T>(layer, 0, b, c0), dout = plane<const T>(layer, 1, b, c0);
    const auto out = plane<T>(layer, 2, b, c0);
    const A keep = args.norm.keep ? args.norm.keep[b] : A(1);
    const A share = args.batch_moments ? A(1) / (A(args.pieces.B) * A(layer.HW)) : A(0);
    pixels<T, Nothing<A>, kAlong>(
        layer, cs, reinterpret_cast<A*>(shared_memory()),
        [&](const auto& at, int c, int n, Nothing<A>*) {
          constexpr int kChannels = std::decay_t<decltype(at[0])>::kChannels;
          Vector<T> os[kAlong], gs[kAlong];
#pragma unroll
          for (int j = 0; j < kAlong; ++j) os[j] = at[j].load(o), gs[j] = at[j].load(dout);
          const Norms<kChannels, A> norm(args.norm, args.pieces.C, c0 + c, n);
          A mean[kChannels], slope[kChannels];
#pragma unroll
          for (int i = 0; i < kChannels; ++i) {
            const int64_t ci = c0 + c + at_most(i, n - 1);
            mean[i] = share * args.dbeta[ci], slope[i] = share * args.dgamma[ci] * norm[i].scale;
          }
#pragma unroll
          for (int j = 0; j < kAlong; ++j) {
            Vector<T> to;
#pragma unroll
            for (int i = 0; i < N; ++i) {
              const int of = kChannels == 1 ? 0 : i;
              const A dz = norm_gradient(args.norm, norm[i], keep, os[j][i], gs[j][i]);
              const A centred = dz - fma(os[j][i] - norm[i].mean, slope[of], mean[of]);
              to.v[i] = narrow<T>(norm[i].slope * (args.batch_moments ? centred : dz));
            }
            at[j].store(out, to);
          }
        },
        [](int, Nothing<A>) {});
  });
}

}  // namespace cuda
}  // namespace dla
