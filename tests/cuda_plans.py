"""This module makes csrc/cuda/planner.h a function: a small C++ program is asked line by line."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

CUDA = Path(__file__).parent.parent / "csrc" / "cuda"
PLAN_H, PLANNER_H = CUDA / "plan.h", CUDA / "planner.h"

PROGRAM = r"""
#include "@PLAN@"
#include <cstdio>
using namespace dla;
using namespace dla::cuda;

int main() {
  int pass, projection, attention, scans, group;
  Problem p;
  Device d;
  long T, B, C, R, sample, shared, processor, l2;
  while (std::scanf("%d %d %d %ld %ld %ld %ld %ld %d %d %d %d %ld %ld %ld %d %d %d %d %d", &pass, &projection, &p.NG,
                    &T, &B, &C, &R, &sample, &p.accumulate_bytes, &attention, &scans, &d.processors, &shared,
                    &processor, &l2, &d.largest_cluster, &d.threads, &d.group, &d.samples, &group) == 20) {
    p.pass = Pass(pass), p.projection = Projection(projection), p.T = T, p.B = B, p.C = C, p.R = R;
    p.sample_bytes = sample, p.attention = attention, p.scans = scans, d.shared_per_block = shared;
    d.shared_per_processor = processor, d.l2 = l2;
    const Plan plan = make_plan(p, d, group);
    const char* paths[] = {"portable", "on-chip", "weights-bound"};
    std::printf("{\"path\": \"%s\", \"group\": %d, \"samples\": %d, \"channels\": %d, \"chunk\": %d, "
                "\"in_flight\": %d, \"threads\": %d, \"shared\": %ld, \"workspace\": %ld, \"hot\": %d, \"place\": {",
                paths[int(plan.path)], plan.blocks_per_tile, plan.samples_per_tile, plan.channels, plan.chunk_layers,
                plan.tiles_in_flight, plan.threads, long(plan.shared_bytes), long(plan.workspace_bytes),
                int(plan.hot));
    for (int i = 0, n = 0; i < kNumBuffers; ++i)
      if (plan.place[i] != Plan::kAbsent) std::printf("%s\"%d\": %ld", n++ ? ", " : "", i, long(plan.place[i]));
    std::printf("}}\n");
    std::fflush(stdout);
  }
}
"""

# The names of `enum Buffer`, in its order and without their k.
_HOTTEST = "Exchange Letters Letterboxes U H C DH DC Bias Scratch W1h LastProduct P Gates W2h D Y "
_OTHERS = "Q UScan DsScan URefresh DP UY LastSum DD DY HBefore DQ Gate Middle"
BUFFERS = tuple((_HOTTEST + _OTHERS).split())


class Device(NamedTuple):
    processors: int
    shared_per_block: int
    shared_per_processor: int
    l2: int
    largest_cluster: int
    threads: int
    group: int = 0  # 0: the plan decides
    samples: int = 0


class Problem(NamedTuple):
    backward: bool
    projection: str
    NG: int
    T: int
    B: int
    C: int
    R: int
    sample_bytes: int
    accumulate_bytes: int = 4
    attention: bool = False
    scans: bool = True


class Plans:
    def __init__(self, folder):
        source = folder / "plans.cpp"
        source.write_text(PROGRAM.replace("@PLAN@", str(PLANNER_H)))
        flags = [
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-fsanitize=undefined",
            "-fno-sanitize-recover=all",
        ]
        built = subprocess.run(
            ["g++", *flags, source, "-o", folder / "plans"], capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
        self.program = subprocess.Popen([folder / "plans"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, problem, device, largest_group=1 << 30):
        projection = ("joint", "split", "dense").index(problem.projection)
        words = [*problem._replace(projection=projection), *device, largest_group]
        self.program.stdin.write(" ".join(str(int(word)) for word in words) + "\n")
        self.program.stdin.flush()
        line = self.program.stdout.readline()
        assert line, f"no plan for {problem} on {device}"
        plan = json.loads(line)
        plan["place"] = {BUFFERS[int(i)]: place for i, place in plan["place"].items()}
        return plan

    def close(self):
        self.program.stdin.close()
        self.program.wait(10)
