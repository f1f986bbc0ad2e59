// Weights by a block, which is what rung 4 adds: staged in shared memory, and multiplied by all threads.
#pragma once

#include "common.h"

namespace ladder {

// Copies w [rows, K] to [rows, ld], a row by a warp.
DLA_DEVICE void stage(int rows, int K, const float* w, int ld_w, float* to, int ld) {
  for (int row = thread_index() / kWarp; row < rows; row += num_threads() / kWarp)
    for (int k = thread_index() % kWarp; k < K; k += kWarp) to[row * ld + k] = w[row * ld_w + k];
}

// f(row, sum) for every row of w [rows, ld] times v [K], by one thread each. Threads side by side share a row: as many
// as there are for each, so that all rows are taken in one turn.
template <class F>
DLA_DEVICE void products(int rows, int K, const float* w, int ld, const float* v, F f) {
  int lanes = kWarp;
  while (lanes > 1 && lanes * rows > num_threads()) lanes /= 2;
  const int lane = thread_index() % lanes, group = thread_index() / lanes, groups = num_threads() / lanes;
  for (int first = 0; first < rows; first += groups) {  // all threads take every turn: the shuffles need them
    const int row = first + group;
    float sum = 0;
    if (row < rows)
      for (int k = lane; k < K; k += lanes) sum += w[row * ld + k] * v[k];
    sum = sum_lanes(sum, lanes);
    if (lane == 0 && row < rows) f(row, sum);
  }
}

}  // namespace ladder
