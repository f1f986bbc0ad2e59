// One tile of a matrix product, kTile rows by kTile columns, as one group of blocks computes it: the blocks share out
// the terms of its sums, and add up in order of rank, so that every sum is taken in one fixed order.
#pragma once

#include "products.cuh"
#include "tile_product.h"

namespace dla {
namespace cuda {

// What stands on one side of a product: row i of term k. Rows are those of the result on the left side, and its columns
// on the right.
template <class A>
struct Operand {
  const A* data;  // null: all are 1
  int64_t ld;
  bool along;  // whether the terms of a row are neighbours in memory, data[i * ld + k]; else the rows, data[k * ld + i]
};

template <class A>
class TileProduct {
 public:
  // shared: product_shared_bytes() of numbers.
  DLA_DEVICE explicit TileProduct(A* shared) : left_(shared), right_(shared + kSlab * kTile) {}

  // Adds the sums over K terms of left(row) * right(column), rows and columns of the tile given as those of the
  // operands, or -1 where there is none: across, they follow each other. Barriers: called by all threads of a block;
  // shared memory is its own.
  template <class Row, class Column>
  DLA_DEVICE void add(const Operand<A>& left, Row row, const Operand<A>& right, Column column, int64_t K) {
    Reader of_left(left, row, K), of_right(right, column, K);
    const int64_t step = int64_t(cluster_size()) * kSlab;
    A next_left[kOwn], next_right[kOwn];
    of_left.read(next_left), of_right.read(next_right);
    for (int64_t k0 = int64_t(cluster_rank()) * kSlab; k0 < K; k0 += step) {
      block_barrier();
      of_left.keep(next_left, left_), of_right.keep(next_right, right_);
      block_barrier();
      // A slab is read into registers while the one before is being multiplied.
      of_left.move_on(step), of_right.move_on(step);
      of_left.read(next_left), of_right.read(next_right);
      const int part = thread_index() / kPartThreads;
#pragma unroll
      for (int j = 0; j < kSlab / kParts; ++j) {
        const int k = j * kParts + part;
        A x[kPatch], w[kPatch];
        load(left_ + at(k, first_row()), x), load(right_ + at(k, first_column()), w);
#pragma unroll
        for (int m = 0; m < kPatch; ++m)
#pragma unroll
          for (int n = 0; n < kPatch; ++n) sum_[m][n] = fma(x[m], w[n], sum_[m][n]);
      }
    }
  }

  // Calls f(sums) once in every block of the group, sums(row, column) being one of the tile. Barriers, of the group:
  // called after the last add(); on return nobody reads the others' shared memory.
  template <class F>
  DLA_DEVICE void finish(F f) {
    const int part = thread_index() / kPartThreads, ranks = cluster_size();
    A* const parts = left_;  // [kParts, kTile, kTile], over what was staged
    block_barrier();
#pragma unroll
    for (int m = 0; m < kPatch; ++m)
#pragma unroll
      for (int n = 0; n < kPatch; ++n)
        parts[(part * kTile + first_row() + m) * kTile + first_column() + n] = sum_[m][n];
    block_barrier();
    A* const mine = right_;  // [kTile, kTile], what this block has found
    for (int j = thread_index(); j < kTile * kTile; j += num_threads()) {
      A total = A(0);
      for (int p = 0; p < kParts; ++p) total += parts[p * kTile * kTile + j];
      mine[j] = total;
    }
    group_barrier();
    f([&](int row, int column) {
      A total = A(0);
      for (int other = 0; other < ranks; ++other) total += (ranks > 1 ? peer(mine, other) : mine)[row * kTile + column];
      return total;
    });
    group_barrier();
  }

 private:
  static constexpr int kOwn = kSlab * kTile / kProductThreads;  // numbers of a slab that a thread reads
  static constexpr int kSideBySide = kTile / kOwn;              // threads that read neighbours
  static constexpr int kPatches = kTile / kPatch;
  static_assert(kSlab == kTile && kOwn == kPatch && kParts == kPatch, "a slab is read, and shared out, in patches");

  static DLA_DEVICE int first_row() { return thread_index() % kPartThreads / kPatches * kPatch; }
  static DLA_DEVICE int first_column() { return thread_index() % kPatches * kPatch; }
  // Where a slab has row i of term k. The patches of a term change places by the number of its patch of terms, so that
  // neighbouring threads write to different banks, whichever way they have read.
  static DLA_DEVICE int at(int k, int i) {
    return k * kTile + (i / kPatch ^ k / kPatch % kPatches) * kPatch + i % kPatch;
  }
  static DLA_DEVICE void load(const A* from, A* out) {
#pragma unroll
    for (int i = 0; i < kPatch; i += kQuad<A>) {
      Neighbours<A, kQuad<A>> quad;
      quad.load(from + i);
#pragma unroll
      for (int j = 0; j < kQuad<A>; ++j) out[i + j] = quad.v[j];
    }
  }

  // What a thread reads of an operand: kOwn neighbours in memory of every slab.
  class Reader {
   public:
    template <class Row>
    DLA_DEVICE Reader(const Operand<A>& of, Row row, int64_t K) : along_(of.along), K_(K) {
      const int first = thread_index() % kSideBySide * kOwn, other = thread_index() / kSideBySide;
      k_ = int64_t(cluster_rank()) * kSlab + (along_ ? first : other);
      const int64_t begin = row(along_ ? other : first);
      rows_ = begin < 0 ? 0 : 1;
      if (!along_)
        for (int i = 1; i < kOwn; ++i) rows_ += row(first + i) >= 0;
      ld_ = of.ld, place_ = along_ ? at(first, other) : at(other, first);
      data_ = !of.data || begin < 0 ? nullptr : along_ ? of.data + begin * ld_ : of.data + begin;
      wide_ = data_ && in_quads(data_, ld_) && (along_ ? K % kOwn == 0 : rows_ == kOwn);
    }
    DLA_DEVICE void move_on(int64_t terms) { k_ += terms; }
    DLA_DEVICE void read(A* out) const {
      const int64_t left = K_ - k_;
      const int there = rows_ == 0 || left <= 0 ? 0 : !along_ ? rows_ : left < kOwn ? int(left) : kOwn;
      const A* const from = data_ + (along_ ? k_ : k_ * ld_);
      if (wide_) {
#pragma unroll
        for (int i = 0; i < kOwn; i += kQuad<A>) {
          Neighbours<A, kQuad<A>> quad;
          quad.words = load_or_zero(as_words4(from + i), there > 0);
#pragma unroll
          for (int j = 0; j < kQuad<A>; ++j) out[i + j] = quad.v[j];
        }
      } else {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) out[i] = data_ ? load_or_zero(from + i, i < there) : A(i < there);
      }
    }
    DLA_DEVICE void keep(const A* own, A* slab) const {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) slab[place_ + i * (along_ ? kTile : 1)] = own[i];
    }

   private:
    const bool along_;
    const int64_t K_;
    const A* data_;  // null where all are 1, or none is there
    int64_t ld_, k_;
    int rows_, place_;
    bool wide_;
  };

  A *const left_, *const right_;  // [kSlab, kTile]
  A sum_[kPatch][kPatch] = {};
};

}  // namespace cuda
}  // namespace dla
