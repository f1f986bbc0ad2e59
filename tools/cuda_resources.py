"""Compile the CUDA kernels for every architecture, without a GPU, and tabulate what each takes of a chip.

Any warning fails the compilation. --write records registers per thread for kernel, dtype and architecture, with a
digest of the sources, in tools/resources/cuda.json, and the table in docs/performance.md; it refuses what has faults.
Of a source (<op>.cu) that is on record as it is, with all that it includes, the recorded rows are taken: all of them
compile for half an hour, one for a few minutes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import machine_code
import records
from machine_code import OBJECTS
from records import ROOT, Record
from toolkit import find_nvcc

RECORD = records.FOLDER / "cuda.json"
TITLE = "## What the CUDA kernels take of a chip"
ARCHS = (75, 80, 86, 89, 90, 100, 120)  # the oldest one that must work, then the default list
FLAGS = "-lineinfo"  # where each instruction comes from, for machine_code.py
# Sections of CMakeLists.txt that do not concern the CUDA kernels.
OTHERS = r"(?ms)^# ---- the CPU backend.*?(?=^# ---- the CUDA backend)|^if\(DLA_SIMT\).*?^endif\(\)\n"
DTYPES = {"f": "fp32", "d": "fp64", "NS_8BFloat16E": "bf16", "NS_4HalfE": "fp16"}


class Resources(NamedTuple):
    kernel: str
    dtype: str
    arch: int
    registers: int
    stack: int  # bytes


def parts(root: Path = ROOT) -> dict[str, str]:
    """Return the digest of each source with all that it includes, and of how it is compiled."""
    rules = re.sub(OTHERS, "", (root / "CMakeLists.txt").read_text())
    how = inspect.getsource(parse), inspect.getsource(compile_all)
    sources = sorted(root.glob("csrc/cuda/*.cu"))
    return {s.name: records.digest(root, records.included([s]), rules, ARCHS, FLAGS, how) for s in sources}


def digest(root: Path = ROOT) -> str:
    """Return the digest of all sources, and of how they are compiled."""
    return records.digest(root, [], parts(root))


def on_record(record: Record, archs: Iterable[int]) -> tuple[list[Resources], list[str]]:
    """Return the rows that compiling again would only repeat, and the names of the sources that the record lacks."""
    known = record.parts if record.compiler == version() else {}
    stale = [name for name, part in parts().items() if known.get(name) != part]
    kernels = {
        kernel: source.name
        for source in ROOT.glob("csrc/cuda/*.cu")
        for kernel in re.findall(r"DLA_LAUNCH_\w+\((\w+)_kernel", source.read_text())
    }
    kept = [r for r in record.rows if r.arch in archs and kernels.get(r.kernel) in {*known} - {*stale}]
    return kept, stale


def parse(output: str) -> list[Resources]:
    """From what `cuobjdump -res-usage` prints of an object, for every entry function."""
    found, arch, entry = [], 0, ""
    for line in output.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function (\w+):", line):
            entry = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+)", line):
            kernel, dtype = re.match(r"_ZN3dla4cuda\d+(\w+?)_kernelI(\w+?)EEv", entry).groups()  # type: ignore
            found.append(Resources(kernel, DTYPES[dtype], arch, int(match[1]), int(match[2])))
    return found


def compile_all(folder: Path, archs: Iterable[int] = ARCHS, sources: Iterable[str] | None = None) -> list[Resources]:
    """Build and link _C_cuda in ``folder`` as CMake would for users, or compile some sources as for it, unless that is
    what it holds. Raise with the output if that fails."""
    import torch

    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("nvcc is neither on PATH nor in CUDA_HOME or /usr/local/cuda")
    stamp, wanted = folder / "compiled", repr((version(), [*archs], sources and [*sources], parts()))
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)  # what else is there says nothing
        folder.mkdir(parents=True)
        options = {
            "TORCH_DIR": torch.__path__[0],
            "DLA_CUDA": "ON",
            "DLA_CUDA_ARCHS": ";".join(map(str, archs)),
            "CMAKE_CUDA_COMPILER": nvcc,
            "CMAKE_CUDA_FLAGS": FLAGS,
        }
        # ninja keeps the output of each compiler together, which make would mix.
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        objects = [f"{OBJECTS}/{name}.o" for name in sources or ()]
        configured = [f"-D{name}={value}" for name, value in options.items()]
        for command in (
            ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *configured],
            ["cmake", "--build", folder, "--target", *(objects or ["_C_cuda"]), "--parallel", os.cpu_count() or 1],
        ):
            done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False, env=env)
            if done.returncode != 0:
                raise RuntimeError((done.stdout + done.stderr)[-8000:])
        stamp.write_text(wanted)
    found = []
    for path in sorted((folder / OBJECTS).glob("*.cu.o")):
        command = [machine_code.disassembler("cuobjdump"), "-res-usage", str(path)]
        found += parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def version() -> str | None:
    """Return nvcc's version, None where there is no nvcc."""
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", said).group(1)  # type: ignore[union-attr]


# Inner loops take all the registers there are, and are to have nothing in a stack frame: machine_code.py counts that.
# What outlives them, such as which tile is next, may wait there, which costs little beside thousands of loads of maps.
FRAME, FRAMES = 64, {"light_step": 256, "light_step_bwd": 256, "phase": 192}  # bytes; phase: in fp64


def faults(found: list[Resources]) -> list[Resources]:
    """Return kernels that outgrow their frame, or (fp64 may) leave no registers for a second block on a processor."""
    return [r for r in found if r.stack > FRAMES.get(r.kernel, FRAME) or (r.dtype != "fp64" and r.registers > 128)]


def section(record: Record) -> str:
    archs = sorted({r.arch for r in record.rows})
    registers = {(r.kernel, r.dtype, r.arch): r.registers for r in record.rows}
    lines = [
        TITLE,
        "",
        f"Registers per thread in what nvcc {record.compiler} makes of sources `{record.digest[:12]}`;",
        "`tools/cuda_resources.py --write` makes this table. No kernel has a stack frame of more than",
        f"{FRAME} bytes, {FRAMES['light_step']} in `light_step`, for what outlives inner loops, {FRAMES['phase']} in",
        "`phase` in fp64. All shared memory is dynamic, and the plan decides how much: `python -m dla_kernels plan`.",
        "fp64 kernels may use up to 255 registers, all others up to 128, so that two blocks of 256 threads fit on a",
        "processor.",
        "",
        "| kernel | dtype | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "|---|---|" + "---|" * len(archs),
    ]
    for kernel, dtype in sorted({(r.kernel, r.dtype) for r in record.rows}):
        cells = " | ".join(str(registers[kernel, dtype, arch]) for arch in archs)
        lines.append(f"| {kernel} | {dtype} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "cuda_resources", help="where to build")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, help="such as 90")
    parser.add_argument("--all", action="store_true", help="compile and link what is on record too")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON instead of a table, faults or none")
    how.add_argument("--write", action="store_true", help="the record and the page's table")
    args = parser.parse_args()
    if args.write and set(args.archs) != set(ARCHS):
        parser.error("--write is for all architectures")
    compiled, compiled_parts = digest(), parts()
    kept, stale = on_record(records.read(RECORD, Resources), args.archs)
    every = args.all or len(stale) == len(compiled_parts)
    what = "all sources" if every else ", ".join(stale) or "nothing"
    print(f"compiling {what} for", *(f"sm_{arch}" for arch in args.archs), file=sys.stderr, flush=True)
    if every:
        kept, stale = [], None
    found = sorted([*kept, *(compile_all(args.folder, args.archs, stale) if stale != [] else [])])
    if args.json:
        print(json.dumps(found))
        return
    record = Record(compiled, version() or "", found, compiled_parts)
    print(section(record))
    known = records.read(machine_code.RECORD, machine_code.Counts)
    loops = machine_code.record_of(args.folder, record, known) if args.write else known
    record.prove([*faults(found), *machine_code.faults(loops.rows)], digest())
    if args.write:
        record.write(RECORD)
        records.write_section(section(record), TITLE)
        loops.write(machine_code.RECORD)
        records.write_section(machine_code.section(loops), machine_code.TITLE)


if __name__ == "__main__":
    main()
