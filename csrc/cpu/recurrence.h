// The cell over a block of samples: hoisting (p, q), the sequential scan, and the refresh.
// Inside a block rows are sample-major, row (b, t) = b * T + t: what is batched over layers is one
// matrix, and one layer of all samples is every T-th row of it.
#pragma once

#include "products.h"
#include "weights.h"

namespace dla {
namespace cpu {

// States of all layers, as saved: [T, B, C] each; absent where the cell does not save it.
template <class A>
struct States {
  A* h = nullptr;
  A* c = nullptr;
  int64_t B, C;

  Rows<A> h_at(int64_t t, int64_t b0) const { return at(h, t, b0); }
  Rows<A> c_at(int64_t t, int64_t b0) const { return at(c, t, b0); }

 private:
  Rows<A> at(A* x, int64_t t, int64_t b0) const { return x ? Rows<A>{x + (t * B + b0) * C, C} : Rows<A>{}; }
};

// The state before the first layer: given, all of it or without an h that follows from c; or the cell's own start.
template <class A>
class Start {
 public:
  Start(const Tensors& state, const RuleKernels<A>& rule, int64_t C)
      : rule(rule), size(state.size()), held_(as_contiguous(state)), own_(2, C), C_(C) {
    std::fill_n(own_[0], C, rule.start_h);
    std::fill_n(own_[1], C, A(0));
    h_ = c_ = {own_[0], 0};
    c_.data = own_[1];
    if (size == 0) return;
    if (from_c()) {
      const int64_t B = state[0].size(0);
      fed_ = Matrix<A>(B, C);
      c_ = {read<A>(held_[0]), C}, h_ = fed_.rows;
      rule.feed(B, C, c_, fed_.rows);
      return;
    }
    h_ = {read<A>(held_[0]), C};
    if (size == 2) c_ = {read<A>(held_[1]), C};
  }
  const RuleKernels<A>& rule;
  const size_t size;  // how many tensors were given

  bool from_c() const { return size == 1 && !rule.saves_h; }
  Rows<const A> h(int64_t b0) const { return h_.from(b0); }
  Rows<const A> c(int64_t b0) const { return c_.from(b0); }

 private:
  Tensors held_;
  Matrix<A> own_, fed_;
  Rows<const A> h_, c_;
  int64_t C_;
};

// A cell with its weights, over nb samples of T layers; M = nb * T rows.
template <class A>
class Recurrence : public Products<A> {
 public:
  using Products<A>::axpys, Products<A>::columns, Products<A>::dots, Products<A>::kernels, Products<A>::wide;
  const RuleKernels<A>& rule;
  const CellWeights<A>& w;
  const int64_t T, C, R, N;

  Recurrence(const RuleKernels<A>& rule, const CellWeights<A>& w, int64_t T)
      : Products<A>(w.bytes()), rule(rule), w(w), T(T), C(w.C), R(w.R), N(w.N) {}

  // f(b0, nb) over blocks of samples; a wide recurrence takes all of them at once.
  template <class F>
  void blocks(int64_t B, F f) const {
    if (wide && B > 0) return f(0, B);
    Blocks(B, 4 * T * N * int64_t(sizeof(A))).run(f);
  }

  // a = W2 u + q for M rows.
  void from_bottleneck(int64_t M, Rows<const A> u, const Matrix<A>& panels, Rows<const A> q, Rows<A> a) const {
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t n = begin * kPanel; n < std::min(N, end * kPanel); n += kPanel)
        kernels().axpys(M, std::min(kPanel, N - n), R, u.data, u.ld, 1, panels.rows.from(n / kPanel * R), q.right(n),
                        a.right(n));
    };
    const int64_t count = (N + kPanel - 1) / kPanel;
    wide ? parallel_for(count, some) : some(0, count);
  }

  // What y alone decides. p [M, R], q [M, N]; both may be one shared row (ld = 0).
  struct Hoisted {
    Matrix<A> p_held, uy, q_held;
    Rows<const A> p, q;
  };
  Hoisted hoist(int64_t M, Rows<const A> y) const {
    Hoisted out;
    switch (w.projection) {
      case Projection::kJoint:
        out.p_held = Matrix<A>(M, R);
        dots(M, R, C, y, w.w1y, {}, out.p_held.rows);
        out.p = out.p_held.rows, out.q = w.q_bias;
        break;
      case Projection::kSplit:
        out.uy = Matrix<A>(M, R);
        dots(M, R, C, y, w.w1y, {w.b1y, 0}, out.uy.rows);
        relu_(M * R, out.uy[0]);
        out.q_held = Matrix<A>(M, N);
        from_bottleneck(M, out.uy.rows, w.panels_y, w.q_bias, out.q_held.rows);
        out.p = {w.b1h, 0}, out.q = out.q_held.rows;
        break;
      case Projection::kDense:
        out.q_held = Matrix<A>(M, N);
        dots(M, N, C, y, w.w1y, w.q_bias, out.q_held.rows);
        out.q = out.q_held.rows;
        break;
      case Projection::kSqueeze:  // of cells that have no recurrence
        break;
    }
    return out;
  }

  // u = relu(W1h h + p), a = W2h u + q for M rows. u is scratch [M, R]; u's rows must be contiguous.
  void gates_of(int64_t M, Rows<const A> h, Rows<const A> p, Rows<const A> q, Rows<A> u, Rows<A> a) const {
    if (!w.bottleneck()) return dots(M, N, C, h, w.w1h, q, a);
    dots(M, R, C, h, w.w1h, p, u);
    for (int64_t m = 0; m < M; ++m) relu_(R, u[m]);
    from_bottleneck(M, u, w.panels_h, q, a);
  }

  // c_t = Dyn(y_t, c_{t-1}) for t = 1..T; fills states for samples b0 .. b0 + nb. Returns the last h.
  Matrix<A> scan(int64_t b0, int64_t nb, const Hoisted& hoisted, const Start<A>& start, const States<A>& states) const {
    Matrix<A> u(nb, std::max<int64_t>(R, 1)), a(nb, N), h_last(nb, C);
    Rows<const A> h = start.h(b0), c = rule.saves_c ? start.c(b0) : Rows<const A>{};
    for (int64_t t = 0; t < T; ++t) {
      gates_of(nb, h, every_layer(hoisted.p, t), every_layer(hoisted.q, t), u.rows, a.rows);
      const Rows<A> h_new = rule.saves_h ? states.h_at(t, b0) : h_last.rows;
      const Rows<A> c_new = states.c_at(t, b0);
      step(nb, a.rows, h, c, h_new, c_new, {});
      h = h_new, c = c_new;
    }
    if (rule.saves_h)
      for (int64_t b = 0; b < nb; ++b) std::copy_n(h[b], C, h_last[b]);
    return h_last;
  }

  // Gates of all layers from one fixed state per sample, h [nb, C]: W1h h is shared by the layers.
  // u [nb * T, R], a [nb * T, N].
  void gates_of_last(int64_t nb, Rows<const A> h, const Hoisted& hoisted, Rows<A> u, Rows<A> a) const {
    Matrix<A> shared(nb, w.bottleneck() ? R : N);
    dots(nb, w.bottleneck() ? R : N, C, h, w.w1h, {}, shared.rows);
    const Rows<const A> own = w.bottleneck() ? hoisted.p : hoisted.q;
    const Rows<A> sum = w.bottleneck() ? u : a;
    for (int64_t b = 0; b < nb; ++b)
      for (int64_t m = b * T; m < (b + 1) * T; ++m)
        for (int64_t k = 0; k < shared.rows.ld; ++k) sum[m][k] = shared[b][k] + own[m][k];
    if (!w.bottleneck()) return;
    relu_(nb * T * R, u.data);
    from_bottleneck(nb * T, u, w.panels_h, hoisted.q, a);
  }

  // d_t = Dyn(y_t, c_T) for all t: output only. h, c [nb, C]; d [nb * T, C].
  void refresh(int64_t nb, const Hoisted& hoisted, Rows<const A> h, Rows<const A> c, Rows<A> d) const {
    Matrix<A> u(nb * T, std::max<int64_t>(R, 1)), a(nb * T, N);
    gates_of_last(nb, h, hoisted, u.rows, a.rows);
    for (int64_t b = 0; b < nb; ++b) step(T, a.rows.from(b * T), {h[b], 0}, {c[b], 0}, {}, {}, d.from(b * T));
  }

  // The pointwise rule of M rows, all channels; see RuleKernels.
  void step(int64_t M, Rows<const A> a, Rows<const A> h, Rows<const A> c, Rows<A> h_new, Rows<A> c_new,
            Rows<A> out) const {
    columns(C, [&](int64_t i, int64_t end) {
      rule.step(M, end - i, C, a.right(i), at(h, i), at(c, i), at(h_new, i), at(c_new, i), at(out, i));
    });
  }
  // Rows that may be absent, from column i on.
  template <class X>
  static Rows<X> at(Rows<X> x, int64_t i) {
    return x.data ? x.right(i) : x;
  }

  // Row (b, t) of a sample-major matrix for one t and all b.
  template <class X>
  Rows<X> every_layer(Rows<X> x, int64_t t) const {
    return x.ld == 0 ? x : Rows<X>{x[t], x.ld * T};
  }
};

}  // namespace cpu
}  // namespace dla
