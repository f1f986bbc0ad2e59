"""This module finds the programs of the CUDA toolkit: on PATH, or in the folder where the toolkit is installed."""

from __future__ import annotations

import os
import shutil

HOMES = ("/usr/local/cuda", "/opt/cuda")


def find(program: str) -> str | None:
    """Return the path of a program, None where it is absent: PATH comes first, then CUDA_HOME and CUDA_PATH."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *HOMES) if home]
    folders = [f"{home}/{folder}" for home in homes for folder in ("bin", "compute-sanitizer")]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(folders))


def find_nvcc() -> str | None:
    return find("nvcc")
