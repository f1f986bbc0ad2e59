"""The suite would notice every barrier of the CUDA kernels left out, and every buffer of their plans an element short.

The kernels of a copy of csrc run through the SIMT shim, in one program without torch (cuda_harness.cpp). The copy
can leave out any one barrier, so that a single build serves all of them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
KERNELS = [f"{name}.cuh" for name in ("products", "planes", "stacks", "tile", "steps")]
KERNELS += [f"{name}.cuh" for name in ("recurrence", "recurrence_bwd")]
KERNELS += [f"{name}.cuh" for name in ("scan", "refresh", "layer_update", "weight_gradients")]
KERNELS += [f"{name}.cuh" for name in ("gather", "light_step", "attend")]
KERNELS += [f"{name}.cuh" for name in ("tile_product", "recalibrate", "recalibrate_maps")]
BUFFERS_H, PLANNER = CSRC / "cuda" / "plan.h", CSRC / "cuda" / "planner.h"
SEEDS = 20

# ---- where a kernel can be broken ----

# What is left out, and what stands there instead.
BREAKS = {
    r"\b(block_barrier|group_barrier)\(\);": ["void()"],
    r"\bgroup_barrier\(\);": ["block_barrier()"],  # as if a group were one block
    r"\bparity_ \^= 1;": ["void()"],
    r"\bwait_for_letters\([^;]*;": ["void()"],
    r"\bexpect_letters\([^;]*;": ["void()"],
    r"\bopen_letterbox\([^;]*;": ["void()"],
    r"\bawait_copies\(\);": ["void()"],
}
FUNCTION = re.compile(r"DLA_KERNEL\((\w+)|DLA_DEVICE (?:explicit )?[\w:<>*& ]*?(\w+)\(")


class Site(NamedTuple):
    number: int
    file: str
    name: str  # which stays the same while lines move
    begin: int
    end: int
    statement: str
    instead: str


def sites_of(file, first):
    text = (CSRC / "cuda" / file).read_text()
    found = []
    for pattern, replacements in BREAKS.items():
        for match in re.finditer(pattern, text):
            function = [m[1] or m[2] for m in FUNCTION.finditer(text, 0, match.start())][-1]
            found += [(match, function, instead) for instead in replacements]
    seen = {}
    for i, (match, function, instead) in enumerate(found):
        what = match[0].partition("(")[0].rstrip("; ") + (" weakened" if instead != "void()" else "")
        seen[function, what] = nth = seen.get((function, what), 0) + 1
        name = f"{file.removesuffix('.cuh')}: {function}, {what} {nth}"
        yield Site(first + i, file, name, match.start(), match.end(), match[0].rstrip(";"), instead)


def all_sites():
    sites = []
    for file in KERNELS:
        sites += sites_of(file, len(sites))
    return sites


SITES = all_sites()

# Other barriers stand between the same accesses, so that one of these alone is not missed.
REDUNDANT = {
    "recurrence: hoist, block_barrier 1",
    "recurrence: refresh, block_barrier 2",
    "recurrence_bwd: begin, block_barrier 1",
    "recurrence_bwd: finish, block_barrier 2",
    "recurrence_bwd: finish, block_barrier 3",
    "recalibrate: back, block_barrier 2",
}
BUFFERS = re.findall(r"^  (k\w+),", BUFFERS_H.read_text().partition("enum Buffer {")[2].partition("}")[0], re.MULTILINE)


# ---- the copy, and programs made of it ----

TWO_RULES = """\
#define DLA_FOR_EACH_RULE(X) \\
  X("lstm", Lstm)            \\
  X("dsu-sigmoid-context", Dsu<Sigmoid, Identity>)
"""


def replaced(text, pattern, to):
    text, count = re.subn(pattern, to, text)
    assert count == 1, f"{pattern} is there {count} times"
    return text


def breakable_copy(folder):
    shutil.copytree(CSRC, folder, ignore=shutil.ignore_patterns("cpu"))
    for file in KERNELS:
        path = folder / "cuda" / file
        text, at, pieces = path.read_text(), 0, []
        breaks = {}  # one place can break in several ways
        for site in SITES:
            if site.file == file:
                breaks.setdefault((site.begin, site.end), []).append(site)
        for (begin, end), sites in sorted(breaks.items()):
            code = f"({sites[0].statement})"
            for site in sites:
                code = f"(LEFT_OUT({site.number}) ? void({site.instead}) : void({code}))"
            pieces += [text[at:begin], code + ";"]
            at = end
        path.write_text("".join([*pieces, text[at:]]))
    plan = folder / "cuda" / PLANNER.name
    size = r"divide_up\((elements\(.*?, p, plan\) \* p.accumulate_bytes), kAlign\) \* kAlign"
    to = r"sized(i, \1, p.accumulate_bytes)"
    plan.write_text(replaced(plan.read_text(), size, to).replace("constexpr int64_t kAlign = 128;", ""))
    # Two rules have every kind of state between them, and compile several times faster.
    cells = folder / "cells" / "cells.h"
    every_rule = r"#define DLA_FOR_EACH_RULE\(X\)(?:[^\n]*\\\n)+[^\n]*\n"
    cells.write_text(replaced(cells.read_text(), every_rule, lambda _: TWO_RULES))


BUILDS = {
    "plain": ["-O1"],
    "sanitized": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return run(build, *arguments) of the harness; all builds are compiled at once."""
    folder = tmp_path_factory.mktemp("mutations")
    breakable_copy(folder / "csrc")
    common = ["g++", "-std=c++17", "-Wno-unknown-pragmas", "-DDLA_SIMT", f"-I{TESTS / 'simt'}", f"-I{folder / 'csrc'}"]
    compilers = {
        name: subprocess.Popen(
            [*common, *flags, TESTS / "cuda_harness.cpp", "-o", folder / name], stderr=subprocess.PIPE, text=True
        )
        for name, flags in BUILDS.items()
    }
    for compiler in compilers.values():
        _, errors = compiler.communicate()
        assert compiler.returncode == 0, errors

    def run(build, *arguments):
        command = [folder / build, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run


def printed(done):
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


# ---- tests ----


def test_the_copy_can_be_broken_at_every_site(tmp_path):
    breakable_copy(tmp_path / "csrc")
    copied = "".join((tmp_path / "csrc" / "cuda" / file).read_text() for file in KERNELS)
    assert sorted(map(int, re.findall(r"LEFT_OUT\((\d+)\)", copied))) == [site.number for site in SITES]


def test_the_kernels_give_the_same_bits_under_every_seed(programs):
    lines = printed(programs("plain", "same", SEEDS))
    assert len(lines) >= 20
    assert [line.partition(": ")[2] for line in lines] == ["1 results, 0 elements missing"] * len(lines)


@pytest.mark.parametrize("site", [s for s in SITES if s.name not in REDUNDANT], ids=lambda site: site.name)
def test_a_barrier_left_out_is_noticed(programs, site):
    (line,) = printed(programs("plain", "skip", site.number, SEEDS))
    assert line.startswith("caught by"), f"{site.name}: {line}"


@pytest.mark.parametrize("name", sorted(REDUNDANT))
def test_a_redundant_barrier_left_out_changes_nothing(programs, name):
    (number,) = [site.number for site in SITES if site.name == name]
    assert printed(programs("plain", "skip", number, SEEDS // 4)) == ["not caught"]


def test_no_kernel_leaves_the_bounds_of_its_buffers(programs):
    """None reaches from one buffer into the next either: in this build there is a gap behind each."""
    for line in printed(programs("sanitized", "same", 2)):
        assert line.endswith("1 results, 0 elements missing")


@pytest.mark.parametrize("buffer", BUFFERS)
def test_a_buffer_one_element_short_is_noticed(programs, buffer):
    done = programs("sanitized", "short", BUFFERS.index(buffer))
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr
