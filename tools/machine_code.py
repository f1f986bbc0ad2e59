"""Read the machine code of the CUDA kernels' hot loops, and say where it outgrows what is allowed.

It looks into what tools/cuda_resources.py compiled: the objects know the source line of every instruction, so a loop is
found by the line of its `for`. What it counts is recorded beside the registers, and shown in docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import records
from records import ROOT, Record

RECORD = records.FOLDER / "machine_code.json"
TITLE = "## The machine code of hot loops"
ARCHS = (80, 90, 100)
OBJECTS = "CMakeFiles/_C_cuda.dir/csrc/cuda"  # where CMake puts what it compiles


class Counts(NamedTuple):
    """What one turn of a loop holds."""

    loop: str
    arch: int
    instructions: int
    loads: int  # from global memory
    bytes_ahead: int  # that a thread has asked for before it uses the first of them
    generic: int  # accesses to memory that may be of any kind, looked up at run time
    divisions: int  # conversions to floating point, with which an integer division begins
    fences: int  # of all memory, and cache lines dropped
    branches: int  # between the first load from global memory and the last
    spills: int  # accesses to what found no register


class Loop(NamedTuple):
    """A hot loop: the source that its kernel is in, the function and how its `for` begins, what one turn does, and what
    is allowed in it: the most, of bytes ahead the least."""

    name: str
    kernel: str
    file: str
    function: str
    begins: str
    turn: str
    limits: Mapping[str, int]
    variant: Mapping[str, int] = MappingProxyType({})  # counts of loads or stores that tell which one is meant
    dtype: str = "bf16"  # of the kernel


MANGLED = {"bf16": "BFloat16E", "fp32": "kernelIfE"}
NONE = {"divisions": 0, "fences": 0, "spills": 0}
# Of the variants of a loop that a kernel holds the one is meant that has the widest loads, and of such the longest.
# The limits are what was reached, with a little room.
LOOPS = (
    Loop(
        "pool planes",
        "layer_update",
        "planes.cuh",
        "planar_sums",
        "for (int v0 = team.lane;",
        "4 vectors of 8 pixels",
        NONE | {"instructions": 128, "bytes_ahead": 64, "generic": 0, "branches": 0},
    ),
    Loop(
        "rescale planes",
        "layer_update",
        "planes.cuh",
        "scale_planes",
        "for (int v0 = team.lane;",
        "3 vectors of 8 pixels",
        NONE | {"instructions": 130, "bytes_ahead": 48, "generic": 0, "branches": 1},
    ),
    Loop(
        "step of the scan",
        "layer_update",
        "steps.cuh",
        "forward",
        "for (int t = 0;",
        "a layer, of any cell",
        NONE | {"instructions": 660, "generic": 6},
    ),
    Loop(
        "step back",
        "layer_update_bwd",
        "steps.cuh",
        "backward",
        "for (int t = tile",
        "a layer, of any cell",
        NONE | {"instructions": 720, "generic": 3, "spills": 5},
    ),
    Loop(
        "filter of one map",
        "light_step",
        "stencil.cuh",
        "walk",
        "for (int i = top;",
        "32 pixels",
        NONE | {"instructions": 740, "bytes_ahead": 96, "generic": 0, "branches": 0},
        {"stores": 8},
    ),
    Loop(
        "filter of two maps",
        "light_step",
        "stencil.cuh",
        "walk",
        "for (int i = top;",
        "16 pixels of both",
        NONE | {"instructions": 640, "bytes_ahead": 96, "generic": 0, "branches": 0},
        {"stores": 4},
    ),
    Loop(
        "sums for two filters",
        "light_step_bwd",
        "stencil.cuh",
        "walk",
        "for (int i = top;",
        "8 pixels of both",
        NONE | {"instructions": 275, "bytes_ahead": 56, "generic": 0, "branches": 0},
        {"loads": 10, "stores": 0},
    ),
    Loop(
        "gradients of two maps",
        "light_step_bwd",
        "stencil.cuh",
        "walk",
        "for (int i = top;",
        "16 pixels of both",
        NONE | {"instructions": 560, "bytes_ahead": 48, "generic": 0, "branches": 0},
        {"stores": 8},
    ),
    Loop(
        "scale and add planes",
        "recalibrate",
        "recalibrate_maps.cuh",
        "write_planes",
        "for (int v0 = team.lane;",
        "2 vectors of 8 pixels of both",
        NONE | {"instructions": 180, "bytes_ahead": 64, "generic": 0, "branches": 1},
        {"loads": 4},
    ),
    Loop(
        "sums behind a relu",
        "recalibrate_bwd",
        "recalibrate_maps.cuh",
        "sum_planes",
        "for (int v0 = team.lane;",
        "2 vectors of 8 pixels of three",
        NONE | {"instructions": 190, "bytes_ahead": 96, "generic": 0, "branches": 0},
        {"loads": 6},
    ),
    Loop(
        "gradients behind a relu",
        "recalibrate_bwd",
        "recalibrate_maps.cuh",
        "write_planes",
        "for (int v0 = team.lane;",
        "2 vectors of 8 pixels of two, and of two written",
        NONE | {"instructions": 215, "bytes_ahead": 64, "generic": 0, "branches": 1},
        {"loads": 4},
    ),
    Loop(
        "slab of a product",
        "phases",
        "tile_product.cuh",
        "add",
        "for (int64_t k0 =",
        "32 terms of 32 x 32 sums",
        NONE | {"instructions": 380, "bytes_ahead": 16, "generic": 0},
        dtype="fp32",
    ),
)

# ---- from a listing to loops ----

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)')
SECTION = re.compile(r"^\.text\.(\S+):")
LABEL = re.compile(r"^\.(L_x_\d+):")


class Instruction(NamedTuple):
    text: str
    source: tuple[tuple[str, int], ...]  # (file, line), the innermost first

    @property
    def words(self) -> tuple[str, str]:
        """Return the name and the operands, without the predicate."""
        name, _, operands = re.sub(r"^@!?U?P\w+\s+", "", self.text).partition(" ")
        return name, operands

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def operands(self) -> list[str]:
        return self.words[1].split(",")


class Function(NamedTuple):
    instructions: list[Instruction]
    labels: dict[str, int]  # where a label stands among them

    def loops(self) -> Iterator[range]:
        """Yield where each loop stands: from what a branch leads back to, to the last such branch."""
        ends: dict[int, int] = {}
        for i, instruction in enumerate(self.instructions):
            target = re.search(r"`\(\.(L_x_\d+)\)", instruction.text)
            if instruction.name.startswith("BRA") and target and self.labels.get(target[1], i + 1) <= i:
                ends[self.labels[target[1]]] = i
        # Code that is rarely needed stands at the end of a kernel and leads back into the midst of a loop.
        for begin, end in ends.items():
            if not any(other < begin <= its_end < end for other, its_end in ends.items()):
                yield range(begin, end + 1)

    def loops_of(self, line: tuple[str, int]) -> list[list[Instruction]]:
        """Return the loops, in all variants, whose `for` is in that line: the innermost that hold something of it."""
        here = [i for i, instruction in enumerate(self.instructions) if instruction.source[:1] == (line,)]
        holding = [loop for loop in self.loops() if any(i in loop for i in here)]
        inner = [a for a in holding if not any(b[0] in a and b[-1] in a and b != a for b in holding)]
        return [self.instructions[loop[0] : loop[-1] + 1] for loop in inner]


def functions(listing: str) -> dict[str, Function]:
    """Return the functions of what `nvdisasm -gi -c` prints, by their names."""
    found: dict[str, Function] = {}
    function, source, complete = Function([], {}), [], True
    for line in listing.splitlines():
        if section := SECTION.match(line):
            function = found[section[1]] = Function([], {})
        elif label := LABEL.match(line):
            function.labels[label[1]] = len(function.instructions)
        elif place := SOURCE.search(line):
            if complete:  # the first line of another chain of inlined calls
                source, complete = [], False
            source.append((Path(place[1]).name, int(place[2])))
        elif instruction := INSTRUCTION.match(line):
            function.instructions.append(Instruction(instruction[2], tuple(source)))
            complete = True
    return found


# ---- what a loop holds ----


def width(name: str) -> int:
    """Return the bytes that a load brings."""
    for bits in (128, 64):
        if f".{bits}" in name:
            return bits // 8
    return 1 if re.search(r"\.[SU]8", name) else 2 if re.search(r"\.[SU]16", name) else 4


def is_load(instruction: Instruction) -> bool:
    return instruction.name.startswith("LDG") or instruction.name.partition(".")[0] == "LD"


def accesses(body: list[Instruction]) -> dict[str, int]:
    """Return how often a loop reads and writes global memory."""
    return {"loads": sum(map(is_load, body)), "stores": sum(i.name.startswith("STG") for i in body)}


def widest(body: list[Instruction]) -> int:
    return max((width(instruction.name) for instruction in body if is_load(instruction)), default=0)


def registers(operand: str, count: int = 1) -> set[int]:
    return {int(r) + i for r in re.findall(r"\bR(\d+)", operand) for i in range(count)}


def bytes_ahead(body: list[Instruction]) -> int:
    """Return how many bytes are asked for before the first of them is used."""
    arriving: set[int] = set()
    asked = 0
    for instruction in body:
        used = instruction.operands if instruction.name.startswith(("ST", "BRA")) else instruction.operands[1:]
        if any(registers(operand, 2 if ".64" in operand else 1) & arriving for operand in used):
            break
        if is_load(instruction):
            asked += width(instruction.name)
            arriving |= registers(instruction.operands[0], max(1, width(instruction.name) // 4))
    return asked


def count(loop: str, arch: int, body: list[Instruction]) -> Counts:
    names = [instruction.name.partition(".")[0] for instruction in body]
    loads = [i for i, instruction in enumerate(body) if is_load(instruction)]
    return Counts(
        loop,
        arch,
        instructions=len(body),
        loads=len(loads),
        bytes_ahead=bytes_ahead(body),
        generic=sum(name in ("LD", "ST") for name in names),
        divisions=sum(name == "I2F" for name in names),
        fences=sum(name in ("MEMBAR", "CCTL", "ERRBAR", "CGAERRBAR") for name in names),
        branches=names[loads[0] : loads[-1]].count("BRA") if loads else 0,
        spills=sum(name in ("LDL", "STL") for name in names),
    )


def line_of(loop: Loop, root: Path = ROOT) -> int:
    """Return the line of the loop's `for`: the first of its kind after its function begins."""
    inside = False
    for number, line in enumerate((root / "csrc/cuda" / loop.file).read_text().splitlines(), 1):
        inside = inside or re.search(rf"DLA_DEVICE .*\b{loop.function}\(", line) is not None
        if inside and line.strip().startswith(loop.begins):
            return number
    raise LookupError(f"{loop.file}: expected {loop.begins!r} in {loop.function}")


def measured(loop: Loop, arch: int, function: Function, root: Path = ROOT) -> Counts:
    """Return the counts of the loop in its kernel, of the variant that is meant."""
    place = (loop.file, line_of(loop, root))
    variants = [body for body in function.loops_of(place) if loop.variant.items() <= accesses(body).items()]
    if not variants:
        raise LookupError(f"{loop.kernel}, sm_{arch}: its machine code has no loop of {loop.file}, line {place[1]}")
    return count(loop.name, arch, max(variants, key=lambda body: (widest(body), len(body))))


def faults(found: Iterable[Counts]) -> list[str]:
    """Return what exceeds the limits of its loop."""
    limits = {loop.name: loop.limits for loop in LOOPS}
    said = []
    for counts in found:
        for name, limit in limits[counts.loop].items():
            value = getattr(counts, name)
            if value < limit if name == "bytes_ahead" else value > limit:
                most = "least" if name == "bytes_ahead" else "most"
                said.append(f"{counts.loop}, sm_{counts.arch}: {name} {value}, allowed at {most} {limit}")
    return said


# ---- what was compiled ----


def disassembler(name: str) -> str:
    """Return where cuobjdump or nvdisasm is: with nvcc, or in Triton's package."""
    beside_nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / name
    if found := shutil.which(name) or (str(beside_nvcc) if beside_nvcc.exists() else None):
        return found
    import triton

    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


def listings(compiled: Path) -> Iterator[tuple[int, str]]:
    """Yield the architecture and the listing of all machine code in an object."""
    with tempfile.TemporaryDirectory() as folder:
        command = [disassembler("cuobjdump"), "-xelf", "all", str(compiled.resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            arch = int(re.search(r"sm_(\d+)", cubin.name)[1])  # type: ignore[index]
            command = [disassembler("nvdisasm"), "-gi", "-c", str(cubin)]
            yield arch, subprocess.run(command, capture_output=True, text=True, check=True).stdout


def measure(folder: Path, archs: Iterable[int] = ARCHS, root: Path = ROOT) -> list[Counts]:
    """Return the counts of all loops whose kernels tools/cuda_resources.py compiled into a folder."""
    found = []
    for kernel in sorted({loop.kernel for loop in LOOPS}):
        compiled = folder / OBJECTS / f"{kernel}.cu.o"
        for arch, listing in listings(compiled) if compiled.exists() else ():
            if arch in archs:
                kernels = functions(listing)
                for loop in (loop for loop in LOOPS if loop.kernel == kernel):
                    (function,) = (f for name, f in kernels.items() if MANGLED[loop.dtype] in name)
                    found.append(measured(loop, arch, function, root))
    return sorted(found)


def record_of(folder: Path, compiled: Record, known: Record) -> Record:
    """Return the record of what was compiled into a folder, and of what was known and not compiled again."""
    found = measure(folder)
    again = {counts.loop for counts in found}
    return Record(compiled.digest, compiled.compiler, sorted([*found, *(c for c in known.rows if c.loop not in again)]))


def section(record: Record) -> str:
    turns = {loop.name: loop.turn for loop in LOOPS}
    counted = [name.replace("_", " ") for name in Counts._fields[2:]]
    lines = [
        TITLE,
        "",
        f"What one turn of each loop holds for bf16 maps, special cases included, in what nvcc {record.compiler}",
        f"made of sources `{record.digest[:12]}`. `tools/machine_code.py` says what is allowed, and",
        "`tools/cuda_resources.py --write` makes this table. Bytes ahead: what a thread asks for before it uses the",
        "first of it. Generic: accesses to memory that may be of any kind. Divisions: of integers. Fences: of all",
        "memory, and of the first-level cache. Branches: between the first load and the last. Spills: accesses to what",
        "found no register.",
        "",
        "| " + " | ".join(["loop", "one turn", "chip", *counted]) + " |",
        "|---|---|---|" + "---|" * len(counted),
    ]
    lines += [
        f"| {c.loop} | {turns[c.loop]} | sm_{c.arch} | " + " | ".join(map(str, c[2:])) + " |" for c in record.rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/cuda_resources", help="of the build (%(default)s)")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, help="such as 90 (default: %(default)s)")
    args = parser.parse_args()
    found = measure(args.folder, args.archs)
    for counts in found:
        print(", ".join(f"{name} {value}" for name, value in counts._asdict().items()))
    if wrong := faults(found):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
