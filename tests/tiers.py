"""This module decides which cases of the tests a run takes; every run prints what it left out.

``full``  has every case, except of the Triton kernels, which take seconds a case, interpreted here or compiled on a
          GPU: of each test they have every value of every parameter at least once, of what is not too large for the
          interpreter, and fewer of what ``FEWER`` names.
``fast``  has of each test every pair of values of its parameters at least once (of those in ``ONCE`` every value), of
          the Triton kernels a few cases, tests of the Python layer on one backend, and nothing that costs more than it
          finds (``LEFT``).
``rest``  has what is in ``full`` and not in ``fast``.

A seed chooses the cases. It is made from the commit, so that successive commits walk through the whole product, and a
run is repeated by its seed: ``make test SEED=...``.
"""

import heapq
import random
import subprocess
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from dla_kernels import Cell, ops
from dla_kernels.backends import INTERPRETED

from .cases import Shape

ROOT = Path(__file__).parent.parent


def seed_of_the_commit():
    """Return the seed of all runs at one commit; 0 where there is no commit, or no git."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return 0
    return int(asked.stdout[:8], 16) if asked.returncode == 0 else 0


# ---- covering arrays ----


def covering(cases, strength, order):
    """Return positions of cases, mappings of a parameter's name to its value, that together have every combination of
    ``strength`` values that any case has. Of equally good cases the one is taken that ``order`` shuffles first."""
    new = [frozenset(combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    ranks = list(range(len(cases)))
    order.shuffle(ranks)
    best = [(-len(combos), rank, i) for i, (combos, rank) in enumerate(zip(new, ranks))]
    heapq.heapify(best)
    chosen, had = [], set()
    while best:
        gain, rank, i = heapq.heappop(best)
        left = new[i] - had
        if len(left) == -gain:
            chosen.append(i)
            had |= left
        elif left:  # less than when it was put there: it waits for its turn again
            heapq.heappush(best, (-len(left), rank, i))
    return chosen


# ---- the rule ----

FAST, FULL, REST = TIERS = ("fast", "full", "rest")
# Tests of the Python layer, which does the same whatever the backend.
PYTHON_LAYER = ("test_integration", "test_errors", "test_inplace")
# Tests, by file and name or by their beginnings, that cost more than they find: half a minute and more each, or what
# another test asks in a smaller way.
LEFT = (
    "test_adding_a_cell::test_the_page_adds_a_cell_that_passes_the_tests",
    "test_bench::test_a_peer_that_fails_is_left_out",
    "test_bench::test_a_second_run_adds_to_the_first",
    "test_bench::test_the_runner_measures_everything",
    "test_counts::test_instructions_are_within_the_budget",
    "test_counts::test_the_traffic_model_predicts_the_bytes_that_pass_the_cache",
    "test_cuda_mutations::test_a_",
    "test_cuda_mutations::test_no_kernel_leaves_the_bounds_of_its_buffers",
    "test_cuda_mutations::test_the_kernels_give_the_same_bits_under_every_seed",
    "test_examples::test_swap_cell_trains_with_each_cell_asked_for",
    "test_install::test_a_wheel_without_kernels_serves_every_machine_and_says_why",
    "test_install::test_the_first_hour_of_a_newcomer",
    "test_install::test_without_cmake_the_build_fails_with_what_to_do",
    "test_isa::test_verify_passes_on_every_instruction_set",
    "test_model::test_pytest_benchmark_compares_two_runs",
    "test_model::test_scaling_draws_what_it_measures",
    "test_model::test_the_runner_times_the_chosen_ops_alone",
    "test_models::test_two_processes_make_the_gradients_of_one",
    "test_soak::test_a_short_run_passes_and_says_its_seed",
    "test_tiers::test_a_choice_by_name_does_not_change_the_tier",
    "test_tiers::test_a_crash_costs_one_case_and_is_named",
    "test_tiers::test_fast_and_rest_are_the_full_run_and_share_nothing",
    "test_tiers::test_workers_choose_by_the_seed_of_their_run",
    "test_train::test_the_digits_are_learned",
)
# Tests that have every value once in the fast tier, not every pair of values, and no case of the Triton kernels: what
# they ask for long of a stage, a compiler or finite differences, others ask of each op in a smaller way.
ONCE = (
    "test_backward_ops::test_backward_operators_equal_autograd_at_every_shape",
    "test_cuda_schedules::test_the_kernels_give_the_same_bits_under_every_schedule",
    "test_base_step::test_a_stage_of_kernels_equals_the_published_copying_stage_gradients_included",
    "test_base_step::test_parity_of_a_step_with_every_cell_from_every_state",
    "test_determinism::test_a_sample_does_not_depend_on_its_batch_where_weights_outgrow_the_cache",
    "test_gradcheck::test_every_entry_of_the_jacobians_matches_finite_differences",
    "test_gradcheck::test_first_derivatives_of_every_cell_from_every_state_match_finite_differences",
    "test_gradcheck::test_second_derivatives_of_every_cell_match_finite_differences",
    "test_integration::test_every_op_compiles_as_one_graph",
    "test_integration::test_inductor_finds_the_strides_it_was_promised",
    "test_light_step::test_a_stage_of_twelve_layers_and_norms_equals_the_reference",
    "test_norm_add::test_derivatives_match_finite_differences",
    "test_triton::test_other_tiles_give_the_same_results",
)
# How many cases of Triton kernels a test has in the fast tier; the Jacobians have none.
FEW = 2
# Maps of more elements outgrow a cache: that is no case of its own to Triton kernels, and takes the interpreter long.
MOST_ELEMENTS = 100_000
# How many cases of Triton kernels these have in the full run. Second derivatives are torch's own work, over formulas
# that the other backends have tested for every cell: of each op two tests of test_gradcheck have them too, each with
# another cell. And a step has its cell from the scan and the refresh.
FEWER = {
    "test_second_derivatives_of_every_cell_match_finite_differences": 0,
    "test_parity_of_a_step_with_every_cell_from_every_state": 4,
}


def backend_of(item):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return next((params[name].name for name in ("backend", "any_backend") if name in params), None)


def is_slow(item):
    return backend_of(item) == "triton"


def is_too_large(item):
    """Return whether a case is too large for the interpreter."""
    if not INTERPRETED:
        return False
    shapes = [value for value in item.callspec.params.values() if isinstance(value, Shape)]
    elements = [s.T * s.B * s.C * sum(H * W for H, W in s.sizes) / len(s.sizes) for s in shapes]
    return "outgrow" in item.originalname or max(elements, default=0) > MOST_ELEMENTS


def values(item):
    """Return the value of each of a case's parameters by its name, or what stands for it."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return {name: value if isinstance(value, (Cell, Shape)) else repr(value) for name, value in params.items()}


def parts(item):
    """Return what ``values`` does, for Triton: a cell is its rule and its projection."""
    found = values(item)
    for name, value in list(found.items()):
        if isinstance(value, Cell):
            found |= {name: value.rule, f"{name}'s projection": value.projection}
    return found


def by(key, items):
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def taken(items, describe, strength, seed):
    """Return the cases of one test that together have every combination."""
    order = random.Random(f"{seed} {items[0].parent.nodeid} {items[0].originalname}")
    return [items[i] for i in covering([describe(item) for item in items], strength, order)]


def choose(items, tier, seed):
    """Return the cases of a tier, and how many others are left out for which reason."""
    slow = [item for item in items if is_slow(item)]
    quick = [item for item in items if not is_slow(item)]
    small = [item for item in slow if not is_too_large(item)]
    few = []  # of each test in the order in which they cover
    for (_, name), cases in by(test_of, small).items():
        few += taken(cases, parts, 1, seed)[: FEWER.get(name)]
    reasons = {
        "cases of Triton kernels whose values others have": len(small) - len(few),
        "cases too large for Triton's interpreter": len(slow) - len(small),
    }
    if tier == FULL:
        return [*quick, *few], reasons

    cheap = [item for item in quick if not is_left(item)]
    once = [item for item in cheap if item.path.stem not in PYTHON_LAYER or backend_of(item) in (None, "cpu")]
    pairs = [item for cases in by(test_of, once).values() for item in taken(cases, values, strength(cases[0]), seed)]
    kernels = [item for item in few if not is_left(item) and item.path.stem not in (*PYTHON_LAYER, "test_gradcheck")]
    fewer = [
        item for cases in by(test_of, kernels).values() if strength(cases[0]) > 1 for item in cases[: few_of(cases)]
    ]
    if tier == FAST:
        return [*pairs, *fewer], {
            "cases whose pairs of values others have": len(once) - len(pairs),
            "cases of Triton kernels": len(slow) - len(fewer),
            "cases of the Python layer on other backends": len(cheap) - len(once),
            "cases that cost more than they find": len(quick) - len(cheap),
        }
    had = {*pairs, *fewer}
    rest = [item for item in (*quick, *few) if item not in had]
    return rest, reasons | {"cases of the fast tier": len(had)}


def test_of(item):
    return item.parent.nodeid, item.originalname


def is_left(item):
    return named(item, LEFT)


def few_of(cases):
    """Return how many cases of Triton kernels a test has in the fast tier: more in the file of an op."""
    return FEW if cases[0].path.stem.removeprefix("test_") in ops.__all__ else 1


def strength(item):
    """Return how many values of a test's parameters the fast tier combines."""
    return 1 if named(item, ONCE) else 2


def named(item, names):
    return any(f"{item.path.stem}::{item.originalname}".startswith(name) for name in names)


def told(tier, seed, number, reasons):
    left = "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f"tier {tier}, seed {seed}: {number} cases. Left out: {left or 'nothing'}."
