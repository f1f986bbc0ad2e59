"""Products of rows with weights: all the linear algebra of a recurrence.

Programs may share out the columns among them: those of one place along axis 0 of the grid are told apart along axis 1.
"""

import triton
import triton.language as tl

# What a product is of: rows that need not wait for each other, or the samples of a step of the scan, whose product goes
# into the bottleneck, or out of it. Triton 3.6 takes no text for such a constant unless it comes from the host.
ROWS, INTO, OUT_OF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def own_columns(N, COLUMNS: tl.constexpr):
    """Return where the columns begin and end that this program has of N: whole tiles; all of them, if it is alone."""
    share = tl.cdiv(tl.cdiv(N, COLUMNS), tl.num_programs(1)) * COLUMNS
    begin = tl.program_id(1) * share
    return begin, tl.minimum(begin + share, N)


@triton.jit
def dots(
    x, x_rows, also, there, w, ldw, n, N, K,
    TRANSPOSED: tl.constexpr, INNER: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the sum over k of x[row, k] w[n, k], or w[k, n] where transposed, for a tile of rows and columns n. x_rows
    and also are where rows begin in x; with also, x is the sum of two rows. Rows not there count as zero."""
    A: tl.constexpr = x.dtype.element_ty
    M: tl.constexpr = x_rows.shape[0]
    sums = tl.zeros([M, n.shape[0]], A) if DOT else tl.zeros([M, n.shape[0], INNER], A)
    for k0 in range(0, K, INNER):
        k = k0 + tl.arange(0, INNER)
        known = there[:, None] & (k < K)[None, :]
        left = tl.load(x + x_rows[:, None] + k[None, :], known, 0.0)
        if also is not None:
            left += tl.load(x + also[:, None] + k[None, :], known, 0.0)
        in_w = (n < N)[:, None] & (k < K)[None, :]
        if TRANSPOSED:
            right = tl.load(w + n[:, None] + k.to(tl.int64)[None, :] * ldw, in_w, 0.0)
        else:
            right = tl.load(w + n.to(tl.int64)[:, None] * ldw + k[None, :], in_w, 0.0)
        if DOT:
            sums = tl.dot(left, tl.trans(right), sums, input_precision=PRECISION, out_dtype=A)
        else:
            sums += left[:, None, :] * right[None, :, :]
    if DOT:
        return sums
    else:
        return tl.sum(sums, 2)


@triton.jit
def multiply(
    to, to_rows, N, x, x_rows, K, w, ldw, there, TILES: tl.constexpr, PRECISION: tl.constexpr,
    KIND: tl.constexpr = 0, TRANSPOSED: tl.constexpr = False, RELU: tl.constexpr = False,
    also=None, plus=None, plus_rows=None, bias=None, bias2=None, gate=None, gate_rows=None,
):  # fmt: skip
    """Compute to = x w^T + plus + bias + bias2, then perhaps relu, or relu's gradient where its result was `gate`: a
    tile of rows, the program's share of N columns. Where steps are shared out, they have as many rows as others."""
    ANY: tl.constexpr = KIND == ROWS or TILES.abreast
    TILE: tl.constexpr = TILES.product if ANY else TILES.into if KIND == INTO else TILES.out_of
    COLUMNS: tl.constexpr = TILE[0]
    INNER: tl.constexpr = TILE[1]
    DOT: tl.constexpr = TILES.dots and ANY
    begin, end = own_columns(N, COLUMNS)
    for n0 in range(begin, end, COLUMNS):
        n = n0 + tl.arange(0, COLUMNS)
        sums = dots(x, x_rows, also, there, w, ldw, n, N, K, TRANSPOSED, INNER, DOT, PRECISION)
        known = there[:, None] & (n < N)[None, :]
        store_sums(to, to_rows, sums, known, n, N, plus, plus_rows, bias, bias2, gate, gate_rows, RELU)


@triton.jit
def store_sums(
    to, to_rows, sums, known, n, N, plus, plus_rows, bias, bias2, gate, gate_rows, RELU: tl.constexpr
):  # fmt: skip
    """Finish sums as ``multiply`` says, and store them in columns n of rows to_rows."""
    if plus is not None:
        sums += tl.load(plus + plus_rows[:, None] + n[None, :], known, 0.0)
    if bias is not None:
        sums += tl.load(bias + n, n < N, 0.0)[None, :]
    if bias2 is not None:
        sums += tl.load(bias2 + n, n < N, 0.0)[None, :]
    if RELU:  # NaN passes
        sums = tl.where(sums < 0.0, 0.0, sums)
    if gate is not None:
        result = tl.load(gate + gate_rows[:, None] + n[None, :], known, 0.0)
        sums = tl.where(result <= 0.0, 0.0, sums)
    tl.store(to + to_rows[:, None] + n[None, :], sums, known)


@triton.jit
def add(
    to, to_rows, N, x, x_rows, there, COLUMNS: tl.constexpr,
    RELU: tl.constexpr = False, plus=None, plus_rows=None, bias=None,
):  # fmt: skip
    """Compute to = x + plus + bias, then perhaps relu."""
    begin, end = own_columns(N, COLUMNS)
    for n0 in range(begin, end, COLUMNS):
        n = n0 + tl.arange(0, COLUMNS)
        known = there[:, None] & (n < N)[None, :]
        sums = tl.load(x + x_rows[:, None] + n[None, :], known, 0.0)
        store_sums(to, to_rows, sums, known, n, N, plus, plus_rows, bias, None, None, None, RELU)


@triton.jit
def sum_of_layers(to, to_rows, x, x_rows, layer, T, there, N, COLUMNS: tl.constexpr):
    """Sum x over T layers, `layer` apart, to `to`."""
    begin, end = own_columns(N, COLUMNS)
    for n0 in range(begin, end, COLUMNS):
        n = n0 + tl.arange(0, COLUMNS)
        known = there[:, None] & (n < N)[None, :]
        sums = tl.zeros([x_rows.shape[0], COLUMNS], x.dtype.element_ty)
        for t in range(0, T):
            sums += tl.load(x + tl.cast(t, tl.int64) * layer + x_rows[:, None] + n[None, :], known, 0.0)
        tl.store(to + to_rows[:, None] + n[None, :], sums, known)
