// Feature maps as one block sees them: some channels of one sample of one layer. A *planar* map has its
// pixels side by side, an *interleaved* one its channels. Both are read 16 bytes at a time where addresses
// allow, else as single elements of the same vectors, so that sums are taken in one order whatever the alignment.
#pragma once

#include "../half.h"
#include "device.h"
#include "layers.h"

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
    uint32_t words[4];
    T v[N];
  };
  DLA_DEVICE accumulate_t<T> operator[](int i) const {
    if constexpr (sizeof(T) == 2)
      return widen_of<T>(words[i / 2], i % 2);
    else
      return widen(v[i]);
  }
};
// kFinalRead: nobody will read them again.
template <int kPiece, bool kFinalRead, class T>
DLA_DEVICE Vector<T> load(const T* p) {
  Vector<T> x;
  if constexpr (kPiece == 16) {
    const Words4* from = as_words4(p);
    x.words4 = kFinalRead ? load_last(from) : *from;
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
    store_streaming(as_words4(p), x.words4);
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

// A plane of HW pixels: whole vectors from its element `front` on; what stands before them and behind is its edge.
template <class T>
struct Span {
  static constexpr int N = Vector<T>::N;
  int front, HW;

  DLA_DEVICE int whole() const { return (HW - front) / N; }
  DLA_DEVICE int edge() const { return HW - whole() * N; }  // less than two vectors
  // Vector v and element k of the edge, as elements of the plane. Where a plane of a slab has no vector to itself, the
  // one that it begins in is there to be read.
  DLA_DEVICE int vector(int v) const { return front + at_most(v, whole() - 1) * N; }
  DLA_DEVICE int of_edge(int k) const {
    const int within = at_most(k, edge() - 1);
    return within < front ? within : within + whole() * N;
  }
};

// Neighbouring threads, `lanes` of them, share a plane: by its size alone, since that decides the order of sums, as
// does where its vectors begin. A group takes kPlanes of them at a time, and of each kAlong vectors a thread: that many
// are read before the first is used. Of an edge a thread takes kEdge elements at most.
template <class T>
struct PlaneTeam {
  static constexpr int N = Vector<T>::N, kFew = kWarp / 4, kEdge = (2 * N + kFew - 1) / kFew;
  bool has_edges;
  int lanes, lane, group, groups;

  DLA_DEVICE explicit PlaneTeam(int HW) : has_edges(HW % N != 0) {
    const int vectors = HW / N, few = has_edges ? floor_log2(kFew) : at_most(ceil_log2(vectors), floor_log2(kFew));
    const int log_lanes = vectors >= 4 * kWarp ? floor_log2(kWarp) : few;
    lanes = 1 << log_lanes, lane = thread_index() & (lanes - 1);
    group = thread_index() >> log_lanes, groups = num_threads() >> log_lanes;
  }
  // Calls f with kPlanes and kAlong, whose product is given: several planes where there are enough for all.
  template <int kInFlight, class F>
  DLA_DEVICE void with_shape(int planes, F f) const {
    if (planes > 2 * groups)
      f(std::integral_constant<int, kInFlight>{}, std::integral_constant<int, 1>{});
    else
      f(std::integral_constant<int, 1>{}, std::integral_constant<int, kInFlight>{});
  }
};

template <class T>
struct PlaneToSum {
  const T *x, *g;
  int front;
};
// f(i, sum) for each plane(i).
template <int kPiece, bool kProduct, int kPlanes, int kAlong, class T, class Of, class F>
DLA_DEVICE void planar_sums(const PlaneTeam<T>& team, int planes, int HW, Of plane, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 8;
  const int lanes = team.lanes, stride = team.groups * kPlanes;
  for (int first = 0; first < planes; first += stride) {  // uniform, as the shuffles need
    A sum[kPlanes] = {}, few[kPlanes] = {};               // a long chain of additions is folded now and then
    PlaneToSum<T> of[kPlanes];
    Span<T> span[kPlanes];
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) {
      of[i] = plane(at_most(first + i * team.groups + team.group, planes - 1));
      span[i] = {of[i].front, HW};
    }
    if (team.has_edges) {
      A term[PlaneTeam<T>::kEdge][kPlanes];
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) {
          const int at = span[i].of_edge(team.lane + j * lanes);
          term[j][i] = kProduct ? fma(widen(of[i].x[at]), widen(of[i].g[at]), A(0)) : widen(of[i].x[at]);
        }
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) few[i] += team.lane + j * lanes < span[i].edge() ? term[j][i] : A(0);
    }
    int added = 0;
    for (int v0 = team.lane; v0 < HW / N; v0 += lanes * kAlong) {
      Vector<T> xs[kAlong][kPlanes], gs[kAlong][kPlanes];
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) {
          const int at = span[i].vector(v0 + j * lanes);
          xs[j][i] = load<kPiece, false>(of[i].x + at);
          if (kProduct) gs[j][i] = load<kPiece, false>(of[i].g + at);
        }
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) {
          const A term = Term<T, kProduct>::of(xs[j][i], gs[j][i]);
          few[i] += v0 + j * lanes < span[i].whole() ? term : A(0);
        }
      added += kAlong;
      if (added % kFew == 0)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) sum[i] += few[i], few[i] = A(0);
    }
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) {
      const A total = sum_lanes(sum[i] + few[i], lanes);
      const int at = first + i * team.groups + team.group;
      if (team.lane == 0 && at < planes) f(at, total);
    }
  }
}

// Threads side by side take a vector of channels each; what is left of the block shares out the pixels. Barriers:
// scratch is free when it is called and on return, and what f wrote is known.
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

// ---- out = x * d + e, with d and e for each channel ----

// f(x[i], i)
template <class T, class F>
DLA_DEVICE Vector<T> mapped(const Vector<T>& x, F f) {
  Vector<T> out;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < Vector<T>::N; i += 2) out.words[i / 2] = narrow_pair<T>(f(x[i], i), f(x[i + 1], i + 1));
  } else {
#pragma unroll
    for (int i = 0; i < Vector<T>::N; ++i) out.v[i] = narrow<T>(f(x[i], i));
  }
  return out;
}

template <class T>
struct PlaneToScale {
  const T* x;
  T* out;
  int front;
  accumulate_t<T> d, e;
};
// Each plane(i).
template <int kPiece, int kPlanes, int kAlong, class T, class Of>
DLA_DEVICE void scale_planes(const PlaneTeam<T>& team, int planes, int HW, Of plane) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N;
  const int lanes = team.lanes;
  for (int first = team.group; first < planes; first += team.groups * kPlanes) {
    PlaneToScale<T> of[kPlanes];
    Span<T> span[kPlanes];
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) {
      const int at = first + i * team.groups;
      of[i] = plane(at_most(at, planes - 1));
      span[i] = {of[i].front, HW};
    }
    for (int v0 = team.lane; v0 < HW / N; v0 += lanes * kAlong) {
      Vector<T> xs[kAlong][kPlanes];
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) xs[j][i] = load<kPiece, true>(of[i].x + span[i].vector(v0 + j * lanes));
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i)
          if (first + i * team.groups < planes && v0 + j * lanes < span[i].whole())
            store<kPiece>(of[i].out + span[i].vector(v0 + j * lanes),
                          mapped(xs[j][i], [&](A value, int) { return fma(value, of[i].d, of[i].e); }));
    }
    if (team.has_edges) {
      A value[PlaneTeam<T>::kEdge][kPlanes];
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) value[j][i] = widen(of[i].x[span[i].of_edge(team.lane + j * lanes)]);
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) {
          const int k = team.lane + j * lanes;
          if (first + i * team.groups < planes && k < span[i].edge())
            of[i].out[span[i].of_edge(k)] = narrow<T>(fma(value[j][i], of[i].d, of[i].e));
        }
    }
  }
}

// A row is a pixel, its channels side by side. d and e are functions of a channel. A thread has kBatch rows in flight.
template <int kPiece, class T, class D, class E>
DLA_DEVICE void scale_pixels(int HW, int cs, Plane<const T> x, Plane<T> out, D d, E e) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kBatch = 2;
  const int vectors = (cs + N - 1) / N, lanes = power_of_two(vectors, num_threads());
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int v = lane; v < vectors; v += lanes) {
    const int n = at_most(cs - v * N, N);
    const auto scaled = [&](const Vector<T>& x) {
      return mapped(x, [&](A value, int i) {
        const int c = at_most(v * N + i, cs - 1);
        return fma(value, d(c), e(c));
      });
    };
    if (n == N) {
      for (int row0 = group; row0 < HW; row0 += groups * kBatch) {
        Vector<T> xs[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j)
          xs[j] = load<kPiece, true>(x.data + at_most(row0 + j * groups, HW - 1) * x.stride + v * N);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int row = row0 + j * groups;
          if (row < HW) store<kPiece>(out.data + row * out.stride + v * N, scaled(xs[j]));
        }
      }
    } else {
      for (int row = group; row < HW; row += groups)
        store_some(out.data + row * out.stride + v * N, scaled(load_some(x.data + row * x.stride + v * N, n)), n);
    }
  }
}

}  // namespace cuda
}  // namespace dla
