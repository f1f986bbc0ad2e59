"""This module tries a change: it makes it in a copy of the tree, builds it if need be, and puts it before the tests."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from .affected import BUILT, CHANGED, OPS, UNDER_WAY, backends_of, ops_of
from .sites import ROOT

KILLED_FAST, KILLED_FULL, SURVIVED = "fast tier", "full run", "none"
UNDECIDED = "not the fast tier"  # and the rest of the full run has not been asked yet
SAME_CODE, OTHER_CODE, STILLBORN = "same machine code", "other machine code", "does not compile"
LIBRARIES = {"cpu": "_C_cpu", "cuda": "_C_simt"}
CELLS_ALONE = "tests/test_cells_cpp.py"  # compiles a header of csrc/cells by itself
MEMORY = 12 << 30  # bytes of addresses; a changed size may ask for all there is
NOTHING_COLLECTED = 5  # pytest's exit status
# Signals that a change of memory, arithmetic or a loop's end can bring; others come from outside.
FATAL = ["SIGABRT", "SIGALRM", "SIGBUS", "SIGFPE", "SIGILL", "SIGPROF", "SIGSEGV"]
CRASHES = [-getattr(signal, name) for name in FATAL]


class Tree:
    """A tree is a copy of the sources with its own build, in which one file at a time is changed."""

    def __init__(self, folder):
        self.folder, self.build = folder / "tree", folder / "tree/build/cmake"
        self.clean = folder / "clean"  # the build of the unchanged sources
        self.passing, self.failing = set(), set()  # tests that were run with nothing changed
        self.links = {}  # the command that links each library, of whatever objects there are

    def make(self):
        """Make the copy and build it, and keep what was built."""
        self.copy()
        if self.clean.exists():
            shutil.copytree(self.clean, self.build)
        self.build_all()
        shutil.rmtree(self.clean, ignore_errors=True)
        shutil.copytree(self.build, self.clean)
        self.take_clean_libraries()

    def copy(self):
        """Copy the sources as they are now, not as an interrupted run left them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, names):
            if (ROOT / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)

    def build_all(self):
        import torch

        # What compiles fast: little optimisation, and one instruction set beside the baseline.
        fast = ["-DCMAKE_BUILD_TYPE=Fast", "-DCMAKE_CXX_FLAGS_FAST=-O1", "-DHAS_X86_64_V3=OFF"]
        options = [f"-DTORCH_DIR={torch.__path__[0]}", "-DDLA_SIMT=ON", *fast]
        self.run("cmake", "-G", "Ninja", "-S", ".", "-B", "build/cmake", *options).check_returncode()
        self.run("cmake", "--build", "build/cmake", "--parallel", "1").check_returncode()
        for library in LIBRARIES.values():
            with tempfile.TemporaryFile("w+") as said:
                self.run("ninja", "-C", "build/cmake", "-t", "commands", library, log=said).check_returncode()
                said.seek(0)
                self.links[library] = said.read().strip().rpartition("\n")[2]

    def take_clean_libraries(self):
        for library in self.clean.glob("_C_*.so"):
            shutil.copy2(library, self.folder / "dla_kernels" / library.name)

    def run(self, *command, log=subprocess.DEVNULL, **environment):
        """Run a command at the lowest priority, on one thread, and with the tools that lie beside this Python."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment
        return subprocess.run(
            ["nice", *map(str, command)],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the parent
            preexec_fn=limit_memory,
            check=False,
        )

    @contextlib.contextmanager
    def changed(self, site):
        """Keep the file changed for a while; afterwards it is as old as it was, and so is what was built."""
        path = self.folder / site.file
        text, times = path.read_text(), path.stat()
        path.write_text(site.changed(text))
        try:
            yield
        finally:
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if path.suffix != ".py":
                shutil.rmtree(self.build)
                shutil.copytree(self.clean, self.build)
                self.take_clean_libraries()

    def parses(self, file):
        try:
            compile((self.folder / file).read_text(), file, "exec")
        except SyntaxError:
            return False
        return True

    def built(self, backend):
        """Return whether it compiles, and whether to other machine code than the unchanged sources."""
        return self.built_targets([f"{LIBRARIES[backend]}.so"], backend)

    def built_in_part(self, backend, objects):
        """Return the same of some objects, linked with the others as they were: it takes seconds, not a minute."""
        return self.built_targets(objects, backend, self.links[LIBRARIES[backend]])

    def built_targets(self, targets, backend, link=":"):
        done = self.run("ninja", "-C", "build/cmake", "-j", "1", *targets)
        if done.returncode:
            return STILLBORN
        if all((self.build / one).read_bytes() == (self.clean / one).read_bytes() for one in targets):
            return SAME_CODE
        self.run("sh", "-c", f"cd build/cmake && {link}").check_returncode()
        library = f"{LIBRARIES[backend]}.so"
        shutil.copy2(self.build / library, self.folder / "dla_kernels" / library)
        return OTHER_CODE

    def parts(self, site, backend):
        """Return objects that say something by themselves, with the ops that they are of, what compiles fast first."""
        ops = ops_of(site.file)
        if "/microkernels/" in site.file:  # compiled as one, for all ops, and run as the best instruction set has them
            (best, *_) = sorted(self.clean.glob("CMakeFiles/microkernels_*/**/*.o"), reverse=True)
            return [([best.relative_to(self.clean)], sorted(ops))]
        parts = []
        for op in ops:
            found = [*self.clean.glob(f"CMakeFiles/{LIBRARIES[backend]}.dir/**/{op}.cpp.o")]
            found += self.clean.glob(f"CMakeFiles/{LIBRARIES[backend]}.dir/**/{op}_bwd.cpp.o")
            size = sum(one.stat().st_size for one in found)
            parts.append((size, op, [one.relative_to(self.clean) for one in found]))
        return [(found, [op]) for _, op, found in sorted(parts) if found]

    def noticed(self, site, backends, tier, seed, tests=()):
        """Return the test that fails, or in which the process ended and how; empty if all pass."""
        told = {CHANGED: site.file, BUILT: ",".join(sorted(backends))}
        failed, status = self.tests("-p", "tests.mutants.affected", "-x", *chosen(tier, seed), *tests, **told)
        if failed:
            return failed[0]
        if status in CRASHES:
            return f"{(self.folder / UNDER_WAY).read_text()} (status {status})"
        if status not in (0, NOTHING_COLLECTED):
            raise RuntimeError(f"pytest ended with {status}: see {self.folder / 'log'}")
        return ""

    def is_false_alarm(self, said, tier, seed):
        """Return whether the test that noticed a change fails with nothing changed too; then it is asked no more."""
        test = said.partition(" (status")[0]
        if test not in self.passing | self.failing:
            failed, status = self.tests(*chosen(tier, seed), test)
            if status not in (0, 1):
                raise RuntimeError(f"pytest ended with {status}: see {self.folder / 'log'}")
            (self.failing if failed else self.passing).add(test)
        return test in self.failing

    def tests(self, *options, **told):
        """Return the tests that fail, and pytest's exit status."""
        log = self.folder / "log"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", *options]
        command += [f"--deselect={test}" for test in self.failing]
        with log.open("w") as out:
            done = self.run(*command, log=out, **told)
        return re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", log.read_text(), re.MULTILINE), done.returncode


def limit_memory():
    """Set the soft limit alone: tests of low memory set and lift it too."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def chosen(tier, seed):
    return f"--tier={tier}", f"--tier-seed={seed}"


def verdict(tree, site, tier, seed):
    """Return which tier kills a change, and by which test: one that passes with nothing changed."""
    while True:
        said, test = verdict_of_any_test(tree, site, tier, seed)
        if not test or not tree.is_false_alarm(test, tier, seed):
            return said, test


def verdict_of_any_test(tree, site, tier, seed):
    """Return the same, before the test is put to the proof. In the fast tier, what is quick to notice runs first."""
    with tree.changed(site):
        if site.file.endswith(".py") and not tree.parses(site.file):
            return STILLBORN, ""
        if tier == "fast" and (test := quick_notice(tree, site, seed)):
            return KILLED_FAST, test
        backends = set(backends_of(site.file))
        if site.file.startswith("csrc"):
            states = {backend: tree.built(backend) for backend in LIBRARIES if backend in backends}
            if STILLBORN in states.values():
                return STILLBORN, ""
            backends = {backend for backend, state in states.items() if state == OTHER_CODE}
            if not backends:
                return SAME_CODE, ""
        test = tree.noticed(site, backends, tier, seed)
    killed, alive = (KILLED_FAST, UNDECIDED) if tier == "fast" else (KILLED_FULL, SURVIVED)
    return (killed if test else alive), test


def quick_notice(tree, site, seed):
    """Return what the cells' own test says, or the own tests of one op after the other: few changes need more."""
    if site.file.startswith("csrc/cells") and (test := tree.noticed(site, {"cpu"}, "fast", seed, [CELLS_ALONE])):
        return test
    backends = backends_of(site.file)
    if not site.file.startswith("csrc"):
        return tree.noticed(site, backends, "fast", seed, own_tests(ops_of(site.file)))
    for backend in LIBRARIES:
        for objects, ops in tree.parts(site, backend) if backend in backends else ():
            state = tree.built_in_part(backend, objects)
            if state == STILLBORN:
                return ""
            if state == OTHER_CODE and (test := tree.noticed(site, {backend}, "fast", seed, own_tests(ops))):
                return test
    return ""


def own_tests(ops):
    return [f"tests/test_{op}.py" for op in OPS if op in ops]
