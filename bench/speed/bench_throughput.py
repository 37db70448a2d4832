"""Training throughput of every backbone and method, native against reference: rows a second and peak memory.

    python -m bench.speed.bench_throughput [--json]

A row is a sequence with its positive and 4 negatives (Table 2: B = 1024, L = 10, d = 32, BCE), full (10 of 10); a step
is forward, backward and Adam; V = 4385 items, C = 438 semantics as on amazon_scientific. One thread, as
`solid-ext compare` gives every run. `finetune` and `static-semantic-start` train as `static` does and have no line.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.harness import Report, compare, peak_memory, timed
from bench.speed.bench_train_step import BATCH, ITEMS, batch_of, validate
from solid_ext import Config
from solid_ext.config import PAPER
from solid_ext.methods import method_config
from solid_ext.models import DynamicRecommender
from solid_ext.models.backbones import BACKBONES
from solid_ext.train import Step, make_optimizer

SEMANTICS = 438
METHODS = (
    "static",
    "duet",
    "apg",
    "solid",
    "solid-trunk-only",
    "solid-item-only",
    "solid-no-codebook",
    "solid-apg",
)


def training_step(backbone: str, method: str, backend: str) -> object:
    """What the trainer does with a batch."""
    config = method_config(Config().replace(**PAPER, backbone=backbone, backend=backend), method)
    torch.manual_seed(0)
    model = DynamicRecommender(config.model, ITEMS, np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1]))
    step = Step(model, make_optimizer(model, config.train), config.train)
    sequences, candidates = batch_of(BATCH)
    return lambda: step(sequences, candidates)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="write bench/results/throughput.json")
    arguments.add_argument("--seconds", type=float, default=3.0, help="about how long a case takes")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    report = Report("throughput")
    report.notes["largest gradient difference in float64"] = difference = validate()
    if not difference < 1e-9:
        raise SystemExit(f"validation: expected a difference below 1e-9, got {difference}")
    table = Table("backbone", "method", "rows/s", "reference", "ratio", "MB", "reference")
    for backbone in BACKBONES:
        for method in METHODS:
            steps = {backend: training_step(backbone, method, backend) for backend in ("native", "reference")}
            rows = compare(
                f"{backbone}, {method}",
                {name: timed(step) for name, step in steps.items()},
                threads=1,
                peak_bytes={name: peak_memory(step) for name, step in steps.items()},
                seconds=options.seconds,
            )
            native, reference = rows
            table.add_row(
                backbone,
                method,
                *(f"{BATCH / row.seconds:,.0f}" for row in rows),
                f"{reference.ratio:.2f}",
                *(f"{(row.peak_bytes or 0) / 1e6:.1f}" for row in rows),
            )
            report.rows += rows
            report.notes[f"rows/s, {backbone}, {method}"] = round(BATCH / native.seconds)
    Console().print(table)
    if options.json:
        report.write()


if __name__ == "__main__":
    main()
