"""This module has what the ops are tested on: shapes by name, memory layouts, cells, and makers of their inputs."""

import inspect
import re
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch

import dla_kernels as dla
from dla_kernels.attention import Attention, BaseStage, filter_width
from dla_kernels.cells import ALL_RULES, PROJECTIONS, Cell, accumulate_dtype, weight_shapes

OPS = (
    *("gap", "scan", "refresh", "rescale", "layer_update", "recalibrate"),
    *("depthwise", "attend", "mix", "light_step", "base_step"),
)
STEPS = ("light_step", "base_step")
OPS_WITH_CELL = ("scan", "refresh", "layer_update", "recalibrate", *STEPS)
OPS_WITH_MAPS = tuple(op for op in OPS if op not in ("scan", "refresh", "attend"))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


# ---- shapes ----


@dataclass(frozen=True)
class Shape:
    """A shape stands for T maps [B, C, H, W] whose sizes (H, W) repeat cyclically; R is the bottleneck width."""

    T: int
    B: int
    C: int
    R: int
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, name):
        """Return the shape named ``T7-B3-C33-HW5x3`` or, with R and several sizes, ``T3-B2-C64-R65-HW8x8,5x3``."""
        T, B, C, R, sizes = re.fullmatch(r"T(\d+)-B(\d+)-C(\d+)(?:-R(\d+))?-HW([\dx,]+)", name).groups()
        sizes = tuple(tuple(int(n) for n in size.split("x")) for size in sizes.split(","))
        return cls(int(T), int(B), int(C), int(R or max(1, int(C) // 4)), sizes)

    def __str__(self):
        sizes = ",".join(f"{H}x{W}" for H, W in self.sizes)
        return f"T{self.T}-B{self.B}-C{self.C}-R{self.R}-HW{sizes}"

    @property
    def longest_sum(self):
        """Return how many terms the longest sum in any result has: over pixels, gate rows, channels or samples."""
        return max(self.T * self.B, 4 * self.C, self.R, *(H * W for H, W in self.sizes))


SHAPES = [
    Shape.parse(name)
    for name in (
        "T1-B1-C1-HW1x1",
        "T2-B1-C2-R1-HW1x7,3x1",
        "T3-B9-C17-R5-HW5x3",  # one sample more than a block, one channel more than a piece
        "T7-B3-C33-HW5x3",
        "T2-B2-C64-R65-HW8x8",  # one row more than a tile
        "T3-B2-C65-R16-HW8x8,5x3,1x1",
        "T2-B5-C130-R7-HW9x7,1x65,13x5",
        "T1-B2-C3-HW70x61",  # more pixels than a summation block
        "T13-B8-C16-R1-HW4x4",
        "T2-B18-C8-HW2x2",
        "T1-B3-C4-R67-HW3x3",  # a bottleneck wider than the channels
    )
]
SMALL = Shape.parse("T3-B2-C6-R3-HW2x3,1x1")
MIDDLE = Shape.parse("T4-B3-C19-R5-HW5x3,4x4")
# The weights that one step reads outgrow the cache: kernels may then cut the work by columns.
WIDE = {
    "joint": Shape.parse("T3-B2-C2048-R102-HW2x2"),
    "split": Shape.parse("T3-B2-C1024-R200-HW2x2"),
    "dense": Shape.parse("T3-B2-C512-HW2x2"),
}


# ---- layouts: the same values, elsewhere in memory; NaN in the gaps shows a stray read ----


def nchw(x):
    return x.contiguous()


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def transposed(x):
    """Return x with W as the slow axis of each plane."""
    return x.mT.contiguous().mT


def sliced(x):
    """Return x as every second channel of a wider map."""
    B, C, H, W = x.shape
    return x.new_full((B, 2 * C, H, W), torch.nan)[:, ::2].copy_(x)


def sliced_last(x):
    """Return x as every second channel of a wider map that lies channels last."""
    B, C, H, W = x.shape
    return channels_last(x.new_full((B, 2 * C, H, W), torch.nan))[:, ::2].copy_(x)


def cropped(x):
    """Return x as a window of a larger image."""
    B, C, H, W = x.shape
    return x.new_full((B, C, H + 2, W + 3), torch.nan)[:, :, 1 : H + 1, 2 : W + 2].copy_(x)


def batch_inside(x):
    """Return x with its channels outermost."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def misaligned(x):
    """Return x one element after where an allocation begins, so that no vector is aligned."""
    return x.new_full((x.numel() + 1,), torch.nan)[1:].view(x.shape).copy_(x)


def constant_planes(x):
    """Return each plane's first pixel as all of it, with strides 0 in H and W, as gradients of a mean have."""
    return x[:, :, :1, :1].expand_as(x)


def shared_by_samples(x):
    """Return the first sample as all samples, with stride 0 in B."""
    return x[:1].expand_as(x)


DENSE_LAYOUTS = {f.__name__: f for f in (nchw, channels_last, transposed, batch_inside, misaligned)}
LAYOUTS = DENSE_LAYOUTS | {f.__name__: f for f in (sliced, sliced_last, cropped, constant_planes, shared_by_samples)}
MIXED = (channels_last, nchw, sliced, channels_last, transposed)
LAYOUT_NAMES = (*LAYOUTS, "mixed")


def lay_out(xs, layout):
    """Return the maps in a layout by name; ``mixed`` gives each map another one."""
    choices = MIXED if layout == "mixed" else (LAYOUTS[layout],)
    return [f(x) for f, x in zip(cycle(choices), xs)]


# ---- cells ----


# The projections of which every op with a cell has kernels. A light cell has them in recalibrate, scan and what is made
# of scan; one is put before these, and every rule of it before all ops in test_recalibrate.py.
COMMON = ("joint", "split", "dense")
CELLS = [replace(rule, projection=projection) for rule in ALL_RULES for projection in COMMON]
LIGHT = Cell("dia", projection="light")
# Those that remember nothing, for recalibrate alone.
FORGETFUL = [Cell("se"), Cell("eca")]
# One cell for each projection; together they have every kind of state and output.
FEW_CELLS = [
    Cell("dsu-paper"),
    Cell("dsu"),
    Cell("lstm", projection="dense"),
]


def cell_name(cell):
    return f"{cell.rule}-{cell.projection}" if cell else "no-cell"


def with_cells(ops, cells):
    """Return each op with each of the cells, or with None where it takes no cell."""
    of_op = {"recalibrate": [*cells, LIGHT, *FORGETFUL]} | {
        op: [*cells, LIGHT] for op in ("scan", "refresh", "layer_update")
    }
    return [(op, cell) for op in ops for cell in (of_op.get(op, cells) if op in OPS_WITH_CELL else [None])]


def with_layouts(ops, layouts):
    """Return each op with each of the layouts, or with the first where it takes no maps."""
    return [(op, layout) for op in ops for layout in (layouts if op in OPS_WITH_MAPS else layouts[:1])]


def case_name(value):
    """Return the part of a case's name that stands for the value of a parameter."""
    if value is None or isinstance(value, Cell):
        return cell_name(value)
    return dtype_name(value) if isinstance(value, torch.dtype) else str(value)


def state_forms(cell):
    """Return the forms in which a state may be given, by its tensors' names."""
    return tuple("".join(form) for form in cell.state_forms)


# ---- inputs ----


def maps(shape, dtype, layout="nchw", device="cpu"):
    xs = [torch.randn(shape.B, shape.C, H, W) for H, W in islice(cycle(shape.sizes), shape.T)]
    return lay_out([x.to(device, dtype) for x in xs], layout)


def rows(shape, dtype, device="cpu"):
    """Return y or d [T, B, C]."""
    return torch.randn(shape.T, shape.B, shape.C).to(device, dtype)


def weights(cell, shape, dtype, device="cpu"):
    """Return weights of a scale at which gates are neither dead nor saturated."""
    named = weight_shapes(cell, shape.C, filter_width(shape.C) if cell.projection == "taps" else shape.R)
    scale = {name: s[-1] ** -0.5 if len(s) == 2 else 0.3 for name, s in named.items()}
    return PROJECTIONS[cell.projection](*((torch.randn(s) * scale[n]).to(device, dtype) for n, s in named.items()))


def state(shape, form, dtype, device="cpu"):
    """Return one tensor [B, C] for each letter of form, or None without one."""
    return None if form is None else tuple((0.7 * torch.randn(shape.B, shape.C)).to(device, dtype) for _ in form)


def filters(shape, dtype, device="cpu"):
    """Return the filters of one layer's attention. A layer's own score is then about 1, and its softmax not yet flat at
    its top, where float64 is not exact either."""
    K = filter_width(shape.C)
    small = shape.C**-0.25
    shapes = (((K,), small), ((K,), small), ((shape.C, 1, 3, 3), 0.7))
    return Attention(*((scale * torch.randn(s)).to(device, dtype) for s, scale in shapes))


def stage(shape, form, dtype, layout="nchw", device="cpu"):
    """Return what a stage holds after T - 1 layers, or after its first layer if T is 1."""
    before = replace(shape, T=max(shape.T - 1, 1), sizes=shape.sizes[:1])
    pooled, scale, keys = (rows(before, accumulate_dtype(dtype), device) for _ in range(3))
    given = state(shape, form, accumulate_dtype(dtype), device)
    return BaseStage(tuple(maps(before, dtype, layout, device)), pooled, scale, keys, given)


# The inputs that all samples share.
SHARED = ("weights", "attention", "q", "k", "v", "lam", "e")


def is_shared(name):
    """Return whether all samples share a tensor, by its name from ``named``: ``weights.w1`` is shared."""
    return name.partition(".")[0] in SHARED


OPTIONS = ("cell", "heads", "act", "moments", "scores", "relu", "inplace", "backend")  # parameters that are no tensors
TAKEN = {op: [name for name in inspect.signature(getattr(dla, op)).parameters if name not in OPTIONS] for op in OPS}
TAKEN["base_step"].remove("state")  # its state is in the stage


def inputs_of(op, shape, cell, dtype, *, layout="nchw", form="default", weight_dtype=None, device="cpu"):
    """Return the tensors that ``dla.<op>`` takes, by parameter name. ``form`` is one of ``state_forms``, or None. Maps
    that have to be of one size are of the first."""
    if form == "default" and cell:
        form = state_forms(cell)[-1]
    weight_dtype = weight_dtype or dtype
    of_one_size = replace(shape, sizes=shape.sizes[:1])
    has_two = op in (*STEPS, "depthwise", "recalibrate")
    x, o_prev = maps(replace(of_one_size, T=2), dtype, layout, device) if has_two else (None, None)
    channels = (shape.C,), (shape.C, 1, 3, 3)
    make = {
        "x": lambda: x,
        "o_prev": lambda: o_prev,
        "a": lambda: x,
        "shortcut": lambda: o_prev,
        "stage": lambda: stage(shape, form, dtype, layout, device),
        "values": lambda: maps(of_one_size, dtype, layout, device),
        "past": lambda: [torch.randn(n * shape.T, shape.B, shape.C).to(device, dtype) for n in (1, 1, 2)],
        "q": lambda: filters(shape, weight_dtype, device).q,
        "k": lambda: filters(shape, weight_dtype, device).k,
        "coef": lambda: rows(shape, weight_dtype, device),
        "attention": lambda: filters(shape, weight_dtype, device),
        "lam": lambda: torch.randn(channels[0]).to(device, weight_dtype),
        "e": lambda: (0.5 * torch.randn(channels[1])).to(device, weight_dtype),
        "v": lambda: torch.randn(channels[1]).to(device, weight_dtype),
        "xs": lambda: maps(shape, dtype, layout, device),
        "y": lambda: rows(shape, dtype, device)[0] if op == "attend" else rows(shape, dtype, device),
        "d": lambda: rows(shape, dtype, device),
        "weights": lambda: weights(cell, shape, weight_dtype, device),
        "state": lambda: state(shape, form, weight_dtype, device),
    }
    return {name: make[name]() for name in TAKEN[op]}


def laid_out_again(inputs, layout):
    """Return the same inputs with their maps in memory as ``inputs_of`` puts them."""
    again = dict(inputs)
    for name in ("xs", "values"):
        if name in again:
            again[name] = lay_out(again[name], layout)
    if "stage" in again:
        again["stage"] = again["stage"]._replace(values=tuple(lay_out(again["stage"].values, layout)))
    single = [name for name in ("x", "o_prev", "a", "shortcut") if name in again]
    return again | dict(zip(single, lay_out([again[name] for name in single], layout)))


def options_of(op, cell):
    """Return what ``dla.<op>`` takes besides tensors and the backend."""
    options = {"cell": cell} if op in OPS_WITH_CELL else {}
    options |= {"relu": True} if op == "recalibrate" else {}
    return options | ({"heads": 1} if op in (*STEPS, "attend") else {})
