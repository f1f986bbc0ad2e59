from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from .autograd import accumulated, kernels
from .checks import check_gates, check_maps
from .differentiable import Differentiable
from .inplace import check_inplace, mark_written
from .shapes import like


def rescale(
    xs: Sequence[Tensor], d: Tensor, *, inplace: bool = False, backend: BackendName | None = None
) -> list[Tensor]:
    """Rescale maps by their gates (Eq. 6): ``x_t <- x_t * d_t``, broadcast over HW.

    xs: T maps [B, C, H, W] that share dtype, device, B and C.
    d: [T, B, C].
    inplace: write the maps where they are; under ``torch.no_grad()`` only.
    Returns T maps, each with the dtype and memory layout of its input.
    """
    check_maps(xs)
    check_gates("d", "T", d, "xs", xs)
    if inplace:
        check_inplace(xs)
    chosen = select(backend, xs[0].device)
    if chosen == REFERENCE:
        return reference.rescale(xs, d, inplace=inplace)
    (d,) = accumulated([d], xs[0])
    if inplace:
        mark_written(xs)
        kernels(chosen).rescale_(list(xs), d)
        return list(xs)
    (out,) = _run(chosen, list(xs), d, sizes=(len(xs),))
    return out


_run = Differentiable(
    "rescale",
    "out",
    forward=lambda ops, xs, d: (ops.rescale(xs, d),),
    backward=lambda ops, dout, xs, d: ops.rescale_bwd(dout, xs, d),
    reference=lambda xs, d: (reference.rescale(xs, d),),
    shapes=lambda xs, d: like(xs),
    maps="xs",
)
