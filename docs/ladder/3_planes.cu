// Rung 3: a warp takes a plane. Its lanes read neighbours in memory, 16 bytes each where planes begin on 16 bytes, and
// add up what they have found by shuffles (planes.h). The cell stays as it was.
#include "planes.h"

namespace rung3 {
using namespace ladder;

struct Shared {
  const Args& args;
  Shelf shelf;
  float* y = shelf.take(args.T * args.C);  // [T, C]
  float* h = shelf.take(args.C);           // [C]
  float* c = shelf.take(args.C);           // [C]
  float* u = shelf.take(args.R);           // [R]
  float* d = shelf.take(args.C);           // [C]
};

template <int N>
DLA_KERNEL(layer_update_kernel, float, Args) {
  const Shared shared{args, {shared_memory()}};
  const int T = args.T, C = args.C, R = args.R, HW = args.HW;
  const int b = block_index(), thread = thread_index(), threads = num_threads();
  const int warp = thread / kWarp, warps = threads / kWarp;

  // Pool
  for (int t = 0; t < T; ++t)
    for (int c = warp; c < C; c += warps) {
      const float sum = sum_of_plane<N>(args.x + args.plane(t, b, c), HW);
      if (thread % kWarp == 0) shared.y[t * C + c] = args.y[args.at(t, b, c)] = sum / HW;
    }

  // Scan
  for (int c = thread; c < C; c += threads) shared.h[c] = Cell::start_h<float>(), shared.c[c] = 0;
  block_barrier();
  for (int t = 0; t < T; ++t) {
    for (int r = thread; r < R; r += threads) shared.u[r] = bottleneck(args, r, shared.h, shared.y + t * C);
    block_barrier();
    for (int c = thread; c < C; c += threads) {
      const State<float> state = cell(args, c, shared.u, shared.c[c]);
      shared.h[c] = state.h;
      shared.c[c] = args.c[args.at(t, b, c)] = state.c;
    }
    block_barrier();
  }

  // Refresh and rescale
  for (int t = 0; t < T; ++t) {
    for (int r = thread; r < R; r += threads) shared.u[r] = bottleneck(args, r, shared.h, shared.y + t * C);
    block_barrier();
    for (int c = thread; c < C; c += threads) shared.d[c] = Cell::output(cell(args, c, shared.u, shared.c[c]));
    block_barrier();
    for (int c = warp; c < C; c += warps)
      scale_plane<N>(args.x + args.plane(t, b, c), shared.d[c], args.out + args.plane(t, b, c), HW);
  }
}

const char* layer_update(const Args& args) {
  return launch(args.HW % 4 == 0 ? layer_update_kernel<4> : layer_update_kernel<1>, args, args.B, 1,
                Shared{args, {}}.shelf.bytes);
}

}  // namespace rung3
