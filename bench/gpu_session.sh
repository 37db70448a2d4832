#!/usr/bin/env bash
# A machine with a GPU, in four commands of less than ten minutes each; PYTHON names the interpreter (gpu_session.py has more):
#   bench/gpu_session.sh first    --out FOLDER     build, a smoke of every kernel, the tests on the device, memcheck
#   bench/gpu_session.sh bench    --out FOLDER     benchmarks and a profile
#   bench/gpu_session.sh sanitize --out FOLDER     racecheck, synccheck, initcheck
#   bench/gpu_session.sh train    --out FOLDER [--before FOLDER]     epochs; the same benchmarks of an earlier source
#   bench/gpu_session.sh collect FOLDER .. --out bench/results       what they wrote, in one file
# --dry goes the same way without a device, as far as that leads.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" bench/gpu_session.py "$@"
