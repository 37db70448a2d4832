"""The runs of a comparison in processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from solid_ext.compare.grid import PlannedRun
from solid_ext.compare.process import RUNS


def run_here(out: Path, plan: Sequence[PlannedRun], todo: Sequence[int], jobs: int) -> Iterator[tuple[int, str | None]]:
    """The number of each run of the plan as it ends, with what went wrong (None: nothing); so many at a time."""
    left = list(todo)
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        while left or running:
            while left and len(running) < jobs:
                number = left.pop(0)
                running[number] = start_run(out, number, log_of(out, plan[number]))
            ended = [number for number, process in running.items() if process.poll() is not None]
            for number in ended:
                with running.pop(number) as process:  # closes the pipe
                    code = process.wait()
                yield number, problem_of(code, log_of(out, plan[number]))
            if not ended:
                time.sleep(0.05)
    finally:
        for process in running.values():
            with process:
                process.kill()


def log_of(out: Path, planned: PlannedRun) -> Path:
    """Where a run's process writes what it prints."""
    folder = out / RUNS / planned.name
    return folder.with_name(folder.name + ".log")


def start_run(out: Path, number: int, log: Path) -> subprocess.Popen[bytes]:
    """A process for one run; the pipe to it closes with this process, and then it ends as well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-m", "solid_ext.compare.process", str(out), str(number)]
    with log.open("wb") as written:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=written, stderr=written, env=environment)


def problem_of(code: int, log: Path) -> str | None:
    """The last line that a failed run wrote; the log of one that went well is deleted."""
    if code == 0:
        log.unlink()
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"
