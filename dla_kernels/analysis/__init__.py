"""Look into trained networks: what layers attend to, what their gates follow from, what the network looks at.

Numbers come from functions that know nothing of figures; figures are drawn from numbers alone.
"""

from .depth import Result, accuracy, by_depth, family_and_depth
from .figures import draw_cams, draw_depths, draw_gini, draw_gradients, draw_scores
from .gini import gini, gini_row
from .gradcam import grad_cam
from .gradients import distribution, gradients
from .record import Recorded, StageRecord, record
from .unrolled import unrolled

__all__ = [
    "Recorded",
    "Result",
    "StageRecord",
    "accuracy",
    "by_depth",
    "distribution",
    "draw_cams",
    "draw_depths",
    "draw_gini",
    "draw_gradients",
    "draw_scores",
    "family_and_depth",
    "gini",
    "gini_row",
    "grad_cam",
    "gradients",
    "record",
    "unrolled",
]
