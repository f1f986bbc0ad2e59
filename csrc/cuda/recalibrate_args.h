// What recalibrate's kernels are told.
#pragma once

#include "cell_args.h"
#include "layers.h"
#include "light_scan_args.h"
#include "parts.h"

namespace dla {
namespace cuda {

// How the mean y of a map becomes what its channels are scaled by. kCell: as a step of a cell shows it, kLightCell: of
// a light one. Without a state as sig(a), where a is, kSqueeze: y through a bottleneck, kTaps: a filter over its
// channels.
enum class Shows { kCell, kLightCell, kSqueeze, kTaps };

template <class A>
struct ShownArgs {
  Shows by;
  Part part;
  LightGates<A> light;  // kLightCell; and
  const A* taps;        // [K] kTaps
  int K;
  const A* a;  // [B, C] kSqueeze, where the step is apart
};

// Beside what norm_add has, whose slots these are: kIn, kShortcut, which may be absent, and kSum.
template <class T>
struct RecalibrateArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  ShownArgs<A> shown;
  A *y, *states_h, *states_c;  // [B, C] written, but after the step
  bool adds, relu;             // whether there is a shortcut, and a relu
  Layer layer;
};

// Backward there are five maps, in two layers that are read at the same piece: of the branch, at kIn, kGradOut and
// kGradIn; and those of a relu, the result, and the gradient of the shortcut, which may be absent.
constexpr int kResult = 0, kGradShortcut = 1;

template <class T>
struct RecalibrateBwdArgs {
  using A = accumulate_t<T>;
  CellArgs<A> cell;
  RecurrenceGrads<A> grads;
  ShownArgs<A> shown;
  const A *y, *dy;          // [B, C]; dy after the step
  A *dh, *dc;               // [B, C] written before the step: of the state; null where that is not saved
  LightFactors<A> factors;  // kLightCell
  A *da, *dtaps;            // kTaps: [B, C], the gradient of a, and [B * G, K], of the taps by what each block adds
  bool masked, adds;        // whether there was a relu, and with it a shortcut that has a gradient of its own
  Layer branch, beside;
};

}  // namespace cuda
}  // namespace dla
