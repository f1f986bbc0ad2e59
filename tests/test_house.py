"""The lists agree, every op is where one would look for it, and nobody imports upwards."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import records
import torch

import dla_kernels as dla
from dla_kernels import ops, reference
from dla_kernels.backends import BACKENDS
from dla_kernels.cells import ALL_RULES, KINDS

ROOT = Path(__file__).parent.parent
BINDINGS = (ROOT / "csrc/bindings.cpp").read_text()
SCHEMAS = [name for name in re.findall(r'"(\w+)\(', BINDINGS) if name != "launches"]  # that one is the shim's alone
QUESTIONS = ("cpu_isa", "cuda_plan")  # operators that take no tensors
COMPOSED = ("base_step",)  # of other ops, in Python
FORWARD_OPS = [name for name in SCHEMAS if not name.endswith(("_", "_bwd")) and name not in QUESTIONS]


def test_python_and_cpp_list_the_same_rules():
    listed = re.findall(r'X\("([\w-]+)"', (ROOT / "csrc/cells/cells.h").read_text())
    assert listed == [cell.rule for cell in ALL_RULES]


@pytest.mark.parametrize("kind", [kind for kind, known in KINDS.items() if known.compiled and known.state_names])
def test_a_cell_is_one_file_per_language(kind):
    assert (ROOT / f"csrc/cells/{kind}.h").exists()
    assert (ROOT / f"triton_ops/cells/{kind}.py").exists()


def test_triton_lists_the_same_rules_and_operators():
    pytest.importorskip("triton")
    import triton_ops
    from triton_ops.cells import RULES

    assert list(RULES) == [cell.rule for cell in ALL_RULES]
    for cell in ALL_RULES:
        rule = RULES[cell.rule]
        saved = [*["h"] * rule.saves_h, *["c"] * rule.saves_c]
        assert (rule.NG, tuple(saved)) == (cell.num_gates, cell.state_names), cell
    declared = [name for name in SCHEMAS if name not in QUESTIONS]
    assert sorted(f.__name__ for f in triton_ops.FUNCTIONS) == sorted(declared)


def test_the_public_ops_are_those_of_the_schema():
    assert sorted((*FORWARD_OPS, *COMPOSED)) == sorted(ops.__all__)
    assert set(FORWARD_OPS) < set(reference.__all__)
    assert set(FORWARD_OPS) < set(dla.__all__)


@pytest.mark.parametrize("op", FORWARD_OPS)
@pytest.mark.parametrize(
    "where",
    [
        "csrc/cpu/{}.cpp",
        "csrc/cuda/{}.cuh",
        "csrc/cuda/{}_args.h",
        "csrc/cuda/{}.cu",
        "csrc/cuda/{}.cpp",
        "triton_ops/{}.py",
        "dla_kernels/ops/{}.py",
        "dla_kernels/reference/{}.py",
        "tests/test_{}.py",
        "bench/ops/{}.py",
    ],
)
def test_an_op_has_a_file_of_its_name_wherever_one_belongs(op, where):
    assert (ROOT / where.format(op)).exists()


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_registered_with_a_kernel_and_a_fake(name):
    assert BACKENDS["cpu"].available, BACKENDS["cpu"].reason
    full = f"dla::{name}"
    key = "CompositeExplicitAutograd" if name in QUESTIONS else "CPU"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(full, key)
    fakes = torch._library.simple_registry.singleton.find(full).fake_impl
    assert name in QUESTIONS or fakes.kernel is not None


def imported_by(path):
    """Yield the modules that a file of dla_kernels imports, relative ones written out."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


RULES_OF_CELLS = "dla_kernels.reference.cells"  # by which a module shows a state; they run no op
# Folder or file: what it may not import.
ARROWS = {
    "dla_kernels/analysis": ("dla_kernels.ops", "dla_kernels.reference", "dla_kernels.backends", "triton_ops"),
    "dla_kernels/reference": ("dla_kernels.ops", "dla_kernels.backends", "dla_kernels.verify", "triton_ops"),
    "dla_kernels/ops": (
        "dla_kernels.nn",
        "dla_kernels.models",
        "dla_kernels.analysis",
        "dla_kernels.verify",
        "dla_kernels.__main__",
        "triton_ops",
    ),
    "dla_kernels/nn": (
        "dla_kernels.models",
        "dla_kernels.analysis",
        "dla_kernels.reference",
        "dla_kernels.verify",
        "triton_ops",
    ),
    "dla_kernels/models": ("dla_kernels.analysis", "dla_kernels.reference", "dla_kernels.verify", "triton_ops"),
    "dla_kernels/cells.py": ("dla_kernels.",),
    "dla_kernels/data": ("dla_kernels.ops", "dla_kernels.nn", "dla_kernels.models", "dla_kernels.backends"),
    "dla_kernels": ("tests", "bench", "examples", "recipes"),
    "recipes": ("tests", "bench", "examples"),
    "triton_ops": ("dla_kernels", "tests", "bench"),
}


@pytest.mark.parametrize("where", ARROWS)
def test_no_module_imports_what_its_folder_may_not(where):
    path = ROOT / where
    for file in [path] if path.suffix else sorted(path.rglob("*.py")):
        for module in imported_by(file):
            if where != "dla_kernels/nn" or not module.startswith(RULES_OF_CELLS):
                assert not module.startswith(ARROWS[where]), f"{file.name} imports {module}"


def test_the_reference_never_calls_an_operator():
    for file in (ROOT / "dla_kernels/reference").glob("*.py"):
        assert "torch.ops" not in file.read_text()


def test_cells_microkernels_and_kernels_know_nothing_of_torch():
    kernels = records.included((ROOT / "csrc/cuda").glob("*.cu"))
    for file in [*(ROOT / "csrc/cells").iterdir(), *(ROOT / "csrc/cpu/microkernels").iterdir(), *kernels]:
        assert not re.search(r"#include *[<\"](torch|ATen|c10)", file.read_text()), file.name


def test_kernels_reach_the_machine_through_one_header():
    """Otherwise the SIMT shim could not stand in for the machine."""
    for file in (ROOT / "csrc/cuda").glob("*.cuh"):
        assert not re.search(r"__\w+|threadIdx|blockIdx|blockDim|gridDim|cuda_\w+\.h", file.read_text()), file.name


# A comment, and the function or the kernel that it is of.
FUNCTION = re.compile(
    r"((?:^ *//[^\n]*\n)*)(?:^ *template [^\n]*\n)?^ *(?:DLA_KERNEL\(|DLA_DEVICE (?:explicit )?[\w:<>*& ]*?(\w+)\()",
    re.MULTILINE,
)


def test_every_device_function_with_a_barrier_says_how_it_is_entered_and_left():
    """Kernels need not: a launch enters them."""
    for file in (ROOT / "csrc/cuda").glob("*.cuh"):
        text = file.read_text()
        found = list(FUNCTION.finditer(text))
        for match, following in zip(found, [*found[1:], None]):
            body = text[match.end() : following.start() if following else len(text)]
            if match[2] and re.search(r"\b(block|group)_barrier\(\)", body):
                assert "Barriers" in match[1], f"{file.name}: {match[2]}"


def test_no_source_file_has_more_than_500_lines():
    folders = ("dla_kernels/**", "triton_ops/**", "bench", "recipes", "tests", ".")
    for pattern in ("csrc/**/*.*", *(f"{folder}/*.py" for folder in folders)):
        for file in ROOT.glob(pattern):
            if file.suffix in {".py", ".h", ".cpp", ".cuh", ".cu"}:
                assert len(file.read_text().splitlines()) <= 500, file.name


@pytest.mark.parametrize("module", [ops, reference], ids=lambda module: module.__name__)
def test_public_functions_are_documented_and_typed(module):
    for name in module.__all__:
        function = getattr(module, name)
        assert function.__doc__, name
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, name
        assert all(p.annotation is not p.empty for p in signature.parameters.values()), name


WORDS = (ROOT / "docs/notation.md").read_text().partition("## Words")[2]
# A word that has another meaning here is not used for this; each of these was.
OTHERWISE = {
    "dense": r"\bdense\(",  # of tensors
    "cell": r"\bstruct Cell\b|\bCell<A> ",  # on the host
    "operator": r"\bDLA_OPERATORS\b",  # for schemas and for kernels
    "slot": r"\bmap\[\d",
}


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (\*.*?) \|.*\| `([\w/.]+)` \|$", WORDS, re.MULTILINE), ids=lambda r: r[0]
)
def test_a_word_is_at_home_where_the_glossary_says(row):
    words, home = row
    text = (ROOT / home).read_text().lower()
    assert any(word in text for word in re.findall(r"\*(\w+)\*", words)), f"{home} does not say {words}"


@pytest.mark.parametrize("word", OTHERWISE)
def test_a_word_has_one_meaning(word):
    assert f"*{word}*" in WORDS
    for file in sorted((ROOT / "csrc").rglob("*.*")):
        assert not re.search(OTHERWISE[word], file.read_text()), file.name
