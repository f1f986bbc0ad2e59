"""What pip asks to build the package: setuptools, and before it one line on what setuptools cannot say itself."""

OLDEST = 77  # reads the licence of pyproject.toml
MEND = f"pip install -U 'setuptools>={OLDEST}' cmake"

try:
    import setuptools
except ImportError:
    raise SystemExit(f"dla-kernels: setuptools is missing; run: {MEND}") from None
if int(setuptools.__version__.split(".")[0]) < OLDEST:
    raise SystemExit(f"dla-kernels: setuptools {setuptools.__version__} is too old; run: {MEND}")

from setuptools.build_meta import *  # noqa: F403, E402
