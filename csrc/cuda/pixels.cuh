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

// Vectors of one row after the other that a thread takes at a time, so that several loads are on their way. Of two-byte
// elements one, where each has its channel: eight of everything that is known of a channel fill the registers.
template <class T, bool kInterleaved, int kPiece>
struct Places {
  using Place = cuda::Place<T, kInterleaved, kPiece>;
  static constexpr int kAlong = kInterleaved && sizeof(T) == 2 ? 1 : 2;
  static constexpr int kChannels = Place::kChannels;
  Place at[kAlong];
  DLA_DEVICE const Place& operator[](int j) const { return at[j]; }
};

// What is known of each channel of a vector, asked by element.
template <class V, int kChannels>
struct PerChannel {
  V of[kChannels];
  DLA_DEVICE const V& operator[](int i) const { return of[kChannels == 1 ? 0 : i]; }
};

template <class S, bool kInterleaved, int kPiece, class T, class Know, class Body, class Done>
DLA_DEVICE void pixels_of(int cs, int HW, accumulate_t<T>* scratch, Know know, Body body, Done done) {
  using Places = cuda::Places<T, kInterleaved, kPiece>;
  constexpr int N = Places::Place::N, kChannels = Places::kChannels, kAlong = Places::kAlong;
  constexpr int kFew = std::is_same<S, typename S::Few>::value ? 1 : 4;  // turns; where merging is adding, it is free
  const int vectors = ((kInterleaved ? cs : HW) + N - 1) / N;
  const int slots = kInterleaved ? vectors : cs, units = kInterleaved ? HW : vectors;
  const Team team(kInterleaved, slots, units);
  for (int s0 = 0; s0 < slots; s0 += team.slots) {  // all threads take every turn: putting together needs them
    const int slot = s0 + team.slot, c0 = at_most(slot * kChannels, cs - 1), n = at_most(cs - c0, kChannels);
    PerChannel<decltype(know(0)), kChannels> known;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) known.of[i] = know(c0 + at_most(i, n - 1));
    S found[kChannels];
    typename S::Few few[kChannels];
    int turns = 0;
    for (int u0 = team.part; u0 < units && slot < slots; u0 += team.parts * kAlong) {
      Places places;
#pragma unroll
      for (int j = 0; j < kAlong; ++j) {
        const int u = u0 + j * team.parts, first = (kInterleaved ? slot : u) * N;
        places.at[j] = {kInterleaved ? u : slot, first, u < units ? at_most((kInterleaved ? cs : HW) - first, N) : 0};
      }
      body(places, known, c0, n, few);
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

// body(at, known, c, n, few) for the places at, all in channels c .. c + n of the block's cs; few[i]: what gathers
// channel c + i; known[i]: know(channel) for element i, read before the loop, where its addresses would fill the
// registers. Then done(c, S) once for each channel. T: of the maps. Barriers: as Team::together.
template <class T, class S, class Know, class Body, class Done>
DLA_DEVICE void pixels(const Layer& layer, int cs, accumulate_t<T>* scratch, Know know, Body body, Done done) {
  with_piece(layer.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      pixels_of<S, true, kPiece, T>(cs, layer.HW, scratch, know, body, done);
    else
      pixels_of<S, false, kPiece, T>(cs, layer.HW, scratch, know, body, done);
  });
}

}  // namespace cuda
}  // namespace dla
