"""Devices that benchmarks ask for a clock, CUDA graphs, launch counts and memory, and a stand-in for a GPU.

Everything else in the GPU benchmarks is ordinary PyTorch, so with `StandIn` they run on any machine: the
tests do that, and `python tools/gpu.py --rehearse`.

`python -m bench.devices` prints the facts of this machine's GPU as JSON.
"""

from __future__ import annotations

import gc
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common import LATEST, commit

sys.path.append(str(Path(__file__).parent.parent / "tools"))
from toolkit import find_nvcc

Call = Callable[[], object]


def slug(name: str) -> str:
    """Return a folder's name for a device: h200 for NVIDIA H200."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "tesla", "geforce")) or "gpu"


def output_of(*command: str) -> str:
    """Return what a tool prints, empty where it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def driver() -> str:
    tool = shutil.which("nvidia-smi") or "/usr/local/nvidia/bin/nvidia-smi"
    lines = output_of(tool, "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0].strip() if lines else "unknown"


def nvcc() -> str:
    found = re.search(r"release ([\d.]+)", output_of(find_nvcc() or "nvcc", "--version"))
    return found.group(1) if found else "unknown"


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Cuda:
    """The CUDA device that is measured."""

    type = backend = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device; `python -m dla_kernels info` says more")
        self.properties = torch.cuda.get_device_properties(0)
        self.l2_bytes: int = self.properties.L2_cache_size
        self.name: str = self.properties.name
        # A fair comparison: cuDNN would otherwise use TF32 where everybody else computes in fp32.
        torch.backends.cudnn.allow_tf32 = False

    def facts(self) -> dict:
        return {
            "device": self.name,
            "slug": slug(self.name),
            "driver": driver(),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
            "multiprocessors": self.properties.multi_processor_count,
            "l2_mb": round(self.l2_bytes / 1e6, 1),
            "memory_gb": round(self.properties.total_memory / 1e9, 1),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": version("triton"),
            "nvcc": nvcc(),
        }

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def timed(self, call: Call, times: int) -> float:
        """Return the milliseconds of one call, from `times` calls in a row."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / times

    def captured(self, calls: list[Call]) -> list[Call]:
        """Return the calls as CUDA graphs. All share one pool of memory, since they replay one after the other."""
        stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                calls[0]()
        self.release()  # cached memory cannot go to the graphs' pool during a capture
        graphs: list[Call] = []
        # As torch.cuda.graph does, without its garbage collection at each of a hundred graphs. A collection during
        # a capture could free what must not be freed there.
        gc.disable()
        try:
            with torch.cuda.stream(stream):
                for call in calls:
                    graph = torch.cuda.CUDAGraph()
                    graph.capture_begin(pool=pool)
                    try:
                        call()
                    finally:
                        graph.capture_end()
                    graphs.append(graph.replay)
        finally:
            gc.enable()
        torch.cuda.current_stream().wait_stream(stream)
        return graphs

    def launches(self, call: Call, times: int = 5) -> dict[str, float]:
        """Count by the profiler the kernels and copies (memcpy, memset) that one call puts on the device."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        call()
        self.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(times):
                call()
            self.synchronize()
        events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        # Ranges and waits that the profiler shows on the device's timeline are no launches.
        on_device = [e.name for e in events if not getattr(e, "is_user_annotation", False) and "Sync" not in e.name]
        copies = sum(name.startswith(("Memcpy", "Memset")) for name in on_device)
        if not on_device:
            raise RuntimeError("the profiler saw no kernel")
        return {"kernels": (len(on_device) - copies) / times, "copies": copies / times}

    def peak_bytes(self, call: Call) -> int:
        """Return the memory that a call holds at its peak beyond what was held before it."""
        call()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        """Give back the memory that nobody holds any more."""
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()


class Cpu:
    """The CPU as a device: it times by the wall clock, counts calls into torch as launches, and has no graphs."""

    type = backend = "cpu"
    name = "cpu"
    l2_bytes = 1  # one set of inputs will do: candidates take turns, and drive each other's out of the caches

    def facts(self) -> dict:
        model = re.search(r"model name\s*: (.*)", output_of("cat", "/proc/cpuinfo"))
        threads = {"threads": torch.get_num_threads()}
        return {"device": model.group(1) if model else platform.machine(), "slug": self.name, **threads}

    def free_bytes(self) -> int:
        return 1 << 30

    def synchronize(self) -> None:
        pass

    clock = staticmethod(time.perf_counter)

    def timed(self, call: Call, times: int) -> float:
        """Return the milliseconds of one call, from `times` calls in a row."""
        start = self.clock()
        for _ in range(times):
            call()
        return 1e3 * (self.clock() - start) / times

    def captured(self, calls: list[Call]) -> list[Call]:
        raise RuntimeError("no graphs on a CPU")

    def launches(self, call: Call) -> dict[str, float]:
        """Return how many calls into torch compute something, which views and allocations do not."""
        with Calls() as calls:
            call()
        return {"kernels": float(calls.count), "copies": 0.0}

    def peak_bytes(self, call: Call) -> int:
        """Return the most memory of torch's that a call holds at a time beyond what was held before it."""
        call()
        if not (changes := memory_changes(call)):
            raise RuntimeError("the profiler saw no memory")
        return max(0, *accumulate(changes))

    def release(self) -> None:
        gc.collect()


def memory_changes(call: Call) -> list[int]:
    """Return the bytes that a call takes from torch's allocator, or gives back, one after the other. The garbage
    collector is off meanwhile, so that memory which others have left to it does not come back."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
    finally:
        if collects:
            gc.enable()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """A context that records what autograd keeps of what is computed in it, its inputs aside."""

    def __init__(self, inputs: Iterable[torch.Tensor]) -> None:
        super().__init__(self.pack, lambda x: x)
        self.own = {x.untyped_storage().data_ptr() for x in inputs}
        self.held: dict[int, torch.Tensor] = {}  # by address; held, so that no address is used again

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        self.held[x.untyped_storage().data_ptr()] = x
        return x

    @property
    def sizes(self) -> list[int]:
        """Return the bytes of each storage that is kept."""
        return [x.untyped_storage().nbytes() for address, x in self.held.items() if address not in self.own]


class Calls(TorchDispatchMode):
    """A mode that counts the operators that reach a kernel which computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        free = any(a.alias_info and not a.alias_info.is_write for a in func._schema.returns) or "empty" in func.__name__
        self.count += not free
        return func(*args, **(kwargs or {}))


class StandIn(Cpu):
    """A CPU that stands in for a GPU, with tiny caches, a clock that may be given, and plain calls for graphs."""

    name = "stand-in"
    l2_bytes = 64 << 10

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def facts(self) -> dict:
        return {"device": self.name, "slug": self.name, "torch": torch.__version__, "l2_mb": self.l2_bytes / 1e6}

    def captured(self, calls: list[Call]) -> list[Call]:
        return calls

    def launches(self, call: Call) -> dict[str, float]:
        call()
        return {"kernels": 1.0, "copies": 0.0}

    def peak_bytes(self, call: Call) -> int:
        call()
        return 0


def new_results(device: Cuda | StandIn, out: Path | None) -> tuple[Path, dict[str, Any]]:
    """Make the folder for a device's results; return it, and results that have no rows yet."""
    folder = out or LATEST / slug(device.name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, {"system": device.facts(), "commit": commit(), "rows": []}


if __name__ == "__main__":
    device = StandIn() if "--stand-in" in sys.argv else Cuda()
    print(json.dumps({**device.facts(), "commit": commit()}))
