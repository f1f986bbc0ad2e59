// norm_add: x + keep f(norm), where norm = (o - mean) / sqrt(var + eps) gamma + beta; and its gradients.
#pragma once

#include "norm_add_args.h"
#include "pieces.cuh"
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

template <class T>
DLA_KERNEL(norm_add_kernel, T, NormAddArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    constexpr int N = Vector<T>::N;
    const Layer& layer = args.layer;
    const auto o = plane<const T>(layer, kIn, b, c0), x = plane<const T>(layer, kShortcut, b, c0);
    const auto out = plane<T>(layer, kSum, b, c0);
    const A keep = args.norm.keep ? args.norm.keep[b] : A(1);
    pixels<T, Nothing<A>>(
        layer, cs, reinterpret_cast<A*>(shared_memory()),
        [&](int c) { return norm_of(args.norm, args.pieces.C, c0 + c); },
        [&](const auto& at, const auto& norm, int, int, Nothing<A>*) {
          constexpr int kAlong = std::decay_t<decltype(at)>::kAlong;
          Vector<T> os[kAlong], xs[kAlong];
#pragma unroll
          for (int j = 0; j < kAlong; ++j) os[j] = at[j].load(o), xs[j] = at[j].load(x);
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

// What both backward kernels do. body(at, known, o, dz, few) for every vector o of a piece: dz(i, the norm of element
// i) is the gradient that arrives there. know, known, few and done: as in pixels.cuh.
template <class T, class S, class Args, class Know, class Body, class Done>
DLA_DEVICE void norm_gradients(const Args& args, int64_t b, int64_t c0, int cs, Know know, Body body, Done done) {
  using A = accumulate_t<T>;
  const Layer& layer = args.layer;
  const auto o = plane<const T>(layer, kIn, b, c0), dout = plane<const T>(layer, kGradOut, b, c0);
  const A keep = args.norm.keep ? args.norm.keep[b] : A(1);
  pixels<T, S>(
      layer, cs, reinterpret_cast<A*>(shared_memory()), know,
      [&](const auto& at, const auto& known, int, int, auto* few) {
        constexpr int kAlong = std::decay_t<decltype(at)>::kAlong;
        Vector<T> os[kAlong], gs[kAlong];
#pragma unroll
        for (int j = 0; j < kAlong; ++j) os[j] = at[j].load(o), gs[j] = at[j].load(dout);
#pragma unroll
        for (int j = 0; j < kAlong; ++j) {
          const auto dz = [&](int i, const Norm<A>& norm) {
            const A arriving = keep * gs[j][i];
            return args.norm.relu ? relu_grad(norm(os[j][i]), arriving) : arriving;
          };
          body(at[j], known, os[j], dz, few);
        }
      },
      done);
}

// The sums of dz over each plane, and those of dz times (o - mean) / sqrt(var + eps).
template <class T>
DLA_KERNEL(norm_add_sums_kernel, T, NormAddSumsArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    const int64_t row = b * args.pieces.C + c0;
    norm_gradients<T, Sums<A, 2>>(
        args, b, c0, cs, [&](int c) { return norm_of(args.norm, args.pieces.C, c0 + c); },
        [&](const auto& at, const auto& norm, const Vector<T>& o, const auto& dz_of, Sums<A, 2>* few) {
          at.each([&](int i, int of) {
            const A dz = dz_of(i, norm[i]);
            few[of].v[0] += dz, few[of].v[1] = fma(dz, o[i] - norm[i].mean, few[of].v[1]);
          });
        },
        [&](int c, const Sums<A, 2>& sums) {
          args.sums[row + c] = sums.v[0];
          args.sums[args.pieces.B * args.pieces.C + row + c] =
              norm_of(args.norm, args.pieces.C, c0 + c).scale * sums.v[1];
        });
  });
}

// The norm, and what makes a gradient that arrives at it one of mean zero, uncorrelated with it.
template <class A>
struct Centred {
  Norm<A> norm;
  A mean, slope;
};

// do = slope (dz - [where the moments are the batch's own] (mean dz + n mean(dz n))), n = (o - mean) / sqrt(var + eps)
template <class T>
DLA_KERNEL(norm_add_bwd_kernel, T, NormAddBwdArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    const auto out = plane<T>(args.layer, kGradIn, b, c0);
    const A share = args.batch_moments ? A(1) / (A(args.pieces.B) * A(args.layer.HW)) : A(0);
    norm_gradients<T, Nothing<A>>(
        args, b, c0, cs,
        [&](int c) {
          const Norm<A> norm = norm_of(args.norm, args.pieces.C, c0 + c);
          return Centred<A>{norm, share * args.dbeta[c0 + c], share * args.dgamma[c0 + c] * norm.scale};
        },
        [&](const auto& at, const auto& channel, const Vector<T>& o, const auto& dz_of, Nothing<A>*) {
          Vector<T> to;
#pragma unroll
          for (int i = 0; i < Vector<T>::N; ++i) {
            const auto& [norm, mean, slope] = channel[i];
            const A dz = dz_of(i, norm);
            const A centred = dz - fma(o[i] - norm.mean, slope, mean);
            to.v[i] = narrow<T>(norm.slope * (args.batch_moments ? centred : dz));
          }
          at.store(out, to);
        },
        [](int, Nothing<A>) {});
  });
}

}  // namespace cuda
}  // namespace dla
