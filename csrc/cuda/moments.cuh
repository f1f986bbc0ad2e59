// Mean and variance of each channel over the batch, from the mean and squared distances of each of its planes.
#pragma once

#include "gather.cuh"
#include "moments_args.h"

namespace dla {
namespace cuda {

template <class A>
DLA_KERNEL(moments_kernel, A, MomentsArgs<A>) {
  const Team team(/*interleaved=*/true, kMomentsChannels, 1);
  const int64_t c = int64_t(block_index()) * kMomentsChannels + team.slot;
  Moments<A> found;
  for (int64_t b = team.part; b < args.B && c < args.C; b += team.parts) {
    Moments<A> plane;
    plane.n = A(args.HW), plane.mean = args.planes[b * args.C + c], plane.m2 = args.planes[(args.B + b) * args.C + c];
    found.merge(plane);
  }
  const Moments<A> all = team.together(found, reinterpret_cast<A*>(shared_memory()));
  if (team.part == 0 && c < args.C) {
    const A var = all.m2 / all.n;  // of nothing: NaN
    args.moments[c] = all.n > A(0) ? all.mean : var;
    args.moments[args.C + c] = var;
  }
}

}  // namespace cuda
}  // namespace dla
