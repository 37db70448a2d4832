"""A training step over large catalogues: rows a second and peak memory, however many items there are.

    python -m bench.speed.bench_catalogue [--quick] [--json]
    python -m bench.speed.bench_catalogue --large [--json]

The default SOLID, stage 2, batches of 1,024 rows of random histories of ten items, one thread; a negative's own draw
and the sequences' gathering are part of a step. Three ways:

* dense: 64 negatives of each row's own, gradients and Adam over whole tables, as smaller catalogues are trained.
* rows: the same negatives, tables updated by the rows that are read (`solid_ext.train.row_adam`), here at every size;
  training does so from 131,073 items on where rows have 64 negatives of their own.
* shared: the same tables, and 1,024 negatives that a batch shares (`shared_negatives`).

Each runs in a process of its own, in turns; a step's time is the median of its processor times over all of them, and
the system tells the peak memory. Before it is timed, `rows` must end where `dense` does, from the same batches.

`--large` takes a hundred thousand and ten million items by rows, once each (`large_catalogue.json`). The item vectors
have 64 dimensions; the table that generates the layers has 16, for with 64 the weights and moments of both tables alone
are 15.4 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bench.harness import RESULTS, machine
from bench.speed.bench_scale import measured
from solid_ext import Config, load_dataset
from solid_ext.data import Dataset, NegativeSampler, gather_sequences, leave_one_out
from solid_ext.models import DynamicRecommender
from solid_ext.train import Step, build_model
from solid_ext.train.row_adam import LARGE_TABLE, RowAdam

ITEMS = (100_000, 300_000, 1_000_000)
USERS, LENGTH, SEMANTICS, BATCH = 100_000, 12, 1024, 1024
WAYS = ("dense", "rows", "shared")
ROUNDS, STEPS, WARM_UP = 2, 8, 3
# Rows a second over dense's, and a step's time at a million items over that at a hundred thousand.
AIMS = {300_000: 1.6, 1_000_000: 3.0}
GROWTH = 1.2
LARGE, GENERATOR_DIM = (100_000, 10_000_000), 16


class Training:
    """A model, its optimizer and its batches, which depend on the seed alone."""

    def __init__(self, dataset: Dataset, way: str, generator_dim: int = 0) -> None:
        fields = {"shared_negatives": 1024 if way == "shared" else 0, "generator_dim": generator_dim}
        self.config = Config().replace(loss="sampled_softmax_log_q", batch_size=BATCH, **fields)
        self.dataset, self.split = dataset, leave_one_out(dataset)
        semantics = np.arange(dataset.num_items + 1) % SEMANTICS + 1
        semantics[0] = 0
        self.model: DynamicRecommender = build_model(self.config, self.config.model, dataset.num_items, semantics)
        rows = sys.maxsize if way == "dense" else LARGE_TABLE
        self.optimizer = RowAdam(self.model, rows, lr=self.config.train.learning_rate, weight_decay=0.0, fused=True)
        self.step = Step(self.model, self.optimizer, self.config.train)
        self.sampler = None if way == "shared" else NegativeSampler(dataset, self.split.train_end)
        self.rng = np.random.default_rng(0)
        torch.manual_seed(0)
        self.model.train()

    def __call__(self) -> float:
        """One step; its loss."""
        rows = self.split.train
        batch = rows.take(self.rng.choice(len(rows.positions), BATCH, replace=False))
        sequences = torch.from_numpy(gather_sequences(self.dataset, batch, self.model.length))
        candidates = self.dataset.items[batch.positions].astype(np.int64)
        if self.sampler is None:
            shared = self.rng.integers(1, self.dataset.num_items + 1, self.config.train.shared_negatives)
            candidates = np.concatenate([candidates, shared])
        else:
            own = self.sampler.sample(batch.users, self.config.train.negatives, self.rng)
            candidates = np.concatenate([candidates[:, None], own], axis=1)
        return float(self.step(sequences, torch.from_numpy(candidates))[0])


def histories(items: int) -> Dataset:
    """Users with a dozen items at random each, and every item of the catalogue at least once."""
    rng = np.random.default_rng(1)
    count = max(USERS * LENGTH, items)
    drawn = np.concatenate([rng.permutation(items), rng.integers(0, items, count - items)])
    return load_dataset((np.arange(count) % USERS, rng.permutation(drawn), np.arange(count)), drop_duplicates=False)


def validate(items: int) -> float:
    """The largest difference of a weight after some steps by rows and over whole tables.

    Raises:
        SystemExit: it is more than rounding.
    """
    dataset = histories(items)
    ends = []
    for way in ("dense", "rows"):
        training = Training(dataset, way)
        for _ in range(6):
            training()
        training.optimizer.close()
        ends.append(training.model.item_embedding.weight.detach())
    difference = float((ends[0] - ends[1]).abs().max())
    if not difference < 3e-4:  # a tenth of what Adam moves a weight in a step
        raise SystemExit(f"bench_catalogue: expected rows to end where dense does, got a difference of {difference:g}")
    return difference


def run(items: int, way: str, steps: int, generator_dim: int) -> None:
    """Print the processor seconds of each step as JSON."""
    training = Training(histories(items), way, generator_dim)
    for _ in range(WARM_UP):
        training()
    times = []
    for _ in range(steps):
        start = time.process_time()
        training()
        times.append(time.process_time() - start)
    sys.stdout.write(json.dumps(times) + "\n")


def row(items: int, way: str, taken: list[float], peak: float) -> dict[str, object]:
    """What is written of steps that took so many seconds."""
    median, quartiles = statistics.median(taken), statistics.quantiles(taken, n=4)
    return {
        "items": items,
        "way": way,
        "step_ms": round(1e3 * median, 1),
        "spread": round((quartiles[2] - quartiles[0]) / median, 2),
        "rows_per_second": round(BATCH / median),
        "peak_gb": peak,
    }


def large(*, write: bool) -> None:
    """Ten million items beside a hundred thousand, by rows and by shared negatives."""
    rows: list[dict[str, object]] = []
    for way in WAYS[1:]:
        for items in LARGE:
            command: list[str | Path] = [sys.executable, "-m", "bench.speed.bench_catalogue", "--run"]
            figures, output = measured([*command, str(items), way, str(STEPS), str(GENERATOR_DIM)])
            rows.append(row(items, way, json.loads(output), float(str(figures["peak_gb"]))))
    content = {"machine": machine(), "threads": 1, "generator_dim": GENERATOR_DIM, "steps": STEPS, "rows": rows}
    Console().print_json(json.dumps(content))
    if write:
        (RESULTS / "large_catalogue.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="one round of few steps, only to see that it runs")
    arguments.add_argument("--json", action="store_true", help="write bench/results/catalogue.json")
    arguments.add_argument("--large", action="store_true", help="ten million items beside a hundred thousand")
    arguments.add_argument("--run", nargs=4, metavar=("ITEMS", "WAY", "STEPS", "GENERATOR_DIM"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.run:
        items, way, steps, generator_dim = options.run
        run(int(items), way, int(steps), int(generator_dim))
        return
    if options.large:
        large(write=options.json)
        return
    sizes, rounds, steps = (ITEMS[:1], 1, 2) if options.quick else (ITEMS, ROUNDS, STEPS)
    difference = validate(80_000)
    times: dict[tuple[int, str], list[float]] = {}
    peaks: dict[tuple[int, str], float] = {}
    for _ in range(rounds):
        for items in sizes:
            for way in WAYS:
                command: list[str | Path] = [sys.executable, "-m", "bench.speed.bench_catalogue", "--run"]
                figures, output = measured([*command, str(items), way, str(steps), "0"])
                times.setdefault((items, way), []).extend(json.loads(output))
                peaks[items, way] = max(peaks.get((items, way), 0.0), float(str(figures["peak_gb"])))
    rows = [row(items, way, taken, peaks[items, way]) for (items, way), taken in times.items()]
    speed = {key: BATCH / statistics.median(taken) for key, taken in times.items()}
    aims = [
        {
            "row": f"training, {items:,} items, {way} over dense tables and 64 negatives of each row's own",
            "reached": round(speed[items, way] / speed[items, "dense"], 2),
            "aim": AIMS[items],
            "better": "higher",
            "unit": "x",
        }
        for items in AIMS
        if items in sizes
        for way in WAYS[1:]
    ]
    aims += [
        {
            "row": f"training, a step at {sizes[-1]:,} items over one at {sizes[0]:,}, {way}",
            "reached": round(speed[sizes[0], way] / speed[sizes[-1], way], 2),
            "aim": GROWTH,
            "better": "lower",
            "unit": "x",
        }
        for way in WAYS[1:]
    ]
    content = {"machine": machine(), "threads": 1, "largest_difference": difference, "rows": rows, "aims": aims}
    Console().print_json(json.dumps(content))
    if options.json and not options.quick:
        (RESULTS / "catalogue.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
