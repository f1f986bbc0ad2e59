"""Triton's interpreter takes a second for what a GPU does in microseconds: fewer cases, and less of its overhead."""

import os
from collections import defaultdict

from dla_kernels import Cell

# What always runs; DLA_KERNELS_TRITON_TESTS=all adds the rest, a quarter of an hour.
ALWAYS = ("triton", "gap", "scan", "refresh", "rescale", "layer_update")


def always_runs(item):
    name = item.path.stem.removeprefix("test_")
    return name in ALWAYS or os.environ.get("DLA_KERNELS_TRITON_TESTS") == "all"


def parameters(item):
    """Name -> value, but for the backend; of a cell, its rule and its projection."""
    values = {k: v for k, v in item.callspec.params.items() if not k.endswith("backend")}
    for name, value in list(values.items()):
        if isinstance(value, Cell):
            values |= {name: value.rule, f"{name}'s projection": value.projection}
    return {name: str(value) for name, value in values.items()}


def thin_out(items):
    """Removes from ``items``, and returns, cases of the backend `triton`: each test keeps, of its parameters' values,
    the first together, the second together and so on, every value at least once. What outgrows a cache is large, and
    no case of its own to these kernels."""
    cases = defaultdict(list)
    for item in items:
        served = getattr(item, "callspec", None) and next(
            (item.callspec.params[name] for name in ("backend", "any_backend") if name in item.callspec.params), None
        )
        if served and served.name == "triton":
            cases[item.parent.nodeid, item.originalname].append(item)
    dropped = set()
    for group in cases.values():
        values = [parameters(item) for item in group]
        ranks = {name: list(dict.fromkeys(each[name] for each in values)) for name in values[0]}
        length = max((len(rank) for rank in ranks.values()), default=1)
        kept = [{name: rank[i % len(rank)] for name, rank in ranks.items()} for i in range(length)]
        seen = set()
        for item, each in sorted(zip(group, values), key=lambda pair: pair[1] not in kept):
            large, repeated = "outgrow" in item.originalname, each not in kept and seen.issuperset(each.items())
            if large or repeated or not always_runs(item):
                dropped.add(item)
            seen |= set(each.items())
    removed = [item for item in items if item in dropped]
    items[:] = [item for item in items if item not in dropped]
    return removed


def patch_once_a_launch():
    """The interpreter replaces the functions of triton.language anew whenever one function of a kernel calls another,
    which is half of its time; once for each module in a launch is enough."""
    from triton.runtime import interpreter

    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched = []  # by each launch under way: the modules, by their globals

    def launch_once(self, *args, **kwargs):
        patched.append(set())
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.pop()

    def patch_once(function):
        module = id(function.__globals__)
        if patched and module in patched[-1]:
            return None
        if patched:
            patched[-1].add(module)
        return patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_once, patch_once
