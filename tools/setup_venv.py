"""Makes a working virtual environment with the package built in place: what `make setup` runs.

Where a torch of at least 2.11 is importable from this Python (a GPU machine, perhaps with no
network), the environment sees the system's packages and fetches only what is missing; otherwise it
installs torch 2.13.0. Running it again costs a second or two: it rebuilds only what changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent.resolve()
TORCH = "torch==2.13.0"
OLDEST_TORCH = (2, 11)
SUFFICES = "import torch, sys; sys.exit(tuple(int(n) for n in torch.__version__.split('.')[:2]) < {})"


def has_torch(python: str | Path) -> bool:
    check = [python, "-c", SUFFICES.format(OLDEST_TORCH)]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


def dev_requirements() -> list[str]:
    """The dependency group `dev` of pyproject.toml, plus what the build needs."""
    text = (HERE / "pyproject.toml").read_text()
    group = text.split("\ndev = [")[1].split("\n]")[0]
    names = [line.split("#")[0].strip().strip('",') for line in group.splitlines()]
    return ["setuptools>=77", "wheel", "cmake>=3.18", "ninja", *[name for name in names if name]]


def missing(python: Path, requirements: list[str]) -> list[str]:
    """Those of the requirements that are not installed in any version."""
    code = (
        "import sys, re, importlib.metadata as m\n"
        "for r in sys.argv[1:]:\n"
        "    try: m.version(re.split('[<>=]', r)[0])\n"
        "    except m.PackageNotFoundError: print(r)"
    )
    return subprocess.run(
        [python, "-c", code, *requirements], capture_output=True, text=True, check=True
    ).stdout.split()


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, nargs="?", default=Path(".venv"), help="where to make it (default: .venv)")
    venv = parser.parse_args().venv
    if sys.version_info < (3, 10):  # noqa: UP036 (this file runs before anything has checked)
        raise SystemExit(f"dla-kernels needs Python 3.10 or newer, this is {sys.version.split()[0]}; set PYTHON=...")
    python = venv / "bin" / "python"
    if not python.exists():
        options = ["--system-site-packages"] if has_torch(sys.executable) else []
        run(sys.executable, "-m", "venv", *options, venv)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if not has_torch(python):
        print(f"installing {TORCH}, the largest download", flush=True)
        run(*pip, TORCH)
    wanted = missing(python, dev_requirements())
    if wanted:
        print("installing", *wanted, flush=True)
        try:
            run(*pip, *wanted)
        except subprocess.CalledProcessError:
            # No network: what the missing ones serve is skipped with its reason, the rest works.
            print("going on without:", *missing(python, dev_requirements()), flush=True)
    # Without sources having changed there is nothing to build.
    sources = sorted([*HERE.glob("csrc/**/*.*"), HERE / "CMakeLists.txt", HERE / "setup.py", HERE / "pyproject.toml"])
    stamp = venv / "built"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest or not list(HERE.glob("dla_kernels/_C_*.so")):
        print("building the kernels", flush=True)
        os.environ["PATH"] = f"{(venv / 'bin').resolve()}{os.pathsep}{os.environ['PATH']}"
        run(*pip, "--no-build-isolation", "--no-deps", "-e", HERE)
        stamp.write_text(digest)


if __name__ == "__main__":
    main()
