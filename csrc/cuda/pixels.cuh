// Operators that work pixel by pixel on several maps of one size: who takes which vector, and what is gathered about
// each channel on the way.
#pragma once

#include "gather.cuh"
#include "planes.cuh"

namespace dla {
namespace cuda {

// A vector of a plane: n elements of a row from `first` on, pixels of a channel or channels of a pixel.
template <class T, bool kInterleaved, int kPiece>
struct Place {
  static constexpr int N = Vector<T>::N;
  static constexpr int kChannels = kInterleaved ? N : 1;  // that a vector meets
  int row, first, n;                                      // n may be 0, for none

  DLA_DEVICE Vector<T> load(const Plane<const T>& x) const {
    const T* const from = x.data + row * x.stride + first;
    return n == N ? cuda::load<kPiece, false>(from) : load_some(from, n);
  }
  DLA_DEVICE void store(const Plane<T>& out, const Vector<T>& x) const {
    T* const to = out.data + row * out.stride + first;
    n == N ? cuda::store<kPiece>(to, x) : store_some(to, x, n);
  }
  // f(i, which of kChannels) for every element.
  template <class F>
  DLA_DEVICE void each(F f) const {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < n) f(i, kInterleaved ? i : 0);
  }
};

template <class S, int kAlong, bool kInterleaved, int kPiece, class T, class Body, class Done>
DLA_DEVICE void pixels_of(int cs, int HW, accumulate_t<T>* scratch, Body body, Done done) {
  using Place = cuda::Place<T, kInterleaved, kPiece>;
  constexpr int N = Place::N, kChannels = Place::kChannels;
  constexpr int kFew = std::is_same<S, typename S::Few>::value ? 1 : 4;  // turns; where merging is adding, it is free
  const int vectors = ((kInterleaved ? cs : HW) + N - 1) / N;
  const int slots = kInterleaved ? vectors : cs, units = kInterleaved ? HW : vectors;
  const Team team(kInterleaved, slots, units);
  for (int s0 = 0; s0 < slots; s0 += team.slots) {  // all threads take every turn: putting together needs them
    const int slot = s0 + team.slot, c0 = at_most(slot * kChannels, cs - 1);
    S found[kChannels];
    typename S::Few few[kChannels];
    int turns = 0;
    for (int u0 = team.part; u0 < units && slot < slots; u0 += team.parts * kAlong) {
      Place at[kAlong];
#pragma unroll
      for (int j = 0; j < kAlong; ++j) {
        const int u = u0 + j * team.parts, first = (kInterleaved ? slot : u) * N;
        at[j] = {kInterleaved ? u : slot, first, u < units ? at_most((kInterleaved ? cs : HW) - first, N) : 0};
      }
      body(at, c0, at_most(cs - c0, kChannels), few);
      if (++turns % kFew == 0)
#pragma unroll
        for (int i = 0; i < kChannels; ++i) found[i].merge(few[i]), few[i] = {};
    }
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      found[i].merge(few[i]);
      const S all = team.together(found[i], scratch);
      if (S::kSize > 0 && team.part == 0 && slot < slots && c0 + i < cs) done(c0 + i, all);
    }
  }
}

// body(at, c, n, few) for kAlong places at a time, all in channels c .. c + n of the block's cs; few[i]: what
// gathers channel c + i. Then done(c, S) once for each channel. T: of the maps.
template <class T, class S, int kAlong, class Body, class Done>
DLA_DEVICE void pixels(const Layer& layer, int cs, accumulate_t<T>* scratch, Body body, Done done) {
  with_piece(layer.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      pixels_of<S, kAlong, true, kPiece, T>(cs, layer.HW, scratch, body, done);
    else
      pixels_of<S, kAlong, false, kPiece, T>(cs, layer.HW, scratch, body, done);
  });
}

}  // namespace cuda
}  // namespace dla
