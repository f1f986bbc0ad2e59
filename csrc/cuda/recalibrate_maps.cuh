// Several maps of one size and layout, read and written side by side, as one block sees them: some channels of one
// sample. Who takes which vectors, and in what order sums are taken, is as for one map: planes.cuh, stacks.cuh.
#pragma once

#include "planes.cuh"

namespace dla {
namespace cuda {

// One of each of K maps.
template <class V, int K>
struct OfEach {
  V of[K];
};

template <class T, int kReads, int kWrites>
struct SideBySide {
  using A = accumulate_t<T>;
  static constexpr int N = Vector<T>::N;
  int HW, cs, piece;
  bool interleaved, slab;
  Plane<const T> from[kReads];
  Plane<T> to[kWrites];  // but for the first they may be absent

  // like: a layer of these maps, which allows all of them.
  DLA_DEVICE SideBySide(const Layer& like, int cs, const Plane<const T> (&reads)[kReads],
                        const Plane<T> (&writes)[kWrites])
      : HW(not_before(like.HW)),
        cs(not_before(cs)),
        piece(like.slab == 16 ? 16 : like.piece),
        interleaved(like.interleaved),
        slab(like.slab > 0) {
#pragma unroll
    for (int r = 0; r < kReads; ++r) from[r] = reads[r];
#pragma unroll
    for (int w = 0; w < kWrites; ++w) to[w] = writes[w];
  }

  // How many elements of channel c of planar maps come before its first whole vector.
  DLA_DEVICE int front(int c) const { return slab ? int(-(unsigned(c) * HW) & (N - 1)) : 0; }

  // From element `first` of a row on, a channel's or, interleaved, a pixel's: a vector; its first n; a number.
  template <int kPiece, bool kFinalRead>
  DLA_DEVICE OfEach<Vector<T>, kReads> load(int row, int first) const {
    OfEach<Vector<T>, kReads> x;
#pragma unroll
    for (int r = 0; r < kReads; ++r)
      x.of[r] = cuda::load<kPiece, kFinalRead>(from[r].data + row * from[r].stride + first);
    return x;
  }
  DLA_DEVICE OfEach<Vector<T>, kReads> load_some(int row, int first, int n) const {
    OfEach<Vector<T>, kReads> x;
#pragma unroll
    for (int r = 0; r < kReads; ++r) x.of[r] = cuda::load_some(from[r].data + row * from[r].stride + first, n);
    return x;
  }
  DLA_DEVICE OfEach<A, kReads> load_one(int row, int at) const {
    OfEach<A, kReads> x;
#pragma unroll
    for (int r = 0; r < kReads; ++r) x.of[r] = widen(from[r].data[row * from[r].stride + at]);
    return x;
  }
  // f(where map w has that element, what is to be written there), but for maps that are absent.
  template <class V, class F>
  DLA_DEVICE void store(int row, int first, const OfEach<V, kWrites>& x, F f) const {
#pragma unroll
    for (int w = 0; w < kWrites; ++w)
      if (w == 0 || to[w].data) f(to[w].data + row * to[w].stride + first, x.of[w]);
  }

  // f(the i-th number of each that is read, i), one of each to be written, for whole vectors.
  template <class F>
  static DLA_DEVICE OfEach<Vector<T>, kWrites> mapped(const OfEach<Vector<T>, kReads>& x, F f) {
    OfEach<Vector<T>, kWrites> out;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < N; i += 2) {
        const OfEach<A, kWrites> one = f(at(x, i), i), next = f(at(x, i + 1), i + 1);
#pragma unroll
        for (int w = 0; w < kWrites; ++w) out.of[w].words[i / 2] = narrow_pair<T>(one.of[w], next.of[w]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const OfEach<A, kWrites> one = f(at(x, i), i);
#pragma unroll
        for (int w = 0; w < kWrites; ++w) out.of[w].v[i] = narrow<T>(one.of[w]);
      }
    }
    return out;
  }
  static DLA_DEVICE OfEach<A, kReads> at(const OfEach<Vector<T>, kReads>& x, int i) {
    OfEach<A, kReads> one;
#pragma unroll
    for (int r = 0; r < kReads; ++r) one.of[r] = x.of[r][i];
    return one;
  }
};

// ---- written: what f(known, numbers read) makes, known being know(c) of the channel ----

// As scale_planes.
template <int kPiece, int kPlanes, int kAlong, class T, int kReads, int kWrites, class Know, class F>
DLA_DEVICE void write_planes(const PlaneTeam<T>& team, const SideBySide<T, kReads, kWrites>& maps, Know know, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N;
  const int lanes = team.lanes, planes = maps.cs;
  for (int first = team.group; first < planes; first += team.groups * kPlanes) {
    int channel[kPlanes];
    Span<T> span[kPlanes];
    decltype(know(0)) known[kPlanes];
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) {  // those first that were read last
      channel[i] = planes - 1 - at_most(first + i * team.groups, planes - 1);
      span[i] = {maps.front(channel[i]), maps.HW};
      known[i] = know(channel[i]);
    }
    for (int v0 = team.lane; v0 < maps.HW / N; v0 += lanes * kAlong) {
      OfEach<Vector<T>, kReads> xs[kAlong][kPlanes];
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i)
          xs[j][i] = maps.template load<kPiece, true>(channel[i], span[i].vector(v0 + j * lanes));
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i)
          if (first + i * team.groups < planes && v0 + j * lanes < span[i].whole())
            maps.store(channel[i], span[i].vector(v0 + j * lanes),
                       maps.mapped(xs[j][i], [&](const OfEach<A, kReads>& x, int) { return f(known[i], x); }),
                       [](T* to, const Vector<T>& x) { store<kPiece>(to, x); });
    }
    if (team.has_edges) {
      OfEach<A, kReads> x[PlaneTeam<T>::kEdge][kPlanes];
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) x[j][i] = maps.load_one(channel[i], span[i].of_edge(team.lane + j * lanes));
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) {
          const int k = team.lane + j * lanes;
          if (first + i * team.groups < planes && k < span[i].edge())
            maps.store(channel[i], span[i].of_edge(k), f(known[i], x[j][i]), [](T* to, A x) { *to = narrow<T>(x); });
        }
    }
  }
}

// As scale_pixels.
template <int kPiece, class T, int kReads, int kWrites, class Know, class F>
DLA_DEVICE void write_pixels(const SideBySide<T, kReads, kWrites>& maps, Know know, F f) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kBatch = 2;
  const int cs = maps.cs, HW = maps.HW, vectors = (cs + N - 1) / N, lanes = power_of_two(vectors, num_threads());
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int v = lane; v < vectors; v += lanes) {
    const int first = v * N, n = at_most(cs - first, N);
    const auto made = [&](const OfEach<Vector<T>, kReads>& x) {
      return maps.mapped(x,
                         [&](const OfEach<A, kReads>& one, int i) { return f(know(at_most(first + i, cs - 1)), one); });
    };
    if (n == N) {
      for (int row0 = group; row0 < HW; row0 += groups * kBatch) {
        OfEach<Vector<T>, kReads> xs[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j)
          xs[j] = maps.template load<kPiece, true>(at_most(row0 + j * groups, HW - 1), first);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int row = row0 + j * groups;
          if (row < HW) maps.store(row, first, made(xs[j]), [](T* to, const Vector<T>& x) { store<kPiece>(to, x); });
        }
      }
    } else {
      for (int row = group; row < HW; row += groups)
        maps.store(row, first, made(maps.load_some(row, first, n)),
                   [n](T* to, const Vector<T>& x) { store_some(to, x, n); });
    }
  }
}

template <class T, int kReads, int kWrites, class Know, class F>
DLA_DEVICE void write_maps(const SideBySide<T, kReads, kWrites>& maps, Know know, F f) {
  with_piece(maps.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (maps.interleaved) return write_pixels<kPiece>(maps, know, f);
    const PlaneTeam<T> team(maps.HW);
    constexpr int kInFlight = kReads > 1 ? 2 : 3;  // what the registers hold
    team.template with_shape<kInFlight>(maps.cs, [&](auto planes, auto along) {
      write_planes<kPiece, decltype(planes)::value, decltype(along)::value>(team, maps, know, f);
    });
  });
}

// ---- summed: done(c, sum over pixels), where more(sum, numbers read) is the sum with one pixel more ----

// As planar_sums.
template <int kPiece, int kPlanes, int kAlong, class T, int kReads, int kWrites, class More, class Done>
DLA_DEVICE void sum_planes(const PlaneTeam<T>& team, const SideBySide<T, kReads, kWrites>& maps, More more, Done done) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 8;
  const int lanes = team.lanes, planes = maps.cs;
  for (int first = 0; first < planes; first += team.groups * kPlanes) {  // uniform, as the shuffles need
    A sum[kPlanes] = {}, few[kPlanes] = {};  // a long chain of additions is folded now and then
    int channel[kPlanes];
    Span<T> span[kPlanes];
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) {
      channel[i] = at_most(first + i * team.groups + team.group, planes - 1);
      span[i] = {maps.front(channel[i]), maps.HW};
    }
    if (team.has_edges) {
      A term[PlaneTeam<T>::kEdge][kPlanes];
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i)
          term[j][i] = more(A(0), maps.load_one(channel[i], span[i].of_edge(team.lane + j * lanes)));
#pragma unroll
      for (int j = 0; j < PlaneTeam<T>::kEdge; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) few[i] += team.lane + j * lanes < span[i].edge() ? term[j][i] : A(0);
    }
    int added = 0;
    for (int v0 = team.lane; v0 < maps.HW / N; v0 += lanes * kAlong) {
      OfEach<Vector<T>, kReads> xs[kAlong][kPlanes];
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i)
          xs[j][i] = maps.template load<kPiece, false>(channel[i], span[i].vector(v0 + j * lanes));
#pragma unroll
      for (int j = 0; j < kAlong; ++j)
#pragma unroll
        for (int i = 0; i < kPlanes; ++i) {
          A term = A(0);
#pragma unroll
          for (int k = 0; k < N; ++k) term = more(term, maps.at(xs[j][i], k));
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
      if (team.lane == 0 && at < planes) done(at, total);
    }
  }
}

// As interleaved_sums. Barriers: scratch is free when it is called and on return, and what done wrote is known.
template <int kPiece, class T, int kReads, int kWrites, class More, class Done>
DLA_DEVICE void sum_pixels(const SideBySide<T, kReads, kWrites>& maps, accumulate_t<T>* scratch, More more, Done done) {
  using A = accumulate_t<T>;
  constexpr int N = Vector<T>::N, kFew = 32;
  const int cs = maps.cs, HW = maps.HW, vectors = (cs + N - 1) / N, columns = power_of_two(vectors, num_threads());
  const int column = thread_index() % columns, part = thread_index() / columns, parts = num_threads() / columns;
  for (int first = 0; first < vectors; first += columns) {
    const int v = first + column;
    A sum[N] = {}, few[N] = {};  // a long chain of additions is folded now and then
    if (v < vectors) {
      const int n = at_most(cs - v * N, N);
      const auto add_pixels = [&](auto read) {
        int added = 0;
        for (int p = part; p < HW; p += parts) {
          const OfEach<Vector<T>, kReads> x = read(p);
#pragma unroll
          for (int i = 0; i < N; ++i) few[i] = more(few[i], maps.at(x, i));
          if (++added % kFew == 0)
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += few[i], few[i] = A(0);
        }
      };
      if (n == N)
        add_pixels([&](int p) { return maps.template load<kPiece, false>(p, v * N); });
      else
        add_pixels([&](int p) { return maps.load_some(p, v * N, n); });
    }
#pragma unroll
    for (int i = 0; i < N; ++i) scratch[i * num_threads() + thread_index()] = sum[i] + few[i];
    block_barrier();
    const int in_turn = at_most(vectors - first, columns) * N;
    for (int j = thread_index(); j < in_turn; j += num_threads()) {
      const int c = first * N + j;
      if (c < cs) {
        A total = A(0);
        for (int p = 0; p < parts; ++p) total += scratch[j % N * num_threads() + p * columns + j / N];
        done(c, total);
      }
    }
    block_barrier();
  }
}

// scratch: a vector for each thread. Barriers: it is free when it is called and on return; what done wrote is not
// known, as planar maps need no barrier.
template <class T, int kReads, int kWrites, class More, class Done>
DLA_DEVICE void sum_maps(const SideBySide<T, kReads, kWrites>& maps, accumulate_t<T>* scratch, More more, Done done) {
  with_piece(maps.piece, [&](auto piece) {
    constexpr int kPiece = decltype(piece)::value;
    if (maps.interleaved) return sum_pixels<kPiece>(maps, scratch, more, done);
    const PlaneTeam<T> team(maps.HW);
    team.template with_shape<2>(maps.cs, [&](auto planes, auto along) {
      sum_planes<kPiece, decltype(planes)::value, decltype(along)::value>(team, maps, more, done);
    });
  });
}

}  // namespace cuda
}  // namespace dla
