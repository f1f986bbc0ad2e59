// Planar maps of several layers as one block sees them in one loop: some channels of one sample, layer upon layer.
// A layer at a time, the processor would wait for the first bytes of each. Layers that are *alike* have planes of one
// size and lie in memory in one way; all others are taken one by one (planes.cuh).
//
// Where the channels of a map follow each other without a gap, those of a block are one *slab*. It begins on 16 bytes
// where the map does, its first channel being a multiple of 8, and is read in whole vectors, whatever the size of a
// plane. A vector then belongs to one channel or to two neighbours.
#pragma once

#include "planes.cuh"

namespace dla {
namespace cuda {

template <class T>
struct Stack {
  const Layer* layer;
  int64_t b, c0;
  int layers, cs;

  DLA_DEVICE T* at(int which, int t, int c) const {
    const MapPointer& map = layer[t].map[which];
    return static_cast<T*>(map.data) + b * map.sample + (c0 + c) * map.stride;
  }
};

// Where a vector of a slab lies: in channel c, of which it has `own` elements; the rest are the next one's.
template <class T>
struct Straddle {
  int c, own;

  DLA_DEVICE Straddle(const Divisor& by_HW, int v) : c(by_HW.under(v * Vector<T>::N)) {
    own = (c + 1) * by_HW.n - v * Vector<T>::N;
  }
};
// Of a slab, vector v; zeros follow its end.
template <int kPiece, bool kLast, class T>
DLA_DEVICE Vector<T> load_of_slab(const T* slab, int v, int elements) {
  constexpr int N = Vector<T>::N;
  return (v + 1) * N <= elements ? load<kPiece, kLast>(slab + v * N) : load_some(slab + v * N, elements - v * N);
}

// A warp takes as many channels as make whole vectors. Its threads add up what each vector has of its channel, and of
// the next; from there, in shared memory, a few threads sum each channel. parts: 8 numbers a thread.
template <int kPiece, bool kProduct, class T, class F>
DLA_DEVICE void slab_sums(const Stack<const T>& s, int x, int g, int HW, accumulate_t<T>* parts, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kAlong = kProduct ? 2 : 4, kAtOnce = kAlong * kWarp, kLanes = kWarp / N;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp, warps = num_threads() / kWarp;
  const int units = (s.cs + N - 1) / N;  // of a layer
  const Divisor by_units(units), by_HW(HW);
  A* const own = parts + warp * 2 * kAtOnce;
  for (int u = warp; u < s.layers * units; u += warps) {
    const int t = by_units.under(u), first = (u - t * units) * N, channels = at_most(s.cs - first, N);
    const int elements = channels * HW, vectors = (elements + N - 1) / N;
    const T *const xs = s.at(x, t, first), *const gs = kProduct ? s.at(g, t, first) : xs;
    const int c = lane / kLanes, begin = c * HW, end = begin + HW;  // the channel of these threads, in elements
    A sum = A(0);
    for (int base = 0; base < vectors; base += kAtOnce) {
      Vector<T> of_x[kAlong], of_g[kAlong];
#pragma unroll
      for (int j = 0; j < kAlong; ++j) {
        const int v = at_most(base + j * kWarp + lane, vectors - 1);
        of_x[j] = load_of_slab<kPiece, false>(xs, v, elements);
        if (kProduct) of_g[j] = load_of_slab<kPiece, false>(gs, v, elements);
      }
#pragma unroll
      for (int j = 0; j < kAlong; ++j) {
        const int at = j * kWarp + lane;
        const Straddle<T> straddle(by_HW, at_most(base + at, vectors - 1));
        A low = A(0), high = A(0);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A term = kProduct ? of_x[j][i] * of_g[j][i] : of_x[j][i];
          low += i < straddle.own ? term : A(0);
          high += i < straddle.own ? A(0) : term;
        }
        own[2 * at] = low, own[2 * at + 1] = high;
      }
      warp_barrier();
      const int last = at_most((end - 1) / N, at_most(base + kAtOnce, vectors) - 1);
      A few = A(0);  // so that chains of additions stay short
      for (int v = (begin / N > base ? begin / N : base) + lane % kLanes; v <= last; v += kLanes)
        few += own[2 * (v - base) + (v * N < begin)];
      sum += few;
      warp_barrier();  // before the next are written there
    }
    const A total = sum_lanes(sum, kLanes);
    if (lane % kLanes == 0 && c < channels) f(t, first + c, total);
  }
  block_barrier();  // others may need the scratch memory for more than a warp's own
}

// f(t, c, sum) once for each of the cs channels of each layer: of map x, or of the product of maps x and g. scratch:
// 8 numbers a thread.
template <bool kProduct, class T, class F>
DLA_DEVICE void sums(const Stack<const T>& s, int x, int g, accumulate_t<T>* scratch, F f) {
  const int HW = not_before(s.layer[0].HW);
  if (s.cs == 0) return;
  if (s.layer[0].slab && HW % Vector<T>::N != 0) return slab_sums<16, kProduct>(s, x, g, HW, scratch, f);
  const Divisor by_cs(s.cs);
  const auto row = [&](int which, int r) {
    const int t = s.layers == 1 ? 0 : by_cs.under(r);
    return s.at(which, t, r - t * s.cs);
  };
  planar_sums_of_rows<16, kProduct, T>([&](int r) { return row(x, r); }, [&](int r) { return row(g, r); },
                                       s.layers * s.cs, HW,
                                       [&](int r, accumulate_t<T> sum) {
                                         const int t = s.layers == 1 ? 0 : by_cs.under(r);
                                         f(t, r - t * s.cs, sum);
                                       });
}

// Map out = map x * factor(t, c) + summand(t, c). A thread has kBatch vectors in flight.
template <class T, class Factor, class Summand>
DLA_DEVICE void scale(const Stack<const T>& s, int x, int out, Factor factor, Summand summand) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kBatch = 4;
  if (s.cs == 0) return;
  const int HW = not_before(s.layer[0].HW);
  const bool slab = s.layer[0].slab != 0;
  // Rows are whole slabs, one a layer, or planes of whole vectors.
  const int elements = slab ? s.cs * HW : HW, vectors = (elements + N - 1) / N;
  const int rows = slab ? s.layers : s.layers * s.cs;
  const Divisor by_vectors(vectors), by_HW(HW), by_cs(s.cs);
  const int all = rows * vectors;
  for (int i0 = thread_index(); i0 < all; i0 += kBatch * num_threads()) {
    Vector<T> of_x[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = at_most(i0 + j * num_threads(), all - 1), row = by_vectors.under(i), v = i - row * vectors;
      const int t = slab ? row : by_cs.under(row), c = slab ? 0 : row - t * s.cs;
      of_x[j] = load_of_slab<16, true>(s.at(x, t, c), v, elements);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = i0 + j * num_threads();
      if (i >= all) break;
      const int row = by_vectors.under(i), v = i - row * vectors;
      const int t = slab ? row : by_cs.under(row);
      int c = row - t * s.cs, own = N;
      if (slab) {
        const Straddle<T> straddle(by_HW, v);
        c = straddle.c, own = straddle.own;
      }
      const int next = at_most(c + 1, s.cs - 1);
      const A d = factor(t, c), e = summand(t, c), d2 = own < N ? factor(t, next) : d,
              e2 = own < N ? summand(t, next) : e;
      const Vector<T> result =
          mapped(of_x[j], [&](A value, int k) { return fma(value, k < own ? d : d2, k < own ? e : e2); });
      T* const at = const_cast<T*>(s.at(out, t, slab ? 0 : c)) + v * N;
      if ((v + 1) * N <= elements)
        store<16>(at, result);
      else
        store_some(at, result, elements - v * N);
    }
  }
}

// ---- layers t0 on of a launch, one of them or several that are alike ----

// f(t, c, sum) of map x, or of the product of maps x and g.
template <bool kProduct, class T, class F>
DLA_DEVICE void sums(const Layer* all, int t0, int layers, int64_t b, int64_t c0, int cs, int x, int g,
                     accumulate_t<T>* scratch, F f) {
  using A = accumulate_t<T>;
  const Layer& layer = all[t0];
  cs = not_before(cs);
  const Stack<const T> stack{&layer, b, c0, layers, cs};
  if (layers > 1 || layer.slab == 16)
    sums<kProduct>(stack, x, g, scratch, [&](int t, int c, A sum) { f(t0 + t, c, sum); });
  else if (layer.slab && layer.HW % Vector<T>::N != 0)  // in the same order from any address
    slab_sums<1, kProduct>(stack, x, g, not_before(layer.HW), scratch, [&](int, int c, A sum) { f(t0, c, sum); });
  else
    sums<kProduct>(layer, plane<const T>(layer, x, b, c0), plane<const T>(layer, g, b, c0), cs, scratch,
                   [&](int c, A sum) { f(t0, c, sum); });
}
// Map out = map x * d + e; the d and e of layer t0 + t begin at t * next.
template <bool kSummand, class T>
DLA_DEVICE void scale(const Layer* all, int t0, int layers, int64_t b, int64_t c0, int cs, int x, int out,
                      const accumulate_t<T>* d, const accumulate_t<T>* e, int next) {
  using A = accumulate_t<T>;
  const Layer& layer = all[t0];
  cs = not_before(cs);
  if (layers > 1 || layer.slab == 16)
    scale(
        Stack<const T>{&layer, b, c0, layers, cs}, x, out, [&](int t, int c) { return d[t * next + c]; },
        [&](int t, int c) { return kSummand ? e[t * next + c] : A(-0.0); });
  else
    scale<kSummand>(layer, plane<const T>(layer, x, b, c0), d, e, plane<T>(layer, out, b, c0), cs);
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
