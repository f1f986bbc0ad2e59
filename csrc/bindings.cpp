// Every dla:: operator, declared once; each backend's <op> file registers its kernel for it.
//
// rule names the cell's pointwise rule (csrc/cells/cells.h). weights holds the tensors of one
// projection in the order of the Python NamedTuple: 3 = joint, 8 = split, 4 = dense, and in recalibrate 7 = light; scan
// takes of a light cell what its bottleneck makes of y, and [wy, wh, b], each [NG*C]. state is
// [h] (rnn), [h, c] (all others), [c] (a dsu, whose h is then act(c)), or [] for the cell's own start;
// states is what the cell saves for every layer: [h] (rnn), [h, c] (lstm, dia), [c] (dsu). Weights,
// states, y, d and all that is no map are fp32, or fp64 where the maps are.
#include <torch/csrc/stable/library.h>

#if defined(DLA_SIMT)  // the CUDA kernels run by the SIMT shim (tests/simt) take CPU tensors too: names of their own
#define DLA_DECLARE(m) STABLE_TORCH_LIBRARY(dla_simt, m)
#else
#define DLA_DECLARE(m) STABLE_TORCH_LIBRARY(dla, m)
#endif

DLA_DECLARE(m) {
  m.def("gap(Tensor[] xs) -> Tensor y");

  m.def("scan(Tensor y, Tensor[] weights, Tensor[] state, str rule) -> Tensor[] states");
  m.def(
      "scan_bwd(Tensor[] dstates, Tensor y, Tensor[] weights, Tensor[] state, Tensor[] states, "
      "str rule) -> (Tensor dy, Tensor[] dweights, Tensor[] dstate)");

  m.def("refresh(Tensor y, Tensor[] state, Tensor[] weights, str rule) -> Tensor d");
  m.def(
      "refresh_bwd(Tensor dd, Tensor y, Tensor[] state, Tensor[] weights, str rule) "
      "-> (Tensor dy, Tensor[] dstate, Tensor[] dweights)");

  m.def("rescale(Tensor[] xs, Tensor d) -> Tensor[] out");
  m.def("rescale_(Tensor(a!)[] xs, Tensor d) -> ()");
  m.def("rescale_bwd(Tensor[] dout, Tensor[] xs, Tensor d) -> (Tensor[] dxs, Tensor dd)");

  m.def(
      "layer_update(Tensor[] xs, Tensor[] weights, Tensor[] state, str rule) "
      "-> (Tensor[] out, Tensor[] states, Tensor y)");
  // In place; torch.compile wants no list returned beside mutated ones, so states is written too.
  m.def(
      "layer_update_(Tensor(a!)[] xs, Tensor(b!)[] states, Tensor[] weights, Tensor[] state, str rule) "
      "-> ()");
  m.def(
      "layer_update_bwd(Tensor[] dout, Tensor[] dstates, Tensor[] xs, Tensor[] weights, "
      "Tensor[] state, Tensor y, Tensor[] states, str rule) "
      "-> (Tensor[] dxs, Tensor[] dweights, Tensor[] dstate)");

  // out = f(shortcut + a h), f = relu where asked for, shortcut [] or one map: a step of the cell with y [B, C], the
  // mean of a, from state to states, each [B, C], and h what it shows then. Two rules more are known here, which have
  // no state and show sig(a): "se", weights [w1, w2] or [w1, b1, w2, b2], and "eca", weights [taps].
  m.def(
      "recalibrate(Tensor a, Tensor[] shortcut, Tensor[] weights, Tensor[] state, str rule, bool relu) "
      "-> (Tensor out, Tensor[] states, Tensor y)");
  // In place, one map out: the shortcut, then a is [a]; or a itself, then a is [].
  m.def(
      "recalibrate_(Tensor(a!)[] out, Tensor(b!)[] states, Tensor[] a, Tensor[] weights, Tensor[] state, str rule, "
      "bool relu) -> ()");
  // out: [] where there was no relu. adds: whether the gradient of a shortcut is wanted, like a; else dshortcut is [].
  m.def(
      "recalibrate_bwd(Tensor dout, Tensor[] dstates, Tensor a, Tensor[] out, Tensor[] weights, Tensor[] state, "
      "Tensor y, Tensor[] states, str rule, bool adds) "
      "-> (Tensor da, Tensor[] dshortcut, Tensor[] dweights, Tensor[] dstate)");

  // Layer attention (docs/notation.md). maps is [x] or [x, o_prev]; filters is [q, k, v, lam], then e where
  // there is one: q, k [K], v, e [C, 1, 3, 3], lam [C]. Without a cell weights and state are [] and rule is "".
  // states is the new state, each [B, C]; y [maps, B, C] the means of the maps. moments [2, C], where asked for:
  // mean and biased variance of o over batch and pixels, as stored.
  m.def(
      "light_step(Tensor[] maps, Tensor[] filters, Tensor[] weights, Tensor[] state, str rule, int heads, "
      "bool moments) -> (Tensor o, Tensor[] states, Tensor y, Tensor[] moments)");
  m.def(
      "light_step_bwd(Tensor dout, Tensor[] dstates, Tensor[] maps, Tensor[] filters, Tensor[] weights, "
      "Tensor[] state, Tensor y, Tensor[] states, str rule, int heads) "
      "-> (Tensor[] dmaps, Tensor[] dfilters, Tensor[] dweights, Tensor[] dstate)");

  // value = dwconv(x; v), v [C, 1, 3, 3]; y [2, B, C] the means of x and of value.
  m.def("depthwise(Tensor x, Tensor v) -> (Tensor value, Tensor y)");
  m.def("depthwise_bwd(Tensor dvalue, Tensor dy, Tensor x, Tensor v) -> (Tensor dx, Tensor dv)");

  // What a layer has of all M before it and of itself, coef [M + 1, B, C]: the softmax over layers of q . k_m / sqrt(D)
  // per head, times scale_m. q and k [K] are filters over the channels of y [B, C]; past is [], for a first layer, or
  // [keys, scale], each [M, B, C], or with a cell [keys, scale, d], to be refreshed first by d [2 M, B, C]: keys, then
  // scale. keys and scale come back refreshed, with this layer's own, [M + 1, B, C].
  m.def("attend(Tensor y, Tensor q, Tensor k, Tensor[] past, int heads) -> (Tensor coef, Tensor keys, Tensor scale)");
  m.def(
      "attend_bwd(Tensor dcoef, Tensor dkeys, Tensor dscale, Tensor y, Tensor q, Tensor k, Tensor[] past, int heads) "
      "-> (Tensor dy, Tensor dq, Tensor dk, Tensor[] dpast)");

  // o = sum over m of coef_m values_m: M maps of one size, coef [M, B, C].
  m.def("mix(Tensor[] values, Tensor coef, bool moments) -> (Tensor o, Tensor[] moments)");
  // dvalues_m = coef_m dout, added to the gradients that later layers sent, given (all M) or [].
  m.def("mix_bwd(Tensor dout, Tensor[] later, Tensor[] values, Tensor coef) -> (Tensor[] dvalues, Tensor dcoef)");

  // x + keep f(norm), norm = (o - mean) / sqrt(var + eps) gamma + beta, f = relu where asked for; [mean, var] =
  // moments [2, C]; keep [B], not negative, or [] for 1. batch_moments: they are those of o itself, and have gradients.
  m.def(
      "norm_add(Tensor x, Tensor o, Tensor moments, Tensor gamma, Tensor beta, Tensor[] keep, float eps, bool relu) "
      "-> Tensor out");
  m.def(
      "norm_add_bwd(Tensor dout, Tensor o, Tensor moments, Tensor gamma, Tensor beta, Tensor[] keep, float eps, "
      "bool relu, bool batch_moments) -> (Tensor do, Tensor dgamma, Tensor dbeta)");

  m.def("cpu_isa() -> str");
  m.def(
      "cuda_plan(bool backward, str projection, int NG, int T, int B, int C, int R, int sample_bytes, "
      "int accumulate_bytes, int[] device) -> str");
#if defined(DLA_SIMT)
  m.def("launches() -> int");  // since the library was loaded
#endif
}
