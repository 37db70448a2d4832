"""A hundred million interactions beside two million: peak memory, rows a second, and what a step waits for its batch.

    python -m bench.speed.bench_large_data [--rows N] [--steps N] [--parts prepare,train]
        [--folder DIR] [--shared] [--json]

Parquet files with the columns user_id, item_id, timestamp are written to a temporary folder: a user for every 50 rows,
at random, 100,000 items as popular as their rank to the power -0.8, times within ten years, rows in no order. Each is
prepared by `solid-ext prepare interactions` and trained on, in processes of their own, whose peak memory the system
tells; pages of mapped files count in it.

* prepare: from the Parquet file to the dataset folder.
* train: the folder is loaded and the default SOLID fitted, its stage 2 started cold, with 64 negatives of each row's
  own and semantics by category; torch has one thread, and batches are made in another. A callback ends it after the
  given steps, before the first epoch does. A step's time is from callback to callback, the median of all but the first;
  the processor's time is that of both threads. The share of waiting is of all steps together, the first batch's too.

Both trainings have the thresholds that glibc's allocator takes once a block of 32 MB has been freed. In a first run
with its own choice the small dataset's step was the longer one, presumably because larger tensors were mapped anew.

The small dataset is trained on before and after the large one, as other work may share the machine. With `--folder` the
parts can be measured in two calls; figures of the other part and the other sizes stay in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
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
LIMIT_GB, WAITING, RATE = 6.0, 0.02, 0.95  # a rate within what repeats of one differ by counts as the same
# The largest blocks that are not mapped one by one, and the free memory that is kept: what glibc comes to by itself.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
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
    from solid_ext.train import Callback, StopTraining, stage
    from solid_ext.train.ahead import OneAhead
    from solid_ext.train.callbacks import StepDone

    ends: list[tuple[float, float]] = []
    ahead: list[OneAhead[Any]] = []

    class Kept(OneAhead[Any]):
        def __init__(self, values: Iterator[Any]) -> None:
            super().__init__(values)
            ahead.append(self)

    stage.OneAhead = Kept  # type: ignore[misc]

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
    with contextlib.suppress(StopTraining):
        SOLID(config).fit(dataset, callbacks=[Clock()])
    wall, processor = np.diff(np.array(ends), axis=0).T
    found = {
        "load_seconds": round(loaded, 1),
        "peak_gb_after_load": peak,
        "seconds_before_the_first_step": round(ends[0][0] - start - loaded, 1),
        "threads": torch.get_num_threads(),
        "steps": len(ends),
        "waiting": round(ahead[0].waited / float(wall.sum()), 4),
        "step_ms": round(1e3 * float(np.median(wall)), 1),
        "step_processor_ms": round(1e3 * float(np.median(processor)), 1),
        "rows_per_second": round(BATCH / float(np.median(wall))),
        "rows_per_processor_second": round(BATCH / float(np.median(processor))),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def peak_gb() -> float:
    """The peak memory of this process until now."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def prepared(folder: Path, rows: int) -> dict[str, object]:
    """Generate and prepare so many rows into `folder`; what preparing took. The generated files are deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        source = Path(temporary)
        itself = [sys.executable, "-m", "bench.speed.bench_large_data", "--run", "generate", "--rows", str(rows)]
        measured([*itself, "--folder", source])
        command: list[str | Path] = [sys.executable, "-m", "solid_ext.cli", "prepare", "interactions", "--out", folder]
        figures, _ = measured([*command, "--raw", source / "interactions.parquet", "--items", source / "items.parquet"])
    metadata = json.loads((folder / "metadata.json").read_text())
    if metadata["report"]["rows_read"] != rows:
        raise SystemExit(f"bench_large_data: expected {rows:,} rows, got {metadata['report']['rows_read']:,}")
    counts = {name: metadata[name] for name in ("users", "items", "interactions")}
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {**counts, "folder_gb": round(size / 1e9, 2), **figures}


def trained(folder: Path, steps: int) -> dict[str, Any]:
    """What training so many steps on a dataset folder took."""
    command = [sys.executable, "-m", "bench.speed.bench_large_data", "--run", "train", "--steps", str(steps)]
    set_here = [f"{name}={value}" for name, value in ALLOCATOR.items()]
    figures, output = measured(["env", *set_here, *command, "--folder", folder])
    return {**json.loads(output.splitlines()[-1]), "peak_gb": figures["peak_gb"]}


def aims_of(rows: int, prepare: dict[str, Any], train: dict[str, Any]) -> list[dict[str, object]]:
    """What was measured beside what was meant to be reached."""
    millions = f"{rows // 1_000_000} M interactions"
    found: list[tuple[str, float, float, str, str]] = []
    if "large" in prepare:
        found.append(("prepare, peak memory", prepare["large"]["peak_gb"], LIMIT_GB, "lower", "GB"))
    if "large" in train:
        large, small = train["large"], [train["small before"], train["small after"]]
        rate = large["rows_per_second"] / statistics.mean(each["rows_per_second"] for each in small)
        found.append((f"{large['steps']:,} steps, peak memory", large["peak_gb"], LIMIT_GB, "lower", "GB"))
        found.append(("rows a second over those of a small dataset", round(rate, 2), RATE, "higher", "x"))
        found.append(("share of a step that waits for its batch", large["waiting"], WAITING, "lower", ""))
    return [
        {"row": f"{millions}: {row}", "reached": reached, "aim": aim, "better": better, "unit": unit}
        for row, reached, aim, better, unit in found
    ]


def report(folder: Path, options: argparse.Namespace) -> None:
    """Measure the parts that are asked for, print them, and write them beside what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "large_data.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    sizes = {"small": SMALL, "large": options.rows}
    if "prepare" in options.parts:
        found = {name: prepared(folder / name, rows) for name, rows in sizes.items()}
        content["prepare"] = {name: {**figures, "machine_shared": options.shared} for name, figures in found.items()}
    if "train" in options.parts:
        order = {"small before": "small", "large": "large", "small after": "small"}
        found = {name: trained(folder / size, options.steps) for name, size in order.items()}
        content["train"] = {name: {**figures, "machine_shared": options.shared} for name, figures in found.items()}
    content = {"machine": machine(), "rows": options.rows, "batch": BATCH} | {
        part: content[part] for part in ("prepare", "train") if part in content
    }
    content["aims"] = aims_of(options.rows, content.get("prepare", {}), content.get("train", {}))
    Console().print_json(json.dumps(content))
    if options.json:
        path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=LARGE, help="of the large dataset")
    arguments.add_argument("--steps", type=int, default=STEPS, help="of each training; the small epoch has 1,800")
    arguments.add_argument("--parts", default="prepare,train", help="prepare, train or both")
    arguments.add_argument("--folder", type=Path, help="where files go and stay, and are found by a later call")
    arguments.add_argument("--shared", action="store_true", help="note that other work ran on the machine")
    arguments.add_argument("--json", action="store_true", help="write bench/results/large_data.json")
    arguments.add_argument("--run", choices=("generate", "train"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.run == "generate":
        generate(options.folder, options.rows)  # each in a process of its own, whose memory is its own
    elif options.run == "train":
        train(options.folder, options.steps)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            report(options.folder or Path(temporary), options)


if __name__ == "__main__":
    main()
