// Rung 4: a step of the scan waits for nothing that is far. A block stages the weights of a step in shared memory, once
// for all the samples that it takes; what y alone decides is known for all layers beforehand; and all threads share the
// products (weights.h).
#include "planes.h"
#include "weights.h"

namespace rung4 {
using namespace ladder;

struct Shared {
  const Args& args;
  Shelf shelf;
  int gates = Cell::NG * args.C;
  int ld1 = args.C | 1, ld2 = args.R | 1;  // odd: lanes that read a column meet a bank each
  float* w1h = shelf.take(args.R * ld1);   // [R, ld1], of W1 the columns of h
  float* w2 = shelf.take(gates * ld2);     // [3 C, ld2]
  float* b2 = shelf.take(gates);           // [3 C]
  float* y = shelf.take(args.T * args.C);  // [T, C]
  float* p = shelf.take(args.T * args.R);  // [T, R], W1y y
  float* h = shelf.take(args.C);           // [C]
  float* c = shelf.take(args.C);           // [C]
  float* u = shelf.take(args.T * args.R);  // [T, R], one layer's in the scan, all in the refresh
  float* a = shelf.take(gates);            // [3 C]
  float* d = shelf.take(args.C);           // [C]
};

template <int N>
DLA_KERNEL(layer_update_kernel, float, Args) {
  const Shared shared{args, {shared_memory()}};
  const int T = args.T, C = args.C, R = args.R, HW = args.HW, gates = shared.gates;
  const int thread = thread_index(), threads = num_threads(), warp = thread / kWarp, warps = threads / kWarp;

  // Stage
  stage(R, C, args.w1, 2 * C, shared.w1h, shared.ld1);
  stage(gates, R, args.w2, R, shared.w2, shared.ld2);
  stage(1, gates, args.b2, gates, shared.b2, gates);

  // f(c, state) for every channel, after a step from u [R].
  const auto step = [&](const float* u, auto f) {
    products(gates, R, shared.w2, shared.ld2, u, [&](int n, float sum) { shared.a[n] = sum + shared.b2[n]; });
    block_barrier();
    for (int c = thread; c < C; c += threads) {
      const float a[] = {shared.a[c], shared.a[C + c], shared.a[2 * C + c]};
      f(c, Cell::step(a, State<float>{0, shared.c[c]}));
    }
    block_barrier();
  };

  for (int b = block_index(); b < args.B; b += num_blocks()) {
    // Pool
    for (int t = 0; t < T; ++t)
      for (int c = warp; c < C; c += warps) {
        const float sum = sum_of_plane<N>(args.x + args.plane(t, b, c), HW);
        if (thread % kWarp == 0) shared.y[t * C + c] = args.y[args.at(t, b, c)] = sum / HW;
      }
    for (int c = thread; c < C; c += threads) shared.h[c] = Cell::start_h<float>(), shared.c[c] = 0;
    block_barrier();

    // Hoist. Who writes an element of p is the one who reads it: in all products of R rows a row has the same thread.
    for (int t = 0; t < T; ++t)
      products(R, C, args.w1 + C, 2 * C, shared.y + t * C, [&](int r, float sum) { shared.p[t * R + r] = sum; });

    // Scan
    for (int t = 0; t < T; ++t) {
      products(R, C, shared.w1h, shared.ld1, shared.h,
               [&](int r, float sum) { shared.u[r] = dla::relu(sum + shared.p[t * R + r]); });
      block_barrier();
      step(shared.u, [&](int c, State<float> state) {
        shared.h[c] = state.h;
        shared.c[c] = args.c[args.at(t, b, c)] = state.c;
      });
    }

    // Refresh and rescale
    products(R, C, shared.w1h, shared.ld1, shared.h, [&](int r, float sum) {
      for (int t = 0; t < T; ++t) shared.u[t * R + r] = dla::relu(sum + shared.p[t * R + r]);
    });
    block_barrier();
    for (int t = 0; t < T; ++t) {
      step(shared.u + t * R, [&](int c, State<float> state) { shared.d[c] = Cell::output(state); });
      for (int c = warp; c < C; c += warps)
        scale_plane<N>(args.x + args.plane(t, b, c), shared.d[c], args.out + args.plane(t, b, c), HW);
    }
  }
}

const char* layer_update(const Args& args) {
  return launch(args.HW % 4 == 0 ? layer_update_kernel<4> : layer_update_kernel<1>, args,
                at_most(args.B, 2 * processors()), 1, Shared{args, {}}.shelf.bytes);
}

}  // namespace rung4
