"""The backends: which there are, whether each is available here, and which one serves a device.

A backend is a row of ``BACKENDS``: a name, the device types it serves, and a loader that returns an
object with the functions of ``csrc/bindings.cpp`` or raises ``Unavailable`` with the reason and the
mend. Loading happens on first use; the outcome is kept.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .cells import Cell

BackendName = Literal["reference", "cpu", "cuda", "triton"]

_HERE = Path(__file__).parent
_described: set[str] = set()


class Unavailable(Exception):
    """An error that says why a backend cannot serve, and what to do about it."""


def _describe(namespace: str) -> None:
    """Tell torch what it cannot see of operators: the shapes of their results, and what they cost."""
    from .ops import flops, shapes  # here, since they import this module

    if namespace in _described:
        return
    _described.add(namespace)
    shapes.register(namespace)
    flops.register(namespace)


def find_library(name: str) -> Path | None:
    """Return where a library of kernels is: beside this file, or, for a checkout that was installed but not in place,
    in the installed copy of the same version, which the checkout hides from whoever stands in it."""
    if (_HERE / name).exists():
        return _HERE / name
    for folder in map(Path, sys.path):
        package = folder / "dla_kernels"
        if (package / name).exists() and _version_in(package) == _version_in(_HERE):
            return package / name
    return None


def _version_in(package: Path) -> str | None:
    found = re.search(r'^__version__ = "(.*)"$', (package / "__init__.py").read_text(), re.MULTILINE)
    return found and found[1]


def _load_library(name: str, mend: str, namespace: str = "dla") -> Any:
    path = find_library(f"{name}.so")
    if path is None:
        told = _HERE / "without_kernels.txt"  # by setup.py
        why = f" ({told.read_text().strip()})" if told.exists() else ""
        raise Unavailable(f"its kernels, {name}.so, are not built{why}; {mend}")
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"{path.name} does not load with torch {torch.__version__}: {error}") from error
    _describe(namespace)
    return getattr(torch.ops, namespace)


def _load_cpu() -> Any:
    return _load_library(
        "_C_cpu", "with torch >= 2.11, CMake and a C++17 compiler, run: pip install --no-build-isolation -e ."
    )


# The CUDA kernels executed on CPU tensors, thread by thread: for tests and debugging without a GPU.
SIMT = os.environ.get("DLA_KERNELS_SIMT", "0") not in ("", "0")


def _load_cuda() -> Any:
    if SIMT:
        return _load_library(
            "_C_simt", "from a checkout, run: DLA_KERNELS_SIMT=1 pip install --no-build-isolation -e .", "dla_simt"
        )
    if torch.version.cuda is None:
        raise Unavailable("this torch is built without CUDA; install a CUDA build of torch >= 2.11")
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    _load_cpu()  # it declares the operators
    return _load_library("_C_cuda", "with nvcc on PATH, run: pip install --no-build-isolation -e .")


# Triton's interpreter runs its kernels on CPU tensors, program by program: for tests and debugging without a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _load_triton() -> Any:
    if not INTERPRETED and not torch.cuda.is_available():
        raise Unavailable("torch sees no GPU; to run its kernels slowly on the CPU, set TRITON_INTERPRET=1")
    try:
        triton_ops = importlib.import_module("triton_ops")
    except ImportError as error:
        raise Unavailable(f"{error}; run: pip install triton") from error
    _describe(triton_ops.NAMESPACE)
    return triton_ops.ops


@dataclass
class Backend:
    name: str
    device_types: tuple[str, ...]
    load: Callable[[], Any]
    only_by_name: bool = False  # never chosen for a device unasked
    library: str = ""  # the file of its kernels
    ops: Any = None
    reason: str = field(default="")
    _tried: bool = False

    def serves(self, device_type: str) -> bool:
        """Return whether the backend may be chosen unasked for tensors on such a device."""
        return device_type in self.device_types and not self.only_by_name

    @property
    def available(self) -> bool:
        """Return whether the backend loads here; if not, ``reason`` says why."""
        if not self._tried:
            try:
                self.ops = self.load()
            except Unavailable as why:
                self.reason = str(why)
            self._tried = True
        return self.ops is not None


# In order of preference for a device.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cpu", ("cpu",), _load_cpu, library="_C_cpu.so"),
        Backend(
            "cuda",
            ("cpu" if SIMT else "cuda",),
            _load_cuda,
            only_by_name=SIMT,
            library="_C_simt.so" if SIMT else "_C_cuda.so",
        ),
        Backend("triton", ("cpu" if INTERPRETED else "cuda",), _load_triton, only_by_name=INTERPRETED),
    )
}
REFERENCE = "reference"
NAMES = get_args(BackendName)


def select(backend: str | None, device: torch.device, cell: Cell | None = None) -> str:
    """Return the name of the backend that serves ``device``, and has the rule of the cell where there is one: the one
    asked for, or the best there is."""
    if cell is not None and not cell.compiled:
        if backend not in (None, REFERENCE):
            raise ValueError(
                f"backend: expected None or {REFERENCE!r} with the cell {cell.kind!r}, which was registered in Python "
                f"and has no kernels, got {backend!r}"
            )
        return REFERENCE
    if torch.compiler.is_exporting() and (torch.is_grad_enabled() or torch.onnx.is_in_onnx_export()):
        _warn_of_export()
        return REFERENCE
    if backend is None:
        for candidate in BACKENDS.values():
            if candidate.serves(device.type) and candidate.available:
                return candidate.name
        _warn_once(device.type)
        return REFERENCE
    if backend == REFERENCE:
        return REFERENCE
    check_backend(backend)
    chosen = BACKENDS[backend]
    if not chosen.available:
        raise ValueError(f"backend: {backend!r} is not available here: {chosen.reason}")
    if device.type not in chosen.device_types:
        raise ValueError(
            f"backend: {backend!r} serves tensors on {' or '.join(chosen.device_types)}, got tensors on {device.type}"
        )
    return backend


def check_backend(backend: str | None) -> None:
    """Raise ValueError unless there is such a backend, available or not: modules are made long before they run."""
    if backend is not None and backend not in NAMES:
        raise ValueError(f"backend: expected None or one of {', '.join(NAMES)}, got {backend!r}")


_warned: set[str] = set()


def _warn_of_export() -> None:
    if torch.is_grad_enabled() and "export" not in _warned and not torch.compiler.is_dynamo_compiling():
        _warned.add("export")
        warnings.warn(
            "dla_kernels: exported with gradients, by the reference's formulas; exported under torch.no_grad(), the "
            "program calls the kernels, for inference",
            RuntimeWarning,
            stacklevel=4,
        )


def _warn_once(device_type: str) -> None:
    if device_type in _warned or torch.compiler.is_compiling():
        return
    _warned.add(device_type)
    serving = [b for b in BACKENDS.values() if b.serves(device_type)]
    reasons = "; ".join(f"{b.name}: {b.reason}" for b in serving) or "none serves this device"
    warnings.warn(
        f"dla_kernels: no compiled backend for {device_type} tensors, running the slower reference. {reasons}",
        RuntimeWarning,
        stacklevel=4,
    )
