"""Compile the Triton kernels for GPUs that need not be here, and tabulate what they take of each.

A sample of cells sees every kernel, kind of cell, dtype and chip in ten minutes of two cores: `--write` records it in
tools/resources/triton.json, with a digest of the sources that a test compares, and makes the table in
docs/performance.md, registers per thread and shared memory for kernel and dtype. It does not write what spills to
memory or wants more shared memory than the chip has. `--cells all` looks at every cell, in an hour.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import records
import streams
from records import ROOT, Record

sys.path.insert(0, str(ROOT))
RECORD = records.FOLDER / "triton.json"
TITLE = "## What the Triton kernels take of a chip"
# Backend, architecture, threads of a warp, shared memory that a program may have.
TARGETS = {
    "sm_80": ("cuda", 80, 32, 163 << 10),
    "sm_90": ("cuda", 90, 32, 227 << 10),
    "sm_100": ("cuda", 100, 32, 227 << 10),
    "gfx942": ("hip", "gfx942", 64, 64 << 10),
}
KINDS = ("dsu-sigmoid-context joint", "dia split", "lstm dense", "rnn dense")
TAPS = "eca taps"
RECALIBRATING = (*KINDS[:2], "dia light", "se squeeze", TAPS)
LIGHT = ("dia light", "dsu-sigmoid-context light")
MAP_DTYPES = ("bfloat16", "float32", "float16", "float64")
ROW_DTYPES = ("float32", "float64")
# T, C, R, side of the maps, channels last: a tile of rows and less, few and many channels, even and odd planes.
WIDEST = 1
SHAPES = ((12, 256, 64, 8, True), (3, 2048, 102, 7, False), (6, 1024, 51, 14, False), (3, 64, 16, 56, False))


# Kernels that do nothing but stream maps, and the KB that a processor must have on their way; less, for each byte of an
# access, where planes or rows are so odd that few elements or one are read at a time. fp64 is for checking.
STREAMS = ("gap", "rescale", "rescale_bwd", "gate_gradient", "recalibrate", "shown_gradient", "recalibrate_bwd")
IN_FLIGHT, IN_FLIGHT_ODD = 32, 5
# The same of those that put maps under filters, which have more to do for an element. On AMD each row is waited for by
# itself, and its pieces are half as long.
FILTERS = ("depthwise", "depthwise_bwd", "light_step_filters", "light_step_tap_sums", "light_step_maps_bwd")
FILTERED = {"cuda": (16, 3), "hip": (8, 1)}


class Work(NamedTuple):
    target: str
    op: str
    cell: str  # rule and projection
    dtype: str
    shape: int  # index into SHAPES


class Resources(NamedTuple):
    target: str
    kernel: str
    cell: str
    dtype: str
    registers: int  # of a thread
    spilled: int  # bytes of stack; on AMD, of scratch
    shared: int  # bytes
    widest: int = 0  # bytes of an access to a map, of kernels that stream
    flight: int = 0  # KB on their way on a processor
    turn: int = 0  # instructions of a turn of all its loops over maps


def todo(cells: str) -> Iterator[Work]:
    for number, target in enumerate(TARGETS):
        for op in ("scan", "refresh", "layer_update", "light_step"):
            dtypes = ROW_DTYPES if op in ("scan", "refresh") else MAP_DTYPES
            if cells == "all":
                for i, (cell, dtype) in enumerate(product(every_cell(), dtypes)):
                    yield Work(target, op, cell, dtype, (i + i // len(SHAPES)) % len(SHAPES))
            else:
                for i, cell in enumerate(KINDS):
                    yield Work(target, op, cell, dtypes[(i + number) % len(dtypes)], (i + 2 * number) % len(SHAPES))
                if op == "light_step":  # rows of all widths
                    for shape in range(len(SHAPES)):
                        yield Work(target, op, KINDS[0], "bfloat16", shape)
                if op in ("layer_update", "light_step"):  # where all programs share out each phase
                    for cell in KINDS[:2]:
                        yield Work(target, op, cell, dtypes[number % 2], WIDEST)
        for i, cell in enumerate(RECALIBRATING):
            yield Work(target, "recalibrate", cell, MAP_DTYPES[(i + number) % 2], (i + number) % len(SHAPES))
        for shape in range(len(SHAPES)):  # rows of all widths
            for dtype in MAP_DTYPES[:2]:
                yield Work(target, "recalibrate", TAPS, dtype, shape)
        for i, dtype in enumerate(MAP_DTYPES[2:]):
            yield Work(target, "recalibrate", TAPS, dtype, i)
        for cell in RECALIBRATING[2:4]:  # where all programs share out each phase, and where each has its samples
            for shape in (WIDEST, 0):
                yield Work(target, "recalibrate", cell, "float32", shape)
        for i, (cell, dtype) in enumerate(zip(LIGHT, ROW_DTYPES)):
            yield Work(target, "scan", cell, dtype, i)
        yield Work(target, "scan", LIGHT[0], "float32", WIDEST)
        for i, dtype in enumerate(MAP_DTYPES):
            for op in ("gap", "rescale", "depthwise", "mix", "norm_add", *(["attend"] if dtype in ROW_DTYPES else [])):
                yield Work(target, op, "", dtype, i)


def every_cell() -> list[str]:
    from dla_kernels.cells import ALL_RULES

    usual = [f"{cell.rule} {cell.projection}" for cell in ALL_RULES]
    return [*usual, "lstm split", "lstm joint", "dsu-sigmoid-sigmoid split", "rnn joint"]


class Target:
    """A stand-in for a driver, which Triton asks what to compile for."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(*TARGETS[name][:3])

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def usage(compiled: Any) -> tuple[int, int, int]:
    """Registers, bytes spilled, bytes of shared memory."""
    if "amdgcn" in compiled.asm:
        numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", compiled.asm["amdgcn"]))
        return int(numbers["vgpr_count"]), int(numbers["private_segment_fixed_size"]), compiled.metadata.shared
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    return int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"]), compiled.metadata.shared


def compile_op(work: Work) -> list[Resources]:
    import torch
    from triton.runtime import driver

    from triton_ops import FUNCTIONS, launch
    from triton_ops.cells import RULES

    functions = {f.__name__: f for f in FUNCTIONS}
    driver.set_active(Target(work.target))
    found: list[Resources] = []

    def compile_instead(kernel: Any, programs: Any, like: Any, how: Any, /, **args: Any) -> None:
        limit = {"maxnreg": how.registers} if TARGETS[work.target][0] == "cuda" else {}
        kernel.device_caches.clear()  # they know devices by number, and ours change
        compiled = kernel.warmup(**args, grid=programs, num_warps=how.warps, num_stages=how.stages, **limit)
        name = kernel.fn.__name__.removesuffix("_kernel")
        used = usage(compiled)
        _, _, lanes, shared = TARGETS[work.target]
        streamed = streams.measure(compiled, used[0], lanes, shared) if name in STREAMS + FILTERS else ()
        found.append(Resources(work.target, name, work.cell, work.dtype, *used, *streamed))

    launch.launch = compile_instead
    T, C, R, side, last = SHAPES[work.shape]
    B = 128
    dtype = getattr(torch, work.dtype)
    rows = {"dtype": torch.float64 if work.dtype == "float64" else torch.float32}
    y = torch.empty(T, B, C, **rows)
    order = torch.channels_last if last else torch.contiguous_format
    xs = [torch.empty(B, C, side, side, dtype=dtype).to(memory_format=order) for _ in range(T)]
    if work.op == "gap":
        functions["gap"](xs)
    elif work.op == "rescale":
        functions["rescale"](xs, y)
        functions["rescale_bwd"](xs, xs, y)
    elif work.op == "depthwise":
        v = torch.empty(C, 1, 3, 3, **rows)
        functions["depthwise"](xs[0], v)
        functions["depthwise_bwd"](xs[0], y[:2], xs[0], v)
    elif work.op == "attend":
        taps, past = torch.empty(5, **rows), [torch.empty(n, B, C, **rows) for n in (3, 3, 6)]
        grads = [torch.empty(4, B, C, **rows) for _ in range(3)]
        for before in ([], past[:2], past):
            functions["attend"](y[0], taps, taps, before, C // 32)
            of_layers = [g[: 4 if before else 1] for g in grads]
            functions["attend_bwd"](*of_layers, y[0], taps, taps, before, C // 32)
    elif work.op == "mix":
        functions["mix"](xs, y, True)
        functions["mix_bwd"](xs[0], xs, xs, y)
    elif work.op == "norm_add":
        moments, keep = torch.empty(2, C, **rows), [torch.empty(B, **rows)]
        functions["norm_add"](xs[0], xs[0], moments, *moments, keep, 1e-5, True)
        functions["norm_add_bwd"](xs[0], xs[0], moments, *moments, keep, 1e-5, True, True)
    else:
        rule, projection = work.cell.split()
        cell = RULES.get(rule)  # None of one that remembers nothing
        N = cell.NG * C if cell else C
        half, bottleneck, light = [(R, C), (R,), (N, R), (N,)], [(R, C), (R,), (C, R), (C,)], [(N,)] * 3
        recurrent = {"joint": [(R, 2 * C), (N, R), (N,)], "split": [*half, *half], "dense": [(N, C), (N,)] * 2}
        others = {"light": [*bottleneck, *light], "squeeze": bottleneck, "taps": [(5,)]}
        w = [torch.empty(shape, **rows) for shape in (recurrent | others)[projection]]
        state = [torch.empty(B, C, **rows) for _ in range(0 if cell is None else 1 if rule == "rnn" else 2)]
        states = [y] * (cell.saves_h + cell.saves_c if cell else 0)
        if work.op == "recalibrate":
            for added in ([], xs[:1]) if projection == "taps" else (xs[:1],):
                functions["recalibrate"](xs[0], added, w, state, rule, bool(added))
                of_map = xs[0], added, w, state, y[0], [s[0] for s in states], rule, bool(added)
                functions["recalibrate_bwd"](xs[0], [s[0] for s in states], *of_map)
        elif work.op == "scan":
            functions["scan"](y, w, [], rule)
            functions["scan_bwd"](states, y, w, state, states, rule)
        elif work.op == "refresh":
            functions["refresh"](y, state, w, rule)
            functions["refresh_bwd"](y, y, state, w, rule)
        elif work.op == "light_step":
            v, lam, taps = torch.empty(C, 1, 3, 3, **rows), torch.empty(C, **rows), torch.empty(5, **rows)
            filters, states, heads = [taps, taps, v, lam, v], [s[0] for s in states], C // 32
            functions["light_step"](xs[:2], filters, w, state, rule, heads, True)
            functions["light_step_bwd"](xs[0], states, xs[:2], filters, w, state, y[:2], states, rule, heads)
        else:
            functions["layer_update"](xs, w, [], rule)
            functions["layer_update_bwd"](xs, states, xs, w, state, y, states, rule)
    return found


def digest(root: Path = ROOT) -> str:
    """Return the digest of the sources, and of what is compiled of them and how."""
    files = root.glob("triton_ops/**/*.py")
    reader = streams.machine_code  # but for which loops of the CUDA kernels it looks at
    reading = (reader.functions, reader.Function, reader.Instruction, reader.width, reader.is_load, reader.widest)
    reading += (reader.registers, reader.bytes_ahead)
    how = [inspect.getsource(part) for part in (compile_op, usage, streams, *reading)]
    return records.digest(root, files, TARGETS, SHAPES, list(todo("few")), how)


def version() -> str | None:
    """Return Triton's version, None where it is not installed."""
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def compile_all(cells: str, targets: Collection[str] = tuple(TARGETS)) -> list[Resources]:
    """Compile in a process for each core, and report progress on stderr."""
    os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported, by the processes to come
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # what was compiled before proves nothing
    os.environ.pop("DLA_KERNELS_TRITON_TILES", None)  # the tests choose some that only an interpreter can bear
    work = [some for some in todo(cells) if some.target in targets]
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        found: list[Resources] = []
        for i, some in enumerate(pool.imap_unordered(compile_op, work, chunksize=1), 1):
            found += some
            end = "\r" if sys.stderr.isatty() and i < len(work) else "\n"
            if end == "\r" or i % 50 == 0 or i == len(work):
                print(f"{i} of {len(work)}", end=end, file=sys.stderr, flush=True)
    return sorted(set(found))


def section(record: Record) -> str:
    lines = [
        TITLE,
        "",
        "Registers per thread and KB of shared memory, each the most over a sample of cells and shapes, as Triton",
        f"{record.compiler} compiles sources `{record.digest[:12]}` for chips that were not there. Nothing spills.",
        "`tools/triton_resources.py --write` makes this table, in ten minutes; a test sees to it that it is of the",
        "sources as they are now.",
        "",
        "| kernel | dtype | " + " | ".join(TARGETS) + " |",
        "|---|---|" + "---|" * len(TARGETS),
    ]
    for kernel, dtype in sorted({(r.kernel, r.dtype) for r in record.rows}):
        cells = []
        for target in TARGETS:
            some = [r for r in record.rows if (r.kernel, r.dtype, r.target) == (kernel, dtype, target)]
            cells.append(f"{max(r.registers for r in some)}, {max(r.shared for r in some) / 1024:.0f}" if some else "")
        lines.append(f"| {kernel} | {dtype} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "KB on their way on a processor, which loops that stream maps have asked for before they use the first of it,",
        "the bytes of an access, and the instructions of a turn of all loops, at each of the shapes; elements of 7x7",
        "planes are read one by one. A turn under a filter is two rows of as many columns as an access reads, of",
        "interleaved maps two pixels of four channels.",
        "",
        "| kernel | dtype | " + " | ".join(TARGETS) + " |",
        "|---|---|" + "---|" * len(TARGETS),
    ]
    for kernel, dtype in sorted({(r.kernel, r.dtype) for r in record.rows if r.flight}):
        cells = []
        for target in TARGETS:
            some = [r for r in record.rows if (r.kernel, r.dtype, r.target) == (kernel, dtype, target)]
            counted = sorted({(r.flight, r.widest, r.turn) for r in some})
            cells.append("; ".join(", ".join(map(str, numbers)) for numbers in counted))
        lines.append(f"| {kernel} | {dtype} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def faults(found: list[Resources]) -> list[Resources]:
    """Return the kernels that spill, want more shared memory than there is, or stream with too little on its way."""
    return [r for r in found if r.spilled or r.shared > TARGETS[r.target][3] or starves(r)]


def starves(r: Resources) -> bool:
    if r.kernel not in STREAMS + FILTERS or r.dtype == "float64":
        return False
    even, odd = (IN_FLIGHT, IN_FLIGHT_ODD) if r.kernel in STREAMS else FILTERED[TARGETS[r.target][0]]
    return r.flight < (odd * r.widest if r.widest <= 4 else even)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", choices=("few", "all"), default="few", help="default: few")
    parser.add_argument("--targets", choices=TARGETS, nargs="+", default=list(TARGETS), help="default: all")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON instead of a table, faults or none")
    how.add_argument("--write", action="store_true", help="the record, and the page's table")
    args = parser.parse_args()
    if args.write and (args.cells, set(args.targets)) != ("few", set(TARGETS)):
        parser.error("--write is for all targets, and few cells")
    compiled = digest()
    found = compile_all(args.cells, args.targets)
    if args.json:
        print(json.dumps(found))
        return
    record = Record(compiled, version() or "", found)
    print(section(record))
    record.prove(faults(found), digest())
    if args.write:
        record.write(RECORD)
        records.write_section(section(record), TITLE)


if __name__ == "__main__":
    main()
