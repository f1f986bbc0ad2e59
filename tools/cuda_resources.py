"""Compiles the CUDA kernels for every architecture, without a GPU, and tabulates what ptxas says of each.

Any warning fails the compilation. The table, registers per thread for kernel, dtype and architecture, is kept in
docs/performance.md; tests/test_cuda_build.py fails where a kernel spills registers or has a stack frame.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.resolve()
PAGE = ROOT / "docs" / "performance.md"
TITLE = "## What the CUDA kernels take of a chip"
ARCHS = (75, 80, 86, 89, 90, 100, 120)  # the oldest one that must work, then the default list
DTYPES = {"f": "fp32", "d": "fp64", "NS_8BFloat16E": "bf16", "NS_4HalfE": "fp16"}


class Resources(NamedTuple):
    kernel: str
    dtype: str
    arch: int
    registers: int
    stack: int  # bytes
    spills: int  # bytes, stores and loads


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")


def parse(output: str) -> list[Resources]:
    """From what `ptxas -v` prints, for every entry function."""
    found, entry, stack, spills = [], None, 0, 0
    for line in output.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            entry, stack, spills = match.groups(), 0, 0
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame, stores, loads = map(int, match.groups())
            stack, spills = stack + frame, spills + stores + loads  # also of functions that were not inlined
        elif entry and (match := re.search(r"Used (\d+) registers", line)):
            kernel, dtype = re.match(r"_ZN3dla4cuda\d+(\w+?)_kernelI(\w+?)EEv", entry[0]).groups()  # type: ignore
            found.append(Resources(kernel, DTYPES[dtype], int(entry[1]), int(match.group(1)), stack, spills))
            entry = None
    return found


def compile_all(folder: Path, archs: Iterable[int] = ARCHS) -> list[Resources]:
    """Builds and links _C_cuda in ``folder`` as CMake would for users. Raises with the output if that fails."""
    import torch

    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("nvcc is neither on PATH nor in CUDA_HOME or /usr/local/cuda")
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "TORCH_DIR": torch.__path__[0],
        "DLA_CUDA": "ON",
        "DLA_CUDA_ARCHS": ";".join(map(str, archs)),
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_CUDA_FLAGS": "-Xptxas=-v",
    }
    # ninja keeps the output of each compiler together, which make would mix.
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    output = ""
    for command in (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *(f"-D{name}={value}" for name, value in options.items())],
        ["cmake", "--build", folder, "--target", "_C_cuda", "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, env=env)
        output = done.stdout + done.stderr
        if done.returncode != 0:
            raise RuntimeError(output[-8000:])
    return parse(output)


def nvcc_version() -> str:
    said = subprocess.run([find_nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", said).group(1)  # type: ignore[union-attr]


def section(resources: list[Resources], version: str) -> str:
    archs = sorted({r.arch for r in resources})
    registers = {(r.kernel, r.dtype, r.arch): r.registers for r in resources}
    lines = [
        TITLE,
        "",
        f"Registers per thread, as ptxas of nvcc {version} reports them; `tools/cuda_resources.py --write` makes this",
        "table. No kernel spills a register or has a stack frame on any architecture: a test sees to it. All shared",
        "memory is dynamic, and the plan decides how much: `python -m dla_kernels plan`. fp64 kernels may use up to",
        "255 registers, all others up to 128, so that two blocks of 256 threads fit on a processor.",
        "",
        "| kernel | dtype | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "|---|---|" + "---|" * len(archs),
    ]
    for kernel, dtype in sorted({(r.kernel, r.dtype) for r in resources}):
        cells = " | ".join(str(registers[kernel, dtype, arch]) for arch in archs)
        lines.append(f"| {kernel} | {dtype} | {cells} |")
    return "\n".join(lines) + "\n"


def write(text: str, title: str = TITLE) -> None:
    """In place of the section of that title in the page, or at its end."""
    before, _, rest = PAGE.read_text().partition(title)
    following = rest.find("\n## ")
    PAGE.write_text(before.rstrip() + "\n\n" + text + (rest[following:] if following >= 0 else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "cuda_resources", help="where to build")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, help="such as 90")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    print("compiling for", *(f"sm_{arch}" for arch in args.archs), "(some minutes)", file=sys.stderr, flush=True)
    shutil.rmtree(args.folder, ignore_errors=True)  # what is built already says nothing
    resources = compile_all(args.folder, args.archs)
    text = section(resources, nvcc_version())
    if args.write:
        write(text)
    print(json.dumps(resources) if args.json else text)


if __name__ == "__main__":
    main()
