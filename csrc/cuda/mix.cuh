// mix: o = sum over m of coef_m values_m; and its gradients. Backward, what later layers sent to a value is kGradOut.
#pragma once

#include "mix_args.h"
#include "pieces.cuh"
#include "pixels.cuh"

namespace dla {
namespace cuda {

template <class T, class S>
DLA_DEVICE void mix(const MixArgs<T>& args, int64_t b, int64_t c0, int cs) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N;
  const Layer& layer = args.values.at[0];
  const auto out = plane<T>(args.out, kOnly, b, c0);
  const int64_t BC = args.pieces.B * args.pieces.C, row = b * args.pieces.C + c0;
  pixels<T, S>(
      layer, cs, reinterpret_cast<A*>(shared_memory()), [](int) { return Nothing<A>(); },
      [&](const auto& at, const auto&, int c, int n, typename S::Few* few) {
        using Places = std::decay_t<decltype(at)>;
        constexpr int kAlong = Places::kAlong, kChannels = Places::kChannels;
        A sum[kAlong][N] = {};
        for (int m = 0; m < args.M; ++m) {
          const auto value = plane<const T>(args.values.at[m], kIn, b, c0);
          Vector<T> vs[kAlong];
          PerChannel<A, kChannels> coef;
#pragma unroll
          for (int j = 0; j < kAlong; ++j) vs[j] = at[j].load(value);
#pragma unroll
          for (int i = 0; i < kChannels; ++i) coef.of[i] = args.coef[m * BC + row + c + at_most(i, n - 1)];
#pragma unroll
          for (int j = 0; j < kAlong; ++j)
#pragma unroll
            for (int i = 0; i < N; ++i) sum[j][i] = fma(coef[i], vs[j][i], sum[j][i]);
        }
#pragma unroll
        for (int j = 0; j < kAlong; ++j) {
          Vector<T> o;
#pragma unroll
          for (int i = 0; i < N; ++i) o.v[i] = narrow<T>(sum[j][i]);
          at[j].store(out, o);
          if constexpr (S::kSize > 0) at[j].each([&](int i, int of) { few[of].add(o[i]); });
        }
      },
      [&](int c, const auto& of_plane) {
        if constexpr (S::kSize > 0) args.planes[row + c] = of_plane.mean, args.planes[BC + row + c] = of_plane.m2;
      });
}

template <class T>
DLA_KERNEL(mix_kernel, T, MixArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    args.planes ? mix<T, Moments<A>>(args, b, c0, cs) : mix<T, Nothing<A>>(args, b, c0, cs);
  });
}

// One value after the other; dout comes from a cache again and again.
template <class T>
DLA_KERNEL(mix_bwd_kernel, T, MixBwdArgs<T>) {
  using A = accumulate_t<T>;
  my_piece(args.pieces, [&](int, int64_t b, int64_t c0, int cs) {
    constexpr int N = Vector<T>::N;
    const auto dout = plane<const T>(args.dout, kOnly, b, c0);
    for (int m = 0; m < args.M; ++m) {
      const Layer& layer = args.values.at[m];
      const auto value = plane<const T>(layer, kIn, b, c0), later = plane<const T>(layer, kGradOut, b, c0);
      const auto out = plane<T>(layer, kGradIn, b, c0);
      const int64_t row = (m * args.pieces.B + b) * args.pieces.C + c0;
      pixels<T, Sums<A, 1>>(
          layer, cs, reinterpret_cast<A*>(shared_memory()), [&](int c) { return args.coef[row + c]; },
          [&](const auto& at, const auto& coef, int, int, Sums<A, 1>* few) {
            constexpr int kAlong = std::decay_t<decltype(at)>::kAlong;
            Vector<T> vs[kAlong], gs[kAlong], ls[kAlong] = {};
#pragma unroll
            for (int j = 0; j < kAlong; ++j) {
              vs[j] = at[j].load(value), gs[j] = at[j].load(dout);
              if (args.has_later) ls[j] = at[j].load(later);
            }
#pragma unroll
            for (int j = 0; j < kAlong; ++j) {
              Vector<T> to;
#pragma unroll
              for (int i = 0; i < N; ++i)
                to.v[i] = narrow<T>(fma(coef[i], gs[j][i], args.has_later ? ls[j][i] : A(-0.0)));
              at[j].store(out, to);
              at[j].each([&](int i, int of) { few[of].v[0] = fma(vs[j][i], gs[j][i], few[of].v[0]); });
            }
          },
          [&](int c, const Sums<A, 1>& sum) { args.dcoef[row + c] = sum.v[0]; });
    }
  });
}

}  // namespace cuda
}  // namespace dla
