// Every dla:: operator, declared once; each backend's <op> file registers its kernel for it.
//
// rule names the cell's pointwise rule (csrc/cells/cells.h). weights holds the tensors of one
// projection in the order of the Python NamedTuple: 3 = joint, 8 = split, 4 = dense. state is
// [h] (rnn), [h, c] (all others), or [] for the cell's own start; states is what the cell saves for
// every layer: [h] (rnn), [h, c] (lstm, dia), [c] (dsu). Weights, states, y and d are fp32, or fp64
// where the maps are.
#include <torch/csrc/stable/library.h>

#if defined(DLA_SIMT)  // the CUDA kernels run by the SIMT shim (tests/simt) take CPU tensors too: names of their own
#define DLA_OPERATORS(m) STABLE_TORCH_LIBRARY(dla_simt, m)
#else
#define DLA_OPERATORS(m) STABLE_TORCH_LIBRARY(dla, m)
#endif

DLA_OPERATORS(m) {
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

  m.def("cpu_isa() -> str");
  m.def(
      "cuda_plan(bool backward, str projection, int NG, int T, int B, int C, int R, int sample_bytes, "
      "int accumulate_bytes, int[] device) -> str");
#if defined(DLA_SIMT)
  m.def("launches() -> int");  // since the library was loaded
#endif
}
