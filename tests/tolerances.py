"""This is the one place for tolerances of ops, and each has its reason. (Whole networks and compiled programs are
compared as torch.testing does.)

In float64 an error may be a small multiple of eps for each term of the longest sum, relative to the largest element.
Where the result is a small difference of large terms, as gradients of q and k are, it may be larger by twice the error
of plain PyTorch: that is measured in float32, where float64 tells it, and taken in proportion to eps, since each
rounding is.
In the other dtypes our error against the float64 reference may be twice the error of the same computation in plain
PyTorch at that precision. The floors are for results whose plain error happens to be nothing: half a unit in the last
place, which even correct rounding costs; a few units of the arithmetic's; and, for each term of a sum, the smallest
normal number, below which nothing is promised.
"""

import torch

FLOAT64_EPS_PER_TERM = 4
TIMES_PLAIN = 2
FLOOR_EPS = 4
FLOAT64_OF_FLOAT32 = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def error(x, exact):
    return largest(x.double() - exact)


def allowed_error(dtype, plain_error, scale, longest_sum):
    """Return the error that is allowed. ``plain_error`` is that of the reference in ``dtype``, in float64 as far as it
    is known, and ``scale`` the largest exact result."""
    eps = torch.finfo(dtype).eps
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    underflow = longest_sum * arithmetic.tiny
    if dtype == torch.float64:
        return TIMES_PLAIN * plain_error + FLOAT64_EPS_PER_TERM * longest_sum * eps * scale + underflow
    return TIMES_PLAIN * plain_error + (eps / 2 + FLOOR_EPS * arithmetic.eps) * scale + underflow


def assert_same_bits(ours, theirs, name=""):
    """Check that two tensors are equal bit by bit; only NaN payloads may differ."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.dtype.itemsize]
    bits = [x.masked_fill(x.isnan(), torch.nan).contiguous().view(integer) for x in (ours, theirs)]
    differing = (bits[0] != bits[1]).sum().item()
    assert differing == 0, f"{name}: {differing} of {ours.numel()} elements differ"


def assert_equal_to_rounding(ours, theirs, factor=10, together=False):
    """Check that the same formula in float64 by two ways agrees within ``factor`` roundings of the largest element of
    each tensor, or of all ``together``. That is for gradients: those of what comes before a norm are small differences
    of large terms."""
    assert len(ours) == len(theirs)
    overall = max(map(largest, theirs)) if together else 0.0
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), i
        if a.is_floating_point():
            allowed = FLOAT64_EPS_PER_TERM * factor * torch.finfo(torch.float64).eps * max(largest(b), overall)
            assert error(a.detach(), b.detach().double()) <= allowed, (
                f"{i}: off by {error(a, b):.2g}, {allowed:.2g} allowed"
            )
        else:
            assert torch.equal(a, b), i
