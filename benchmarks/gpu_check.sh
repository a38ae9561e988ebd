#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call of under ten minutes: build for this GPU, GPU tests,
# compute-sanitizer on a reduced list, op benchmarks. Uses this machine's python3, torch, Triton,
# nanobind, CMake and nvcc, and no network. Writes JSON lines and logs to $OUT, or to ./outputs.
# Duration and results: not measured yet.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PYTHON="${PYTHON:-python3}"
readonly RESULTS="${OUT:-$PWD/outputs}"
readonly REPORT="$RESULTS/gpu_check.jsonl"
mkdir -p "$RESULTS"
: >"$REPORT"
failed=0

# Runs one step under a time limit [s], keeps its log, and adds a line to the report.
step() {
  local name="$1" limit="$2" begin="$SECONDS" code=0
  shift 2
  echo "=== $name"
  timeout "$limit" "$@" >"$RESULTS/$name.log" 2>&1 || code=$?
  tail -n 12 "$RESULTS/$name.log"
  printf '{"step": "%s", "exit_code": %d, "seconds": %d}\n' \
    "$name" "$code" "$((SECONDS - begin))" >>"$REPORT"
  [[ "$code" == 0 ]] || failed=1
}

machine() {
  "$PYTHON" - <<'PYTHON'
import json, platform, subprocess, torch, triton
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
print(json.dumps({
    "gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability(),
    "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
    "python": platform.python_version(), "commit": commit or None,
}))
PYTHON
}

# Into the checkout, which is what Python finds first when it is started here.
build() {
  "$PYTHON" -c 'import nanobind' || return
  cmake -S . -B build/gpu -DPython_EXECUTABLE="$(command -v "$PYTHON")" &&
    cmake --build build/gpu --parallel && cp build/gpu/_native*.so vlakern/
}

built_for_this_gpu() {
  "$PYTHON" -c '
from vlakern import ops
found = ops.explain("cuda")
assert found["ode_step"]["cuda"] == found["ode_step"]["triton"] == "ok", "a GPU backend refuses"
assert found["shared_attention"]["triton"] == "ok", "shared_attention has no kernel here"'
}

sanitize() {
  local tool
  for tool in memcheck racecheck synccheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m pytest -q -m gpu \
      python_tests/ops -k "gpu_reduced or (gpu_values and cuda and (B5-H7 or B3-H50 or B4-H9))" ||
      return
  done
}

export -f build built_for_this_gpu sanitize machine
export PYTHON

machine >>"$REPORT" || exit 1
step build 240 bash -c build
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
step backends 60 bash -c built_for_this_gpu
step tests 150 "$PYTHON" -m pytest -q -m gpu python_tests
step sanitizer 120 bash -c sanitize
if [[ "$failed" == 0 ]]; then
  for benchmark in benchmarks/ops/bench_*.py; do
    step "$(basename "$benchmark" .py)" 60 "$PYTHON" "$benchmark" \
      --device cuda --backend cuda triton --json "$REPORT"
  done
else
  echo "no speed is measured while a step is red"
fi
echo "report: $REPORT"
exit "$failed"
