#!/bin/sh
# Where the time of an operation goes: perf's samples by function, into bench/results/profile_OP.json.
#
#   bench/speed/profile.sh nearest_code|dynamic_mlp      SOLID_EXT_ISA=LEVEL, PYTHON=INTERPRETER
#
# Samples, not callgrind's instruction counts: valgrind knows no AVX-512.
set -e
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
cmake -S . -B build/profile -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
  -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" > /dev/null
cmake --build build/profile > /dev/null
PYTHONPATH=build/profile:. "$PYTHON" -m bench.speed.profile_work "$1"
