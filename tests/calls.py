"""These helpers treat an op as a function of named tensors: its outcome, its parity, its flat form for gradcheck."""

from functools import cache, partial

import torch
from torch import Tensor

import dla_kernels as dla

from .tolerances import FLOAT64_OF_FLOAT32, allowed_error, error, largest


def named(prefix, value):
    """Yield (name, tensor) for every tensor in nested lists and tuples: ``weights.w1``, ``xs[0]``."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from named(name, item)
    elif value is not None:
        keys = [f".{f}" for f in value._fields] if hasattr(value, "_fields") else [f"[{i}]" for i in range(len(value))]
        for key, item in zip(keys, value):
            yield from named(prefix + key, item)


def mapped(f, value):
    """Return the same nesting with f applied to every tensor."""
    if value is None or isinstance(value, Tensor):
        return value if value is None else f(value)
    if isinstance(value, dict):
        return {name: mapped(f, item) for name, item in value.items()}
    items = [mapped(f, item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def outcome(op, inputs, cotangents=None, **options):
    """Return what ``op`` returns and, given cotangents, the gradient of every input, by name."""
    if cotangents is None:
        with torch.no_grad():
            return dict(named("out", op(**inputs, **options)))
    inputs = mapped(lambda x: x.detach().requires_grad_(), inputs)
    outputs = dict(named("out", op(**inputs, **options)))
    leaves = dict(named("", inputs))
    reached = {name: x for name, x in outputs.items() if x.requires_grad}  # a first layer's scale is the constant 1
    grads = torch.autograd.grad(
        list(reached.values()), list(leaves.values()), [cotangents[name] for name in reached], materialize_grads=True
    )
    return {name: x.detach() for name, x in outputs.items()} | {f"d {n}": g for n, g in zip(leaves, grads)}


def cotangents_for(op, inputs, **options):
    """Return a random gradient for everything that the reference of ``op`` returns."""
    return {
        name: torch.randn(x.shape).to(x.device, x.dtype)
        for name, x in outcome(getattr(dla.reference, op), inputs, **options).items()
    }


# One lucky plain run is no yardstick, above all for results of a few elements: a result that exceeds it is
# compared with the worst of several, on inputs that differ by about a thousandth.
NEARBY_RUNS = 16


def nudged(x):
    return x * (1 + max(1e-3, 2 * torch.finfo(x.dtype).eps) * torch.randn_like(x))


def check_parity(op, backend, inputs, longest_sum, **options):
    """Check that outputs and all gradients of ``dla.<op>`` are as good as those of plain PyTorch in the same dtype."""
    ours, reference = getattr(dla, op), getattr(dla.reference, op)

    def plain_and_exact(inputs, cotangents):
        doubles = mapped(Tensor.double, inputs), mapped(Tensor.double, cotangents)
        return outcome(reference, inputs, cotangents, **options), outcome(reference, *doubles, **options)

    in_double = all(x.dtype == torch.float64 for _, x in named("", inputs))

    @cache
    def nearby_error(name):
        worst = max(error(plain[name], exact[name]) for plain, exact in nearby_runs())
        return worst * FLOAT64_OF_FLOAT32 if in_double else worst

    @cache
    def nearby_runs():
        near = (lambda x: nudged(x).float()) if in_double else nudged
        return [plain_and_exact(mapped(near, inputs), mapped(near, cotangents)) for _ in range(NEARBY_RUNS)]

    cotangents = cotangents_for(op, inputs, **options)
    plain, exact = plain_and_exact(inputs, cotangents)
    for given in (cotangents, None):  # without gradients another path runs
        for name, result in outcome(ours, inputs, given, backend=backend.name, **options).items():
            assert (result.shape, result.dtype) == (plain[name].shape, plain[name].dtype), name
            scale, mine = largest(exact[name]), error(result, exact[name])
            allowed = partial(allowed_error, result.dtype, scale=scale, longest_sum=longest_sum)
            if not mine <= allowed(error(plain[name], exact[name])):
                limit = allowed(nearby_error(name))
                assert mine <= limit, f"{op} {name}: error {mine:.3g}, allowed {limit:.3g}, scale {scale:.3g}"


def flat_function(op, inputs, **options):
    """Return ``dla.<op>`` as a function from a flat list of tensors to a flat tuple, and that list."""

    def function(*tensors):
        tensors = iter(tensors)
        return tuple(x for _, x in named("out", getattr(dla, op)(**mapped(lambda _: next(tensors), inputs), **options)))

    return function, [x.detach().requires_grad_() for _, x in named("", inputs)]
