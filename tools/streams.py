"""How many bytes a Triton kernel that streams maps keeps on their way on a processor, and how wide its accesses are:
read off its machine code, NVIDIA's as nvdisasm lists it, AMD's as it is assembled.

A loop that streams asks for a tile, waits, and uses it; so what counts is what a thread has asked for before it uses
the first of it, times the threads that a processor has room for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple

import machine_code

# A processor: registers of all its threads, and the most threads.
NVIDIA, AMD = (64 << 10, 2048), (128 << 10, 2048)
WAIT = "s_waitcnt vmcnt"
AMD_LOAD = re.compile(r"(?:global|buffer|flat)_load_(ushort|short_d16\w*|sbyte|ubyte|dwordx2|dwordx3|dwordx4|dword)\b")
BYTES = {"ushort": 2, "sbyte": 1, "ubyte": 1, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


class Stream(NamedTuple):
    """What one turn of a loop asks for, in one thread."""

    widest: int  # bytes of its widest load
    ahead: int  # bytes asked for before the first is used
    instructions: int


def nvidia_loops(cubin: bytes) -> Iterator[Stream]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [machine_code.disassembler("nvdisasm"), "-gi", "-c", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for function in machine_code.functions(listing).values():
        loops = list(function.loops())
        for loop in innermost(loops):
            body = function.instructions[loop[0] : loop[-1] + 1]
            if any(map(machine_code.is_load, body)):
                yield Stream(machine_code.widest(body), machine_code.bytes_ahead(body), len(body))


def amd_loops(assembly: str) -> Iterator[Stream]:
    """LLVM says at every block which loop it is in, and which loops are the innermost."""
    blocks = [block.splitlines() for block in re.split(r"^(?=\.LBB)", assembly, flags=re.MULTILINE)[1:]]
    inner, bodies = set(), defaultdict(list)
    for label, *lines in blocks:
        said = label + "".join(takewhile(lambda line: line.lstrip().startswith(";"), lines))
        header = re.search(r"in Loop: Header=(BB\w+)", said)
        name = header[1] if header else label.partition(":")[0].removeprefix(".L")
        bodies[name] += lines
        inner |= {name} if "This Inner Loop Header" in said else set()
    for name in inner:
        widths = [BYTES.get(load[1], 2) for line in bodies[name] if (load := AMD_LOAD.search(line))]
        if widths:
            instructions = sum(re.match(r"\s+[a-z]", line) is not None for line in bodies[name])
            yield Stream(max(widths), longest_run(bodies[name]), instructions)


def longest_run(body: list[str]) -> int:
    """Return the most bytes that are asked for between two waits of a loop, which goes round."""
    runs = [0]
    for line in body:
        if WAIT in line:
            runs.append(0)
        elif load := AMD_LOAD.search(line):
            runs[-1] += BYTES.get(load[1], 2)
    first, *others = runs
    return max([*others[:-1], first + others[-1]]) if others else first


def innermost(loops: list[range]) -> list[range]:
    return [a for a in loops if not any(b[0] in a and b[-1] in a and b != a for b in loops)]


def programs_at_once(registers: int, threads: int, shared: int, of_chip: tuple[int, int], most_shared: int) -> int:
    """Return how many programs a processor has room for."""
    all_registers, most_threads = of_chip
    of_thread = -(-registers // 8) * 8
    return min(all_registers // (of_thread * threads), most_threads // threads, most_shared // max(shared, 1))


def measure(compiled: Any, registers: int, lanes: int, most_shared: int) -> tuple[int, int, int]:
    """Return the bytes of the widest load of a compiled kernel's loops over maps, and the KB on their way on a
    processor, each the least of all loops; and the instructions of a turn of each, together."""
    amd = "amdgcn" in compiled.asm
    found = list(amd_loops(compiled.asm["amdgcn"]) if amd else nvidia_loops(compiled.asm["cubin"]))
    threads = compiled.metadata.num_warps * lanes
    programs = programs_at_once(registers, threads, compiled.metadata.shared, AMD if amd else NVIDIA, most_shared)
    flight = min(loop.ahead for loop in found) * threads * programs >> 10
    return min(loop.widest for loop in found), flight, sum(loop.instructions for loop in found)
