// Rung 1: a thread takes a sample through everything, as a loop on a CPU would. Samples are independent, so no thread
// ever waits for another; every array lies in global memory.
#include "common.h"

namespace rung1 {
using namespace ladder;

DLA_KERNEL(layer_update_kernel, float, Args) {
  const int T = args.T, C = args.C, R = args.R, HW = args.HW;
  const int b = block_index() * num_threads() + thread_index();
  if (b >= args.B) return;
  float* const h = args.h + b * C;  // [C]
  float* const u = args.u + b * R;  // [R]

  // Pool: y_t = mean over HW of x_t.
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < C; ++c) {
      const float* const x = args.x + args.plane(t, b, c);  // [HW]
      float sum = 0;
      for (int i = 0; i < HW; ++i) sum += x[i];
      args.y[args.at(t, b, c)] = sum / HW;
    }

  // Scan: c_t = Dyn(y_t, c_{t-1}), from a memory of zeros.
  for (int c = 0; c < C; ++c) h[c] = Cell::start_h<float>();
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) u[r] = bottleneck(args, r, h, args.y + args.at(t, b, 0));
    for (int c = 0; c < C; ++c) {
      const State<float> state = cell(args, c, u, t == 0 ? 0 : args.c[args.at(t - 1, b, c)]);
      h[c] = state.h;
      args.c[args.at(t, b, c)] = state.c;
    }
  }

  // Refresh: d_t = Dyn(y_t, c_T). Rescale: x_t * d_t.
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) u[r] = bottleneck(args, r, h, args.y + args.at(t, b, 0));
    for (int c = 0; c < C; ++c) {
      const float d = Cell::output(cell(args, c, u, args.c[args.at(T - 1, b, c)]));
      const float* const x = args.x + args.plane(t, b, c);  // [HW]
      float* const out = args.out + args.plane(t, b, c);    // [HW]
      for (int i = 0; i < HW; ++i) out[i] = x[i] * d;
    }
  }
}

const char* layer_update(const Args& args) {
  return launch(layer_update_kernel, args, (args.B + kThreads - 1) / kThreads, 1, 0);
}

}  // namespace rung1
