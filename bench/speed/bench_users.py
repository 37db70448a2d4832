"""`solid-ext recommend --all-users`: the memory that it takes beside the dataset and the model, and its seconds.

    python -m bench.speed.bench_users [--quick] [--json]

A synthetic dataset of 5,000 items and 8 interactions a user, drawn uniformly, and a model of one epoch on the smaller
one. Each file is written in a process of its own, which tells its peak memory during the call less what it held before
(Linux's VmHWM, set back before the call), so that the growth with the number of users is seen alone. The first three
users of each file must have what `recommend_users` says of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from bench.harness import RESULTS, machine
from solid_ext import SOLID, load_dataset
from solid_ext.serve import write_users

ITEMS, EACH = 5_000, 8
USERS, QUICK = (10_000, 200_000), (1_000, 5_000)


def status(name: str) -> float:
    """A line of this process's status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def one(data: Path, model: Path, out: Path) -> dict[str, float]:
    """Write the file, and say what it took."""
    dataset, solid = load_dataset(data), SOLID.load(model)
    first = solid.recommend_users(dataset, dataset.user_ids.head(3).to_list())  # makes the item table too
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    write_users(solid.user_query(dataset), out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    more = status("VmHWM") - held
    read = pl.read_parquet(out) if out.suffix == ".parquet" else pl.read_csv(out)
    if read.height != 10 * dataset.num_users or read.head(30)["item_id"].to_list() != first["item_id"].to_list():
        raise SystemExit(f"bench_users: expected {dataset.num_users:,} users as recommend_users has them, got others")
    return {
        "held_mb": round(held),
        "more_mb": round(more),
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK} users, only to see that it runs")
    arguments.add_argument("--json", action="store_true", help="write bench/results/recommend_users.json")
    arguments.add_argument("--one", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(one(*options.one)) + "\n")
        return
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), np.random.default_rng(0)
        for users in QUICK if options.quick else USERS:
            count = users * EACH
            columns = np.repeat(np.arange(users), EACH), rng.integers(1, ITEMS + 1, count), np.arange(count)
            dataset = load_dataset(columns)
            dataset.save(folder / str(users))
            if not (folder / "model").exists():
                SOLID(epochs=1, seed=0, validation="sampled:ndcg@10").fit(dataset).save(folder / "model")
            for ending in ("parquet", "csv"):
                asked = [folder / str(users), folder / "model", folder / f"{users}.{ending}"]
                command = [sys.executable, "-m", "bench.speed.bench_users", "--one", *map(str, asked)]
                told = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
                found.append({"users": users, "file": ending, **json.loads(told)})
    Console().print_json(json.dumps(found))
    if options.json and not options.quick:
        content = {"machine": machine(), "items": ITEMS, "files": found, "aims": []}
        (RESULTS / "recommend_users.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
