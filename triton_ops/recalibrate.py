"""out = f(shortcut + a h), f = relu or nothing, h being what a cell shows after a step with the mean of a: three
launches, means, the cell, and maps; back four: the gradient of what is shown, the cell, maps, weight gradients; and one
more for those of a light cell's gates.
"""

from __future__ import annotations

from torch import Tensor

from . import scan
from .cell_call import CellCall, StateCall
from .cells import GATE
from .checks import (
    BOTTLENECK,
    check_in_place,
    check_like_maps,
    check_maps,
    check_states,
    check_tensor,
    is_light,
    require,
)
from .gap import means
from .maps import MapList, accumulate_dtype
from .operator import operator
from .recalibrate_maps import Shown, map_gradients, scale_and_add, shown_gradient, state_gradients
from .squeeze import Squeezing
from .taps import Filtering

IN_PLACE = "out: in place, expected a map that is NCHW or channels_last in memory"


class Recurrent:
    """A cell whose gates are products, as scan runs it."""

    def __init__(self, op: str, rule: str, weights: list[Tensor], state: list[Tensor], like: Tensor) -> None:
        self.remembers = CellCall(f"scan{op}", rule, weights, state, 1, *like.shape[:2], like)

    def forward(self, y: Tensor, states: list[Tensor]) -> None:
        """Fill states."""
        scan.forward(self.remembers, y, states)

    def backward(
        self, y: Tensor, dd: Tensor | None, states: list[Tensor], dstates: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the gradients of y, of the weights and of the state given."""
        return scan.backward(self.remembers, y, states, dstates)


class Step:
    """What both directions check and prepare: the cell of a call, and its states as of a scan of one layer."""

    def __init__(self, op: str, a: Tensor, weights: list[Tensor], state: list[Tensor], rule: str) -> None:
        self.cell: Recurrent | Squeezing | Filtering
        if rule == "se":
            self.cell = Squeezing(f"squeeze{op}", rule, weights, [], [], a)
        elif rule == "eca":
            self.cell = Filtering(f"taps{op}", weights, a)
        elif is_light(weights):
            of_y, of_cell = weights[:BOTTLENECK], weights[BOTTLENECK:]
            self.cell = Squeezing(f"squeeze{op}", rule, of_y, of_cell, state, a)
        else:
            self.cell = Recurrent(op, rule, weights, state, a)
        self.remembers: StateCall | None = self.cell.remembers
        require(self.remembers is not None or not state, f"state: expected none of {rule}, got {len(state)} tensors")
        self.like = a

    def empty_states(self) -> list[Tensor]:
        """Return what a forward pass fills."""
        return [] if self.remembers is None else self.remembers.empty_states()

    def saved(self, name: str, states: list[Tensor], may_be_absent: bool = False) -> list[Tensor]:
        """Return states [B, C] or their gradients for kernels, as of one layer."""
        if self.remembers is None:
            check_states(name, states, 0, False, (), self.like.dtype, self.like)
            return []
        return self.remembers.saved(name, [s[None] for s in states], may_be_absent)

    def shown(self, states: list[Tensor]) -> Shown:
        """Return what says what the cell shows: the states, or what it has made of y."""
        if self.remembers is None:
            return Shown(GATE, None, self.cell.made)
        return Shown(self.remembers.cell, self.remembers.h_of(states), self.remembers.c_of(states))

    def forward(self, a: MapList, shortcut: MapList | None, out: MapList, states: list[Tensor], relu: bool) -> Tensor:
        """Fill out and states, and return y."""
        y = means(a)
        self.cell.forward(y, states)
        scale_and_add(MapList(a.given, out), shortcut, out, self.shown(states), relu)
        return y


@operator()
def recalibrate(
    a: Tensor, shortcut: list[Tensor], weights: list[Tensor], state: list[Tensor], rule: str, relu: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    check_maps([a])
    check_at_most_one("shortcut", shortcut, a)
    step = Step("", a, weights, state, rule)
    of_a, states = MapList([a]), step.empty_states()
    out = of_a.empty_like()
    y = step.forward(of_a, MapList(shortcut, of_a) if shortcut else None, out, states, relu)
    return out.as_given(of_a)[0], [s[0] for s in states], y[0]


@operator(writes=("out", "states"))
def recalibrate_(
    out: list[Tensor], states: list[Tensor], a: list[Tensor], weights: list[Tensor], state: list[Tensor], rule: str,
    relu: bool,
) -> None:  # fmt: skip
    check_maps(out)
    require(len(out) == 1, f"out: expected one map, got {len(out)}")
    check_at_most_one("a", a, out[0])
    step = Step("", out[0], weights, state, rule)
    to = MapList(out)
    check_in_place(to.held, out, IN_PLACE)
    held = step.saved("states", states)
    check_in_place(held, states, "states: expected contiguous tensors")
    step.forward(MapList(a or out), to if a else None, to, held, relu)


@operator()
def recalibrate_bwd(
    dout: Tensor,
    dstates: list[Tensor],
    a: Tensor,
    out: list[Tensor],
    weights: list[Tensor],
    state: list[Tensor],
    y: Tensor,
    states: list[Tensor],
    rule: str,
    adds: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    check_maps([a])
    check_like_maps("dout", [dout], [a])
    check_at_most_one("out", out, a)
    require(len(out) == 1 or not adds, "adds: expected the result of a relu, else the shortcut's gradient is dout")
    step = Step("_bwd", a, weights, state, rule)
    check_tensor("y", y, a.shape[:2], accumulate_dtype(a.dtype), a)
    states, dstates = step.saved("states", states), step.saved("dstates", dstates, may_be_absent=True)
    y, of_a = y.contiguous()[None], MapList([a])
    result = MapList(out, of_a) if out else None
    grads, da, dshortcut = MapList([dout], of_a), of_a.empty_like(), result.empty_like() if result and adds else None
    if step.remembers is None:
        dd = shown_gradient(grads, of_a, result, y)
    else:
        of_h, of_c = step.remembers.h_of(dstates), step.remembers.c_of(dstates)
        dd, dstates = None, state_gradients(grads, of_a, result, y, step.shown(states), of_h, of_c)
    dy, dweights, dstate = step.cell.backward(y, dd, states, dstates)
    map_gradients(grads, da, result, dshortcut, step.shown(states), dy)
    to_shortcut = dshortcut.as_given(result) if dshortcut and result else []
    return da.as_given(of_a)[0], to_shortcut, dweights, dstate


def check_at_most_one(name: str, maps: list[Tensor], like: Tensor) -> None:
    """Require no map, or one like another."""
    require(len(maps) <= 1, f"{name}: expected one map or none, got {len(maps)}")
    check_like_maps(name, maps, [like] * len(maps))
