"""The shapes that are measured, by name."""

from __future__ import annotations

from bench.common import Shape
from bench.model.formulas import Traffic, traffic

CIFAR = ((64, 32), (128, 16), (256, 8))  # C, HW of a ResNet's stages
IMAGENET = ((256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3))  # C, HW and T of a ResNet-50's stages

SUITES = {
    "cifar": tuple(Shape(6, 32, C, HW, 4) for C, HW in CIFAR),
    "imagenet": tuple(Shape(T, 8, C, HW, 16) for C, HW, T in IMAGENET),
    "latency": tuple(Shape(12, 1, C, HW, 4) for C, HW in CIFAR),
    "smoke": (Shape(3, 2, 16, 4, 4), Shape(2, 1, 33, 5, 4)),
}
BATCHES = {"cifar": 128, "imagenet": 256}  # on a GPU


def shapes_of(op: str, shapes: tuple[Shape, ...]) -> list[Shape]:
    """Return the shapes that differ for an op: an op of a single layer knows no T, and moves the same whatever T is."""

    def moved(shape: Shape) -> Traffic:
        return traffic(op, "both", shape)

    of_one = [shape._replace(T=1) for shape in shapes]
    knows_T = any(moved(shape) != moved(one) for shape, one in zip(shapes, of_one))
    return list(dict.fromkeys(shapes if knows_T else of_one))
