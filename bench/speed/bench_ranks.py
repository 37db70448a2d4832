"""Several processes beside one: curves and metrics at the same global batch, rows a second, a rank that is killed.

    python -m bench.speed.bench_ranks [--json] [--larger]

Each training is `torchrun --nproc-per-node N -m solid_ext train --dataset synthetic ..` (2,000 users, 500 items) with a
thread a process; one more is a single process of two threads. In `killed` rank 1 of two is killed (SIGKILL) once the
first stage has an epoch, and torchrun starts both again. `larger` has the rates of a larger model and batch alone, and
with that flag is all that is measured, beside what the file has. `network` is computed: what a step sends, from the
parameters.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness import RESULTS, machine

FIELDS = {"dim": 16, "heads": 2, "length": 10, "batch_size": 256, "epochs": 4, "patience": 9, "codebook_hidden": 16}
LARGER = {"dim": 64, "codebook_hidden": 64, "batch_size": 1024, "epochs": 3}
STAGES = ("stage1", "stage2")
GPUS, FLOAT, INDEX = 8, 4, 8


def command(out: Path, processes: int, restarts: int = 0, dataset: str = "synthetic", **fields: Any) -> list[str]:
    """A training by so many processes; by one without torchrun."""
    flags = []
    for name, value in (FIELDS | fields).items():
        flag = name.replace("_", "-")
        flags.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    begin = [sys.executable, "-m", "solid_ext"]
    if processes > 1:
        agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        begin = [sys.executable, *agent, f"--max-restarts={restarts}", "-m", "solid_ext"]
    return [*begin, "train", f"--dataset={dataset}", f"--out={out}", *flags]


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def curves(out: Path) -> dict[str, list[dict[str, str]]]:
    """Each stage's log."""
    found = {}
    for stage in STAGES:
        with (out / stage / "log.csv").open(newline="", encoding="utf-8") as file:
            found[stage] = list(csv.DictReader(file))
    return found


def rank_of(process: int, rank: int) -> int | None:
    """The process that is this rank of a torchrun, while it is there (on Linux)."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in map(int, children):
        try:
            if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
                return child
        except OSError:
            continue
    return None


def killed(out: Path, victim: int = 1, **options: Any) -> str:
    """Train with two processes, kill one once stage 1 has an epoch, let torchrun go on; what was printed."""
    with tempfile.TemporaryFile("w+") as printed:
        agent = subprocess.Popen(
            command(out, 2, restarts=1, **options), stdout=printed, stderr=subprocess.STDOUT, env=one_thread()
        )
        while not (out / "stage1" / "last.safetensors").exists() and agent.poll() is None:
            time.sleep(0.02)
        rank = rank_of(agent.pid, victim)
        if rank is not None:
            os.kill(rank, signal.SIGKILL)
        code = agent.wait()
        printed.seek(0)
        text = printed.read()
    if code or rank is None:
        raise RuntimeError(f"killed: expected torchrun to go on after a kill, got code {code} and\n{text}")
    return text


def network(out: Path) -> dict[str, Any]:
    """Bytes that each of 8 GPUs sends in a step: two (N - 1) / N of all gradients, in a ring."""
    from solid_ext import SOLID

    model = SOLID.load(out / "model").model
    assert model is not None
    items = model.item_embedding.weight.numel() + (
        model.item.embedding.table.weight.numel() if model.config.item.item_branch else 0
    )
    dense = sum(parameter.numel() for parameter in model.parameters())
    ring = 2 * (GPUS - 1) / GPUS
    return {
        "gpus": GPUS,
        "parameters": dense,
        "of_item_tables": items,
        "megabytes_a_step_each": round(ring * FLOAT * dense / 1e6, 3),
        "formula": "2 (N - 1) / N x 4 bytes x parameters; by rows: (N - 1) x (8 + 4 d) bytes x rows of a rank",
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="write bench/results/ranks.json")
    arguments.add_argument("--larger", action="store_true", help="measure the larger model alone")
    options = arguments.parse_args()
    if options.larger:
        found = json.loads((RESULTS / "ranks.json").read_text()) | {"larger": larger()}
        Console().print_json(json.dumps(found["larger"]))
        if options.json:
            (RESULTS / "ranks.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    started, loads = time.perf_counter(), [round(os.getloadavg()[0], 1)]
    found: dict[str, Any] = {"machine": machine(), "machine_shared": True, "fields": FIELDS, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, processes, threads in (("1", 1, 1), ("1, two threads", 1, 2), ("2", 2, 1), ("3", 3, 1)):
            out = Path(folder) / name.replace(", ", "-").replace(" ", "-")
            subprocess.run(
                command(out, processes, threads=threads), check=True, env=one_thread(), stdout=subprocess.DEVNULL
            )
            found["runs"][name] = described(out, processes, threads)
            loads.append(round(os.getloadavg()[0], 1))
        killed(Path(folder) / "killed")
        found["killed"] = described(Path(folder) / "killed", 2, 1)
        found["network"] = network(Path(folder) / "1")
    alone = found["runs"]["1"]
    for run in [*found["runs"].values(), found["killed"]]:
        run["largest_relative_difference_of_losses"] = max(
            abs(own - other) / other
            for stage in STAGES
            for own, other in zip(run["losses"][stage], alone["losses"][stage], strict=True)
        )
    found["load"] = {"first": loads[0], "last": loads[-1], "most": max(loads)}
    found["larger"] = larger()
    found["wall_seconds"] = round(time.perf_counter() - started)
    Console().print_json(json.dumps(found))
    if options.json:
        (RESULTS / "ranks.json").write_text(json.dumps(found, indent=1) + "\n")


def larger() -> dict[str, Any]:
    """Rows a second of the larger model in the median epoch of stage 2."""
    loads, rates = [round(os.getloadavg()[0], 1)], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, processes, threads in (("1", 1, 1), ("1, two threads", 1, 2), ("2", 2, 1)):
            out = Path(folder) / name.replace(", ", "-").replace(" ", "-")
            given = command(out, processes, threads=threads, neighbours=False, **LARGER)
            subprocess.run(given, check=True, env=one_thread(), stdout=subprocess.DEVNULL)
            rates[name] = described(out, processes, threads)["stage2_rows_per_second"]
            loads.append(round(os.getloadavg()[0], 1))
    return {"fields": LARGER, "date": machine()["date"], "rows_per_second": rates, "loads": loads}


def described(out: Path, processes: int, threads: int) -> dict[str, Any]:
    """A run's curves, metrics and rates."""
    logs, metrics = curves(out), json.loads((out / "metrics.json").read_text())
    rows = metrics["split"]["train_rows"]
    seconds = [float(line["seconds"]) for line in logs["stage2"]]
    return {
        "processes": processes,
        "threads_each": threads,
        "losses": {stage: [float(line["loss"]) for line in logs[stage]] for stage in STAGES},
        "valid": {stage: [float(line["valid"]) for line in logs[stage]] for stage in STAGES},
        "ndcg@10": {protocol: metrics["models"]["SOLID"][protocol]["ndcg@10"] for protocol in ("sampled", "full")},
        "stage2_rows_per_second": round(rows / statistics.median(seconds)),
        "stage2_epoch_seconds": [round(one, 2) for one in seconds],
    }


if __name__ == "__main__":
    main()
