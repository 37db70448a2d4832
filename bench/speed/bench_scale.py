"""A dataset of Electronic's size, end to end: seconds and peak memory of preparing it and of one epoch of both stages.

    python -m bench.speed.bench_scale [--steps prepare,epoch] [--shared] [--json]

A ratings file with the statistics of Table 1's Electronic (4,201,696 users, 476,002 items, 7,824,482 ratings) is
written to a temporary folder: lengths of histories follow a power law (exponent 2.55), items are as popular as their
rank to the power -0.8, rows are shuffled, times are days. Each step runs in a process of its own, and the system tells
its peak memory.

* prepare: `solid-ext prepare electronic --raw ratings.csv --items items.tsv`.
* epoch: `SOLID(**PAPER, epochs=1, semantics="category").fit(...)`: one epoch of each stage, validated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from bench.harness import RESULTS, machine

USERS, ITEMS, RATINGS = 4_201_696, 476_002, 7_824_482
CATEGORIES = 1024
EXPONENT, LONGEST, POPULARITY = 2.55, 500, -0.8
FIRST_DAY, DAYS, DAY = 10_227, 5_800, 86_400  # 1998-01-01 and almost 16 years on
LIMITS = {"prepare": (180, 4.0), "epoch": (None, 8.0)}  # seconds, GB


def generate(folder: Path, seed: int = 0) -> None:
    """Write `ratings.csv` and `items.tsv` with exactly the statistics above."""
    rng = np.random.default_rng(seed)
    length = np.minimum(rng.zipf(EXPONENT, USERS), LONGEST)
    while excess := int(length.sum()) - RATINGS:
        who = rng.choice(
            np.flatnonzero(length > 1) if excess > 0 else USERS, min(abs(excess), USERS // 4), replace=False
        )
        length[who] -= np.sign(excess)
    weight = np.arange(1, ITEMS + 1) ** POPULARITY
    drawn = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(RATINGS - ITEMS)).clip(max=ITEMS - 1)
    item = rng.permutation(np.concatenate([np.arange(ITEMS), drawn]))
    order = rng.permutation(RATINGS)
    table = pl.DataFrame(
        {
            "user": _ids("A", np.repeat(np.arange(USERS), length)[order], 13),
            "item": _ids("B", item, 9),
            "rating": pl.Series(rng.integers(1, 6, RATINGS)).cast(pl.Float64),
            "time": (FIRST_DAY + rng.integers(0, DAYS, RATINGS)) * DAY,
        }
    )
    table.write_csv(folder / "ratings.csv", include_header=False)
    names = pl.Series(rng.integers(0, CATEGORIES, ITEMS)).cast(pl.String)
    items = pl.DataFrame({"item_id": _ids("B", np.arange(ITEMS), 9), "categories": "category " + names})
    items.write_csv(folder / "items.tsv", separator="\t")


def _ids(prefix: str, number: np.ndarray, digits: int) -> pl.Series:
    """Raw ids whose order has nothing to do with the numbers': `number * odd prime mod 10^digits`."""
    mixed = number.astype(np.int64) * 700_000_001 % 10**digits
    return prefix + pl.Series(mixed).cast(pl.String).str.zfill(digits)


def epoch(folder: Path) -> None:
    """Train one epoch of both stages; print rows and seconds as JSON."""
    import torch

    from solid_ext import SOLID, load_dataset
    from solid_ext.config import PAPER

    start = time.perf_counter()
    dataset = load_dataset(folder / "dataset")
    loaded = time.perf_counter() - start
    solid = SOLID(**PAPER, epochs=1, semantics="category").fit(dataset)
    training = solid.training
    seconds = {stage.name: round(sum(e.seconds for e in stage.history), 1) for stage in training.stages}
    rows = len(training.split.train)
    result = {
        "threads": torch.get_num_threads(),
        "load_seconds": round(loaded, 1),
        "train_rows": rows,
        "valid_rows": len(training.split.valid),
        "semantics": training.semantics.count,
        "parameters": sum(p.numel() for p in solid.model.parameters()) if solid.model else 0,
        "epoch_seconds": seconds,
        "rows_per_second_with_validation": {name: round(rows / taken) for name, taken in seconds.items()},
    }
    sys.stdout.write(json.dumps(result) + "\n")


def measured(command: Sequence[str | Path]) -> tuple[dict[str, object], str]:
    """Run a command; its wall and processor seconds and its peak memory, and what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench_scale: expected {command[1:4]} to end well, got exit code {process.returncode}")
    figures: dict[str, object] = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }
    return figures, output


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", default="prepare,epoch", help="prepare, epoch or both")
    arguments.add_argument("--folder", type=Path, help="where files go and stay; by default a temporary folder")
    arguments.add_argument("--shared", action="store_true", help="note that other work ran on the machine")
    arguments.add_argument("--json", action="store_true", help="write bench/results/scale.json")
    arguments.add_argument("--run", choices=("generate", "epoch"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.run:
        {"generate": generate, "epoch": epoch}[options.run](options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rows = run_steps(folder, options.steps.split(","), shared=options.shared)
    Console().print_json(json.dumps(rows))
    if options.json:
        path = RESULTS / "scale.json"
        kept = json.loads(path.read_text())["steps"] if path.exists() else {}
        path.write_text(json.dumps({"machine": machine(), "size": size(), "steps": kept | rows}, indent=1) + "\n")


def size() -> dict[str, int]:
    return {"users": USERS, "items": ITEMS, "ratings": RATINGS}


def run_steps(folder: Path, steps: Sequence[str], *, shared: bool) -> dict[str, dict[str, object]]:
    """Run the steps that are asked for, after those that they need, and return their figures."""
    itself = [sys.executable, "-m", "bench.speed.bench_scale", "--folder", folder, "--run"]
    raw, dataset = folder / "ratings.csv", folder / "dataset"
    if not raw.exists():
        folder.mkdir(parents=True, exist_ok=True)
        measured([*itself, "generate"])
    rows: dict[str, dict[str, object]] = {}
    if "prepare" in steps or not dataset.exists():
        command = [sys.executable, "-m", "solid_ext.cli", "prepare", "electronic", "--raw", raw, "--out", dataset]
        figures, output = measured([*command, "--items", folder / "items.tsv", "--overwrite"])
        if "Table 1: match" not in output:
            raise SystemExit(f"bench_scale: expected Table 1's statistics, got\n{output}")
        rows["prepare"] = figures
    if "epoch" in steps:
        figures, output = measured([*itself, "epoch"])
        rows["epoch"] = figures | json.loads(output.splitlines()[-1])
    limits = {name: dict(zip(("limit_seconds", "limit_gb"), LIMITS[name], strict=True)) for name in rows}
    return {name: limits[name] | figures | {"machine_shared": shared} for name, figures in rows.items()}


if __name__ == "__main__":
    main()
