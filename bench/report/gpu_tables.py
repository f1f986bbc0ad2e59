"""Tables that say what a GPU benchmark run measured and which targets it met: pure functions of its JSON."""

from __future__ import annotations

from bench.common import MB, Shape, Target, target_table
from bench.targets import gpu_steps
from bench.targets.gpu_inputs import PASSES
from dla_kernels.terminal import table

OURS = ("copy", "ours", "ours graph", "triton", "triton graph")
PEERS = ("eager", "eager graph", "compile", "compile graph")
ORDER = (*OURS, *PEERS, "ours lstm", "cudnn lstm")
# (T, B, C) at which the maps of a sample fit on the chip, so that one pass over them can be spared.
ON_CHIP = ((12, 128, 128), (12, 128, 256), (6, 256, 1024))


def names(rows: list[dict], op: str) -> list[str]:
    return [name for name in ORDER if any(f"{op}/{name}" in row["ms"] for row in rows)]


def best(ms: dict[str, float], op: str, who: str) -> float | None:
    """Return the fastest of "ours", of "triton" or of "peers", captured or not; None if none was measured."""
    among = PEERS if who == "peers" else (who, f"{who} graph")
    return min((ms[f"{op}/{name}"] for name in among if f"{op}/{name}" in ms), default=None)


def kernel_ms(row: dict, direction: str, who: str = "ours") -> float | None:
    """Return the time of layer_update without the host's part. Backward is a captured forward+backward less forward."""
    ms = row["ms"]
    if direction == "forward":
        return best(ms, "forward", who)
    for name in (f"{who} graph", who):
        both, forward = ms.get(f"forward+backward/{name}"), ms.get(f"forward/{name}")
        if both and forward and both > forward:
            return both - forward
    return None


def gbs(size: float, ms: float) -> float:
    return size / ms / 1e6


def copy_gbs(row: dict) -> float:
    return gbs(2 * row["S"], row["ms"]["copy/copy"])


def peer_limit(shape: Shape) -> float:
    """Return how many times faster than the best peer ours is to be."""
    return 5.0 if shape.B <= 8 else 3.0 if shape.r == 4 else 1.3


def targets(row: dict, full_gbs: float) -> list[Target]:
    """Return the targets of one row; ``full_gbs`` is the fastest copy of the run."""
    shape, S = Shape(**row["shape"]), row["S"]
    out = []
    for direction, (_, twice) in PASSES.items():
        time = kernel_ms(row, direction)
        if time is None:
            continue
        for name, applies, bandwidth, limit in (
            (f"{direction}: {twice}S / copy bandwidth", S > 500 * MB, copy_gbs(row), 0.85),
            (f"{direction}: {twice}S / full bandwidth", shape[:3] in ON_CHIP and direction == "forward", full_gbs, 1.0),
        ):
            if applies:
                allowed = twice * S / bandwidth / limit / 1e6
                why = f"{1e3 * time:.1f} us, allowed {1e3 * allowed:.1f}"
                out.append(Target(name, gbs(twice * S, time) / bandwidth, limit, True, why))
    out += triton_targets(row)
    for op in ("forward", "forward+backward"):
        ours, peer = best(row["ms"], op, "ours"), best(row["ms"], op, "peers")
        if ours and peer:
            limit = peer_limit(shape)
            why = f"{1e3 * ours:.1f} us, allowed {1e3 * peer / limit:.1f}"
            if not any(key.startswith(f"{op}/compile") for key in row["ms"]):
                why += "; compile not measured"
            out.append(Target(f"{op}: best peer / ours", peer / ours, limit, True, why))
    for direction, limit in (("forward", 1), ("backward", 2)):
        counted = row["launches"].get(f"{direction}/ours")
        if counted:
            why = f"{counted['kernels']:g} kernels, {counted['copies']:g} copies"
            out.append(Target(f"{direction}: launches", sum(counted.values()), limit, False, why))
    return out


def triton_targets(row: dict) -> list[Target]:
    """Return Triton's targets: most of a copy's bandwidth where maps are large, else of the CUDA kernels' speed."""
    out, S = [], row["S"]
    for direction, (_, twice) in PASSES.items():
        time, ours = (kernel_ms(row, direction, who) for who in ("triton", "ours"))
        if time and S > 500 * MB:
            name, ratio = f"triton {direction}: {twice}S / copy bandwidth", gbs(twice * S, time) / copy_gbs(row)
        elif time and ours:
            name, ratio = f"triton {direction}: CUDA / Triton", ours / time
        else:
            continue
        out.append(Target(name, ratio, 0.8, True, f"{1e3 * time:.1f} us"))
    return out


def time_table(rows: list[dict], op: str) -> str:
    """Tabulate microseconds, the speedup, and for whole stages the bytes per second."""
    columns = names(rows, op)
    direction = {"forward": "forward", "forward+backward": "backward"}.get(op)
    header = ["shape", "S MB", "copy", *columns, "ours +-%", "speedup"]
    if direction:
        once, twice = PASSES[direction]
        header += [direction, f"{once}S GB/s", f"{twice}S GB/s", f"{once}S share", f"{twice}S share"]
    body = []
    for row in rows:
        ms, S = row["ms"], row["S"]
        line = [row["name"], f"{S / MB:.1f}", f"{1e3 * ms['copy/copy']:.1f}"]
        line += [f"{1e3 * ms[f'{op}/{n}']:.1f}" if f"{op}/{n}" in ms else "-" for n in columns]
        ours, peer = best(ms, op, "ours"), best(ms, op, "peers")
        key = next((f"{op}/{n}" for n in ("ours graph", "ours") if f"{op}/{n}" in ms), None)
        line += [f"{100 * row['iqr_ms'][key] / ms[key]:.0f}" if key else "-"]
        line += [f"{peer / ours:.2f}x" if ours and peer else "-"]
        if direction:
            time = kernel_ms(row, direction)
            line += [f"{1e3 * time:.1f}" if time else "-"]
            line += [f"{gbs(n * S, time):.0f}" if time else "-" for n in (once, twice)]
            line += [f"{gbs(n * S, time) / copy_gbs(row):.2f}" if time else "-" for n in (once, twice)]
        body.append(line)
    return table(header, body)


def cost_table(rows: list[dict]) -> str:
    """Tabulate launches per call as kernels+copies, and peak memory beyond the inputs in multiples of S."""
    keys = [(op, name) for op in ("forward", "backward") for name in ("ours", "eager")]
    peaks = [(op, name) for op in ("forward", "forward+backward") for name in ("ours", "eager")]
    body = []
    for row in rows:
        counts = [row["launches"].get(f"{op}/{name}") for op, name in keys]
        line = [row["name"], *(f"{c['kernels']:g}+{c['copies']:g}" if c else "-" for c in counts)]
        held = [row["peak_bytes"].get(f"{op}/{name}") for op, name in peaks]
        body.append([*line, *(f"{h / row['S']:.2f}" if h is not None else "-" for h in held)])
    header = ["shape", *(f"{op} {name}" for op, name in keys), *(f"{op} {name}: peak / S" for op, name in peaks)]
    return table(header, body)


def report(result: dict) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result["system"].items() if name != "slug")
    parts = [f"{facts}, commit {result['commit']}"]
    timed = [row for row in result["rows"] if row["ms"]]
    for dtype in dict.fromkeys(row["dtype"] for row in timed):
        rows = [row for row in timed if row["dtype"] == dtype]
        for op, explained in (
            ("forward", "layer_update, forward"),
            ("forward+backward", "layer_update, forward+backward; GB/s of the backward pass, the time beyond forward"),
            ("scan", "scan, forward"),
        ):
            parts.append(f"{dtype}: {explained}; us, medians\n{time_table(rows, op)}")
        parts.append(f"{dtype}: launches per call (kernels+copies) and memory\n{cost_table(rows)}")
    refused = [(f"{row['dtype']} {row['name']}", row["notes"]["parity"]) for row in result["rows"] if not row["ms"]]
    if refused:
        parts.append(table(("refused", "why"), refused))
    notes = [
        (f"{row['dtype']} {row['name']}", what, why)
        for row in timed
        for what, why in row["notes"].items()
        if what != "cudnn lstm"
    ]
    if notes:
        parts.append(table(("not measured", "what", "why"), notes))
    if timed:
        full = max(map(copy_gbs, timed))
        checks = [(f"{row['dtype']} {row['name']}", target) for row in timed for target in targets(row, full)]
        for title, group in (
            ("met", [(n, t) for n, t in checks if t.met]),
            ("missed", [(n, t) for n, t in checks if not t.met]),
        ):
            if group:
                parts.append(target_table(group, title))
        met = sum(target.met for _, target in checks)
        rows_met = f"targets: {met} of {len(checks)} met; fastest copy {full:.0f} GB/s"
        parts.append(rows_met)
    if result["layers"]:
        parts.append(gpu_steps.report(result["layers"]))
    if result.get("left_out"):
        parts.append(f"left out for lack of time: {', '.join(result['left_out'])}")
    return "\n\n".join(parts)
