"""A checkout that was installed, but not in place, has no kernels of its own, and works from any folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from dla_kernels import __version__

from .mutants.trial import Tree
from .test_house import ROOT

pytestmark = pytest.mark.slow
USE = "import torch, dla_kernels as dla; print(dla.gap([torch.ones(1, 2, 3, 3)], backend='cpu').tolist())"


@pytest.fixture
def checkout(tmp_path):
    """Return a folder with the package as it lies in a repository: without libraries."""
    shutil.copytree(ROOT / "dla_kernels", tmp_path / "checkout" / "dla_kernels", ignore=shutil.ignore_patterns("*.so"))
    return tmp_path / "checkout"


@pytest.fixture
def installed(tmp_path):
    """Return a folder like site-packages, with the package and its libraries."""
    shutil.copytree(ROOT / "dla_kernels", tmp_path / "site" / "dla_kernels")
    return tmp_path / "site"


def run(folder, *arguments, also=None):
    # What is installed for these tests is this checkout itself: it is not to be found.
    code = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]; del sys.argv[1]; "
    code += "sys.argv[0] = '-c'; exec(sys.argv.pop(1))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DLA_KERNELS")}
    command = [sys.executable, "-c", code, str(ROOT), *arguments]
    environment["PYTHONPATH"] = str(also or "")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


INFO = "from dla_kernels.__main__ import main; import sys; sys.exit(main(['info', '--json']))"


def cpu_backend(folder, also):
    status, out, err = run(folder, INFO, also=also)
    assert status == 0, err
    return next(backend for backend in json.loads(out)["backends"] if backend["backend"] == "cpu")


def test_a_checkout_takes_the_kernels_that_are_installed_and_says_so(checkout, installed):
    cpu = cpu_backend(checkout, installed)
    assert cpu["available"], cpu["why"]
    assert cpu["why"].endswith(f"with the kernels installed in {installed / 'dla_kernels'}")
    assert run(checkout, USE, also=installed)[:2] == (0, "[[[1.0, 1.0]]]\n")


def test_kernels_of_another_version_are_not_taken(checkout, installed):
    file = installed / "dla_kernels" / "__init__.py"
    file.write_text(file.read_text().replace(__version__, "0.0.1"))
    cpu = cpu_backend(checkout, installed)
    assert not cpu["available"] and cpu["why"].startswith("its kernels, _C_cpu.so, are not built")


def test_what_is_installed_works_from_any_folder(installed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    cpu = cpu_backend(tmp_path / "elsewhere", installed)
    assert cpu["available"] and "installed in" not in cpu["why"]


# ---- building it ----


@pytest.fixture
def sources(tmp_path):
    """Return a folder with what a wheel is built of, without what is compiled."""
    for folder in ("dla_kernels", "triton_ops", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def wheel(sources, **environment):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-index"]
    command += ["--no-build-isolation", "--no-deps", "-w", "wheels", "."]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DLA_KERNELS")} | environment
    return subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)


def test_a_wheel_without_kernels_serves_every_machine_and_says_why(sources):
    done = wheel(sources, DLA_KERNELS_BUILD="none")
    assert done.returncode == 0, done.stderr
    (built,) = (sources / "wheels").iterdir()
    assert built.name == f"dla_kernels-{__version__}-py3-none-any.whl"
    shutil.unpack_archive(built, sources / "site", "zip")
    assert "Root-Is-Purelib: true" in next((sources / "site").glob("*.dist-info/WHEEL")).read_text()
    why = cpu_backend(sources / "wheels", sources / "site")["why"]
    assert why.startswith("its kernels, _C_cpu.so, are not built (it was installed with DLA_KERNELS_BUILD=none); ")


def test_without_cmake_the_build_fails_with_what_to_do(sources):
    tools = sources / "bin"
    tools.mkdir()
    for name in ("g++", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    done = wheel(sources, PATH=str(tools))
    assert done.returncode != 0
    assert "cannot build the cpu kernels: CMake is missing; pip install cmake" in done.stderr
    assert "set DLA_KERNELS_BUILD=none" in done.stderr
    done = wheel(sources, PATH=str(tools), DLA_KERNELS_BUILD="auto")
    assert done.returncode == 0, done.stderr
    (built,) = (sources / "wheels").iterdir()
    assert built.name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize("there", ["None", "types.SimpleNamespace(__version__='65.5.0')"], ids=["none", "old"])
def test_setuptools_that_cannot_build_it_are_told_in_one_line(there):
    code = f"import sys, types; sys.modules['setuptools'] = {there}; import build_backend"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("dla-kernels: setuptools ") and line.endswith("run: pip install -U 'setuptools>=77' cmake")


def test_an_sdist_has_what_a_wheel_is_built_of(tmp_path):
    tree = Tree(tmp_path)
    tree.copy()
    with (tmp_path / "log").open("w") as log:
        tree.run(sys.executable, "setup.py", "-q", "sdist", log=log).check_returncode()
    (sdist,) = (tree.folder / "dist").iterdir()
    with tarfile.open(sdist) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    folders = ("csrc", "dla_kernels", "triton_ops", "tools")
    sources = {path.relative_to(tree.folder).as_posix() for f in folders for path in (tree.folder / f).rglob("*.*")}
    sources = {path for path in sources if not path.endswith((".json", ".so", ".pyc"))}
    assert sources | {"CMakeLists.txt", "setup.py", "LICENSE"} <= held
    assert not any(path.startswith(("tests/", "bench/", "docs/")) for path in held)


# ---- all of it ----


def test_the_first_hour_of_a_newcomer():
    """README's lines work in a fresh clone and a fresh venv, with a torch of its own."""
    command, environment = [ROOT / "tests/first_hour.sh"], os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    for line in ("pip install --no-build-isolation .", "python -m dla_kernels verify", "python example_2.py"):
        assert f"$ {line}" in done.stdout
    assert "0 failed" in done.stdout
