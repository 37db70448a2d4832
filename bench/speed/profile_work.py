"""Samples an operation at its headline shape, on one thread: the part of `bench/speed/profile.sh` that runs.

python -m bench.speed.profile_work OP    needs perf, and a module built with symbols
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.harness import RESULTS, machine

SECONDS = 10.0
SMALLEST = 0.1  # percent: functions below it are left out


def nearest_code_work() -> tuple[str, Callable[[], object]]:
    from solid_ext.ops import nearest_code

    x, codebook = torch.randn(10240, 32), torch.randn(590, 32)
    return "N=10240 K=590 D=32", lambda: nearest_code(x, codebook)


def dynamic_mlp_work() -> tuple[str, Callable[[], object]]:
    from solid_ext.nn import DynamicMLP

    layer = DynamicMLP(sizes=(32, 32, 32), code_dim=32)
    x, z_item, z_semantic = (torch.randn(1024, 32, requires_grad=True) for _ in range(3))
    return "forward + backward, B=1024 D=O=k=32 P=2", lambda: layer(x, z_item, z_semantic).sum().backward()


WORK = {"nearest_code": nearest_code_work, "dynamic_mlp": dynamic_mlp_work}


def sampled(work: Callable[[], object], data: Path) -> list[str]:
    """perf's lines "percent;object;symbol" for SECONDS of work in this process."""
    work()
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-o", str(data), "-p", str(os.getpid())]
    perf = subprocess.Popen(record)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        work()
    perf.send_signal(signal.SIGINT)
    perf.wait()
    report = ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-F", "overhead,dso,symbol", "-t", ";"]
    found = subprocess.run(report, capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if line.count(";") >= 2 and not line.startswith("#")]


def shares(lines: list[str]) -> dict[str, float]:
    """Percent of samples by function of the module, or by library outside it; the largest first."""
    found: dict[str, float] = {}
    for line in lines:
        percent, library, symbol = (part.strip() for part in line.split(";", 2))
        ours = library.startswith("_solid_ext")
        name = symbol.removeprefix("[.] ").replace("(anonymous namespace)::", "") if ours else f"outside: {library}"
        found[name] = found.get(name, 0.0) + float(percent.rstrip("%"))
    return {name: round(part, 2) for name, part in sorted(found.items(), key=lambda item: -item[1]) if part >= SMALLEST}


def main() -> None:
    operation = sys.argv[1] if len(sys.argv) > 1 else ""
    if operation not in WORK:
        raise SystemExit(f"profile_work: expected one of {', '.join(WORK)}, got {operation!r}")
    torch.set_num_threads(1)
    shape, work = WORK[operation]()
    with tempfile.TemporaryDirectory() as folder:
        lines = sampled(work, Path(folder) / "perf.data")
    content = {"machine": machine(), "case": f"{operation} {shape}, 1 thread", "percent of samples": shares(lines)}
    path = RESULTS / f"profile_{operation}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
