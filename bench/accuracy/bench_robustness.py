"""How a comparison's trained models stand shortened and noisy histories, without training anything.

python -m bench.accuracy.bench_robustness --runs runs/compare --methods static,duet,solid --out bench/results/robustness

Reads the best epoch of every finished run and measures it on the same test rows, sampled protocol: with the last n
items of each history alone (n = 1 .. L), and with a share of the history's items replaced by random ones (the same ones
for every method and seed). Users are also grouped by how long their history is. Writes OUT.json and OUT.png: mean and
standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness import RESULTS, machine
from solid_ext.compare.grid import Grid, PlannedRun
from solid_ext.compare.process import DATA, GRID, METRICS, RUNS
from solid_ext.data import Dataset, make_split
from solid_ext.evaluate import Metrics, evaluate_sampled, ndcg_per_row
from solid_ext.models import DynamicRecommender
from solid_ext.train import load_checkpoint, restore_model

METRIC = ("user_auc", "ndcg@10")
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4)
KEPT = (1, 2, 3, 5, 10)
SHOWN_USERS = 30  # a group with fewer is in the JSON file alone
LENGTHS = ((1, 4), (5, 6), (7, 10), (11, 20), (21, 50), (51, None))  # items before the test item


class Disturbed:
    """A model that is shown the last `kept` items of each history, a share `noise` of them replaced by random items."""

    def __init__(self, model: DynamicRecommender, *, kept: int, noise: float, seed: int = 0) -> None:
        self.model, self.kept, self.noise, self.length = model, kept, noise, model.length
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, sequences: Tensor) -> Any:
        length = (sequences > 0).sum(1, keepdim=True)
        first = (length - self.kept).clamp(min=0)
        position = torch.arange(sequences.shape[1])
        moved = sequences.gather(1, (position + first).clamp(max=sequences.shape[1] - 1))
        moved = torch.where(position < length - first, moved, 0)
        random = torch.randint(1, self.model.num_items + 1, moved.shape, generator=self.generator)
        replaced = torch.rand(moved.shape, generator=self.generator) < self.noise
        return self.model.encode(torch.where(replaced & (moved > 0), random, moved))

    def score(self, state: Any, candidates: Tensor) -> Tensor:
        return self.model.score(state, candidates)


def best_model(folder: Path, planned: PlannedRun) -> DynamicRecommender:
    """The network of a finished run at its best epoch."""
    path = folder / "stage2" / "best.safetensors"
    tensors, _ = load_checkpoint(path)
    return restore_model(planned.config, len(tensors["semantics"]) - 1, tensors, path)


def measure(
    model: DynamicRecommender, planned: PlannedRun, dataset: Dataset
) -> dict[str, dict[str, list[float | None]]]:
    """Curves by name: metric -> a value a point, None where there are no users."""
    rows = make_split(planned.config.evaluate.split, dataset).test

    # One draw of negatives whatever the seed of the training, so that seeds differ by their models alone.
    @cache
    def at(kept: int, noise: float) -> Metrics:
        return evaluate_sampled(Disturbed(model, kept=kept, noise=noise), dataset, rows, seed=0)

    plain = at(model.length, 0.0)
    curves = {"noise": [at(model.length, noise) for noise in NOISE], "kept": [at(kept, 0.0) for kept in KEPT]}
    found = {name: {metric: [point[metric] for point in curve] for metric in METRIC} for name, curve in curves.items()}
    before = rows.positions - dataset.offsets[rows.users]
    groups = [(before >= low) & (before <= (high or before.max())) for low, high in LENGTHS]
    gain = ndcg_per_row(plain.ranks, 10)
    found["length"] = {
        "user_auc": [float(plain.areas[group].mean()) if group.any() else None for group in groups],
        "ndcg@10": [float(gain[group].mean()) if group.any() else None for group in groups],
        "users": [int(group.sum()) for group in groups],
    }
    return found


def draw(path: Path, summary: dict[str, dict[str, dict[str, list[list[float | None]]]]]) -> None:
    """A row of panels a dataset: noise, items kept, length of the history."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = [f"{low}+" if high is None else f"{low}-{high}" for low, high in LENGTHS]
    axes = {"noise": [f"{share:.0%}" for share in NOISE], "kept": [str(kept) for kept in KEPT], "length": lengths}
    titles = {"noise": "items replaced at random", "kept": "last items shown", "length": "items the user has"}
    figure = Figure(figsize=(12, 3.4 * len(summary) + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(summary), 3, squeeze=False)
    for row, (dataset, methods) in zip(panels, summary.items(), strict=True):
        for panel, (curve, ticks) in zip(row, axes.items(), strict=True):
            for method, curves in methods.items():
                values = np.array(curves[f"{curve}: user_auc"], dtype=float)  # [seeds, points]
                if curve == "length":
                    values[np.array(curves["length: users"], dtype=float) < SHOWN_USERS] = np.nan
                spread = values.std(0, ddof=1) if len(values) > 1 else None
                panel.errorbar(range(len(ticks)), values.mean(0), yerr=spread, label=method, marker="o", capsize=3)
            panel.set_xticks(range(len(ticks)), ticks)
            panel.set_title(f"{dataset}: {titles[curve]}", fontsize=9)
            panel.set_ylabel("user-AUC, sampled")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, format="png")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of solid-ext compare")
    arguments.add_argument("--backbone", default="sasrec")
    arguments.add_argument("--methods", default="static,duet,solid")
    arguments.add_argument("--out", type=Path, default=RESULTS / "robustness", help="without an ending")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    summary: dict[str, dict[str, dict[str, list[list[float | None]]]]] = {}
    for out in options.runs:
        for planned in Grid.load(out / GRID).plan():
            folder = out / RUNS / planned.name
            wanted = planned.backbone == options.backbone and planned.method in options.methods.split(",")
            if not wanted or not (folder / METRICS).exists():
                continue
            dataset = Dataset.load(out / DATA / planned.dataset)
            found = measure(best_model(folder, planned), planned, dataset)
            into = summary.setdefault(planned.dataset, {}).setdefault(planned.method, {})
            for curve, metrics in found.items():
                for metric, values in metrics.items():
                    into.setdefault(f"{curve}: {metric}", []).append(values)
    if not summary:
        raise SystemExit(f"runs: expected finished runs of {options.methods} with {options.backbone}, got none")
    described = {
        "machine": machine(),
        "backbone": options.backbone,
        "points": {"noise": NOISE, "kept": KEPT, "length": LENGTHS},
        "convention": "sampled protocol, the same test rows and negatives throughout; a list a seed, a value a point",
        "seconds": round(time.perf_counter() - start),
    }
    text = json.dumps({**described, "results": summary}, indent=1)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    draw(options.out.with_suffix(".png"), summary)


if __name__ == "__main__":
    main()
