// Lists of feature maps as kernels take them: one pointer and three strides each, in either layout.
#pragma once

#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "map_view.h"

namespace dla {

// Distance between neighbouring pixels if H and W can be walked as one axis, else 0.
inline int64_t pixel_stride(const Tensor& x) {
  const int64_t H = x.size(2), W = x.size(3);
  if (W == 1) return H == 1 ? 1 : x.stride(2);
  return H == 1 || x.stride(2) == W * x.stride(3) ? x.stride(3) : 0;
}

inline bool fits(const Tensor& x, bool interleaved) {
  return interleaved ? pixel_stride(x) > 0 && (x.stride(1) == 1 || x.size(1) == 1) : pixel_stride(x) == 1;
}
// A single pixel or channel fits both layouts: then walk the axis that is longer.
inline bool is_interleaved(const Tensor& x) { return fits(x, true) && (x.size(2) * x.size(3) == 1 || !fits(x, false)); }

template <class T>
MapView<T> view(const Tensor& x, bool interleaved) {
  return {
      static_cast<T*>(x.data_ptr()),     x.size(1),  x.size(2) * x.size(3), x.stride(0), interleaved ? 1 : x.stride(1),
      interleaved ? pixel_stride(x) : 1, interleaved};
}

// Maps to read. Those in neither layout (expanded gradients, transposed views), or not in the layout
// of the maps they are read together with, are copied first.
template <class T>
struct ReadMaps {
  Tensors held;
  std::vector<MapView<const T>> views;

  explicit ReadMaps(const Tensors& xs, const ReadMaps* beside = nullptr) {
    for (size_t t = 0; t < xs.size(); ++t) read(xs[t], beside ? beside->views[t].interleaved : is_interleaved(xs[t]));
  }
  // All in one layout.
  ReadMaps(const Tensors& xs, bool interleaved) {
    for (const Tensor& x : xs) read(x, interleaved);
  }

 private:
  void read(const Tensor& x, bool interleaved) {
    using torch::headeronly::MemoryFormat;
    const auto format = interleaved ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    held.push_back(fits(x, interleaved) ? x : torch::stable::contiguous(x, format));
    views.push_back(view<const T>(held.back(), interleaved));
  }
};

// New maps, each with the layout of its model.
template <class T>
std::vector<MapView<T>> empty_maps(const ReadMaps<T>& like, Tensors& out) {
  using torch::headeronly::MemoryFormat;
  std::vector<MapView<T>> views;
  for (size_t t = 0; t < like.held.size(); ++t) {
    const Tensor& x = like.held[t];
    const bool interleaved = like.views[t].interleaved;
    Tensor made = torch::stable::empty_like(x);
    if (!fits(made, interleaved)) {  // elements of x share memory, and what is like it has another order
      made = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2), x.size(3)});
      if (interleaved) made = torch::stable::contiguous(made, MemoryFormat::ChannelsLast);
    }
    out.push_back(made);
    views.push_back(view<T>(made, interleaved));
  }
  return views;
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.stride(i) != b.stride(i)) return false;
  return true;
}

// Outputs come back as torch would make them like the inputs, also of those that had to be copied to be read.
inline void restore_layout(const Tensors& xs, Tensors& out) {
  for (size_t t = 0; t < xs.size(); ++t) {
    if (same_strides(xs[t], out[t])) continue;
    Tensor restored = torch::stable::empty_like(xs[t]);
    if (same_strides(restored, out[t])) continue;
    torch::stable::copy_(restored, out[t]);
    out[t] = restored;
  }
}

// Maps to write where they are.
template <class T>
std::vector<MapView<T>> mutable_maps(const Tensors& xs) {
  std::vector<MapView<T>> views;
  for (const Tensor& x : xs) {
    STD_TORCH_CHECK(fits(x, is_interleaved(x)), "xs: in place, expected maps that are NCHW or channels_last in memory");
    views.push_back(view<T>(x, is_interleaved(x)));
  }
  return views;
}

}  // namespace dla
