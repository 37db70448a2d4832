#!/usr/bin/env bash
# One command for a machine with a GPU: build, tests on the device, compute-sanitizer, benchmarks, profile, one JSON file.
#   bench/gpu_session.sh [--dry] [--out FILE] [--parts NAME ..]        PYTHON names the interpreter; see gpu_session.py
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" bench/gpu_session.py "$@"
