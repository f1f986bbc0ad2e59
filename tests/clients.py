"""This module imports the networks of others that ours are to work with, torchvision's and timm's, where there are any.

Where its own library does not load, the one operator that detectors cannot do without has a kernel, in Python.
"""

import importlib.util
import re

import pytest
import torch

from recipes.others import declared, import_other


def import_those_named_in(text):
    """Import what of the two the text imports, so that its own import finds it. An example cannot do without, a page
    says what it does instead."""
    for name in ("torchvision", "timm"):
        there = importlib.util.find_spec(name) is not None
        if f">>> import {name}" in text or (there and re.search(rf"\b(from|import) {name}\b", text)):
            imported(name)


def imported(name):
    """Return a module of torchvision or timm; skip the test where these are not installed."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    return import_other(name)


def nms(boxes, scores, iou_threshold):
    """Return which boxes stay, from the best on: none of them overlaps a better one by more."""
    overlaps = imported("torchvision.ops").box_iou(boxes, boxes) > iou_threshold
    kept = []
    for box in scores.argsort(descending=True).tolist():
        if not overlaps[box, kept].any():
            kept.append(box)
    return torch.tensor(kept, dtype=torch.int64)


def with_detection():
    """Return torchvision's detectors, which can run here."""
    detection = imported("torchvision.models.detection")
    boxes = imported("torchvision.ops.boxes")
    if declared and boxes._assert_has_ops is not has_nms:
        declared[0].impl("nms", nms, "CPU")
        boxes._assert_has_ops = has_nms
    return detection


def has_nms():
    """Stand where torchvision looks for its library."""
