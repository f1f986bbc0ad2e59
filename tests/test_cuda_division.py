"""Divisor of csrc/cuda/device.h is exact, however a device rounds the inverse that it works with."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = r"""
#define DLA_SIMT
#include "device.h"
#include <cmath>
#include <cstdio>

int main() {
  long checked = 0, wrong = 0;
  for (int ulps = -2; ulps <= 2; ++ulps)
    for (int n = 1; n < 5000; n += n < 300 ? 1 : 37) {
      dla::cuda::Divisor by(n);
      for (int i = 0; i < std::abs(ulps); ++i) by.inverse = std::nextafter(by.inverse, ulps < 0 ? 0.0f : 2.0f);
      for (long q = 0; q * n < 1L << 30; q += q < 300 ? 1 : 1 + q / 97)
        for (long i = q * n - 1; i <= q * n + 1; ++i)
          if (i >= 0 && i < 1L << 30) ++checked, wrong += by.under(int(i)) != i / n;
    }
  std::printf("%ld %ld\n", checked, wrong);
}
"""


def test_division_by_a_rounded_inverse_is_exact(tmp_path):
    (tmp_path / "division.cpp").write_text(PROGRAM)
    folders = [f"-I{ROOT}/{folder}" for folder in ("csrc/cuda", "tests/simt")]
    command = ["g++", "-std=c++17", "-O1", *folders, tmp_path / "division.cpp", "-o", tmp_path / "division"]
    subprocess.run(command, check=True)
    checked, wrong = subprocess.run([tmp_path / "division"], capture_output=True, text=True, check=True).stdout.split()
    assert int(checked) > 1_000_000
    assert wrong == "0"
