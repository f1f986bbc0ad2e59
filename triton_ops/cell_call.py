"""The cell of a call, or that it has none: what kernels are told of it, and the memory that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor

from .cells import Cell
from .checks import check_rule, check_state, check_states, check_weights
from .launch import precision, run
from .maps import accumulate_dtype
from .recurrence import Scratch, Weights
from .recurrence_bwd import Factors
from .tiles import tiles


class NoCell:
    """A launch whose programs take whole samples, and what kernels are told of a cell where there is none."""

    cell: Cell | None = None
    projection, weights, h0, c0 = "", None, None, None

    def __init__(self, op: str, T: int, B: int, C: int, like: Tensor, R: int = 0) -> None:
        self.T, self.B, self.C, self.R, self.like = T, B, C, R, like
        self.dtype = accumulate_dtype(like.dtype)
        self.tiles = tiles(op, C, R, 0, like.dtype)
        self.programs = triton.cdiv(B, self.tiles.samples)

    def h_of(self, states: Sequence[Tensor]) -> Tensor | None:
        """Return no h: there is no cell."""
        return None

    c_of = h_of

    def tensors(self, states: Sequence[Tensor], dstates: Sequence[Tensor] | None = None) -> dict[str, Any]:
        """Return the cell's tensors by the names that kernels have for them, with gradients of the states if given."""
        found = {"h0": self.h0, "c0": self.c0, "w": self.weights}
        found |= {"states_h": self.h_of(states), "states_c": self.c_of(states)}
        if dstates is not None:
            found |= {"dstates_h": self.h_of(dstates), "dstates_c": self.c_of(dstates)}
        return found

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialized tensor of the dtype of sums over what was given."""
        return self.like.new_empty(shape, dtype=self.dtype)

    def run(self, kernel: Any, /, *, shares: tuple[int, ...] = (), **args: Any) -> None:
        """Launch with these arguments, and with those that every kernel of a recurrence has last. shares: programs that
        share a tile, along further axes of the grid."""
        sizes = {"T": self.T, "B": self.B, "C": self.C, "R": self.R} | args
        what = {"CELL": self.cell, "PROJECTION": self.projection, "TILES": self.tiles, "PRECISION": precision()}
        run(kernel, (self.programs, *shares), self.like, self.tiles, **sizes, **what)


class StateCall(NoCell):
    """The cell of a call and its state as kernels take them, however its gates come about."""

    def __init__(
        self, op: str, rule: str, state: list[Tensor], T: int, B: int, C: int, like: Tensor, R: int = 0
    ) -> None:
        super().__init__(op, T, B, C, like, R)
        self.cell = check_rule(rule)
        may_start_by_itself = not op.startswith("refresh")
        check_state(state, self.cell, may_start_by_itself, (B, C), self.dtype, like)
        self.state = [s.contiguous() for s in state]
        self.N = self.cell.NG * C

    @property
    def h0(self) -> Tensor | None:
        """Return the h given; None where it is act(c0), or the cell's own start."""
        return self.state[0] if len(self.state) > 1 or (self.state and self.cell.saves_h) else None

    @property
    def c0(self) -> Tensor | None:
        """Return the c given; None where there is none, for zeros."""
        return self.state[-1] if self.state and self.cell.saves_c else None

    def h_of(self, states: Sequence[Tensor]) -> Tensor | None:
        """Return h among states as they are saved: [h], [h, c] or [c]."""
        return states[0] if self.cell.saves_h and states else None

    def c_of(self, states: Sequence[Tensor]) -> Tensor | None:
        """Return c among them, None where the cell has none."""
        return states[-1] if self.cell.saves_c and states else None

    def saved(self, name: str, states: list[Tensor], may_be_absent: bool = False) -> list[Tensor]:
        """Return states as the forward pass returned them, or their gradients, for kernels to read."""
        count, shape = self.cell.saves_h + self.cell.saves_c, (self.T, self.B, self.C)
        check_states(name, states, count, may_be_absent, shape, self.dtype, self.like)
        return [s.contiguous() for s in states]

    def empty_states(self) -> list[Tensor]:
        """Return what a forward pass fills: h and c of every layer, as far as the cell saves them."""
        return [self.empty(self.T, self.B, self.C) for _ in range(self.cell.saves_h + self.cell.saves_c)]


class CellCall(StateCall):
    """The cell of a call, and its tensors as kernels take them."""

    def __init__(
        self, op: str, rule: str, weights: list[Tensor], state: list[Tensor], T: int, B: int, C: int, like: Tensor,
        rows_of_y: int | None = None,
    ) -> None:  # fmt: skip
        self.rows_of_y = T if rows_of_y is None else rows_of_y  # where not each of them is a layer of the scan
        self.projection = check_weights(weights, check_rule(rule).NG, C, accumulate_dtype(like.dtype), like)
        R = 0 if self.projection == "dense" else weights[0].shape[0]
        super().__init__(op, rule, state, T, B, C, like, R)
        self.given = [w.contiguous() for w in weights]
        w = self.given
        if self.projection == "joint":
            self.weights = Weights(w[0], w[0][:, C:], None, None, w[1], None, w[2], None, 2 * C)
        elif self.projection == "split":
            self.weights = Weights(w[4], w[0], w[5], w[1], w[6], w[2], w[3], w[7], C)
        else:
            self.weights = Weights(w[2], w[0], None, None, None, None, w[1], w[3], C)

    def rows(self, width: int) -> Tensor:
        """Return rows for what each row of y decides."""
        return self.empty(self.rows_of_y, self.B, width)

    def _p_q_uy_last_product(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
        """Return what both passes hoist or share, None where the projection has no use for it."""
        joint, split = self.projection == "joint", self.projection == "split"
        return (
            self.rows(self.R) if joint else None,
            None if joint else self.rows(self.N),
            self.rows(self.R) if split else None,
            self.empty(self.B, self.R or self.N),
        )

    def scratch(self) -> Scratch:
        """Return what a forward pass writes for itself."""
        own = self.rows_of_y * self.B if self.tiles.abreast else self.programs * self.tiles.rows
        p, q, uy, last_product = self._p_q_uy_last_product()
        u = self.empty(own, self.R) if self.R else None
        h, c = self.empty(2, self.B, self.C), self.empty(self.B, self.C)
        return Scratch(h, c, p, q, uy, last_product, u, self.empty(own, self.N))

    def factors(self) -> Factors:
        """Return what a backward pass writes for itself and for the weight gradients."""
        T, B = self.T, self.B
        p, q, uy, last_product = self._p_q_uy_last_product()
        low = self.R > 0
        return Factors(
            h=self.empty(T + 1, B, self.C),
            da=self.empty(2 * T + (not low), B, self.N),
            u=self.empty(2 * T, B, self.R) if low else None,
            ds=self.empty(2 * T + 1, B, self.R) if low else None,
            uy=uy,
            dsy=self.rows(self.R) if self.projection == "split" else None,
            p=p,
            q=q,
            last_product=last_product,
            dh=self.empty(B, self.C),
            dc=self.empty(B, self.C),
        )

    def dstate(self, f: Factors) -> list[Tensor]:
        """Return as many gradients as there are tensors of the state given; of a dsu's c alone, dc holds all."""
        return [f.dc] if self.state and self.h0 is None else [f.dh, f.dc][: len(self.state)]


def from_row(known: Any, t: int) -> Any:
    """Return scratch or factors whose p and q begin with row t of y."""
    return known._replace(p=None if known.p is None else known.p[t:], q=None if known.q is None else known.q[t:])
