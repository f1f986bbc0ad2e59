// Maps of several layers as one block sees them: some channels of one sample. Planar layers that are *alike*, with
// planes of one size at the same distances, are taken in one loop, plane upon plane: a layer at a time, the processor
// would wait for the first bytes of each. All others are taken one by one.
//
// Where the channels of a map follow each other without a gap, those of a block are one *slab*. It begins on 16 bytes
// where the map does, its first channel being a multiple of 8, and so do the vectors that are counted from there,
// whatever the size of a plane: a plane has those that lie in it as a whole, and on either side what is left.
#pragma once

#include "planes.cuh"

namespace dla {
namespace cuda {

template <class T>
struct Stack {
  const Layer* const layer;  // the first
  const int64_t b, c0;
  const int layers, cs, HW;
  const Divisor by_cs;

  DLA_DEVICE Stack(const Layer* layer, int64_t b, int64_t c0, int layers, int cs)
      : layer(layer), b(b), c0(c0), layers(layers), cs(cs), HW(not_before(layer->HW)), by_cs(cs) {}

  DLA_DEVICE int planes() const { return layers * cs; }
  // f(t, c) of plane i
  template <class F>
  DLA_DEVICE auto of(int i, F f) const {
    const int t = layers == 1 ? 0 : by_cs.under(i);
    return f(t, i - t * cs);
  }
  DLA_DEVICE const T* at(int which, int t, int c) const {
    const MapPointer& first = layer->map[which];
    return static_cast<const T*>(layer[t].map[which].data) + b * first.sample + (c0 + c) * first.stride;
  }
  // How many elements of channel c come before its first whole vector.
  DLA_DEVICE int front(int c) const { return layer->slab ? int(-(unsigned(c) * HW) & (Vector<T>::N - 1)) : 0; }
  DLA_DEVICE int piece() const { return layer->slab == 16 ? 16 : layer->piece; }
};

// For layers t0 on of a launch, one of them or several that are alike: f(t, c, sum) once for each of the cs channels of
// each, of map x, or of the product of maps x and g. scratch: a vector for each thread. Barriers: scratch is free when
// it is called and on return; what f wrote is not known, as planar maps need no barrier.
template <bool kProduct, class T, class F>
DLA_DEVICE void sums(const Layer* all, int t0, int layers, int64_t b, int64_t c0, int cs, int x, int g,
                     accumulate_t<T>* scratch, F f) {
  using A = accumulate_t<T>;
  if (cs == 0) return;
  const Layer& layer = all[t0];
  const Stack<T> stack(&layer, b, c0, layers, not_before(cs));
  with_piece(stack.piece(), [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      return interleaved_sums<kPiece, kProduct>(plane<const T>(layer, x, b, c0), plane<const T>(layer, g, b, c0),
                                                stack.cs, stack.HW, scratch, [&](int c, A sum) { f(t0, c, sum); });
    const PlaneTeam<T> team(stack.HW);
    team.template with_shape<kProduct ? 2 : 4>(stack.planes(), [&](auto planes, auto along) {
      planar_sums<kPiece, kProduct, decltype(planes)::value, decltype(along)::value, T>(
          team, stack.planes(), stack.HW,
          [&](int i) {
            return stack.of(i, [&](int t, int c) {
              const T* const of_x = stack.at(x, t, c);
              return PlaneToSum<T>{of_x, kProduct ? stack.at(g, t, c) : of_x, stack.front(c)};
            });
          },
          [&](int i, A sum) { stack.of(i, [&](int t, int c) { f(t0 + t, c, sum); }); });
    });
  });
}

// Map out = map x * d + e * by; the d and e of layer t0 + t begin at t * next. Without a summand -0 is added, which
// changes nothing, not even a -0.
template <bool kSummand, class T>
DLA_DEVICE void scale(const Layer* all, int t0, int layers, int64_t b, int64_t c0, int cs, int x, int out,
                      const accumulate_t<T>* d, const accumulate_t<T>* e, int next,
                      accumulate_t<T> by = accumulate_t<T>(1)) {
  using A = accumulate_t<T>;
  if (cs == 0) return;
  const Layer& layer = all[t0];
  const Stack<T> stack(&layer, b, c0, layers, not_before(cs));
  const auto summand = [e, by](int at) { return kSummand ? e[at] * by : A(-0.0); };
  with_piece(stack.piece(), [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      return scale_pixels<kPiece>(
          stack.HW, stack.cs, plane<const T>(layer, x, b, c0), plane<T>(layer, out, b, c0), [d](int c) { return d[c]; },
          summand);
    const PlaneTeam<T> team(stack.HW);
    constexpr int kInFlight = 3;  // what the registers hold
    team.template with_shape<kInFlight>(stack.planes(), [&](auto planes, auto along) {
      scale_planes<kPiece, decltype(planes)::value, decltype(along)::value, T>(
          team, stack.planes(), stack.HW, [&](int i) {  // those first that were read last
            return stack.of(stack.planes() - 1 - i, [&](int t, int c) {
              const int at = t * next + c;
              return PlaneToScale<T>{stack.at(x, t, c), const_cast<T*>(stack.at(out, t, c)), stack.front(c), d[at],
                                     summand(at)};
            });
          });
    });
  });
}

// f(t0, layers, i) for the samples i of a tile: all T layers at once where they are alike, else one by one, the last
// first.
template <class F>
DLA_DEVICE void for_stacks(const Layers& layers, int T, int nb, F f) {
  const int at_once = not_before(layers.alike ? T : 1);
  for (int t0 = T - at_once; t0 >= 0; t0 -= at_once)
    for (int i = 0; i < nb; ++i) f(t0, at_once, i);
}

}  // namespace cuda
}  // namespace dla
