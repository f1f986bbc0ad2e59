// Feature maps as one block sees them: some channels of one sample of one layer. A *planar* map has its
// pixels side by side, an *interleaved* one its channels. Both are read 16 bytes at a time where addresses
// allow, else in pieces of the same 16 bytes, so that sums are taken in one order whatever the alignment.
#pragma once

#include "../half.h"
#include "args.h"
#include "device.h"

namespace dla {
namespace cuda {

template <class T>
struct Plane {
  T* data;
  int64_t stride;
};
template <class T>
DLA_DEVICE Plane<T> plane(const Layer& layer, int which, int64_t b, int64_t c0) {
  const MapPointer& map = layer.map[which];
  return {static_cast<T*>(map.data) + b * map.sample + (layer.interleaved ? c0 : c0 * map.stride), map.stride};
}

// 16 bytes of a map.
template <class T>
struct Vector {
  static constexpr int N = 16 / sizeof(T);
  union {
    Words4 words4;
    Words2 words2[2];
    T v[N];
  };
  DLA_DEVICE accumulate_t<T> operator[](int i) const { return widen(v[i]); }
};
// The first n of its elements; zeros follow. kLast: nobody will read them again.
template <int kPiece, bool kLast, class T>
DLA_DEVICE Vector<T> load(const T* p, int n) {
  Vector<T> x;
  if (kPiece >= 8 && n == Vector<T>::N) {
    if constexpr (kPiece == 16) {
      const Words4* from = reinterpret_cast<const Words4*>(p);
      x.words4 = kLast ? load_last(from) : *from;
    } else {
      const Words2* from = reinterpret_cast<const Words2*>(p);
      x.words2[0] = kLast ? load_last(from) : from[0];
      x.words2[1] = kLast ? load_last(from + 1) : from[1];
    }
    return x;
  }
#pragma unroll
  for (int i = 0; i < Vector<T>::N; ++i) x.v[i] = i < n ? p[i] : T{};
  return x;
}
template <int kPiece, class T>
DLA_DEVICE void store(T* p, Vector<T> x, int n) {
  if (kPiece == 16 && n == Vector<T>::N) {
    store_streaming(reinterpret_cast<Words4*>(p), x.words4);
  } else if (kPiece == 8 && n == Vector<T>::N) {
    store_streaming(reinterpret_cast<Words2*>(p), x.words2[0]);
    store_streaming(reinterpret_cast<Words2*>(p) + 1, x.words2[1]);
  } else {
#pragma unroll
    for (int i = 0; i < Vector<T>::N; ++i)
      if (i < n) p[i] = x.v[i];
  }
}

// Calls f with the widest piece of the layer as a constant.
template <class F>
DLA_DEVICE void with_piece(int piece, F f) {
  if (piece >= 16)
    f(std::integral_constant<int, 16>{});
  else if (piece >= 8)
    f(std::integral_constant<int, 8>{});
  else
    f(std::integral_constant<int, 1>{});
}

// ---- sums over pixels: of x, or of x * g ----

template <class T, bool kProduct>
struct Term {
  using A = accumulate_t<T>;
  static DLA_DEVICE A of(const Vector<T>& x, const Vector<T>& g) {
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < Vector<T>::N; ++i) sum = kProduct ? fma(x[i], g[i], sum) : sum + x[i];
    return sum;
  }
};

// A few neighbouring threads take a channel; kBatch channels are in flight at once.
template <int kPiece, bool kProduct, int kBatch, class T, class F>
DLA_DEVICE void planar_sums(Plane<const T> x, Plane<const T> g, int cs, int HW, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 8;
  const int vectors = (HW + N - 1) / N, lanes = power_of_two(vectors, kWarp);
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int first = 0; first < cs; first += groups * kBatch) {  // uniform, as the shuffles need
    A sum[kBatch] = {}, few[kBatch] = {};                      // a long chain of additions is folded now and then
    int added = 0;
#pragma unroll 4
    for (int v = lane; v < vectors; v += lanes) {
      const int n = at_most(HW - v * N, N);
      Vector<T> xs[kBatch], gs[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int c = at_most(first + i * groups + group, cs - 1);
        xs[i] = load<kPiece, false>(x.data + c * x.stride + v * N, n);
        if (kProduct) gs[i] = load<kPiece, false>(g.data + c * g.stride + v * N, n);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) few[i] += Term<T, kProduct>::of(xs[i], gs[i]);
      if (++added % kFew == 0)
#pragma unroll
        for (int i = 0; i < kBatch; ++i) sum[i] += few[i], few[i] = A(0);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const A total = sum_lanes(sum[i] + few[i], lanes);
      const int c = first + i * groups + group;
      if (lane == 0 && c < cs) f(c, total);
    }
  }
}

// Threads side by side take a vector of channels each; what is left of the block shares out the pixels.
template <int kPiece, bool kProduct, class T, class F>
DLA_DEVICE void interleaved_sums(Plane<const T> x, Plane<const T> g, int cs, int HW, accumulate_t<T>* scratch, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 32;
  const int vectors = (cs + N - 1) / N, columns = power_of_two(vectors, num_threads());
  const int column = thread_index() % columns, part = thread_index() / columns, parts = num_threads() / columns;
  for (int first = 0; first < vectors; first += columns) {
    const int v = first + column;
    A sum[N] = {}, few[N] = {};  // a long chain of additions is folded now and then
    if (v < vectors) {
      const int n = at_most(cs - v * N, N);
      int added = 0;
      for (int p = part; p < HW; p += parts) {
        const Vector<T> xs = load<kPiece, false>(x.data + p * x.stride + v * N, n);
        Vector<T> gs;
        if (kProduct) gs = load<kPiece, false>(g.data + p * g.stride + v * N, n);
#pragma unroll
        for (int i = 0; i < N; ++i) few[i] = kProduct ? fma(xs[i], gs[i], few[i]) : few[i] + xs[i];
        if (++added % kFew == 0)
#pragma unroll
          for (int i = 0; i < N; ++i) sum[i] += few[i], few[i] = A(0);
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) scratch[i * num_threads() + thread_index()] = sum[i] + few[i];
    block_barrier();
    const int in_turn = at_most((vectors - first), columns) * N;
    for (int j = thread_index(); j < in_turn; j += num_threads()) {
      const int c = first * N + j;
      if (c < cs) {
        A total = A(0);
        for (int p = 0; p < parts; ++p) total += scratch[j % N * num_threads() + p * columns + j / N];
        f(c, total);
      }
    }
    block_barrier();
  }
}

// f(c, sum) once for each of the cs channels. scratch: a vector for each thread.
template <bool kProduct, class T, class F>
DLA_DEVICE void sums(const Layer& layer, Plane<const T> x, Plane<const T> g, int cs, accumulate_t<T>* scratch, F f) {
  if (cs == 0) return;
  with_piece(layer.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      interleaved_sums<kPiece, kProduct>(x, g, cs, layer.HW, scratch, f);
    else if (layer.HW <= 2 * kWarp * Vector<T>::N)
      planar_sums<kPiece, kProduct, kProduct ? 2 : 4>(x, g, cs, layer.HW, f);
    else
      planar_sums<kPiece, kProduct, 1>(x, g, cs, layer.HW, f);
  });
}

// ---- out = x * d + e, with d and e for each channel ----

template <class T, class F>
DLA_DEVICE Vector<T> mapped(const Vector<T>& x, F f) {
  Vector<T> out;
#pragma unroll
  for (int i = 0; i < Vector<T>::N; ++i) out.v[i] = narrow<T>(f(x[i], i));
  return out;
}

// d and e [cs]; e may be null.
template <class T>
DLA_DEVICE void scale(const Layer& layer, Plane<const T> x, const accumulate_t<T>* d, const accumulate_t<T>* e,
                      Plane<T> out, int cs) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N;
  with_piece(layer.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    // Rows are what lies side by side: pixels of a channel, or channels of a pixel.
    const int rows = layer.interleaved ? layer.HW : cs, length = layer.interleaved ? cs : layer.HW;
    const int vectors = (length + N - 1) / N, lanes = power_of_two(vectors, num_threads());
    const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
    for (int v = lane; v < vectors; v += lanes) {
      const int n = at_most(length - v * N, N);
#pragma unroll 4
      for (int row = group; row < rows; row += groups) {
        const Vector<T> xs = load<kPiece, true>(x.data + row * x.stride + v * N, n);
        const Vector<T> result = mapped(xs, [&](A value, int i) {
          const int c = layer.interleaved ? at_most(v * N + i, cs - 1) : row;
          return e ? fma(value, d[c], e[c]) : value * d[c];
        });
        store<kPiece>(out.data + row * out.stride + v * N, result, n);
      }
    }
  });
}

}  // namespace cuda
}  // namespace dla
