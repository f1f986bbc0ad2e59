// What every backend requires of an op's tensors before it touches them. dla_kernels/ops checks the
// same in Python with friendlier words; these guard those who call torch.ops.dla directly.
#pragma once

#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "common.h"

namespace dla {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_tensor(const char* name, const Tensor& x, std::vector<int64_t> shape, ScalarType dtype,
                         const Tensor& like) {
  STD_TORCH_CHECK(x.dim() == int64_t(shape.size()), name, ": expected ", shape.size(), " dimensions, got ", x.dim());
  for (int64_t i = 0; i < x.dim(); ++i)
    STD_TORCH_CHECK(x.size(i) == shape[i], name, ": expected size ", shape[i], " in dimension ", i, ", got ",
                    x.size(i));
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, ": expected dtype ", toString(dtype), ", got ",
                  toString(x.scalar_type()));
  STD_TORCH_CHECK(x.device() == like.device(), name, ": on another device than the first tensor");
}

// xs: T maps [B, C, H, W] of one dtype that share B and C.
inline void check_maps(const char* name, const Tensors& xs) {
  STD_TORCH_CHECK(!xs.empty(), name, ": expected at least one map, got an empty list");
  for (const Tensor& x : xs) {
    STD_TORCH_CHECK(x.dim() == 4, name, ": expected maps [B, C, H, W], got ", x.dim(), " dimensions");
    STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, name, ": a map of size zero");
    check_tensor(name, x, {xs[0].size(0), xs[0].size(1), x.size(2), x.size(3)}, xs[0].scalar_type(), xs[0]);
  }
}

// One map, and others of its shape and dtype.
inline void check_alike(const char* name, const Tensor& map, const Tensor& like) {
  check_tensor(name, map, {like.size(0), like.size(1), like.size(2), like.size(3)}, like.scalar_type(), like);
}

// Tensors that mirror the maps xs one by one (gradients of maps).
inline void check_like_maps(const char* name, const Tensors& dout, const Tensors& xs) {
  STD_TORCH_CHECK(dout.size() == xs.size(), name, ": expected ", xs.size(), " maps, got ", dout.size());
  for (size_t t = 0; t < xs.size(); ++t) check_alike(name, dout[t], xs[t]);
}

inline Projection projection_of(const Tensors& weights) {
  STD_TORCH_CHECK(weights.size() == 3 || weights.size() == 8 || weights.size() == 4,
                  "weights: expected 3 (joint), 8 (split) or 4 (dense) tensors, got ", weights.size());
  return weights.size() == 3 ? Projection::kJoint : weights.size() == 8 ? Projection::kSplit : Projection::kDense;
}

// y or d: [T, B, C] in fp32 or fp64.
inline void check_rows(const char* name, const Tensor& y) {
  STD_TORCH_CHECK(y.dim() == 3, name, ": expected [T, B, C], got ", y.dim(), " dimensions");
  STD_TORCH_CHECK(y.size(0) > 0 && y.size(2) > 0, name, ": expected at least one layer and channel");
  STD_TORCH_CHECK(y.scalar_type() == accumulate_dtype(y.scalar_type()), name, ": expected fp32 or fp64, got ",
                  toString(y.scalar_type()));
}

inline void check_weights(const Tensors& weights, int64_t NG, int64_t C, ScalarType dtype, const Tensor& like) {
  const auto check = [&](size_t i, std::vector<int64_t> shape) {
    check_tensor("weights", weights[i], std::move(shape), dtype, like);
  };
  const Projection projection = projection_of(weights);
  if (projection == Projection::kDense) {
    for (size_t i : {0, 2}) check(i, {NG * C, C}), check(i + 1, {NG * C});
    return;
  }
  const int64_t R = weights[0].size(0);
  STD_TORCH_CHECK(R > 0, "weights: expected a bottleneck of at least one row");
  if (projection == Projection::kJoint) {
    check(0, {R, 2 * C}), check(1, {NG * C, R}), check(2, {NG * C});
    return;
  }
  for (size_t i : {0, 4}) check(i, {R, C}), check(i + 1, {R}), check(i + 2, {NG * C, R}), check(i + 3, {NG * C});
}

// Where a list that begins with the weights of a bottleneck for y alone has each: -1 for a bias that is absent.
struct SqueezePlaces {
  int w1, b1, w2, b2;
};
// In second place b1 alone has one dimension.
inline SqueezePlaces in_squeeze(const Tensors& weights) {
  const bool has_b1 = weights.size() > 1 && weights[1].dim() == 1;
  const int w2 = has_b1 ? 2 : 1;
  return {0, has_b1 ? 1 : -1, w2, int(weights.size()) > w2 + 1 ? w2 + 1 : -1};
}
// [w1 [R, C], b1 [R], w2 [C, R], b2 [C]], with biases or without.
inline void check_squeeze(const Tensors& weights, int64_t C, ScalarType dtype, const Tensor& like) {
  const SqueezePlaces at = in_squeeze(weights);
  const int count = int(weights.size());
  STD_TORCH_CHECK(at.w2 < count && count <= at.w2 + 2, "weights: expected w1 and w2, each with a bias or without, got ",
                  count, " tensors");
  const int64_t R = weights[0].dim() > 0 ? weights[0].size(0) : 0;
  STD_TORCH_CHECK(R > 0, "weights: expected a bottleneck of at least one row");
  const auto check = [&](int i, std::vector<int64_t> shape) {
    if (i >= 0) check_tensor("weights", weights[size_t(i)], std::move(shape), dtype, like);
  };
  check(at.w1, {R, C}), check(at.b1, {R}), check(at.w2, {C, R}), check(at.b2, {C});
}
// Whether these are a light cell's: those of its bottleneck, then [wy, wh, b] of its gates.
inline bool is_light(const Tensors& weights) { return weights.size() == 7; }
// [wy, wh, b] of the gates of a light cell, each [NG*C].
inline void check_light_gates(const Tensors& weights, int64_t NG, int64_t C, ScalarType dtype, const Tensor& like) {
  STD_TORCH_CHECK(weights.size() == 3, "weights: expected wy, wh and b, got ", weights.size(), " tensors");
  for (const Tensor& w : weights) check_tensor("weights", w, {NG * C}, dtype, like);
}
// All weights of a light cell.
inline void check_light(const Tensors& weights, int64_t NG, int64_t C, ScalarType dtype, const Tensor& like) {
  check_squeeze({weights.begin(), weights.begin() + 4}, C, dtype, like);
  check_light_gates({weights.begin() + 4, weights.end()}, NG, C, dtype, like);
}
// [taps [K]], a filter over channels.
inline void check_taps(const Tensors& weights, ScalarType dtype, const Tensor& like) {
  STD_TORCH_CHECK(weights.size() == 1, "weights: expected taps, got ", weights.size(), " tensors");
  STD_TORCH_CHECK(weights[0].dim() == 1 && weights[0].size(0) % 2 == 1, "weights: expected taps [K] with an odd K");
  check_tensor("weights", weights[0], {weights[0].size(0)}, dtype, like);
}

// state, each [B, C]: [h], [h, c] where the cell has a memory, or [c] where h follows from it; none where the cell
// starts by itself.
inline void check_state(const char* name, const Tensors& state, bool saves_h, bool saves_c, bool may_be_absent,
                        int64_t B, int64_t C, ScalarType dtype, const Tensor& like) {
  if (may_be_absent && state.empty()) return;
  const size_t count = saves_c ? 2 : 1;
  STD_TORCH_CHECK(state.size() == count || (state.size() == 1 && !saves_h), name, ": expected ", count,
                  saves_h ? " tensors, got " : " tensors or one, got ", state.size());
  for (const Tensor& s : state) check_tensor(name, s, {B, C}, dtype, like);
}

// Filters [K] over C channels in so many heads.
inline void check_heads(const Tensor& q, const Tensor& k, int64_t C, int64_t heads, ScalarType dtype,
                        const Tensor& like) {
  STD_TORCH_CHECK(heads > 0 && C % heads == 0, "heads: expected a divisor of C = ", C, ", got ", heads);
  STD_TORCH_CHECK(q.dim() == 1 && q.size(0) % 2 == 1, "q: expected [K] with an odd K");
  check_tensor("q", q, {q.size(0)}, dtype, like);
  check_tensor("k", k, {q.size(0)}, dtype, like);
}

// The means of one layer's map: [B, C] in fp32 or fp64.
inline void check_pooled(const char* name, const Tensor& y) {
  STD_TORCH_CHECK(y.dim() == 2 && y.size(1) > 0, name, ": expected [B, C], got ", y.dim(), " dimensions");
  STD_TORCH_CHECK(y.scalar_type() == accumulate_dtype(y.scalar_type()), name, ": expected fp32 or fp64, got ",
                  toString(y.scalar_type()));
}

// past of attend: [], [keys, scale] or [keys, scale, d]. Returns M.
inline int64_t check_past(const Tensors& past, const Tensor& y) {
  if (past.empty()) return 0;
  STD_TORCH_CHECK(past.size() == 2 || past.size() == 3, "past: expected keys, scale and maybe d, got ", past.size(),
                  " tensors");
  const int64_t M = past[0].dim() == 3 ? past[0].size(0) : 0;
  for (size_t i = 0; i < past.size(); ++i)
    check_tensor("past", past[i], {i == 2 ? 2 * M : M, y.size(0), y.size(1)}, y.scalar_type(), y);
  return M;
}

// filters of light_step: [q, k, v, lam], then e where there is one.
inline void check_filters(const Tensors& filters, int64_t C, int64_t heads, ScalarType dtype, const Tensor& like) {
  STD_TORCH_CHECK(filters.size() == 4 || filters.size() == 5, "filters: expected q, k, v, lam and maybe e, got ",
                  filters.size(), " tensors");
  check_heads(filters[0], filters[1], C, heads, dtype, like);
  check_tensor("filters", filters[2], {C, 1, 3, 3}, dtype, like);
  check_tensor("filters", filters[3], {C}, dtype, like);
  if (filters.size() == 5) check_tensor("filters", filters[4], {C, 1, 3, 3}, dtype, like);
}

// states: `count` tensors, [T, B, C] or of one layer; none where no gradient arrives.
inline void check_states(const char* name, const Tensors& states, size_t count, bool may_be_absent,
                         const std::vector<int64_t>& shape, ScalarType dtype, const Tensor& like) {
  if (may_be_absent && states.empty()) return;
  STD_TORCH_CHECK(states.size() == count, name, ": expected ", count, " tensors, got ", states.size());
  for (const Tensor& s : states) check_tensor(name, s, shape, dtype, like);
}

}  // namespace dla
