"""Write docs/performance.md, and the tables of the README and of Home, from bench/results.

`python -m dla_kernels bench render`

A block between `<!-- from NAME -->` and `<!-- end -->` is what the function of that name makes of the results; all
else on the page is written by hand. Pictures carry a digest of their results.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from bench import simulate, simulate_triton
from bench.common import HERE, Target
from bench.model import predict, scaling
from bench.report import gpu_tables, plot
from bench.targets import blocks, gpu_plans, gpu_steps, networks, stages, steps
from bench.targets.gpu_inputs import DTYPES, ROWS, map_bytes
from dla_kernels.terminal import table

RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
FIGURES = DOCS / "figures"
BLOCK = re.compile(r"(<!-- from ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
UNMEASURED = "Unmeasured: no GPU was at hand yet."


@cache
def results(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def gpus() -> list[Path]:
    """Return the folders of the GPUs that were measured."""
    return sorted(path.parent for path in RESULTS.glob("*/bench.json") if path.parent.name != "cpu")


def gpu_rows(path: Path) -> list[dict]:
    found = results(f"{path.name}/bench.json")
    return [*found["rows"], *found["layers"]]


def fenced(text: str) -> str:
    return f"```\n{text}\n```\n"


def machine_line(found: dict) -> str:
    system = found["system"]
    devices = system.get("devices") or [system["device"]]
    return f"torch {system['torch']}, {'; '.join(devices)}; commit {found['commit']}"


def machine() -> str:
    return f"Measured on: {machine_line(results('cpu/bench.json'))}.\n"


def at_a_glance(found: dict) -> list[tuple[str, dict[str, float]]]:
    """Return one row of each thing that people run, forward and backward, with its times in ms."""

    def of(rows: list[dict], op: str = "forward+backward") -> dict[str, float]:
        row = next(row for row in rows if row["name"] in GLANCE_ROWS)
        times = {key.partition("/")[2]: ms for key, ms in row["ms"].items() if key.partition("/")[0] == op}
        return {name.replace("eager, ", ""): times[name] for name in times if name != "ours in place"}

    net, steps = found["networks"][0], found["attention"]
    name, depth = "{}_resnet{}, a training step, B = 32", net["depth"]
    whole: dict[str, dict[str, float]] = {}
    for key, ms in net["ms"].items():
        kind, _, how = key.partition("/")
        if how:
            whole.setdefault(kind, {})[how] = ms
    return [
        ("layer_update: a stage of 6 layers at once", of(found["rows"])),
        ("light_step: a layer of DLA-L", of(steps["layers"])),
        ("base_step: a stage of 12 layers of DLA-B", of(steps["stages"])),
        ("recalibrate: the end of a block with squeeze and excitation", of(found["blocks"], "both")),
        *((name.format(kind, depth), times) for kind, times in whole.items()),
    ]


GLANCE_ROWS = ("T6-B32-C64-HW32x32-r4", "B32-C64-HW32x32", "T12-B16-C256-HW8x8", "se-B32-C64-HW32x32")


def glance() -> str:
    rows = at_a_glance(results("cpu/bench.json"))
    lines = [
        f"| forward and backward, ms | {' | '.join(plot.GLANCE.values())} |",
        "|---" * (1 + len(plot.GLANCE)) + "|",
    ]
    for title, ms in rows:
        cells = [f"{ms[name]:.1f}" if name in ms else "" for name in plot.GLANCE]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n![the same, in multiples of ours](figures/cpu-glance.png)\n"


def whole_stages() -> str:
    return fenced(stages.report(results("cpu/bench.json")["rows"]))


def layers() -> str:
    picture = "\n![times over ours](figures/cpu-layers.png)\n"
    return fenced(steps.report(results("cpu/bench.json")["attention"])) + picture


def block_ends() -> str:
    return fenced(blocks.report(results("cpu/bench.json")["blocks"]))


def taxes() -> str:
    return fenced(networks.report(results("cpu/bench.json")["networks"]))


def inference() -> str:
    return fenced(networks.inference_report(results("cpu/bench.json")["inference"]))


def growth() -> str:
    found = results("cpu/scaling.json")
    return fenced(scaling.summary(found["rows"])) + "\n![cost against T, B, C and HW](figures/cpu-scaling.png)\n"


def speedups() -> str:
    return "![times over ours](figures/cpu-speedups.png)\n"


def large_and_small_maps(name: str) -> list[dict]:
    return [row for row in results(name)["rows"] if row["shape"]["C"] in (64, 1024)]


def predictions() -> str:
    return fenced(predict.report(large_and_small_maps("cpu/model.json")))


def counted() -> str:
    return fenced(predict.report_counters(large_and_small_maps("cpu/counters.json")))


# File that a GPU's folder may hold -> its title on the page.
REPORTS = {
    "plans.json": "Tiles laid out in every way, `python -m bench.targets.gpu_plans`",
    "bench.txt": "Ours beside its peers, `python -m dla_kernels bench --device cuda`",
    "networks.txt": "A training step of whole networks, `python -m bench.targets.gpu_networks`",
    "machine.txt": "What the chip does for what the kernels ask of it, `bench/machine.cu`",
}


def report_of(path: Path) -> str:
    """Return a report: text as it was printed, JSON as a table under the commit that was measured."""
    if path.suffix != ".json":
        return path.read_text().strip()
    found = json.loads(path.read_text())
    return f"commit {found['commit']}\n{gpu_plans.report(found['rows'])}"


def on_gpus() -> str:
    parts = []
    for path in gpus():
        parts.append(f"### {path.name}\n")
        for file, title in REPORTS.items():
            if (path / file).exists():
                parts.append(f"{title}:\n\n" + fenced(report_of(path / file)))
    return "\n".join(parts) or UNMEASURED + "\n"


def simulated() -> str:
    """Show the predictions, how far the model is off where there is a measurement, and what it assumes."""
    parts = [fenced(simulate.report(device)) for device in sorted(simulate.OTHERS)]
    told = "The model of the kernels that were measured, beside what was measured, to which some constants were fitted:"
    parts += [f"{told}\n\n{fenced(simulate.report_then())}", f"What it assumes:\n\n{fenced(simulate.constants())}"]
    return "\n".join(parts)


def simulated_triton() -> str:
    scans = simulate_triton.report_scans(simulate.Chip.of("h100"))
    told = "The model of the scans that were measured, with the smaller tiles of then:"
    parts = [fenced(simulate_triton.report(device)) for device in sorted(simulate.OTHERS)]
    return "\n".join([*parts, f"{told}\n\n{fenced(scans)}"])


def cpu_targets(found: dict) -> list[tuple[str, Target]]:
    """Return the targets of the results in bench.json, by row."""
    of_stages = [(row["name"], target) for row in found["rows"] for target in stages.targets(row)]
    inside = steps.targets(found["attention"]) + blocks.targets(found["blocks"])
    return of_stages + inside + networks.targets(found["networks"]) + networks.inference_targets(found["inference"])


def gpu_promises() -> list[tuple[str, Target]]:
    """Return the targets that the GPU's rows have, by row; their ratios mean nothing."""
    out = []
    for dtype in DTYPES:
        for shape in ROWS:
            names = [f"{op}/{name}" for op in ("forward", "forward+backward", "scan") for name in gpu_tables.ORDER]
            ms = {name: 2.0 if name.startswith("forward+") else 1.0 for name in (*names, "copy/copy")}
            row = {"shape": shape._asdict(), "S": map_bytes(shape, dtype), "ms": ms}
            row["launches"] = {f"{d}/ours": {"kernels": 1.0, "copies": 0.0} for d in ("forward", "backward")}
            out += [(f"{dtype} {shape}", target) for target in gpu_tables.targets(row, 1.0)]
        for layer in gpu_steps.LAYERS:
            ms = {"copy/copy": 1.0, "forward/ours": 1.0}
            row = {"name": str(layer), "S": 1, "ms": ms, "launches": {"forward/ours": {"kernels": 1.0, "copies": 0.0}}}
            out += [(f"{dtype} {layer}", target) for target in gpu_steps.targets(row)]
    return out


def targets() -> str:
    """Tabulate every target: met, missed with where its time goes, or unmeasured."""
    checks = cpu_targets(results("cpu/bench.json"))
    body = [
        [
            name,
            t.name,
            f"{t.ratio:.2f}",
            f"{'>=' if t.at_least else '<='} {t.limit}",
            "met" if t.met else f"missed: {t.why}",
        ]
        for name, t in checks
    ]
    met = sum(t.met for _, t in checks)
    text = f"CPU: {met} of {len(checks)} met\n" + table(("row", "what", "measured", "target", ""), body)
    promised: dict[tuple[str, str], list[str]] = {}
    measured = {(row["name"], row["dtype"]) for path in gpus() for row in gpu_rows(path)}
    for name, t in gpu_promises():
        dtype, _, row = name.partition(" ")
        if (row, dtype) in measured:
            continue  # the device's own report has it
        promised.setdefault((t.name, t.wanted), []).append(name)
    body = [[what, limit, f"{len(rows)} rows", "unmeasured"] for (what, limit), rows in promised.items()]
    if not body:
        return fenced(text)
    return fenced(text + "\n\nGPU\n" + table(("what", "target", "of", ""), body))


def highlights() -> str:
    """Tabulate how many times faster ours is than eager and compile, the least and the most over all rows."""
    found = results("cpu/bench.json")
    inside, body = found["attention"], []

    def add(what: str, rows: list[dict], op: str, peers: dict[str, str]) -> None:
        cells = []
        for title in ("eager", "compile", "copying"):
            key = f"{op}/{peers.get(title)}"
            ratios = sorted(row["ms"][key] / row["ms"][f"{op}/ours"] for row in rows if key in row["ms"])
            cells.append(
                f"{ratios[0]:.1f} - {ratios[-1]:.1f}x" if len(ratios) > 1 else "".join(f"{r:.1f}x" for r in ratios)
            )
        body.append(f"| {what} | " + " | ".join(cells) + " |")

    both = {"eager": "eager", "compile": "compile", "copying": "eager, copying"}
    for op in ("forward", "forward+backward"):
        add(f"`layer_update`, a stage at once, {op}", found["rows"], op, both)
    for op in ("forward", "forward+backward"):
        add(f"`light_step`, a layer of DLA-L, {op}", inside["layers"], op, both)
    ends = [row for row in found["blocks"] if row["cell"] == "se" and row["adds"]]
    for which, op in (("forward", "forward"), ("both", "forward+backward")):
        add(f"`recalibrate`, the end of a block with squeeze and excitation, {op}", ends, which, both)
    add("`base_step`, 12 layers of DLA-B, forward+backward", inside["stages"], "forward+backward", both)
    lines = [
        "| faster than | eager PyTorch | `torch.compile` | the published way, copying |",
        "|---|---|---|---|",
        *body,
    ]
    return "\n".join(lines) + "\n"


def gpu_highlights() -> str:
    """Tabulate how many times faster ours is than eager, each called, and each as a CUDA graph."""
    parts = []
    for path in gpus():
        found, body = json.loads((path / "bench.json").read_text()), []
        for what, kind in (("`layer_update`, a stage at once", "rows"), ("`light_step`, a layer of DLA-L", "layers")):
            times = [row["ms"] for row in found[kind] if row["dtype"] == "bf16"]
            for op in ("forward", "forward+backward"):
                line = [f"{what}, {op}"]
                for graph in ("", " graph"):
                    ratios = sorted(ms[f"{op}/eager{graph}"] / ms[f"{op}/ours{graph}"] for ms in times)
                    line.append(f"{ratios[0]:.1f} - {ratios[-1]:.1f}x" if ratios else "")
                body.append(line)
        head = ["faster than", "eager PyTorch", "the same, both as CUDA graphs"]
        lines = [head, ["---"] * len(head), *body]
        table_of = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"On one {found['system']['device']}, bf16:\n\n{table_of}\n")
    return "\n".join(parts) or UNMEASURED + "\n"


# Page -> its blocks, each with the function that makes it.
PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    DOCS / "performance.md": {
        "glance": glance,
        "machine": machine,
        "stages": whole_stages,
        "speedups": speedups,
        "layers": layers,
        "blocks": block_ends,
        "taxes": taxes,
        "inference": inference,
        "growth": growth,
        "predictions": predictions,
        "counted": counted,
        "simulated": simulated,
        "simulated_triton": simulated_triton,
        "gpus": on_gpus,
        "targets": targets,
    },
    HERE.parent / "README.md": {"highlights": highlights, "gpu_highlights": gpu_highlights},
    HERE.parent / "docs" / "index.md": {"highlights": highlights, "gpu_highlights": gpu_highlights},
}
# Picture -> the results it is made from, and the function that draws it.
PICTURES: dict[str, tuple[str, Callable[[dict, Path, dict], None]]] = {
    "cpu-glance.png": ("cpu/bench.json", lambda found, path, tag: plot.glance(at_a_glance(found), path, tag)),
    "cpu-layers.png": ("cpu/bench.json", plot.layers),
    "cpu-speedups.png": ("cpu/bench.json", lambda found, path, tag: plot.speedups(found["rows"], path, tag)),
    "cpu-scaling.png": ("cpu/scaling.json", lambda found, path, tag: scaling.picture(found["rows"], path, tag)),
}


def rendered(page: Path) -> str:
    text, blocks = page.read_text(), PAGES[page]
    found = [name for _, name, _ in BLOCK.findall(text)]
    if sorted(found) != sorted(blocks):
        raise SystemExit(f"{page.name}: expected the blocks {', '.join(blocks)}, got {', '.join(found)}")
    return BLOCK.sub(lambda block: block[1] + blocks[block[2]]() + block[3], text)


def digest(source: str) -> str:
    return hashlib.sha256((RESULTS / source).read_bytes()).hexdigest()[:16]


def stale() -> list[Path]:
    """Return the pages and pictures that do not follow from the results."""
    out = [page for page in PAGES if rendered(page) != page.read_text()]
    for name, (source, _) in PICTURES.items():
        path = FIGURES / name
        if not path.exists() or digest(source).encode() not in path.read_bytes():
            out.append(path)
    return out


def main(check: bool) -> int:
    """Write what is stale; with ``check``, say so and write nothing."""
    old = stale()
    names = ", ".join(str(path.relative_to(HERE.parent)) for path in old)
    if check:
        print(f"stale: {names}; run: python -m dla_kernels bench render" if old else "up to date")
        return int(bool(old))
    FIGURES.mkdir(exist_ok=True)
    for path in old:
        if path in PAGES:
            path.write_text(rendered(path))
        else:
            source, draw = PICTURES[path.name]
            draw(results(source), path, {"Source": digest(source)})
    print(f"written: {names}" if old else "up to date")
    return 0
