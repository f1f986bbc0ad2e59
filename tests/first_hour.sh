#!/usr/bin/env bash
# Does what a newcomer does, in a fresh clone and a fresh venv: each line of README's "Install", then README's examples.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  echo "usage: tests/first_hour.sh: follow README.md from a fresh clone on, some minutes"
  exit
fi
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git clone --quiet "$root" "$work/clone"
"${PYTHON:-python3}" -m venv "$work/venv"
unset "${!DLA_KERNELS@}" TRITON_INTERPRET PYTHONPATH # those of the tests that call this
export PATH="$work/venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
echo "torch==2.13.0" >"$work/constraints" # of the builds that a newcomer may choose, the smallest
export PIP_CONSTRAINT="$work/constraints"

# The block of commands below the heading, without what they say of themselves.
lines_below() { sed -n "/^## $1\$/,/^## /p" "$work/clone/README.md" | sed -n '/^```$/,/^```$/p' | sed '/^```/d; s/  *#.*//'; }
mapfile -t lines < <(lines_below Install)
cd "$work/clone"
for line in "${lines[@]}"; do
  echo "\$ $line"
  bash -c "$line"
done

# The examples, one program each, from a folder that knows nothing of the clone.
cd "$work"
awk '/^```python$/ {inside = 1; file = sprintf("example_%d.py", ++n); next} /^```$/ {inside = 0} inside {print > file}' \
  clone/README.md
for example in example_*.py; do
  echo "\$ python $example"
  python "$example"
done
python -m dla_kernels info --json | python -c '
import json, sys
cpu = next(b for b in json.load(sys.stdin)["backends"] if b["backend"] == "cpu")
sys.exit(not cpu["available"])'
echo "the first hour took ${SECONDS} s"
