"""Test and measure on a machine with a GPU, a torch that sees it, and perhaps no network, as `make gpu` does.

Each stage has a budget of seconds; one that runs out is stopped, and the next goes on:

  setup      builds the package in place (tools/setup_venv.py)
  cuda       the tests of the CUDA backend, but for the slow ones (compilers)
  memcheck   compute-sanitizer over a short run, where the tool works
  racecheck  likewise
  bench      the benchmarks, without torch.compile
  triton     the tests of the Triton backend, thinned out: each compiles kernels of its own
  rest       all other tests, but for the compile gates of other chips, which `make test` runs anywhere
  compile    some rows of the benchmarks again, beside torch.compile(mode="max-autotune")

Results go to bench/results/latest/<device>/: bench.json, bench.txt, gpu.json, gpu.txt, and with gpu.log all of it
to $OUT where that is set. Exit status: 0 passed, 1 a stage failed, 2 tests were cut short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

import toolkit

HERE = Path(__file__).parent.parent.resolve()
VENV = HERE / ".venv"
BUDGETS = {"setup": 200, "cuda": 120, "memcheck": 40, "racecheck": 40, "bench": 160}
BUDGETS |= {"triton": 80, "rest": 100, "compile": 90}
COMPILED_ROWS = "T3-B256-C256,T12-B8-C256,T12-B128-C128,T6-B256-C1024,T3-B256-C2048,T12-B128-C64,T4-B256-C512"
# These compile for every other chip, for minutes and without a GPU.
NO_GATES = ("--ignore=tests/test_cuda_build.py", "--ignore=tests/test_triton_build.py")
ERRORS_FOUND = 86  # the exit status that compute-sanitizer is told to use
KERNELS = "kns=3dla4cuda"  # those of this package, by a part of their mangled names
# What the sanitizer must find before its silence counts: a race, or a write out of bounds.
PLANTED = """
#include <cstdlib>
namespace dla { namespace cuda {
__global__ void planted(int* out, int past) {
  __shared__ int s[256];
  s[threadIdx.x] = threadIdx.x;
  if (past == 0) out[threadIdx.x] = s[255 - threadIdx.x];
  else out[threadIdx.x + past] = 1;
}
}}
int main(int, char** argv) {
  int* out;
  if (cudaMalloc(&out, 256 * sizeof(int)) != cudaSuccess) return 3;
  dla::cuda::planted<<<1, 256>>>(out, std::atoi(argv[1]));
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 4;
}
"""


class Outcome(NamedTuple):
    stage: str
    result: str  # passed, failed, stopped, skipped
    seconds: float
    note: str


class Session:
    """A session that runs commands with a budget, shows and keeps their output, and keeps the results up to date."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.out = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
        self.results: Path | None = None  # known once the device's name is
        self.facts: dict = {}
        self.outcomes: list[Outcome] = []
        log = (self.out or HERE / "build") / "gpu.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log: TextIO = log.open("w", errors="replace")
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        self.env.pop("DLA_KERNELS_SIMT", None)  # else the shim would stand in for the GPU

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.args.deadline - self.elapsed

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()

    def run(self, command: list[object], seconds: float, **env: str) -> tuple[int | None, list[str]]:
        """Return (exit status, lines of output), the status None where it was stopped. Its process group ends too."""
        lines: list[str] = []
        words = [str(word) for word in command]
        self.say(f"$ {' '.join(words)}")
        try:
            child = subprocess.Popen(
                words,
                cwd=HERE,
                env={**self.env, **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as why:
            self.say(str(why))
            return 127, [str(why)]
        heard = time.monotonic()

        def listen() -> None:
            nonlocal heard
            assert child.stdout
            for line in child.stdout:
                heard = time.monotonic()
                lines.append(line.rstrip())
                self.say(lines[-1])

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        start = time.monotonic()
        stopped = False
        try:
            while child.poll() is None:
                now = time.monotonic()
                if now - start > seconds:
                    stopped = True
                    self.say(f"... {seconds:.0f} s are up: stopping")
                    self.end(child)
                    break
                if now - heard > 15:
                    heard = now
                    self.say(f"... {now - start:.0f} of {seconds:.0f} s")
                    self.deliver()
                time.sleep(0.1)
        finally:
            self.kill_group(child)  # also what it may have left behind, such as compile workers
        listener.join(timeout=5)
        return (None if stopped else child.returncode), lines

    def end(self, child: subprocess.Popen) -> None:
        """Stop a command, first as Ctrl-C does, so that pytest still says what failed; then for good."""
        os.kill(child.pid, signal.SIGINT)
        try:
            child.wait(timeout=self.args.grace)
        except subprocess.TimeoutExpired:
            self.kill_group(child)
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.say("... it does not even die; going on")

    @staticmethod
    def kill_group(child: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # where nobody is left
            os.killpg(child.pid, signal.SIGKILL)

    def deliver(self) -> None:
        """Copy the results so far into $OUT: little and flat enough to come back from a rented machine."""
        if not (self.out and self.results and self.results.exists()):
            return
        folder = self.out / self.results.name
        folder.mkdir(exist_ok=True)
        for early in ("gpu.json", "gpu.txt"):  # written before the device's name was known
            (self.out / early).unlink(missing_ok=True)
        for file in self.results.iterdir():
            if file.suffix in (".json", ".txt", ".png"):
                shutil.copy(file, folder)

    def summary(self) -> str:
        rows = [("stage", "result", "seconds", "note")]
        rows += [(o.stage, o.result, f"{o.seconds:.0f}", o.note) for o in self.outcomes]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*(w.ljust(n) for w, n in zip(row, widths)), row[3]]).rstrip() for row in rows)

    def status(self) -> int:
        results = {o.stage: o.result for o in self.outcomes}
        if "failed" in results.values():
            return 1
        return 2 if "stopped" in (results.get("setup"), results.get("cuda"), results.get("rest")) else 0

    def verdict(self) -> str:
        failed = [o.stage for o in self.outcomes if o.result == "failed"]
        if failed:
            return f"verdict: FAILED: {', '.join(failed)}"
        cut = [o.stage for o in self.outcomes if o.result in ("stopped", "skipped")]
        word = "passed" if self.status() == 0 else "INCOMPLETE"
        return f"verdict: {word}{'; not or not wholly run: ' + ', '.join(cut) if cut else ''}"

    def save(self) -> None:
        """Write the results, after every stage, so that a later crash takes nothing away."""
        folder = self.results or self.out
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            stages = [outcome._asdict() for outcome in self.outcomes]
            content = {"facts": self.facts, "stages": stages, "seconds": self.elapsed, "verdict": self.verdict()}
            (folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
            facts = "\n".join(f"{name:16} {value}" for name, value in self.facts.items())
            (folder / "gpu.txt").write_text(f"{facts}\n\n{self.summary()}\n{self.verdict()}\n")
        self.deliver()

    def stage(self, name: str, work: Callable[[float], tuple[str, str]]) -> str:
        if name not in self.args.stages:
            return "skipped"
        seconds = min(self.args.budgets[name], self.left)
        self.say(f"\n===== {name}: up to {seconds:.0f} s; {self.elapsed:.0f} of {self.args.deadline:.0f} s gone =====")
        start = time.monotonic()
        try:
            result, note = work(seconds) if seconds > 10 else ("skipped", "no time left")
        except Exception as why:  # a stage that raises does not keep the next from running
            result, note = "failed", f"{type(why).__name__}: {why}"
        self.outcomes.append(Outcome(name, result, time.monotonic() - start, note))
        self.say(f"===== {name}: {result} {note}")
        self.save()
        return result


def plain(status: int | None, note: str = "") -> tuple[str, str]:
    """Return the result of a command that should exit with 0."""
    if status is None:
        return "stopped", note or "budget used up"
    return ("passed", note) if status == 0 else ("failed", note or f"exit status {status}")


class Stages:
    def __init__(self, session: Session, rehearse: bool) -> None:
        self.session, self.rehearse = session, rehearse
        self.python = VENV / "bin" / "python"
        self.cores = len(os.sched_getaffinity(0))

    def setup(self, seconds: float) -> tuple[str, str]:
        # Where there is no network, pip is not to wait for one.
        quick = {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "5", "PIP_NO_INPUT": "1"}
        status, _ = self.session.run([sys.executable, "tools/setup_venv.py", VENV], seconds, **quick)
        return plain(status)

    def look(self) -> None:
        """Learn the device's facts, and by its name the folder of the results."""
        command = [self.python, "-m", "bench.devices", *["--stand-in"] * self.rehearse]
        status, lines = self.session.run(command, 60)
        if status != 0:
            raise SystemExit("no CUDA device to work on")
        self.session.facts = json.loads(lines[-1])
        self.session.results = (
            self.session.args.results or HERE / "bench" / "results" / "latest"
        ) / self.session.facts["slug"]
        status, lines = self.session.run([self.python, "-m", "dla_kernels", "info"], 60)
        if not self.rehearse and not any(re.match(r"cuda +yes", line) for line in lines):
            raise SystemExit("the CUDA backend is not available")  # else its tests would pass, there being none

    def tests(self, which: list[str], dist: str, seconds: float, **env: str) -> tuple[str, str]:
        command = [self.python, "-m", "pytest", *which, "-rfE", "--tb=short", "--maxfail=100", "-p", "no:cacheprovider"]
        workers = min(8, self.cores // 2)
        if workers > 1 and self.has("xdist"):
            command += ["-n", workers, "--dist", dist]
            env["OMP_NUM_THREADS"] = str(self.cores // workers)
        status, lines = self.session.run(command, seconds - self.session.args.grace, **env)
        counts = [line for line in lines if re.search(r"\d+ (passed|failed|error|skipped|deselected)", line)]
        note = counts[-1].strip("= ") if counts else f"exit status {status}"
        if status is None and re.search(r"\d+ (failed|error)", note):
            return "failed", f"cut short; {note}"
        return plain(status, note)

    def has(self, module: str) -> bool:
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        return subprocess.run([self.python, "-c", find], check=False).returncode == 0

    def sanitizer(self, tool: str, seconds: float) -> tuple[str, str]:
        began = time.monotonic()
        found, nvcc = toolkit.find("compute-sanitizer"), toolkit.find_nvcc()
        if not found or not nvcc:
            return "skipped", f"{'nvcc' if found else 'compute-sanitizer'} is absent"
        check = [found, "--tool", tool, "--error-exitcode", ERRORS_FOUND, "--print-limit", 20]
        check += ["--report-api-errors", "no"] * (tool == "memcheck")

        source = HERE / "build" / "planted.cu"
        source.parent.mkdir(exist_ok=True)
        source.write_text(PLANTED)
        arch = self.session.facts.get("capability", "9.0").replace(".", "")
        status, _ = self.session.run([nvcc, f"-arch=sm_{arch}", "-o", source.with_suffix(""), source], 30)
        if status != 0:
            return "skipped", "nvcc could not compile the program that tries the tool"
        for only in (["--kernel-name", KERNELS], []):
            command = [*check, *only, source.with_suffix(""), 0 if tool == "racecheck" else 4096]
            status, _ = self.session.run(command, 15)
            if status == ERRORS_FOUND:
                break
        else:
            return "skipped", "the tool does not work here: it missed a planted error"
        # The script's own clock stops it between two calls, and a verdict on those before remains.
        left = seconds - (time.monotonic() - began)
        script = [self.python, "tools/sanitized.py", "--seconds", f"{max(1, left - 20):.0f}"]
        script += ["--backend", "cpu"] * self.rehearse
        # Without torch's cache each tensor is an allocation of its own, whose end memcheck knows.
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        status, lines = self.session.run([*check, *only, *script], left, **uncached)
        calls = [line for line in lines if re.search(r"\d+ calls", line)]
        note = calls[-1] if calls else "no call was finished"
        if status == ERRORS_FOUND:
            return "failed", f"errors found; {note}"
        return plain(status, note)

    def bench(self, seconds: float) -> tuple[str, str]:
        return self.measure(seconds, ["--compile", "none"])

    def compile(self, seconds: float) -> tuple[str, str]:
        mode = ["--compile", "default" if self.rehearse else "max-autotune", "--dtypes", "bf16", "--add"]
        return self.measure(seconds, [*mode, *["--rows", COMPILED_ROWS] * (not self.rehearse)])

    def measure(self, seconds: float, options: list[str]) -> tuple[str, str]:
        command = [self.python, "-m", "dla_kernels", "bench", "--device", "cuda", *options]
        command += ["--budget", f"{seconds - 25:.0f}", "--out", self.session.results]
        command += ["--stand-in", "--row-seconds", "0.2"] * self.rehearse
        status, lines = self.session.run(command, seconds - self.session.args.grace)
        met = [line for line in lines if line.startswith("targets: ")]
        rows = [line for line in lines if re.match(r"\[\d+/\d+ ", line)]
        note = "; ".join([*met[-1:], f"{len(rows)} rows"])
        return plain(status, note if status in (0, None) else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(BUDGETS), help="comma-separated (default: all)")
    parser.add_argument("--deadline", type=float, default=490, help="seconds for everything (default 490)")
    parser.add_argument(
        "--budget", action="append", default=[], metavar="STAGE=SECONDS", help="of one stage; repeatable"
    )
    parser.add_argument("--grace", type=float, default=8, help="seconds between Ctrl-C and kill (default 8)")
    parser.add_argument("--results", type=Path, help="instead of bench/results/latest")
    parser.add_argument("--rehearse", action="store_true", help="every step on a machine without a GPU, tiny")
    args = parser.parse_args()
    args.stages = args.stages.split(",")
    args.budgets = dict(BUDGETS)
    for entry in args.budget:
        stage, _, seconds = entry.partition("=")
        args.budgets[stage] = float(seconds or "nan")
    unknown = {*args.stages, *args.budgets} - set(BUDGETS)
    if unknown:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}; there are {', '.join(BUDGETS)}")
    return args


def main() -> int:
    args = arguments()
    session = Session(args)
    # A shell may have made this process ignore SIGINT, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    stages = Stages(session, args.rehearse)
    some = ["tests/test_docs.py", "tests/test_gap.py"] if args.rehearse else []
    own, second = ("cpu", "cpu") if args.rehearse else ("cuda", "triton")
    try:
        if session.stage("setup", stages.setup) in ("failed", "stopped"):
            raise SystemExit("setup did not come to its end")
        stages.look()
        session.stage("cuda", lambda s: stages.tests([*some, "-k", f"{own} and not slow"], "load", s))
        for tool in ("memcheck", "racecheck"):
            session.stage(tool, lambda s, tool=tool: stages.sanitizer(tool, s))  # type: ignore[misc]
        session.stage("bench", stages.bench)
        session.stage("triton", lambda s: stages.tests([*some, "-k", f"{second} and not slow"], "load", s))
        others = "not cuda and not triton or slow"
        # Workers get whole files, since some build programs once for all their tests.
        session.stage("rest", lambda s: stages.tests([*some, *NO_GATES, "-k", others], "loadfile", s))
        session.stage("compile", stages.compile)
    except (SystemExit, Exception) as why:  # whatever it is, the verdict comes last
        session.outcomes.append(Outcome("end", "failed", session.elapsed, str(why)))
    session.save()
    if session.results and (session.results / "bench.txt").exists() and "bench" in args.stages:
        session.say("\n" + (session.results / "bench.txt").read_text())
    session.say(f"\n{session.summary()}")
    session.say(f"results: {session.results or session.out}")
    session.say(f"{session.verdict()} ({session.elapsed:.0f} s)")
    session.deliver()
    return session.status()


if __name__ == "__main__":
    sys.exit(main())
