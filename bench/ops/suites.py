"""The shapes that are measured, by name."""

from __future__ import annotations

from bench.common import Shape

CIFAR = ((64, 32), (128, 16), (256, 8))  # C, HW of a ResNet's stages
IMAGENET = ((256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3))  # and T, of a ResNet-50

SUITES = {
    "cifar": tuple(Shape(6, 32, C, HW, 4) for C, HW in CIFAR),
    "imagenet": tuple(Shape(T, 8, C, HW, 16) for C, HW, T in IMAGENET),
    "latency": tuple(Shape(12, 1, C, HW, 4) for C, HW in CIFAR),
    "smoke": (Shape(3, 2, 16, 4, 4), Shape(2, 1, 33, 5, 4)),
}
BATCHES = {"cifar": 128, "imagenet": 256}  # on a GPU

STAGES = ("gap", "scan", "refresh", "rescale", "layer_update", "base_step", "mix", "attend")  # have T layers


def shapes_of(op: str, shapes: tuple[Shape, ...]) -> list[Shape]:
    """The shapes that differ for an op: one of a single layer knows no T."""
    return list(dict.fromkeys(shape if op in STAGES else shape._replace(T=1) for shape in shapes))
