"""Run every op for a short time, forward and backward, on the CUDA backend, for compute-sanitizer to watch.

Small maps come first. The run stops by itself between two calls when its seconds are up, and says how far it came.
"""

import argparse
import time

import torch

from dla_kernels import PAPER_DSU, RELEASED_DSU, Cell, verify
from dla_kernels.backends import BACKENDS

SIZES = (
    # [(H, W) of each map], B, C, R: odd sizes, then those of the CIFAR and ImageNet stages with few layers and samples
    ([(5, 3), (8, 8), (1, 1)], 3, 33, 9),
    ([(8, 8)] * 3, 2, 256, 64),
    ([(16, 16)] * 2, 2, 128, 32),
    ([(7, 7)] * 2, 2, 2048, 128),
    ([(14, 14)] * 2, 2, 1024, 64),
    ([(32, 32)] * 2, 2, 64, 16),
    ([(28, 28)] * 2, 2, 512, 32),
)
CELLS = (PAPER_DSU, RELEASED_DSU, Cell("lstm"), Cell("rnn"), Cell("dia"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", default="cuda", help="cpu to try this script itself")
    args = parser.parse_args()
    if not BACKENDS[args.backend].available:
        raise SystemExit(BACKENDS[args.backend].reason)
    device, f = BACKENDS[args.backend].device_types[0], verify.functions(args.backend)
    torch.manual_seed(0)
    until, done = time.monotonic() + args.seconds, 0
    plan = [(sizes, cell, dtype) for sizes in SIZES for cell in CELLS for dtype in (torch.float32, torch.bfloat16)]
    for (sizes, B, C, R), cell, dtype in plan:
        if sizes[0][0] > 8 and cell is not PAPER_DSU:
            continue  # the other cells differ in their small parts only
        plain = verify.make_plain_cases(sizes, B, C, device) if cell is PAPER_DSU else []
        for case in [*verify.make_cases(cell, sizes, B, C, R, device), *plain]:
            if time.monotonic() > until:
                print(f"out of time after {done} calls, at {case.name} C{C}", flush=True)
                return
            verify.outputs_and_gradients(case, f, [x.to(dtype) for x in case.tensors])
            done += 1
        if device == "cuda":
            torch.cuda.synchronize()
        print(f"{done} calls: B{B} C{C} {cell.rule} {cell.projection} {dtype}", flush=True)
    print(f"all {done} calls done", flush=True)


if __name__ == "__main__":
    main()
