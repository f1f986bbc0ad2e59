"""Turn a forward and a backward kernel into an op that autograd can differentiate, twice.

Names join the two. The parameters of ``forward`` are the op's inputs, each a tensor or a list of tensors, and then,
by keyword, its options, which are no tensors. ``results`` names what it returns. ``backward`` takes by name what it
wants of all these, and ``dout``, the gradient of a result ``out``; what it takes is kept for it, and nothing else. A
result whose gradient it does not take has none; one that is named like an input is that input (a list), handed on. Each
function is given the options that it names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd import double_backward, kernels, needs_grad, with_signature
from .flops import declare as declare_flops
from .shapes import declare, declare_gradients

# Tensors that belong together: one, or a list of them.
Group = Tensor | list[Tensor]
# How many tensors a list has; None for a tensor that is in no list.
Count = int | None


class Differentiable:
    """The op that the operators ``name`` and ``name_bwd`` make."""

    def __init__(
        self,
        name: str,
        results: str,
        *,
        forward: Callable[..., tuple[Group, ...]],
        backward: Callable[..., tuple[Group, ...]],
        reference: Callable[..., tuple[Group, ...]],
        shapes: Callable[..., Any],
        flops: Callable[..., int] | None = None,
        maps: str = "",
        constants: str = "",
        passed: str = "",
        linear: str = "",
    ) -> None:
        """Join the operators by names; several of them stand in one string, with spaces between.

        results: names of what ``forward`` returns.
        forward: takes the operators of a backend, the inputs, and the options by keyword.
        backward: takes the operators of a backend, and by name what it wants. Of gradients that are lists, all but the
            first may be empty, where none has arrived. Returns a gradient for each input but constants and what is
            passed.
        reference: takes the inputs that ``backward`` takes and the options, by name, and returns, differentiable, each
            result that has a gradient.
        shapes: takes what the operator ``name`` takes, as its schema has it, and returns results with nothing in them.
        flops: takes shapes of inputs, by name, and returns what its products and convolutions are in
            operations; without it there are none.
        maps: names of inputs whose gradients have their layout; all other gradients are contiguous.
        constants: names of inputs that are constants to autograd.
        passed: the name of an input whose gradient is the first result's, as it is: of a list of one, or of none, where
            that is a tensor.
        linear: the name of an input, a list of tensors like the first input, in which results are linear, so that
            ``backward`` does not take it: in its place ``reference`` is given zeros.
        """
        self.forward, self.backward, self.reference = forward, backward, reference
        asked, options = names(backward), names(forward, inspect.Parameter.KEYWORD_ONLY)
        _, *inputs = names(forward, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        outputs = results.split()
        # Each list holds places among the inputs, or among the results.
        self.variables = [i for i, x in enumerate(inputs) if x not in (*constants.split(), passed)]
        self.passed = [i for i, x in enumerate(inputs) if x == passed]
        self.kept_inputs = [i for i, x in enumerate(inputs) if x in asked]
        self.handed_on = [i for i, x in enumerate(outputs) if x in inputs]
        self.linear = linear
        self.linear_inputs = [i for i, x in enumerate(inputs) if x == linear]
        self.graded = [i for i, x in enumerate(outputs) if f"d{x}" in asked]
        self.kept_results = [i for i, x in enumerate(outputs) if x in asked and i not in self.handed_on]
        # Names of what the backward pass and the reference are given.
        self.grad_names = [f"d{outputs[i]}" for i in self.graded]
        self.inputs, self.reference_inputs = inputs, names(reference)
        self.input_names = [inputs[i] for i in self.kept_inputs]
        self.result_names = [outputs[i] for i in self.kept_results]
        self.backward_options = [x for x in options if x in asked]
        self.reference_options = [x for x in options if x in names(reference)]
        declare(name, shapes)
        if flops is not None:
            declare_flops(name, flops)
        declare_gradients(f"{name}_bwd", [inputs[i] for i in self.variables], maps.split())

    def __call__(self, backend: str, *inputs: Group, sizes: tuple[Count, ...], **options: Any) -> Sequence[Any]:
        """Return the results of a call, each of as many tensors as ``sizes`` says."""
        flat = flattened(inputs)
        if not needs_grad(flat):
            return self.forward(kernels(backend), *inputs, **options)
        call = Call(self, backend, options, tuple(map(count, inputs)), sizes)
        return cut(_Forward.apply(call, *flat), sizes)


def names(function: Callable, *kinds: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if not kinds or p.kind in kinds]


# ---- flat lists of tensors, which is what autograd knows, and groups ----


def count(group: Group) -> Count:
    return len(group) if isinstance(group, list) else None


def flattened(groups: Iterable[Group]) -> list[Tensor]:
    flat: list[Tensor] = []
    for group in groups:
        if isinstance(group, list):
            flat += group
        else:
            flat.append(group)
    return flat


def cut(flat: Sequence[Any], counts: Iterable[Count]) -> list[Any]:
    """Return the groups that a flat list was made of."""
    groups: list[Any] = []
    at = 0
    for n in counts:
        if n is None:
            groups.append(flat[at])
            at += 1
        else:
            groups.append(list(flat[at : at + n]))
            at += n
    assert at == len(flat)
    return groups


class Call(NamedTuple):
    """The part of a call that is no tensor, and how its flat lists of tensors are cut."""

    op: Differentiable
    backend: str
    options: dict[str, Any]
    counts: tuple[Count, ...]  # of the inputs
    sizes: tuple[Count, ...]  # of the results
    arrived: tuple[Count, ...] = ()  # of the gradients of results

    def kept(self, of_inputs: Sequence[Any], of_results: Sequence[Any]) -> list[Any]:
        """Return the items of those that are kept, from lists with one for each input and one for each result."""
        return [of_inputs[i] for i in self.op.kept_inputs] + [of_results[i] for i in self.op.kept_results]

    def told(self, options: Sequence[str]) -> dict[str, Any]:
        return {name: self.options[name] for name in options}


class _Forward(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(call: Call, *flat: Tensor) -> tuple[Tensor, ...]:
        op = call.op
        results = list(op.forward(kernels(call.backend), *cut(flat, call.counts), **call.options))
        for i in op.handed_on:  # autograd wants views of inputs that are returned
            results[i] = [x.view_as(x) for x in results[i]]
        return tuple(flattened(results))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        call, *flat = inputs
        results = cut(output, call.sizes)
        ungraded = [group for i, group in enumerate(results) if i not in call.op.graded]
        ctx.call, ctx.like = call, [(x.shape, x.dtype, x.device) for x in output]
        ctx.save_for_backward(*flattened(call.kept(cut(flat, call.counts), results)))
        ctx.mark_non_differentiable(*flattened(ungraded))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple:
        call, saved = ctx.call, ctx.saved_tensors  # looked up once: checkpointing recomputes them each time
        op, groups = call.op, cut(arrived, call.sizes)
        grads = [groups[i] for i in op.graded]
        if any(g is None for g in flattened(grads)):
            like = cut(ctx.like, call.sizes)
            grads = [filled(groups[i], like[i], may_be_empty=i != op.graded[0]) for i in op.graded]
        call = call._replace(arrived=tuple(map(count, grads)))
        run = _Backward.apply if torch.is_grad_enabled() else _Backward.forward
        found = run(call, *flattened(grads), *saved)
        to_inputs: list[Any] = [None if n is None else [None] * n for n in call.counts]
        for i in op.passed:
            n = call.counts[i]
            to_inputs[i] = grads[0] if n is None or isinstance(grads[0], list) else [grads[0]] * n
        for i, group in zip(op.variables, cut(found, [call.counts[i] for i in op.variables])):
            to_inputs[i] = group
        return None, *flattened(to_inputs)


def filled(grad: Any, like: Any, may_be_empty: bool = False) -> Group:
    """Return a result's gradient with zeros for what has not arrived; [] for a list of which nothing has."""
    if isinstance(grad, list):
        if may_be_empty and all(g is None for g in grad):
            return []
        return [filled(*pair) for pair in zip(grad, like)]  # type: ignore[misc]
    return torch.zeros(like[0], dtype=like[1], device=like[2]) if grad is None else grad


class _Backward(torch.autograd.Function):
    """The backward pass as a function of its own, so that it can be differentiated."""

    @staticmethod
    @with_signature
    def forward(call: Call, *flat: Tensor) -> tuple[Tensor, ...]:
        op = call.op
        groups = cut(flat, [*call.arrived, *call.kept(call.counts, call.sizes)])
        named = dict(zip([*op.grad_names, *op.input_names, *op.result_names], groups))
        return tuple(flattened(op.backward(kernels(call.backend), **named, **call.told(op.backward_options))))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.call, *flat = inputs
        ctx.save_for_backward(*flat)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        call, op = ctx.call, ctx.call.op
        groups = cut(ctx.saved_tensors, [*call.arrived, *call.kept(call.counts, call.sizes)])
        grads, kept = groups[: len(op.graded)], groups[len(op.graded) :]
        inputs = dict(zip([*op.input_names, *op.result_names], kept))
        for i in op.linear_inputs:
            inputs[op.linear] = [torch.zeros_like(kept[0]) for _ in range(call.counts[i] or 0)]
        variables = {x: inputs[x] for i, x in enumerate(op.inputs) if i in op.variables}
        counts = list(map(count, variables.values()))

        def forward(*flat: Tensor) -> tuple[Tensor, ...]:
            given = inputs | dict(zip(variables, cut(flat, counts)))
            given = {x: group for x, group in given.items() if x in op.reference_inputs}
            results = op.reference(**given, **call.told(op.reference_options))
            return tuple(flattened(r if n is None else list(r)[:n] for r, n in zip(results, call.arrived)))

        flat = flattened(variables.values())
        found = double_backward(forward, flat, flattened(grads), ggs)
        to_grads, of_variables = found[len(flat) :], dict(zip(variables, cut(found[: len(flat)], counts)))
        # Results are functions of the inputs: the reference has differentiated through them.
        to_kept: list[Any] = [
            of_variables[x] if x in variables else [None] * len(flattened([group]))
            for x, group in zip([*op.input_names, *op.result_names], kept)
        ]
        return None, *to_grads, *flattened(to_kept)
