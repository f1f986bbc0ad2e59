"""Make a working virtual environment with the package built in place, as `make setup` does.

Where a torch of at least 2.11 is importable from this Python (a GPU machine, perhaps with no
network), the environment sees the packages of this Python and fetches only what is missing or too
old; otherwise it installs torch 2.13.0. Running it again costs a second or two: it rebuilds only what
changed, and makes anew an environment that was left half made.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from toolkit import find_nvcc

HERE = Path(__file__).parent.parent.resolve()
TORCH = "torch==2.13.0"
OLDEST_TORCH = (2, 11)
SUFFICES = "import torch, sys; sys.exit(tuple(int(n) for n in torch.__version__.split('.')[:2]) < {})"
MISSING = """
import re, sys, importlib.metadata
def numbers(version): return [int(n) for n in re.findall(r"\\d+", version)[:3]]
for requirement in sys.argv[1:]:
    name, oldest = (re.split("[>=]=", requirement) + [""])[:2]
    try:
        if numbers(importlib.metadata.version(name)) < numbers(oldest): print(requirement)
    except importlib.metadata.PackageNotFoundError: print(requirement)
"""


def runs(*command: object) -> bool:
    return subprocess.run([str(part) for part in command], capture_output=True, check=False).returncode == 0


def has_torch(python: str | Path) -> bool:
    return runs(python, "-c", SUFFICES.format(OLDEST_TORCH))


def group(name: str) -> list[str]:
    """Return a dependency group of pyproject.toml. (Python 3.10 has no reader of its format.)"""
    text = (HERE / "pyproject.toml").read_text().split(f"\n{name} = [")[1].split("\n]")[0]
    names = [line.split("#")[0].strip().strip('",') for line in text.splitlines()]
    return [name for name in names if name and (sys.platform == "linux" or not name.startswith("triton"))]


def dev_requirements() -> list[str]:
    """Return the dependency group `dev`, plus what the build needs."""
    return ["setuptools>=77", "wheel", "cmake>=3.18", "ninja", *group("dev")]


def missing(python: Path, requirements: list[str]) -> list[str]:
    """Return those of the requirements, all `name`, `name>=version` or `name==version`, that are not installed or too
    old."""
    return subprocess.run(
        [python, "-c", MISSING, *requirements], capture_output=True, text=True, check=True
    ).stdout.split()


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def choose_what_to_build(python: Path) -> None:
    """Choose for developers: fail rather than build no kernels, build for one architecture, and build the SIMT shim."""
    with_cuda = find_nvcc() and runs(python, "-c", "import torch, sys; sys.exit(torch.version.cuda is None)")
    os.environ.setdefault("DLA_KERNELS_BUILD", "cuda" if with_cuda else "cpu")
    os.environ.setdefault("DLA_KERNELS_SIMT", "1")
    arch = "import torch; print('%d%d' % torch.cuda.get_device_capability() if torch.cuda.is_available() else '')"
    if with_cuda:
        found = subprocess.run([python, "-c", arch], capture_output=True, text=True, check=False).stdout.strip()
        if found:
            os.environ.setdefault("DLA_KERNELS_ARCHS", found)


def make_venv(venv: Path) -> None:
    """Make the environment, with this Python's packages in sight where these include a torch that serves."""
    inherits = has_torch(sys.executable)
    # With pip in sight none is put in: ensurepip may be absent, or bring a setuptools older than the one in sight.
    seen = inherits and runs(sys.executable, "-m", "pip", "--version")
    options = [*["--system-site-packages"] * inherits, *["--without-pip"] * seen]
    run(sys.executable, "-m", "venv", "--clear", *options, venv)
    if inherits and sys.prefix != sys.base_prefix:
        # This Python is itself a virtual environment, and "system" means the Python below it.
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (venv / site / "parent.pth").write_text("".join(f"{path}\n" for path in paths))


def setup(venv: Path) -> None:
    python = venv / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if not python.exists() or not runs(*pip[:-2], "--version"):
        make_venv(venv)
    if not has_torch(python):
        print(f"installing {TORCH}, the largest download", flush=True)
        run(*pip, TORCH)
    for options, requirements in (([], dev_requirements()), (["--no-deps"], group("clients"))):
        wanted = missing(python, requirements)
        if wanted:
            print("installing", *wanted, flush=True)
            try:
                run(*pip, *options, *wanted)
            except subprocess.CalledProcessError:
                # No network: what the missing ones serve is skipped with its reason, the rest works.
                print("going on without:", *missing(python, requirements), flush=True)
    # Where no source has changed there is nothing to build.
    sources = sorted(
        [
            *HERE.glob("csrc/**/*.*"),
            *HERE.glob("tests/simt/*"),
            HERE / "CMakeLists.txt",
            HERE / "setup.py",
            HERE / "pyproject.toml",
        ]
    )
    stamp = venv / "built"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest or not (HERE / "dla_kernels/_C_cpu.so").exists():
        print("building the kernels", flush=True)
        choose_what_to_build(python)
        # CMake and ninja may lie beside this Python.
        tools = [(venv / "bin").resolve(), Path(sys.executable).parent, os.environ["PATH"]]
        os.environ["PATH"] = os.pathsep.join(map(str, tools))
        run(*pip, "--no-build-isolation", "--no-deps", "-e", HERE)
        stamp.write_text(digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, nargs="?", default=Path(".venv"), help="where to make it (default: .venv)")
    venv = parser.parse_args().venv
    if sys.version_info < (3, 10):  # noqa: UP036 (this file runs before anything has checked)
        raise SystemExit(f"dla-kernels needs Python 3.10 or newer, this is {sys.version.split()[0]}; set PYTHON=...")
    try:
        setup(venv)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        raise SystemExit(f"setup stopped: this command failed with status {error.returncode}: {command}") from None


if __name__ == "__main__":
    main()
