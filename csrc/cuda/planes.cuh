// Feature maps as one block sees them: some channels of one sample of one layer. A *planar* map has its
// pixels side by side, an *interleaved* one its channels. Both are read 16 bytes at a time where addresses
// allow, else as single elements of the same vectors, so that sums are taken in one order whatever the alignment.
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
    T v[N];
  };
  DLA_DEVICE accumulate_t<T> operator[](int i) const { return widen(v[i]); }
};
// kLast: nobody will read them again.
template <int kPiece, bool kLast, class T>
DLA_DEVICE Vector<T> load(const T* p) {
  Vector<T> x;
  if constexpr (kPiece == 16) {
    const Words4* from = reinterpret_cast<const Words4*>(p);
    x.words4 = kLast ? load_last(from) : *from;
  } else {
#pragma unroll
    for (int i = 0; i < Vector<T>::N; ++i) x.v[i] = p[i];
  }
  return x;
}
// The first n elements; zeros follow.
template <class T>
DLA_DEVICE Vector<T> load_some(const T* p, int n) {
  Vector<T> x;
#pragma unroll
  for (int i = 0; i < Vector<T>::N; ++i) x.v[i] = i < n ? p[i] : T{};
  return x;
}
template <int kPiece, class T>
DLA_DEVICE void store(T* p, const Vector<T>& x) {
  if constexpr (kPiece == 16) {
    store_streaming(reinterpret_cast<Words4*>(p), x.words4);
  } else {
#pragma unroll
    for (int i = 0; i < Vector<T>::N; ++i) p[i] = x.v[i];
  }
}
template <class T>
DLA_DEVICE void store_some(T* p, const Vector<T>& x, int n) {
#pragma unroll
  for (int i = 0; i < Vector<T>::N; ++i)
    if (i < n) p[i] = x.v[i];
}

// Calls f with the widest piece of the layer as a constant.
template <class F>
DLA_DEVICE void with_piece(int piece, F f) {
  if (piece >= 16)
    f(std::integral_constant<int, 16>{});
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

// A few neighbouring threads take a channel. Each has kChannels x kAlong vectors in flight: these are read before
// the first is used, and the part of a vector at the end of a channel is taken by itself.
// Of rows of HW pixels, row r from x(r) on, and g(r).
template <int kPiece, bool kProduct, int kChannels, int kAlong, class T, class X, class G, class F>
DLA_DEVICE void planar_sums(X x, G g, int rows, int HW, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 8;
  const int whole = HW / N, rest = HW % N, lanes = power_of_two(whole + (rest > 0), kWarp);
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int first = 0; first < rows; first += groups * kChannels) {  // uniform, as the shuffles need
    A sum[kChannels] = {}, few[kChannels] = {};                     // a long chain of additions is folded now and then
    const T *of_x[kChannels], *of_g[kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int row = at_most(first + i * groups + group, rows - 1);
      of_x[i] = x(row), of_g[i] = kProduct ? g(row) : of_x[i];
    }
    int added = 0;
    for (int v0 = lane; v0 < whole; v0 += lanes * kAlong) {
      Vector<T> xs[kAlong][kChannels], gs[kAlong][kChannels];
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          const int v = at_most(v0 + j * lanes, whole - 1);
          xs[j][i] = load<kPiece, false>(of_x[i] + v * N);
          if (kProduct) gs[j][i] = load<kPiece, false>(of_g[i] + v * N);
        }
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          const A term = Term<T, kProduct>::of(xs[j][i], gs[j][i]);
          few[i] += v0 + j * lanes < whole ? term : A(0);
        }
      added += kAlong;
      if (added % kFew == 0)
#pragma unroll
        for (int i = 0; i < kChannels; ++i) sum[i] += few[i], few[i] = A(0);
    }
    if (rest > 0 && lane == whole % lanes)
#pragma unroll
      for (int i = 0; i < kChannels; ++i)
        few[i] += Term<T, kProduct>::of(load_some(of_x[i] + whole * N, rest), load_some(of_g[i] + whole * N, rest));
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const A total = sum_lanes(sum[i] + few[i], lanes);
      const int row = first + i * groups + group;
      if (lane == 0 && row < rows) f(row, total);
    }
  }
}
template <int kPiece, bool kProduct, class T, class X, class G, class F>
DLA_DEVICE void planar_sums_of_rows(X x, G g, int rows, int HW, F f) {
  if (HW <= 2 * kWarp * Vector<T>::N)
    planar_sums<kPiece, kProduct, kProduct ? 2 : 4, 1, T>(x, g, rows, HW, f);
  else
    planar_sums<kPiece, kProduct, 1, kProduct ? 2 : 4, T>(x, g, rows, HW, f);
}

// Threads side by side take a vector of channels each; what is left of the block shares out the pixels.
template <int kPiece, bool kProduct, class T, class F>
DLA_DEVICE void interleaved_sums(Plane<const T> x, Plane<const T> g, int cs, int HW, accumulate_t<T>* scratch, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 32, kAlong = kProduct ? 1 : 2;
  const int vectors = (cs + N - 1) / N, columns = power_of_two(vectors, num_threads());
  const int column = thread_index() % columns, part = thread_index() / columns, parts = num_threads() / columns;
  for (int first = 0; first < vectors; first += columns) {
    const int v = first + column;
    A sum[N] = {}, few[N] = {};  // a long chain of additions is folded now and then
    if (v < vectors) {
      const int n = at_most(cs - v * N, N);
      const auto add_pixels = [&](auto read) {
        int added = 0;
        for (int p0 = part; p0 < HW; p0 += parts * kAlong) {
          Vector<T> xs[kAlong], gs[kAlong];
#pragma unroll
          for (int j = 0; j < kAlong; ++j) {
            const int p = at_most(p0 + j * parts, HW - 1);
            xs[j] = read(x.data + p * x.stride + v * N);
            if (kProduct) gs[j] = read(g.data + p * g.stride + v * N);
          }
#pragma unroll
          for (int j = 0; j < kAlong; ++j)
#pragma unroll
            for (int i = 0; i < N; ++i) {
              const A more = kProduct ? fma(xs[j][i], gs[j][i], few[i]) : few[i] + xs[j][i];
              few[i] = p0 + j * parts < HW ? more : few[i];
            }
          added += kAlong;
          if (added % kFew == 0)
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += few[i], few[i] = A(0);
        }
      };
      if (n == N)
        add_pixels([](const T* from) { return load<kPiece, false>(from); });
      else
        add_pixels([n](const T* from) { return load_some(from, n); });
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
  const int HW = not_before(layer.HW);
  with_piece(layer.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      interleaved_sums<kPiece, kProduct>(x, g, cs, HW, scratch, f);
    else
      planar_sums_of_rows<kPiece, kProduct, T>([&](int c) { return x.data + c * x.stride; },
                                               [&](int c) { return g.data + c * g.stride; }, cs, HW, f);
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

// Rows are what lies side by side: pixels of a channel, or channels of a pixel. factor(row, i) and summand(row, i)
// are those of element i of a row. A thread has kBatch rows in flight.
template <int kPiece, int kBatch, class T, class Factor, class Summand>
DLA_DEVICE void scale_rows(int rows, int length, Plane<const T> x, Plane<T> out, Factor factor, Summand summand) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N;
  const int vectors = (length + N - 1) / N, lanes = power_of_two(vectors, num_threads());
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int v = lane; v < vectors; v += lanes) {
    const int n = at_most(length - v * N, N);
    const auto scaled = [&](const Vector<T>& x, int row) {
      return mapped(x, [&](A value, int i) {
        const int at = at_most(v * N + i, length - 1);
        return fma(value, factor(row, at), summand(row, at));
      });
    };
    if (n == N) {
      for (int row0 = group; row0 < rows; row0 += groups * kBatch) {
        Vector<T> xs[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j)
          xs[j] = load<kPiece, true>(x.data + at_most(row0 + j * groups, rows - 1) * x.stride + v * N);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int row = row0 + j * groups;
          if (row < rows) store<kPiece>(out.data + row * out.stride + v * N, scaled(xs[j], row));
        }
      }
    } else {
      for (int row = group; row < rows; row += groups)
        store_some(out.data + row * out.stride + v * N, scaled(load_some(x.data + row * x.stride + v * N, n), row), n);
    }
  }
}

// d and e [cs]. Without a summand -0 is added, which changes nothing, not even a -0.
template <bool kSummand, class T>
DLA_DEVICE void scale(const Layer& layer, Plane<const T> x, const accumulate_t<T>* d, const accumulate_t<T>* e,
                      Plane<T> out, int cs) {
  using A = accumulate_t<T>;
  const auto summand = [e](int c) { return kSummand ? e[c] : A(-0.0); };
  const int HW = not_before(layer.HW);
  with_piece(layer.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (layer.interleaved)
      scale_rows<kPiece, 2>(HW, cs, x, out, [&](int, int c) { return d[c]; }, [&](int, int c) { return summand(c); });
    else
      scale_rows<kPiece, 4>(cs, HW, x, out, [&](int c, int) { return d[c]; }, [&](int c, int) { return summand(c); });
  });
}
// Without a summand.
template <class T>
DLA_DEVICE void scale(const Layer& layer, Plane<const T> x, const accumulate_t<T>* d, Plane<T> out, int cs) {
  scale<false, T>(layer, x, d, nullptr, out, cs);
}

}  // namespace cuda
}  // namespace dla
