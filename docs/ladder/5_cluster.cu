// Rung 5: a cluster of blocks takes a sample. A block owns some of the channels, from their maps to their states, with
// columns of W1 and rows of W2. All that has to meet is the bottleneck: of it each block has partial sums, R numbers a
// layer, which the others read where they lie, in its shared memory.
#include "planes.h"
#include "weights.h"

namespace rung5 {
using namespace ladder;

constexpr int kBlocks = 8;  // of a cluster: what every device grants that has clusters

struct Shared {  // its arrays begin at the same places in all blocks, so `most` decides, not what a block owns
  const Args& args;
  Shelf shelf;
  int most = (args.C + kBlocks - 1) / kBlocks;  // channels of a block
  int gates = Cell::NG * most;
  int ld1 = most | 1, ld2 = args.R | 1;    // odd: lanes that read a column meet a bank each
  float* w1h = shelf.take(args.R * ld1);   // [R, ld1], of W1 the columns of the block's h
  float* w2 = shelf.take(gates * ld2);     // [3 cs, ld2]
  float* b2 = shelf.take(gates);           // [3 cs]
  float* y = shelf.take(args.T * most);    // [T, cs]
  float* p = shelf.take(args.T * args.R);  // [T, R], the block's part of W1y y
  float* s = shelf.take(args.T * args.R);  // [T, R], its part of W1h h + p
  float* h = shelf.take(most);             // [cs]
  float* c = shelf.take(most);             // [cs]
  float* u = shelf.take(args.T * args.R);  // [T, R], one layer's in the scan, all in the refresh
  float* a = shelf.take(gates);            // [3 cs]
  float* d = shelf.take(most);             // [cs]
};

template <int N>
DLA_KERNEL(layer_update_kernel, float, Args) {
  const Shared shared{args, {shared_memory()}};
  const int T = args.T, C = args.C, R = args.R, HW = args.HW;
  const int thread = thread_index(), threads = num_threads(), warp = thread / kWarp, warps = threads / kWarp;
  const int c0 = at_most(cluster_rank() * shared.most, C);  // the block's first channel
  const int cs = at_most(shared.most, C - c0);              // and how many it has; perhaps none
  const int gates = Cell::NG * cs;

  // Stage
  stage(R, cs, args.w1 + c0, 2 * C, shared.w1h, shared.ld1);
  for (int g = 0; g < Cell::NG; ++g) {
    stage(cs, R, args.w2 + (g * C + c0) * R, R, shared.w2 + g * cs * shared.ld2, shared.ld2);
    stage(1, cs, args.b2 + g * C + c0, cs, shared.b2 + g * cs, cs);
  }

  // u[i] = relu(part[i]), the parts of all blocks added up in their order, for i < n.
  const auto exchange = [&](float* part, float* u, int n) {
    cluster_barrier();
    for (int i = thread; i < n; i += threads) {
      float sum = 0;
      for (int rank = 0; rank < kBlocks; ++rank) sum += peer(part, rank)[i];
      u[i] = dla::relu(sum);
    }
    block_barrier();
  };
  // f(c, state) for every channel of the block, after a step from u [R].
  const auto step = [&](const float* u, auto f) {
    products(gates, R, shared.w2, shared.ld2, u, [&](int n, float sum) { shared.a[n] = sum + shared.b2[n]; });
    block_barrier();
    for (int c = thread; c < cs; c += threads) {
      const float a[] = {shared.a[c], shared.a[cs + c], shared.a[2 * cs + c]};
      f(c, Cell::step(a, State<float>{0, shared.c[c]}));
    }
    block_barrier();
  };

  for (int b = block_index() / kBlocks; b < args.B; b += num_blocks() / kBlocks) {
    // Pool
    for (int t = 0; t < T; ++t)
      for (int c = warp; c < cs; c += warps) {
        const float sum = sum_of_plane<N>(args.x + args.plane(t, b, c0 + c), HW);
        if (thread % kWarp == 0) shared.y[t * cs + c] = args.y[args.at(t, b, c0 + c)] = sum / HW;
      }
    for (int c = thread; c < cs; c += threads) shared.h[c] = Cell::start_h<float>(), shared.c[c] = 0;
    block_barrier();

    // Hoist. Who writes an element of p is the one who reads it: in all products of R rows a row has the same thread.
    for (int t = 0; t < T; ++t)
      products(R, cs, args.w1 + C + c0, 2 * C, shared.y + t * cs, [&](int r, float sum) { shared.p[t * R + r] = sum; });

    // Scan
    for (int t = 0; t < T; ++t) {
      float* const s = shared.s + t * R;  // [R]
      products(R, cs, shared.w1h, shared.ld1, shared.h, [&](int r, float sum) { s[r] = sum + shared.p[t * R + r]; });
      exchange(s, shared.u, R);
      step(shared.u, [&](int c, State<float> state) {
        shared.h[c] = state.h;
        shared.c[c] = args.c[args.at(t, b, c0 + c)] = state.c;
      });
    }

    // Refresh and rescale
    products(R, cs, shared.w1h, shared.ld1, shared.h, [&](int r, float sum) {
      for (int t = 0; t < T; ++t) shared.p[t * R + r] += sum;  // not in s, where others may still be reading
    });
    exchange(shared.p, shared.u, T * R);
    for (int t = 0; t < T; ++t) {
      step(shared.u + t * R, [&](int c, State<float> state) { shared.d[c] = Cell::output(state); });
      for (int c = warp; c < cs; c += warps)
        scale_plane<N>(args.x + args.plane(t, b, c0 + c), shared.d[c], args.out + args.plane(t, b, c0 + c), HW);
    }
    cluster_barrier();  // nobody writes p again, or leaves, while others read it
  }
}

const char* layer_update(const Args& args) {
  const int clusters = at_most(args.B, (2 * processors() + kBlocks - 1) / kBlocks);
  return launch(args.HW % 4 == 0 ? layer_update_kernel<4> : layer_update_kernel<1>, args, clusters * kBlocks, kBlocks,
                Shared{args, {}}.shelf.bytes);
}

}  // namespace rung5
