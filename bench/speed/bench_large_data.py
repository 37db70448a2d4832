"""A hundred million interactions beside two million: peak memory, rows a second, and what a step waits for its batch.

    python -m bench.speed.bench_large_data [--rows N] [--steps N] [--folder DIR] [--shared] [--json]

Parquet files with the columns user_id, item_id, timestamp are written to a temporary folder: a user for every 50 rows,
at random, 100,000 items as popular as their rank to the power -0.8, times within ten years, rows in no order. Each is
prepared by `solid-ext prepare interactions` and trained on, in processes of their own, whose peak memory the system
tells; pages of mapped files count in it.

* prepare: from the Parquet file to the dataset folder.
* train: the folder is loaded and the default SOLID fitted, its stage 2 started cold, with 64 negatives of each row's own
  and semantics by category, one thread; a callback ends it after the given steps, before the first epoch does. A step's
  time is from callback to callback, the median of all but the first. The share of waiting is of all of them together.

The small dataset is trained on before and after the large one, as other work may share the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from bench.harness import RESULTS, machine
from bench.speed.bench_scale import measured

LARGE, SMALL = 100_000_000, 2_000_000
ITEMS, EACH, CATEGORIES, POPULARITY = 100_000, 50, 1024, -0.8
FIRST_TIME, SECONDS = 1_300_000_000, 300_000_000
STEPS, BATCH = 1000, 1024
LIMIT_GB, WAITING = 6.0, 0.02
PIECE = 10_000_000  # rows that are generated at a time


def generate(folder: Path, rows: int) -> None:
    """Write `interactions.parquet` and `items.parquet`."""
    rng = np.random.default_rng(0)
    weight = np.cumsum(np.arange(1, ITEMS + 1) ** POPULARITY)
    pieces = []
    for start in range(0, rows, PIECE):
        count = min(PIECE, rows - start)
        columns = {
            "user_id": rng.integers(0, rows // EACH, count) * 7 + 3,
            "item_id": np.searchsorted(weight / weight[-1], rng.random(count)).clip(max=ITEMS - 1) * 13 + 5,
            "timestamp": FIRST_TIME + rng.integers(0, SECONDS, count),
        }
        pieces.append(pl.DataFrame(columns))
    pl.concat(pieces, rechunk=False).write_parquet(folder / "interactions.parquet")
    names = pl.Series(np.arange(ITEMS) % CATEGORIES).cast(pl.String)
    items = pl.DataFrame({"item_id": np.arange(ITEMS) * 13 + 5, "categories": "category " + names})
    items.write_parquet(folder / "items.parquet")


def train(folder: Path, steps: int) -> None:
    """Train so many steps on a dataset folder; print what they took as JSON."""
    import torch

    from solid_ext import SOLID, load_dataset
    from solid_ext.config import Config
    from solid_ext.methods import method_config
    from solid_ext.train import Callback, StopTraining
    from solid_ext.train.callbacks import StepDone

    ends: list[tuple[float, float]] = []

    class Clock(Callback):
        def on_step(self, done: StepDone) -> None:
            ends.append((time.perf_counter(), time.process_time()))
            if len(ends) == steps:
                raise StopTraining

    fields: dict[str, Any] = {"loss": "sampled_softmax_log_q", "batch_size": BATCH, "semantics": "category"}
    config = method_config(Config().replace(threads=1, epochs=1, neighbours=False, **fields), "solid-cold")
    start = time.perf_counter()
    dataset = load_dataset(folder)
    loaded, peak = time.perf_counter() - start, peak_gb()
    try:
        SOLID(config).fit(dataset, callbacks=[Clock()])
    except StopTraining:
        pass
    wall, processor = np.diff(np.array(ends), axis=0).T
    found = {
        "load_seconds": round(loaded, 1),
        "peak_gb_after_load": peak,
        "seconds_before_the_first_step": round(ends[0][0] - start - loaded, 1),
        "threads": torch.get_num_threads(),
        "steps": len(ends),
        "step_ms": round(1e3 * float(np.median(wall)), 1),
        "step_processor_ms": round(1e3 * float(np.median(processor)), 1),
        "rows_per_second": round(BATCH / float(np.median(wall))),
        "rows_per_processor_second": round(BATCH / float(np.median(processor))),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def peak_gb() -> float:
    """The peak memory of this process until now."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=LARGE, help="of the large dataset")
    arguments.add_argument("--steps", type=int, default=STEPS)
    arguments.add_argument("--folder", type=Path, help="where files go and stay, and are found by a later call")
    arguments.add_argument("--shared", action="store_true", help="note that other work ran on the machine")
    arguments.add_argument("--json", action="store_true", help="write bench/results/large_data.json")
    arguments.add_argument("--run", choices=("generate", "train"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.run == "generate":
        generate(options.folder, options.rows)
    elif options.run == "train":
        train(options.folder, options.steps)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            report(options.folder or Path(temporary), options)


if __name__ == "__main__":
    main()
