"""The functions of this package as torch operators: schemas are read off their signatures."""

from __future__ import annotations

import torch
from torch.library import infer_schema

from .attend import attend, attend_bwd
from .depthwise import depthwise, depthwise_bwd
from .gap import gap
from .launch import INTERPRETED
from .layer_update import layer_update, layer_update_, layer_update_bwd
from .light_step import light_step, light_step_bwd
from .mix import mix, mix_bwd
from .norm_add import norm_add, norm_add_bwd
from .refresh import refresh, refresh_bwd
from .rescale import rescale, rescale_, rescale_bwd
from .scan import scan, scan_bwd
from .tune import tuned

NAMESPACE = "dla_triton"
# What each writes besides its results.
FUNCTIONS = {
    gap: (),
    scan: (),
    scan_bwd: (),
    refresh: (),
    refresh_bwd: (),
    rescale: (),
    rescale_: ("xs",),
    rescale_bwd: (),
    layer_update: (),
    layer_update_: ("xs", "states"),
    layer_update_bwd: (),
    light_step: (),
    light_step_bwd: (),
    attend: (),
    attend_bwd: (),
    depthwise: (),
    depthwise_bwd: (),
    mix: (),
    mix_bwd: (),
    norm_add: (),
    norm_add_bwd: (),
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _function, _written in FUNCTIONS.items():
    _name = _function.__name__
    _library.define(_name + infer_schema(_function, mutates_args=_written))
    _library.impl(_name, _function if _written else tuned(_function), "CPU" if INTERPRETED else "CUDA")

ops = getattr(torch.ops, NAMESPACE)
