"""The kernels without Python: csrc/check, ordinary and under sanitizers, a few cases of each kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / "csrc" / "check" / "check.py"
TOOL_MISSING = 77  # as check.py says it


@pytest.mark.parametrize(("way", "cases"), [("plain", 20), ("address", 8), ("thread", 8)])
def test_every_kernel_at_every_instruction_set(way: str, cases: int, tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), way, "--cases", str(cases), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == TOOL_MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
