#!/usr/bin/env bash
# One command for a machine with a GPU: build, tests on the device, compute-sanitizer, benchmarks, one folder of results.
#
#   bench/gpu_session.sh [--dry] [OUT]        OUT: where logs and gpu.json go (default bench/results)
#
# Needs nvcc, a Python with torch, pybind11, ninja, CMake, numpy, polars, scikit-learn, safetensors, pytest; no network.
# SOLID_EXT_DATA names a folder of datasets for epochs per second. --dry goes the same way on the CPU as far as that leads.
set -uo pipefail
cd "$(dirname "$0")/.."
DRY=0
[ "${1:-}" = --dry ] && { DRY=1; shift; }
OUT=$(realpath -m "${1:-bench/results}")
PYTHON=${PYTHON:-python3}
BUILD=${BUILD:-build/gpu}
mkdir -p "$OUT" "$BUILD"
FAILED=()

part() {  # part NAME COMMAND..: its output in OUT/NAME.log; a failure is remembered, and the rest goes on
  local name=$1; shift
  echo "== $name: $*"
  if "$@" >"$OUT/$name.log" 2>&1; then tail -n 3 "$OUT/$name.log"; else FAILED+=("$name"); tail -n 30 "$OUT/$name.log"; fi
}

CUDA=ON; DEVICE=cuda; SMALL=()
if [ $DRY = 1 ]; then CUDA=${SOLID_EXT_CUDA:-OFF}; DEVICE=cpu; SMALL=(--small); fi
part configure cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSOLID_EXT_CUDA=$CUDA \
  -DPython_EXECUTABLE="$(command -v "$PYTHON")" -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)"
part build cmake --build "$BUILD"
export PYTHONPATH="$BUILD:."
part info "$PYTHON" -c 'import solid_ext, torch; print(solid_ext.build_info()); print(torch.__version__, torch.cuda.is_available())'
part tests "$PYTHON" -m pytest -q -m cuda python_tests
if [ $DRY = 0 ]; then
  for tool in memcheck racecheck synccheck initcheck; do
    part "sanitizer_$tool" compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m pytest -q -m cuda -k "sanitizer" python_tests
  done
  if command -v ncu >/dev/null; then
    part ncu ncu --set full --launch-count 6 --kernel-name-base demangled "$PYTHON" bench/bench_gpu.py --small
  fi
fi
part bench "$PYTHON" bench/bench_gpu.py --device $DEVICE "${SMALL[@]}" --json ${SOLID_EXT_DATA:+--data "$SOLID_EXT_DATA/amazon_scientific/interactions.tsv.gz"}
[ -f bench/results/gpu.json ] && [ "$OUT" != "$(realpath bench/results)" ] && cp bench/results/gpu.json "$OUT/"
cat "$OUT/bench.log" | tail -n 60
if [ ${#FAILED[@]} -gt 0 ]; then echo "failed: ${FAILED[*]}"; exit 1; fi
echo "all parts passed"
