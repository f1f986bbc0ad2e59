"""The cell headers stand by themselves: their derivatives are right under g++, and nvcc takes them for a device."""

import subprocess
from pathlib import Path

import pytest
from toolkit import find_nvcc

CELLS = Path(__file__).parent.parent / "csrc" / "cells" / "cells.h"

pytestmark = pytest.mark.slow

# A name that no rule has is told from all that have one. For each rule: L = <new state, direction> as a function of the
# gates and the old state, and M = output * direction as a function of the state. Their gradients are compared with
# central differences.
DERIVATIVES = r"""
#include "@CELLS@"
#include <cstdio>
#include <cstdlib>
#include <random>
using namespace dla;

static_assert(rule_number("gru") == kNumRules && rule_number("rnn") == 0, "");

static int checked = 0, failed = 0;
static std::mt19937 random_bits(0);
static double draw() { return std::normal_distribution<double>()(random_bits); }

// A kink of relu would spoil the difference; a normal draw comes this near to one almost never.
static constexpr double kStep = 1e-6, kAllowed = 1e-8;

template <class F>
double slope(double& x, F f) {
  const double at = x;
  x = at + kStep;
  const double right = f();
  x = at - kStep;
  const double left = f();
  x = at;
  return (right - left) / (2 * kStep);
}

static void expect(const char* rule, const char* what, double analytic, double numeric) {
  ++checked;
  if (std::abs(analytic - numeric) <= kAllowed * (1 + std::abs(numeric))) return;
  ++failed;
  std::printf("%s: %s is %.12g, its difference quotient %.12g\n", rule, what, analytic, numeric);
}

template <class Rule>
void check(const char* name) {
  for (int sample = 0; sample < 200; ++sample) {
    double a[Rule::NG], da[Rule::NG];
    for (double& gate : a) gate = 1.5 * draw();
    for (double& gate : da) gate = NAN;  // step_bwd must write every one
    State<double> s{draw(), draw()}, ds{draw(), draw()};
    const double dd = draw();

    const auto new_state = [&] {
      const State<double> to = Rule::step(a, s);
      return to.h * ds.h + (Rule::kSavesC || !Rule::kSavesH ? to.c * ds.c : 0);
    };
    expect(name, "dc of step", Rule::step_bwd(a, s, ds, da), slope(s.c, new_state));
    for (int gate = 0; gate < Rule::NG; ++gate) expect(name, "da of step", da[gate], slope(a[gate], new_state));
    expect(name, "0, as no rule reads h but through the gates,", 0, slope(s.h, new_state));

    const auto output = [&] { return Rule::output(Rule::step(a, s)) * dd; };
    for (double& gate : da) gate = NAN;
    expect(name, "dc of output", Rule::output_bwd(a, s, dd, da), slope(s.c, output));
    for (int gate = 0; gate < Rule::NG; ++gate) expect(name, "da of output", da[gate], slope(a[gate], output));

    // h can be recomputed wherever it is not saved.
    const State<double> to = Rule::step(a, s);
    if (!Rule::kSavesH) expect(name, "feed(c)", Rule::feed(to.c), to.h);
  }
}

int main() {
#define CHECK(name, ...) check<__VA_ARGS__>(name);
  DLA_FOR_EACH_RULE(CHECK)
  std::printf("%d checked, %d failed\n", checked, failed);
  return checked == 0 || failed > 0;
}
"""

# A kernel calls every function of every rule.
DEVICE = r"""
#include "@CELLS@"
using namespace dla;

template <class Rule, class A>
__global__ void call_everything(const A* a, State<A>* s, A* da, A* out) {
  const State<A> to = Rule::step(a, s[0]);
  out[0] = Rule::output(to) + Rule::feed(to.c) + Rule::template start_h<A>();
  out[1] = Rule::step_bwd(a, s[0], to, da);
  s[1] = to;
  out[2] = Rule::output_bwd(a, s[0], out[0], da + Rule::NG);
}

#define INSTANTIATE(name, ...)                                                                    \
  template __global__ void call_everything<__VA_ARGS__, float>(const float*, State<float>*, float*, float*); \
  template __global__ void call_everything<__VA_ARGS__, double>(const double*, State<double>*, double*, double*);
DLA_FOR_EACH_RULE(INSTANTIATE)
"""


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def written(path, source):
    path.write_text(source.replace("@CELLS@", str(CELLS)))
    return path


@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
def test_derivatives_match_difference_quotients(tmp_path, optimisation):
    source = written(tmp_path / "derivatives.cpp", DERIVATIVES)
    program = tmp_path / "derivatives"
    run("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", optimisation, source, "-o", program)
    assert ", 0 failed" in run(program)


@pytest.mark.parametrize("header", sorted(CELLS.parent.glob("*.h")), ids=lambda path: path.name)
def test_each_header_stands_alone(tmp_path, header):
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n#include "{header}"\n')
    run("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", source)


def test_nvcc_compiles_every_rule_for_a_device(tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    source = written(tmp_path / "device.cu", DEVICE)
    built = tmp_path / "device.o"
    run(nvcc, "-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-c", source, "-o", built)
    assert built.stat().st_size > 0
