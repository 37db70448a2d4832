"""solid-ext evaluate: the metrics of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from solid_ext.cli.sources import Dataset, load_run, open_dataset
from solid_ext.cli.terminal import console, write_json


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on the test rows of its dataset, by both protocols and beyond accuracy.

    Example: solid-ext evaluate --run runs/first --dataset data/ratings
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    dataset: Dataset
    """The dataset that the run was trained on."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        solid = load_run(self.run_folder)
        metrics = solid.evaluate(open_dataset(self.dataset))
        if self.json:
            write_json(metrics)
        else:
            show_metrics({"the model": metrics}, None)


def show_metrics(models: dict[str, dict[str, dict[str, float]]], rows: int | None) -> None:
    """Print one table a protocol: a line a metric, the models side by side."""
    titles = {
        "sampled": "one positive against sampled negatives",
        "full": "full ranking, ties against the model",
        "beyond": "beyond accuracy, the ten best items outside the history",
    }
    for protocol, title in titles.items():
        table = Table("", *models, title=title + (f", {rows:,} test rows" if rows else ""))
        for metric in next(iter(models.values()))[protocol]:
            table.add_row(metric, *(f"{metrics[protocol][metric]:.4f}" for metrics in models.values()))
        console.print(table)
