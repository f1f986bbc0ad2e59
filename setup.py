"""Build the compiled backends with CMake, which owns sources and flags (CMakeLists.txt).

Unless DLA_KERNELS_BUILD says otherwise, the CPU's kernels are built, CUDA's where there are a torch and a compiler for
them, and what keeps the CPU's from being built is an error. auto installs the pure-Python package then, none does so
always; the reason is kept in the package, for `python -m dla_kernels info`. cpu leaves CUDA out, cuda insists on it.
DLA_KERNELS_ARCHS lists the GPU architectures, such as "90" or "80;90"; DLA_KERNELS_SIMT=1 also builds the CUDA kernels
for the CPU, as the tests run them.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent.resolve() / "tools"))
from toolkit import find_nvcc

HERE = Path(__file__).parent.resolve()
CHOICES = ("", "auto", "cpu", "cuda", "none")
CHOICE = os.environ.get("DLA_KERNELS_BUILD", "")
REASON = "without_kernels.txt"  # in the package: why it has none; dla_kernels/backends.py reads it
GIB_PER_JOB = 1.5


def jobs() -> int:
    """Return MAX_JOBS, or as many jobs as cores and memory allow."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(os.cpu_count() or 1, int(memory_gib / GIB_PER_JOB)))


def missing() -> str:
    """Return what keeps the compiled backends from being built here, and how to get it; empty if nothing does."""
    try:
        import torch
    except ImportError:
        return (
            "torch is missing in the build environment; "
            "pip install 'torch>=2.11', then pip install --no-build-isolation ."
        )
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11):
        return f"torch {torch.__version__} is too old; pip install 'torch>=2.11'"
    chosen = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if not any(shutil.which(name) for name in (*chosen[:1], "g++", "clang++")):
        return "a C++17 compiler is missing; install g++ or clang++, e.g. apt-get install g++"
    if not shutil.which("cmake"):
        return "CMake is missing; pip install cmake"
    return ""


def missing_for_cuda() -> str:
    """Return what keeps the CUDA kernels from being built here, and how to get it; empty if nothing does."""
    import torch

    if torch.version.cuda is None and CHOICE != "cuda":
        return "this torch is built without CUDA"
    if not find_nvcc():
        return "nvcc is missing; install the CUDA toolkit and put nvcc on PATH or set CUDA_HOME"
    return ""


class CMakeBuild(build_ext):
    def run(self) -> None:
        if CHOICE not in CHOICES:
            raise SystemExit(f"DLA_KERNELS_BUILD: expected one of {', '.join(CHOICES[1:])}, or nothing, got {CHOICE!r}")
        in_place = self.inplace or self.editable_mode
        self.package = HERE / "dla_kernels" if in_place else Path(self.build_lib) / "dla_kernels"
        self.package.mkdir(parents=True, exist_ok=True)
        reason = "it was installed with DLA_KERNELS_BUILD=none" if CHOICE == "none" else missing()
        if not reason:
            try:
                (self.package / REASON).unlink(missing_ok=True)
                return self.build_libraries()
            except subprocess.CalledProcessError as error:
                reason = f"{shlex.join(map(str, error.cmd[:2]))} failed; pip install -v shows why"
        if CHOICE not in ("auto", "none"):
            raise SystemExit(
                f"dla-kernels: cannot build the {CHOICE or 'cpu'} kernels: {reason}\n"
                "dla-kernels: to install it without kernels, for the slow reference alone, set DLA_KERNELS_BUILD=none"
            )
        say(f"dla-kernels: installing the pure-Python package without compiled kernels: {reason}")
        (self.package / REASON).write_text(f"{reason}\n")
        self.extensions = []

    def build_libraries(self) -> None:
        import torch

        without_cuda = "DLA_KERNELS_BUILD=cpu" if CHOICE == "cpu" else missing_for_cuda()
        if without_cuda and CHOICE == "cuda":
            raise SystemExit(f"dla-kernels: cannot build the CUDA kernels: {without_cuda}")
        options = [f"-DTORCH_DIR={torch.__path__[0]}"]
        options += [f"-DDLA_CUDA={'OFF' if without_cuda else 'ON'}"]
        options += [f"-DDLA_SIMT={'ON' if os.environ.get('DLA_KERNELS_SIMT', '0') not in ('', '0') else 'OFF'}"]
        if not without_cuda:
            options += [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
            if os.environ.get("DLA_KERNELS_ARCHS"):
                options += [f"-DDLA_CUDA_ARCHS={os.environ['DLA_KERNELS_ARCHS']}"]

        build = HERE / "build" / "cmake"
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={HERE}\n" not in cache.read_text():
            shutil.rmtree(build)  # the tree was moved or copied: CMake would refuse it
        generator = ["-G", "Ninja"] if not cache.exists() and shutil.which("ninja") else []
        subprocess.check_call(["cmake", "-S", HERE, "-B", build, *options, *generator], stdout=sys.stderr)
        subprocess.check_call(["cmake", "--build", build, "--parallel", str(jobs())], stdout=sys.stderr)
        for library in build.glob("_C_*.so"):
            shutil.copy2(library, self.package)

    def get_outputs(self) -> list:
        return []

    def get_output_mapping(self) -> dict:
        return {}


class AnyPythonWheel(bdist_wheel):
    """A wheel that serves every Python: the libraries use torch's stable ABI and no Python at all. Without libraries it
    serves every machine too, and no cache takes it for one that has them."""

    def run(self) -> None:
        self.run_command("build")
        build = self.get_finalized_command("build_ext")
        if not list(Path(build.build_lib).glob("dla_kernels/_C_*.so")):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple:
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


def say(line: str) -> None:
    """Print a line to the terminal where there is one, since pip hides what a successful build prints."""
    try:
        with open("/dev/tty", "w") as terminal:
            print(line, file=terminal)
    except OSError:
        print(line, file=sys.stderr)


# The extension has no sources of its own: it makes the wheel a platform wheel and runs CMakeBuild.
setup(
    ext_modules=[Extension("dla_kernels._C_cpu", [])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
