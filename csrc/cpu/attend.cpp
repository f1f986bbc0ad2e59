// attend: what a layer has of each layer before it, coef = softmax(q . k / sqrt(D)) scale, after keys and scales were
// refreshed; and its gradients. All of it is per sample, [M, B, C] at most: no map is touched.
#include <cmath>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "heads.h"
#include "threads.h"

namespace dla {
namespace cpu {
namespace {

void check_attended(const Tensor& y, const Tensor& q, const Tensor& k, const Tensors& past, int64_t heads) {
  check_pooled("y", y);
  check_past(past, y);
  check_heads(q, k, y.size(1), heads, y.scalar_type(), y);
}

template <class A>
class Attend {
 public:
  const int64_t B, C, M, D;

  Attend(const Tensor& y, const Tensor& q, const Tensor& k, const Tensors& past, int64_t heads)
      : B(y.size(0)),
        C(y.size(1)),
        M(past.empty() ? 0 : past[0].size(0)),
        D(C / heads),
        y_(as_contiguous(y)),
        past_(as_contiguous(past)),
        q_(q, C),
        k_(k, C),
        root_(1 / std::sqrt(A(D))) {}

  // One sample. keys, scale, shares [M + 1, C]: refreshed, with its own; the softmax, one value within a head.
  struct Sample {
    Matrix<A> q, shares;
    Rows<A> keys, scale;
  };
  Sample sample(int64_t b, Rows<A> keys, Rows<A> scale) const {
    Sample s{Matrix<A>(1, C), Matrix<A>(M + 1, C), keys, scale};
    for (int64_t m = 0; m < M; ++m) {
      product(past(0, m, b), refreshed() ? past(2, m, b) : nullptr, keys[m]);
      product(past(1, m, b), refreshed() ? past(2, M + m, b) : nullptr, scale[m]);
    }
    q_(y(b), s.q[0]), k_(y(b), keys[M]);
    std::fill_n(scale[M], C, A(1));
    for (int64_t c = 0; c < C; c += D) {
      A largest = 0, sum = 0;
      for (int64_t m = 0; m <= M; ++m) {
        const A score = dot(D, s.q[0] + c, keys[m] + c) * root_;
        s.shares[m][c] = score;
        largest = m == 0 || score > largest ? score : largest;
      }
      for (int64_t m = 0; m <= M; ++m) sum += s.shares[m][c] = std::exp(s.shares[m][c] - largest);
      for (int64_t m = 0; m <= M; ++m) std::fill_n(s.shares[m] + c, D, s.shares[m][c] / sum);
    }
    return s;
  }

  // out [C] = a b; a alone where there is no b
  void product(const A* a, const A* b, A* out) const {
    if (!b) return std::copy_n(a, C, out), void();
    for (int64_t c = 0; c < C; ++c) out[c] = a[c] * b[c];
  }

  // The gradients of one sample, given those of coef, keys and scale as their rows of [M + 1, B, C]. Those of q and k
  // go to dq, dk [K]; of y to dy [C]; dpast are the tensors of `past`.
  void backward(int64_t b, Rows<const A> dcoef, Rows<const A> dkeys, Rows<const A> dscale, const Tensors& dpast, A* dy,
                A* dq, A* dk) const {
    const Matrix<A> keys(M + 1, C), scale(M + 1, C), dq_row(1, C), dscores(M + 1, C);
    const Sample s = sample(b, keys.rows, scale.rows);
    for (int64_t c = 0; c < C; c += D) {
      // Shares add up to one: what all scores' gradients have in common cancels. That of the largest share is taken off
      // first, or, with a share near one, the mean would be taken from nearly itself.
      int64_t top = 0;
      for (int64_t m = 0; m <= M; ++m) {
        dscores[m][c] = dot(D, dcoef[m] + c, scale[m] + c);
        if (s.shares[m][c] > s.shares[top][c]) top = m;
      }
      const A at_top = dscores[top][c];
      A mean = 0;
      for (int64_t m = 0; m <= M; ++m) dscores[m][c] -= at_top, mean += s.shares[m][c] * dscores[m][c];
      for (int64_t m = 0; m <= M; ++m) std::fill_n(dscores[m] + c, D, s.shares[m][c] * (dscores[m][c] - mean) * root_);
    }
    std::fill_n(dq_row[0], C, A(0));
    Matrix<A> to_keys(M + 1, C), to_scale(1, C);
    for (int64_t m = 0; m <= M; ++m) {
      A *to_key = to_keys[m], *to_q = dq_row[0];
      const A *d = dscores[m], *key = keys[m], *q = s.q[0], *more = dkeys[m];
      for (int64_t c = 0; c < C; ++c) to_q[c] += d[c] * key[c], to_key[c] = more[c] + d[c] * q[c];
    }
    for (int64_t m = 0; m < M; ++m) {  // the last one's scale is 1
      const A *d = dcoef[m], *more = dscale[m], *share = s.shares[m];
      for (int64_t c = 0; c < C; ++c) to_scale[0][c] = more[c] + d[c] * share[c];
      const auto to = [&](size_t i, int64_t row) { return write<A>(dpast[i]) + (row * B + b) * C; };
      product(to_keys[m], refreshed() ? past(2, m, b) : nullptr, to(0, m));
      product(to_scale[0], refreshed() ? past(2, M + m, b) : nullptr, to(1, m));
      if (!refreshed()) continue;
      product(to_keys[m], past(0, m, b), to(2, m));
      product(to_scale[0], past(1, m, b), to(2, M + m));
    }
    std::fill_n(dy, C, A(0));
    q_.backward(y(b), dq_row[0], dy, dq);
    k_.backward(y(b), to_keys[M], dy, dk);
  }

 private:
  const Tensor y_;
  const Tensors past_;
  const ChannelFilter<A> q_, k_;
  const A root_;

  bool refreshed() const { return past_.size() == 3; }
  const A* y(int64_t b) const { return read<A>(y_) + b * C; }
  const A* past(size_t i, int64_t row, int64_t b) const { return read<A>(past_[i]) + (row * B + b) * C; }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attend(const Tensor& y, const Tensor& q, const Tensor& k, const Tensors& past,
                                          int64_t heads) {
  check_attended(y, q, k, past, heads);
  return dispatch_rows(y.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor, Tensor> {
    using A = decltype(element);
    const Attend<A> layer(y, q, k, past, heads);
    const int64_t B = layer.B, C = layer.C, M = layer.M;
    const Tensor coef = empty<A>({M + 1, B, C}), keys = empty<A>({M + 1, B, C}), scale = empty<A>({M + 1, B, C});
    parallel_for(B, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const auto rows = [&](const Tensor& x) { return Rows<A>{write<A>(x) + b * C, B * C}; };
        const auto s = layer.sample(b, rows(keys), rows(scale));
        for (int64_t m = 0; m <= M; ++m) layer.product(s.shares[m], s.scale[m], rows(coef)[m]);
      }
    });
    return {coef, keys, scale};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensors> attend_bwd(const Tensor& dcoef, const Tensor& dkeys, const Tensor& dscale,
                                                       const Tensor& y, const Tensor& q, const Tensor& k,
                                                       const Tensors& past, int64_t heads) {
  check_attended(y, q, k, past, heads);
  return dispatch_rows(y.scalar_type(), [&](auto element) -> std::tuple<Tensor, Tensor, Tensor, Tensors> {
    using A = decltype(element);
    const Attend<A> layer(y, q, k, past, heads);
    const int64_t B = layer.B, C = layer.C, M = layer.M, K = q.size(0);
    const Tensors arriving = as_contiguous(Tensors{dcoef, dkeys, dscale});
    for (const Tensor& x : arriving) check_tensor("dcoef, dkeys, dscale", x, {M + 1, B, C}, y.scalar_type(), y);
    const Tensor dy = empty<A>({B, C});
    const Matrix<A> dq(B, K), dk(B, K);
    Tensors dpast;
    for (const Tensor& x : past) dpast.push_back(empty<A>({x.size(0), B, C}));
    parallel_for(B, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const auto rows = [&](int i) { return Rows<const A>{read<A>(arriving[i]) + b * C, B * C}; };
        layer.backward(b, rows(0), rows(1), rows(2), dpast, write<A>(dy) + b * C, dq[b], dk[b]);
      }
    });
    return {dy, sum_of_parts(dq, B, K), sum_of_parts(dk, B, K), dpast};
  });
}

STABLE_TORCH_LIBRARY_IMPL(dla, CPU, m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_bwd", TORCH_BOX(&attend_bwd));
}

}  // namespace cpu
}  // namespace dla
