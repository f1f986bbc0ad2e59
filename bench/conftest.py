import os

from bench.common import ALLOCATOR


def pytest_report_header() -> str:
    """Return a line on the allocator: page faults of fresh outputs drown CPU timings unless it keeps what is freed."""
    kept = all(os.environ.get(name) == value for name, value in ALLOCATOR.items())
    wanted = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
    return "allocator keeps freed memory" if kept else f"timings will be noisy; run with: {wanted}"
