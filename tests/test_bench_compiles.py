"""The benchmarks say how many kernels Triton compiled, and how long that took."""

from types import SimpleNamespace

import pytest

from bench import compiles

knobs = pytest.importorskip("triton.knobs")


def tell(microseconds, cache_hit):
    times = SimpleNamespace(total=microseconds)
    knobs.compilation.listener(src=None, metadata={}, metadata_group={}, times=times, cache_hit=cache_hit)


def test_what_triton_compiles_and_keeps_is_counted():
    before = knobs.compilation.listener
    with compiles.counted() as counted:
        tell(1.5e6, cache_hit=False)
        tell(3e6, cache_hit=False)
        tell(9e6, cache_hit=True)
    assert str(counted) == "triton: 2 kernels compiled in 4 s, 1 kept"
    assert knobs.compilation.listener is before


def test_it_ends_with_an_error_too():
    before = knobs.compilation.listener
    with pytest.raises(KeyError), compiles.counted():
        raise KeyError
    assert knobs.compilation.listener is before
