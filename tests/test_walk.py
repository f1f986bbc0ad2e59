"""The walk through one call names files and functions that exist, in the order in which a call passes them."""

import re

import pytest

import dla_kernels as dla
from dla_kernels.backends import BACKENDS

from .test_house import ROOT

PAGE = (ROOT / "docs/walk.md").read_text()
HOPS = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
# How something of that name begins, in Python and in C++.
DEFINED = r"\b(?:def|class|struct) {0}\b|\b{0}\(|DLA_KERNEL\({0},"


@pytest.mark.parametrize(("file", "name"), [hop[1:] for hop in HOPS], ids=[f"{file}-{name}" for _, file, name in HOPS])
def test_the_file_of_a_hop_defines_the_name_that_the_walk_gives(file, name):
    assert re.search(DEFINED.format(name), (ROOT / file).read_text())


def test_no_hop_is_left_out():
    numbers = [int(number) for number, _, _ in HOPS]
    back = numbers.index(1, 1)
    assert numbers == [*range(1, back + 1), *range(1, len(numbers) - back + 1)]
    assert back > 10 and len(numbers) - back > 5


def test_the_kernel_is_reached_by_the_launch_that_the_walk_names():
    launches = (ROOT / "csrc/cuda/layer_update.cu").read_text()
    assert "DLA_LAUNCH_MAPS(layer_update_kernel, LayerUpdateArgs)" in launches


def test_the_first_hops_lead_into_each_other(monkeypatch):
    """A call passes select, then the operator of the chosen backend."""
    import torch

    from dla_kernels.ops import layer_update as hop

    passed = []
    select = hop.__globals__["select"]
    monkeypatch.setitem(hop.__globals__, "select", lambda *asked: passed.append("select") or select(*asked))
    operators = BACKENDS["cpu"].ops

    class Watched:
        def __getattr__(self, name):
            passed.append(name)
            return getattr(operators, name)

    monkeypatch.setattr(BACKENDS["cpu"], "ops", Watched())
    C, R = 4, 2
    weights = dla.Joint(torch.randn(R, 2 * C), torch.randn(3 * C, R), torch.zeros(3 * C))
    x = torch.randn(1, C, 2, 2, requires_grad=True)
    (out,), _ = dla.layer_update([x], weights)
    out.sum().backward()
    assert passed == ["select", "layer_update", "layer_update_bwd"]
