"""Torchrun's jobs in which a rank is killed: `python -m python_tests.jobs FOLDER` writes down what came of them, after
what undisturbed processes found (`python_tests.worlds`).

Each is torchrun's own agent over `solid-ext train`; its processes are forked from one that has imported everything, as
an import takes longer than all that they do.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bench.chaos import PRELOADED
from python_tests.worlds import of_each_count, small_world
from solid_ext.cli import main as solid_ext_command

FIELDS = ["--dim=8", "--length=5", "--codebook-hidden=8", "--batch-size=40", "--dtype=float64", "--threads=1"]
FIELDS += ["--semantics=category", "--no-neighbours", "--epochs=2", "--patience=2"]


def rank(arguments: list[str]) -> None:
    """One rank: the command, in this process."""
    sys.argv = ["solid-ext", *arguments]
    try:
        solid_ext_command()
    except SystemExit as end:
        if end.code:
            os._exit(int(end.code))


def save_data(folder: Path) -> None:
    """Save a dataset in a process of its own: one that has written data has threads, and is no parent any more."""
    child = os.fork()
    if child == 0:
        small_world()[0].save(folder)
        os._exit(0)
    assert ended([child]) == [0]


def agent(printed: Path, arguments: list[str], processes: int, **options: Any) -> int:
    """The process of a torchrun, or of the command itself where there is one process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        if processes == 1 and not options:
            rank(arguments)
        else:
            given = {"min_nodes": 1, "max_nodes": 1, "max_restarts": 0, "run_id": str(printed)} | options
            given |= {"rdzv_backend": "c10d", "start_method": "fork", "nproc_per_node": processes}
            elastic_launch(LaunchConfig(**({"rdzv_endpoint": "localhost:0"} | given)), rank)(arguments)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(agents: list[int], seconds: float = 60) -> list[int]:
    """The exit codes of processes, which have so long."""
    end, codes = time.monotonic() + seconds, {}
    while len(codes) < len(agents):
        for one in set(agents) - set(codes):
            pid, status = os.waitpid(one, os.WNOHANG)
            if pid:
                codes[one] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for one in set(agents) - set(codes):
                os.kill(one, signal.SIGTERM)  # which ends its ranks too
            raise TimeoutError(f"jobs: expected an end within {seconds} s")
        time.sleep(0.01)
    return [codes[one] for one in agents]


def children(process: int) -> list[int]:
    """The processes that one has started, in this order (on Linux)."""
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def trained(folder: Path, name: str, processes: int, *flags: str, **options: Any) -> dict[str, Any]:
    """What a training that nobody disturbs left."""
    codes = ended([agent(folder / f"{name}.txt", ["train", f"--out={folder / name}", *flags], processes, **options)])
    return found(folder, name, codes)


def disturbed(folder: Path, name: str, machines: int, victim: int, *flags: str, **options: Any) -> dict[str, Any]:
    """What a training of two processes left, of which one was killed once stage 1 had an epoch."""
    arguments = ["train", f"--out={folder / name}", *flags]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            options |= {"rdzv_endpoint": f"localhost:{free.getsockname()[1]}", "min_nodes": 2, "max_nodes": 2}
    agents = [agent(folder / f"{name}.txt", arguments, 2 // machines, **options) for _ in range(machines)]
    end = time.monotonic() + 60
    while not (folder / name / "stage1" / "last.safetensors").exists():
        assert time.monotonic() < end, (folder / f"{name}.txt").read_text()
        time.sleep(0.01)
    ranks = [child for one in agents for child in children(one)]
    os.kill(ranks[victim], signal.SIGKILL)
    return found(folder, name, ended(agents))


def found(folder: Path, name: str, codes: list[int]) -> dict[str, Any]:
    """Exit codes, what was printed, the curves of both stages, metrics."""
    epochs = []
    for log in sorted((folder / name).glob("stage?/log.csv")):
        with log.open(newline="", encoding="utf-8") as file:
            epochs += csv.DictReader(file)
    metrics = folder / name / "metrics.json"
    return {
        "codes": codes,
        "printed": (folder / f"{name}.txt").read_text(),
        "losses": [float(epoch["loss"]) for epoch in epochs],
        "valid": [epoch["valid"] for epoch in epochs],
        "models": json.loads(metrics.read_text())["models"] if metrics.exists() else None,
    }


def all_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, what came of each job (on Linux)."""
    save_data(folder / "data")
    flags = [f"--dataset={folder / 'data'}", *FIELDS]
    jobs = {"alone": trained(folder, "alone", 1, *flags)}
    jobs["the writer"] = disturbed(folder, "writer", 1, 0, *flags, max_restarts=1)
    jobs["a second machine"] = disturbed(folder, "machine", 2, 1, *flags, max_restarts=1)
    jobs["for good"] = disturbed(folder, "ended", 1, 1, *flags)
    for processes in (1, 3):
        shutil.copytree(folder / "ended", folder / f"resumed{processes}")
        jobs[f"resumed by {processes}"] = trained(folder, f"resumed{processes}", processes, *flags, "--resume")
    return jobs


def main() -> None:
    folder = Path(sys.argv[1])
    for name in PRELOADED:
        importlib.import_module(name)
    (folder / "worlds.json").write_text(json.dumps(of_each_count()))
    if sys.platform == "linux":
        (folder / "jobs.json").write_text(json.dumps(all_jobs(folder)))


if __name__ == "__main__":
    main()
