// What the threads of a block find out about its channels: each looks at a part of one, then they put it together.
// Something gathered has each(f), f of every number in it, and merge(other); `Few` is what gathers a few numbers
// before they are merged, so that chains of additions stay short.
#pragma once

#include "device.h"

namespace dla {
namespace cuda {

template <class A>
struct Nothing {
  static constexpr int kSize = 0;
  using Few = Nothing;
  template <class F>
  DLA_DEVICE void each(F) {}
  DLA_DEVICE void merge(const Nothing&) {}
};

template <class A, int K>
struct Sums {
  static constexpr int kSize = K;
  using Few = Sums;
  A v[K] = {};

  template <class F>
  DLA_DEVICE void each(F f) {
#pragma unroll
    for (int i = 0; i < K; ++i) f(v[i]);
  }
  DLA_DEVICE void merge(const Sums& other) {
#pragma unroll
    for (int i = 0; i < K; ++i) v[i] += other.v[i];
  }
};

// Of a few numbers: sums of what lies between them and the first of them. That loses nothing to a large mean, since
// the first is one of them: its own distance from the mean is part of m2.
template <class A>
struct FewMoments {
  A n = A(0), first = A(0), sum = A(0), squares = A(0);

  DLA_DEVICE void add(A x) {
    first = n == A(0) ? x : first;
    const A beyond = x - first;
    n += A(1), sum += beyond, squares = fma(beyond, beyond, squares);
  }
  template <int N>
  DLA_DEVICE void add(const A (&x)[N]) {
    first = n == A(0) ? x[0] : first, n += A(N);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A beyond = x[i] - first;
      sum += beyond, squares = fma(beyond, beyond, squares);
    }
  }
};
// How many, their mean, and the sum of their squared distances from it, merged as Chan does.
template <class A>
struct Moments {
  static constexpr int kSize = 3;
  using Few = FewMoments<A>;
  A n = A(0), mean = A(0), m2 = A(0);

  template <class F>
  DLA_DEVICE void each(F f) {
    f(n), f(mean), f(m2);
  }
  DLA_DEVICE void merge(const Moments& other) {
    if (other.n == A(0)) return;
    const A all = n + other.n, beyond = other.mean - mean, share = other.n / all;
    mean = fma(beyond, share, mean);
    m2 += fma(beyond * beyond, n * share, other.m2);
    n = all;
  }
  DLA_DEVICE void merge(const Few& few) {
    if (few.n == A(0)) return;
    const A shift = few.sum / few.n, rest = few.squares - few.sum * shift;
    Moments other;
    other.n = few.n, other.mean = few.first + shift, other.m2 = rest < A(0) ? A(0) : rest;
    merge(other);
  }
};

// How the threads of a block share out its channels: at each of `slots` a channel, or a vector of them, whose
// pixels `parts` threads divide. Neighbours in memory go to neighbouring threads: of a planar map pixels, of an
// interleaved one channels.
struct Team {
  bool interleaved;
  int slots, parts, slot, part;

  // units: how many pieces of work a channel consists of.
  DLA_DEVICE Team(bool interleaved, int channels, int units) : interleaved(interleaved) {
    const int t = thread_index();
    if (interleaved) {
      slots = power_of_two(channels, num_threads()), parts = num_threads() / slots;
      slot = t % slots, part = t / slots;
    } else {
      parts = power_of_two(units, kWarp), slots = num_threads() / parts;
      slot = t / parts, part = t % parts;
    }
  }

  // All parts in one, for the thread of part 0. scratch: kSize values for every two threads. Barriers: scratch is free
  // when it is called, and on return.
  template <class S, class A>
  DLA_DEVICE S together(S mine, A* scratch) const {
    if constexpr (S::kSize == 0) return mine;
    if (!interleaved) {
#pragma unroll
      for (int mask = kWarp / 2; mask > 0; mask /= 2)
        if (mask < parts) {
          S other = mine;
          other.each([&](A& x) { x = shuffle_xor(x, mask); });
          mine.merge(other);
        }
      return mine;
    }
    int left = parts;
    while (left > 1) {  // the rear parts hand theirs to the front ones
      const int front = (left + 1) / 2, rear = left - front;
      A* const at = scratch + (part >= front ? part - front : part) * slots + slot;
      int k = 0;
      if (part >= front && part < left) mine.each([&](A& x) { at[k++ * rear * slots] = x; });
      block_barrier();
      if (part < rear) {
        S other;
        other.each([&](A& x) { x = at[k++ * rear * slots]; });
        mine.merge(other);
      }
      block_barrier();
      left = front;
    }
    return mine;
  }
};

}  // namespace cuda
}  // namespace dla
