"""This plugin chooses the cases of a tier, and has the fixtures: the backend, a seed, NaN in memory not yet written."""

import importlib.util
import os
from typing import NamedTuple

import pytest

# Threads that wait for work would spin on the core that a compiler needs. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Read once, at the first use: by the CPU kernels, whose scratch memory then starts as NaN; by cuBLAS, which has
# no deterministic algorithms without it; and by the package, which runs the CUDA kernels through the SIMT shim.
os.environ.setdefault("DLA_KERNELS_POISON", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if not torch.cuda.is_available():
    os.environ.setdefault("DLA_KERNELS_SIMT", "1")
    if importlib.util.find_spec("triton"):
        os.environ.setdefault("TRITON_INTERPRET", "1")
        # In the interpreter an operation costs the same for one element or a thousand. Some shapes exceed these tiles.
        tiles = "samples=4,rows=16,columns=64,into=64x64,out_of=64x64,product=64x64,window=1024"
        os.environ.setdefault("DLA_KERNELS_TRITON_TILES", tiles)

from dla_kernels.backends import BACKENDS, INTERPRETED
from dla_kernels.cells import KINDS
from dla_kernels.data import small
from dla_kernels.reference.cells import RULES

from . import compilers, guardian, interpreter, tiers

if INTERPRETED:
    interpreter.patch()


def pytest_addoption(parser):
    parser.addoption("--tier", choices=tiers.TIERS, default=tiers.FULL, help="which part of the tests: tests/tiers.py")
    parser.addoption("--tier-seed", type=int, help="chooses the cases of a tier (default: from the commit)")


def is_worker(config):
    return hasattr(config, "workerinput")


CHOSEN = pytest.StashKey()


def pytest_configure(config):
    config.pluginmanager.register(guardian)
    if is_worker(config):
        config.option.tier_seed = config.workerinput["tier seed"]
    else:
        compilers.begin()
        if config.option.tier_seed is None:
            config.option.tier_seed = tiers.seed_of_the_commit()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["tier seed"] = node.config.option.tier_seed


def pytest_unconfigure(config):
    if not is_worker(config):
        compilers.end()


@pytest.hookimpl(tryfirst=True)  # before -k and -m: a case is in a tier or not, whatever else is chosen
def pytest_collection_modifyitems(config, items):
    chosen, reasons = tiers.choose(items, config.option.tier, config.option.tier_seed)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
    # What takes long begins first, so that no worker is left alone with it; who waits for compilers waits last.
    items.sort(key=lambda item: ("resources" in item.fixturenames, not tiers.is_left(item)))
    for item in items:
        if tiers.is_left(item):
            item.add_marker(pytest.mark.slow)
        if shares_a_fixture(item):  # so that one worker makes it
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    said = tiers.told(config.option.tier, config.option.tier_seed, len(items), reasons)
    if is_worker(config):
        config.workeroutput["tier"] = said
    config.stash[CHOSEN] = said


def shares_a_fixture(item):
    found = [item._fixtureinfo.name2fixturedefs.get(name) for name in item.fixturenames]
    return any(definitions and definitions[-1].scope == "module" for definitions in found)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    said = getattr(node, "workeroutput", {}).get("tier")  # a worker that crashed has said nothing
    if said:
        node.config.stash[CHOSEN] = said


def pytest_terminal_summary(terminalreporter, config):
    if CHOSEN in config.stash:
        terminalreporter.write_line(config.stash[CHOSEN])


def pytest_collection_finish(session):
    if not session.config.option.collectonly:
        for module in {item.module for item in session.items if "resources" in item.fixturenames}:
            module.BUILD.start(session.config.option.tier)


class Served(NamedTuple):
    """A served backend loads here, and has a device that it serves."""

    name: str
    device: str


COMPILED = [Served(b.name, device) for b in BACKENDS.values() if b.available for device in b.device_types]


# Session scope: hypothesis refuses fixtures that it cannot renew for every example.
@pytest.fixture(scope="session", params=COMPILED, ids=lambda served: f"{served.name}")
def backend(request):
    return request.param


@pytest.fixture(scope="session", params=[*COMPILED, Served("reference", "cpu")], ids=lambda served: f"{served.name}")
def any_backend(request):
    """Return a compiled backend or the reference, for promises of the public functions themselves."""
    return request.param


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Have torch fill fresh memory with NaN, which shows a kernel that reads what it did not write."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def registered_cells():
    """Forget the cells that a test has registered; examples of pages do so too."""
    yield
    for name in [name for name, kind in KINDS.items() if not kind.compiled]:
        del KINDS[name], RULES[name]


@pytest.fixture
def few_images(monkeypatch):
    """Have few and small made images: five steps of eight."""
    monkeypatch.setattr(small, "NUMBERS", {True: 40, False: 20})
    monkeypatch.setattr(small, "SIDE", 8)
