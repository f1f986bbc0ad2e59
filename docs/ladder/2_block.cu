// Rung 2: a block takes a sample. Its threads share out the channels, and the rows of the bottleneck; what they tell
// each other goes through shared memory, with a barrier before anyone reads what others wrote.
#include "common.h"

namespace rung2 {
using namespace ladder;

struct Shared {
  const Args& args;
  Shelf shelf;
  float* y = shelf.take(args.T * args.C);  // [T, C]
  float* h = shelf.take(args.C);           // [C]
  float* c = shelf.take(args.C);           // [C]
  float* u = shelf.take(args.R);           // [R]
};

DLA_KERNEL(layer_update_kernel, float, Args) {
  const Shared shared{args, {shared_memory()}};
  const int T = args.T, C = args.C, R = args.R, HW = args.HW;
  const int b = block_index(), thread = thread_index(), threads = num_threads();

  // Pool
  for (int t = 0; t < T; ++t)
    for (int c = thread; c < C; c += threads) {
      const float* const x = args.x + args.plane(t, b, c);  // [HW]
      float sum = 0;
      for (int i = 0; i < HW; ++i) sum += x[i];
      shared.y[t * C + c] = args.y[args.at(t, b, c)] = sum / HW;
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
    for (int c = thread; c < C; c += threads) {
      const float d = Cell::output(cell(args, c, shared.u, shared.c[c]));
      const float* const x = args.x + args.plane(t, b, c);  // [HW]
      float* const out = args.out + args.plane(t, b, c);    // [HW]
      for (int i = 0; i < HW; ++i) out[i] = x[i] * d;
    }
    block_barrier();
  }
}

const char* layer_update(const Args& args) {
  return launch(layer_update_kernel, args, args.B, 1, Shared{args, {}}.shelf.bytes);
}

}  // namespace rung2
