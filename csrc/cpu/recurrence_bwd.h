// Gradients of the recurrence. Each block of samples recomputes its gates from y and the saved states,
// walks back through refresh and scan, and leaves the factors of the weight gradients in buffers that
// span the batch; weight_gradients() then multiplies these, each element summed over all rows in one
// fixed order. Docs: docs/backward.md.
#pragma once

#include "recurrence.h"
#include "weight_products.h"

namespace dla {
namespace cpu {

template <class A>
class RecurrenceBwd {
 public:
  RecurrenceBwd(const Recurrence<A>& cell, int64_t B, bool has_scan, bool has_refresh)
      : cell_(cell),
        w_(cell.w),
        T_(cell.T),
        C_(cell.C),
        R_(cell.R),
        N_(cell.N),
        B_(B),
        has_scan_(has_scan),
        has_refresh_(has_refresh),
        dstate_(2 * B, C_),
        y_(B * T_, C_) {
    const int64_t M = B * T_;
    const bool bottleneck = w_.bottleneck(), split = w_.projection == Projection::kSplit;
    if (has_scan) {
      da_scan_ = Matrix<A>(M, N_);
      h_ = Matrix<A>(M, C_);
      if (bottleneck) u_scan_ = Matrix<A>(M, R_), ds_scan_ = Matrix<A>(M, R_);
    }
    if (has_refresh) {
      da_refresh_ = Matrix<A>(M, N_);
      h_last_ = Matrix<A>(B, C_);
      if (bottleneck) u_refresh_ = Matrix<A>(M, R_), ds_refresh_ = Matrix<A>(M, R_);
      last_sum_ = Matrix<A>(B, bottleneck ? R_ : N_);
    }
    if (split) uy_ = Matrix<A>(M, R_), dsy_ = Matrix<A>(M, R_);
    if (split && has_scan && has_refresh) dq_ = Matrix<A>(M, N_);
  }

  // nb samples from b0; row is their first row in the batch-wide buffers.
  struct Block {
    int64_t b0, nb, M, row;
    typename Recurrence<A>::Hoisted hoisted;
    Rows<A> dh, dc;  // [nb, C]: gradient of the state at the current layer
  };

  // y [nb * T, C], contiguous
  Block begin(int64_t b0, int64_t nb, Rows<const A> y) {
    Block block{b0, nb, nb * T_, b0 * T_, cell_.hoist(nb * T_, y), dstate_.rows.from(b0), dstate_.rows.from(B_ + b0)};
    std::copy_n(y[0], block.M * C_, y_[block.row]);
    if (uy_.exists()) std::copy_n(block.hoisted.uy[0], block.M * R_, uy_[block.row]);
    std::fill_n(block.dh.data, nb * C_, A(0));
    std::fill_n(block.dc.data, nb * C_, A(0));
    return block;
  }

  // From dd, the gradient of d, to the last state's. h, c [nb, C]; dd, d [nb * T, C]; d may be absent.
  void refresh(Block& block, Rows<const A> h, Rows<const A> c, Rows<const A> dd, Rows<A> d) {
    const int64_t nb = block.nb;
    const Rows<A> da = da_refresh_.rows.from(block.row);
    const Rows<A> u = w_.bottleneck() ? u_refresh_.rows.from(block.row) : Rows<A>{};
    cell_.gates_of_last(nb, h, block.hoisted, u, da);
    for (int64_t b = 0; b < nb; ++b) {
      const int64_t m = b * T_;
      const Rows<const A> h_b{h[b], 0}, c_b{c[b], 0};
      const Rows<A> dc_b{block.dc[b], 0}, a = da.from(m), d_b = d.data ? d.from(m) : d;
      cell_.columns(C_, [&](int64_t i, int64_t end) {
        cell_.rule.output_bwd(T_, end - i, C_, a.right(i), h_b.right(i), cell_.at(c_b, i), dd.from(m).right(i),
                              dc_b.right(i), a.right(i), cell_.at(d_b, i));
      });
      std::copy_n(h[b], C_, h_last_[block.b0 + b]);
    }
    const Rows<A> shared = w_.bottleneck() ? through_bottleneck(block.M, da, u, ds_refresh_.rows.from(block.row)) : da;
    const int64_t K = last_sum_.rows.ld;
    for (int64_t b = 0; b < nb; ++b) {  // W1h h was shared by the layers: so is its gradient
      A* sum = last_sum_[block.b0 + b];
      std::fill_n(sum, K, A(0));
      for (int64_t t = 0; t < T_; ++t)
        for (int64_t k = 0; k < K; ++k) sum[k] += shared[b * T_ + t][k];
    }
    cell_.axpys(nb, C_, K, last_sum_.rows.from(block.b0), w_.w1h, block.dh);
  }

  // From the gradients of all states (either may be absent) to that of the state before layer 1.
  void scan(Block& block, const Start<A>& start, const States<A>& states, const States<A>& dstates) {
    const int64_t nb = block.nb, b0 = block.b0;
    const Rows<A> h = h_.rows.from(block.row), da = da_scan_.rows.from(block.row);
    const Rows<A> u = w_.bottleneck() ? u_scan_.rows.from(block.row) : Rows<A>{};
    const Rows<A> ds = w_.bottleneck() ? ds_scan_.rows.from(block.row) : Rows<A>{};
    for (int64_t t = 0; t < T_; ++t) {  // the h each layer's projection saw
      const Rows<A> rows = cell_.every_layer(h, t);
      if (t > 0 && !cell_.rule.saves_h) {
        cell_.rule.feed(nb, C_, states.c_at(t - 1, b0), rows);
        continue;
      }
      const Rows<const A> from = t > 0 ? Rows<const A>(states.h_at(t - 1, b0)) : start.h(b0);
      for (int64_t b = 0; b < nb; ++b) std::copy_n(from[b], C_, rows[b]);
    }
    cell_.gates_of(block.M, h, block.hoisted.p, block.hoisted.q, u, da);
    for (int64_t t = T_ - 1; t >= 0; --t) {
      add(nb, dstates.h_at(t, b0), block.dh);
      add(nb, dstates.c_at(t, b0), block.dc);
      const Rows<A> da_t = cell_.every_layer(da, t), h_t = cell_.every_layer(h, t);
      const Rows<const A> c = !states.c ? Rows<const A>{} : t > 0 ? Rows<const A>(states.c_at(t - 1, b0)) : start.c(b0);
      cell_.columns(C_, [&](int64_t i, int64_t end) {
        cell_.rule.step_bwd(nb, end - i, C_, da_t.right(i), h_t.right(i), cell_.at(c, i), block.dh.right(i),
                            block.dc.right(i), da_t.right(i));
      });
      const Rows<A> back =
          w_.bottleneck() ? through_bottleneck(nb, da_t, cell_.every_layer(u, t), cell_.every_layer(ds, t)) : da_t;
      cell_.axpys(nb, C_, w_.bottleneck() ? R_ : N_, back, w_.w1h, block.dh);
    }
  }

  // The gradient of y, rows [nb * T, C] of the block.
  Matrix<A> finish(Block& block) {
    const int64_t M = block.M, row = block.row;
    // dp and dq gather what scan and refresh sent to the shared p and q.
    const Rows<A> ds_scan = ds_scan_.rows.from(row), ds_refresh = ds_refresh_.rows.from(row);
    const Rows<A> da_scan = da_scan_.rows.from(row), da_refresh = da_refresh_.rows.from(row);
    if (w_.bottleneck() && has_scan_ && has_refresh_)
      for (int64_t i = 0; i < M * R_; ++i) ds_refresh.data[i] += ds_scan.data[i];
    Matrix<A> dy(M, C_);
    switch (w_.projection) {
      case Projection::kJoint:
        cell_.axpys(M, C_, R_, dp().from(row), w_.w1y, dy.rows);
        break;
      case Projection::kSplit: {
        if (dq_.exists())
          for (int64_t i = 0; i < M * N_; ++i) dq_[row][i] = da_scan.data[i] + da_refresh.data[i];
        const Rows<A> dsy = dsy_.rows.from(row);
        cell_.axpys(M, R_, N_, dq().from(row), w_.w2y, dsy);
        mask<A>(M, R_, uy_.rows.from(row), dsy);
        cell_.axpys(M, C_, R_, dsy, w_.w1y, dy.rows);
        break;
      }
      case Projection::kDense:
        if (has_scan_ && has_refresh_)
          for (int64_t i = 0; i < M * N_; ++i) da_refresh.data[i] += da_scan.data[i];
        cell_.axpys(M, C_, N_, dq().from(row), w_.w1y, dy.rows);
        break;
      case Projection::kSqueeze:  // of cells that have no recurrence
        break;
    }
    return dy;
  }

  // In the order of the weights.
  Tensors weight_gradients() const {
    const int64_t M = B_ * T_;
    WeightProducts<A> products;
    const auto result = [&](std::vector<int64_t> shape, std::vector<Product<A>> terms) {
      return products.made(std::move(shape), std::move(terms));
    };
    const auto column_sums = [&](Rows<const A> x) { return Product<A>{products.ones(), x, M}; };
    const Product<A> h_scan{w_.bottleneck() ? ds_scan_.rows : da_scan_.rows, h_.rows, has_scan_ ? M : 0};
    const Product<A> h_last{last_sum_.rows, h_last_.rows, has_refresh_ ? B_ : 0};
    const Product<A> u_scan{da_scan_.rows, u_scan_.rows, has_scan_ ? M : 0};
    const Product<A> u_refresh{da_refresh_.rows, u_refresh_.rows, has_refresh_ ? M : 0};
    Tensors out;
    switch (w_.projection) {
      case Projection::kJoint: {
        const Tensor w1 = empty<A>({R_, 2 * C_});  // columns: h first, then y
        products.add(R_, C_, {h_scan, h_last}, rows_of<A>(w1));
        products.add(R_, C_, {{dp(), y_.rows, M}}, rows_of<A>(w1).right(C_));
        Product<A> scan_sum = column_sums(da_scan_.rows), refresh_sum = column_sums(da_refresh_.rows);
        if (!has_scan_) scan_sum.K = 0;
        if (!has_refresh_) refresh_sum.K = 0;
        out = {w1, result({N_, R_}, {u_scan, u_refresh}), result({N_}, {scan_sum, refresh_sum})};
        break;
      }
      case Projection::kSplit:
        out = {result({R_, C_}, {{dsy_.rows, y_.rows, M}}), result({R_}, {column_sums(dsy_.rows)}),
               result({N_, R_}, {{dq(), uy_.rows, M}}),     result({N_}, {column_sums(dq())}),
               result({R_, C_}, {h_scan, h_last}),          result({R_}, {column_sums(dp())}),
               result({N_, R_}, {u_scan, u_refresh}),       result({N_}, {column_sums(dq())})};
        break;
      case Projection::kDense:
        out = {result({N_, C_}, {{dq(), y_.rows, M}}), result({N_}, {column_sums(dq())}),
               result({N_, C_}, {h_scan, h_last}), result({N_}, {column_sums(dq())})};
        break;
      case Projection::kSqueeze:
        break;
    }
    products.run();
    return out;
  }

  // The gradients of the state that was given, in the form in which it was.
  Tensors state_gradients(const Start<A>& start) const {
    const Rows<A> dh = dstate_.rows, dc = dstate_.rows.from(B_);
    if (start.from_c()) cell_.rule.feed_bwd(B_, C_, start.c(0), dh, dc);
    Tensors out;
    for (size_t i = 0; i < start.size; ++i) {
      out.push_back(empty<A>({B_, C_}));
      std::copy_n(i == 1 || start.from_c() ? dc.data : dh.data, B_ * C_, write<A>(out.back()));
    }
    return out;
  }

 private:
  const Recurrence<A>& cell_;
  const CellWeights<A>& w_;
  const int64_t T_, C_, R_, N_, B_;
  const bool has_scan_, has_refresh_;
  Matrix<A> dstate_;                                // dh then dc, [2B, C]
  Matrix<A> y_, h_, h_last_;                        // what the projections saw
  Matrix<A> u_scan_, u_refresh_, uy_;               // bottleneck activations
  Matrix<A> ds_scan_, ds_refresh_, dsy_;            // gradients in front of their relu
  Matrix<A> da_scan_, da_refresh_, dq_, last_sum_;  // gradients of the gates; sums over layers

  // dp = ds_scan + ds_refresh and dq = da_scan + da_refresh, each where finish() left it.
  Rows<A> dp() const { return has_refresh_ ? ds_refresh_.rows : ds_scan_.rows; }
  Rows<A> dq() const { return dq_.exists() ? dq_.rows : has_refresh_ ? da_refresh_.rows : da_scan_.rows; }

  // ds = (W2h^T da) where u > 0.
  Rows<A> through_bottleneck(int64_t M, Rows<const A> da, Rows<const A> u, Rows<A> ds) const {
    cell_.axpys(M, R_, N_, da, w_.w2h, ds);
    mask<A>(M, R_, u, ds);
    return ds;
  }
  void add(int64_t nb, Rows<A> from, Rows<A> to) const {
    if (!from.data) return;
    for (int64_t b = 0; b < nb; ++b)
      for (int64_t c = 0; c < C_; ++c) to[b][c] += from[b][c];
  }
};

}  // namespace cpu
}  // namespace dla
