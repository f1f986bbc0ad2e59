"""This command changes one token of the kernels at a time, and tells which tier of the tests fails for it.

Each change is tried in a copy of the tree, built there if it is C++, and put before the tests that can notice it: the
fast tier, then the rest of the full run. What was tried is kept, so that an interrupted run goes on where it was.
"""

import argparse
import json
import random
import shutil
import sys
import threading
from collections import Counter
from functools import cache
from pathlib import Path

from tests import guardian
from tests.tiers import seed_of_the_commit

from . import sites, trial

ROOT = sites.ROOT
# How many of each 300 changes an area has: by what there is to break, and by what it costs to build.
SHARES = {"csrc/cells": 20, "csrc/cpu": 75, "csrc/cuda": 75, "triton_ops": 75, "dla_kernels/ops": 55}
SHOWN = (trial.KILLED_FAST, trial.KILLED_FULL, trial.SURVIVED)
COUNTED = (*SHOWN, trial.UNDECIDED)
WRITTEN = ROOT / "tests/mutants/tried.jsonl"  # what docs/testing.md tells of
# Changes that the fast tier passes, and why no other test need be asked. They are not to be found in any result.
HARMLESS = json.loads((ROOT / "tests/mutants/harmless.json").read_text())
PAGE = ROOT / "docs/testing.md"
BEGIN, END = "<!-- from mutants -->\n", "<!-- end -->"


def drawn(seed):
    """Return the sites of each area in the order in which they are tried."""
    areas = sites.all_sites()
    for area, found in areas.items():
        random.Random(f"{seed} {area}").shuffle(found)
        areas[area] = list({told_of(site): site for site in reversed(found)}.values())[::-1]  # lines that are alike
    return areas


def told_of(site):
    return site.told(text_of(site.file))


@cache
def text_of(file):
    return (ROOT / file).read_text()


def read(path):
    """Return what was tried; of what was tried again, the last time. What is known to be harmless survives."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = list({row["site"]: row for row in map(json.loads, lines)}.values())
    for row in rows:
        if row["verdict"] == trial.UNDECIDED and row["site"] in HARMLESS:
            row["verdict"] = trial.SURVIVED
    return rows


class Trials:
    """The trials give out to workers what is still to do, and keep what came of it."""

    def __init__(self, args):
        self.args, self.lock = args, threading.Lock()
        self.tried = read(args.kept)
        self.drawn = drawn(args.seed)
        had = {row["site"]: row["verdict"] for row in self.tried}
        self.new = {area: [s for s in found if told_of(s) not in had] for area, found in self.drawn.items()}
        again = {site for site, said in had.items() if said in (trial.UNDECIDED, trial.SURVIVED)} - set(HARMLESS)
        self.again = [s for found in self.drawn.values() for s in found if args.again and told_of(s) in again]
        self.under_way = set()
        self.stopped = False

    def wanted(self, area):
        return max(1, round(self.args.count * SHARES[area] / sum(SHARES.values())))

    def counted(self, area):
        had = {row["site"] for row in self.tried if row["verdict"] in COUNTED} | set(map(told_of, self.under_way))
        return sum(site.startswith(area + "/") for site in had)

    def next(self):
        """Return a site, the tier to ask and its seed: of all sites the fast one, then the rest of the undecided."""
        with self.lock:
            if self.stopped:
                return None
            share = {a: self.counted(a) / self.wanted(a) for a in SHARES if self.new[a]}
            area = min(share, key=share.get, default=None)
            tier, seed = "fast", self.args.tier_seed
            if self.again:
                site = self.again.pop(0)
            elif area and share[area] < 1:
                site = self.new[area].pop(0)
            elif site := self.undecided():
                tier, seed = "rest", next(row["seed"] for row in self.tried if row["site"] == told_of(site))
            else:
                return None
            self.under_way.add(site)
            return site, tier, seed

    def undecided(self):
        wanted = {row["site"] for row in self.tried if row["verdict"] == trial.UNDECIDED}
        sites = (site for found in self.drawn.values() for site in found if told_of(site) in wanted)
        return next((site for site in sites if site not in self.under_way), None)

    def done(self, site, seed, verdict, test):
        with self.lock:
            if self.stopped:  # the tests that failed were ended
                return
            self.under_way.discard(site)
            row = {"site": told_of(site), "verdict": verdict, "test": test, "seed": seed}
            self.tried = [*(old for old in self.tried if old["site"] != row["site"]), row]
            with self.args.kept.open("a") as out:
                out.write(json.dumps(row) + "\n")
            so_far = f"{sum(map(self.counted, SHARES))} of {sum(map(self.wanted, SHARES))}"
            print(f"{so_far}  {verdict:18} {row['site']}  {test}", flush=True)


def work(trials, folder, failed):
    tree = trial.Tree(folder)
    try:
        tree.make()
        while given := trials.next():
            site, _, seed = given
            trials.done(site, seed, *trial.verdict(tree, *given))
    except BaseException as error:  # nobody else sees a thread's errors
        failed.append(error)


def run(trials, failed):
    watching = guardian.watch_over_this_process()
    jobs = [(trials, trials.args.folder / str(i), failed) for i in range(trials.args.jobs)]
    workers = [threading.Thread(target=work, args=job, daemon=True) for job in jobs]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt as interrupt:
        failed.append(interrupt)
    finally:
        trials.stopped = True  # before children are ended
        guardian.release(watching)


def table(tried):
    """Return the table of how many changes of each area which tier kills."""
    lines = ["| area | changes | fast tier | only the full run | none | same machine code |"]
    lines.append("|---|---|---|---|---|---|")
    total = Counter()
    for area in SHARES:
        found = Counter(row["verdict"] for row in tried if row["site"].startswith(area))
        found["changes"] = sum(found[v] for v in COUNTED)
        total += found
        lines.append(line(area, found))
    lines.append(line("all", total))
    killed = total[trial.KILLED_FAST] + total[trial.KILLED_FULL]
    if waiting := total[trial.UNDECIDED]:
        lines += ["", f"{waiting} changes that the fast tier passes have not been put before the rest of the full run."]
    elif killed:
        share = 100 * total[trial.KILLED_FAST] / killed
        lines += ["", f"The fast tier kills {share:.1f} % of what the full run kills."]
    unnoticed = [row["site"] for row in tried if row["verdict"] == trial.SURVIVED]
    if unnoticed:
        lines += ["", "What no test noticed, and why:", ""]
        lines += [f"- `{site}`<br>{HARMLESS.get(site, 'Not known yet.')}" for site in unnoticed]
    return "\n".join(lines)


def page_with(text):
    """Return docs/testing.md with the table in its place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + text + "\n" + END + rest.partition(END)[2]


def line(name, found):
    numbers = [found[key] for key in ("changes", *SHOWN, trial.SAME_CODE)]
    return f"| {name} | " + " | ".join(map(str, numbers)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="changes that compile (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the changes (default: 0)")
    parser.add_argument("--tier-seed", type=int, default=seed_of_the_commit(), help="of the tests (the commit's)")
    parser.add_argument("--jobs", type=int, default=2, help="changes at a time (default: 2)")
    parser.add_argument("--kept", type=Path, default=ROOT / "build/mutants/tried.jsonl", help="what was tried")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/mutants", help="copies of the tree (%(default)s)")
    parser.add_argument("--again", action="store_true", help="first try again what no test noticed")
    parser.add_argument("--table", action="store_true", help="print the table of what was tried, and try nothing")
    parser.add_argument("--write", action="store_true", help=f"the table, into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    args.kept.parent.mkdir(parents=True, exist_ok=True)
    if not args.kept.exists() and WRITTEN.exists():
        shutil.copy2(WRITTEN, args.kept)
    trials, failed = Trials(args), []
    if not args.table:
        run(trials, failed)
    print(table(trials.tried))
    if args.write:
        PAGE.write_text(page_with(table(trials.tried)))
        WRITTEN.write_text("".join(json.dumps(row) + "\n" for row in trials.tried))
    sys.exit(f"stopped by {failed[0]!r}" if failed else 0)


if __name__ == "__main__":
    main()
