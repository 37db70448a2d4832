"""solid-ext update: a trained model goes on with more interactions, users and items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from solid_ext.cli.prepare import describe
from solid_ext.cli.sources import Dataset, open_dataset
from solid_ext.cli.terminal import console


@dataclass(frozen=True)
class Update:
    """Go on from a trained model with a dataset that holds the old interactions and new ones, in a new folder.

    Example: solid-ext prepare interactions --raw tonight.csv --out data/ratings --append

    Example: solid-ext update --run runs/monday --dataset data/ratings --out runs/tuesday

    Items keep their ids, new ones start from their semantic and features, and nothing is clustered again. The epochs
    are chosen on the newest interactions, and the model is then trained on those too.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved; it is left as it is."""
    dataset: Dataset
    """The dataset with the old interactions and the new ones."""
    out: Path
    """The folder to make."""
    epochs: int = 5
    """The largest number of epochs."""

    def run(self) -> None:
        from solid_ext.run import update_run
        from solid_ext.threads import use_threads
        from solid_ext.train import ProgressBar

        console.print(f"threads: {use_threads(0)}")
        dataset = open_dataset(self.dataset)
        describe(dataset)
        with ProgressBar(console, "ndcg@10") as progress:
            run = update_run(self.run_folder, dataset, self.out, epochs=self.epochs, reporter=progress)
        metrics = run.metrics
        items, rows = metrics["items"], metrics["split"]["valid_rows"]
        console.print(f"items: {items['known']:,} known, {items['new']:,} new; {metrics['epochs']} epochs were best")
        if older := metrics["split"]["older_not_trained_on"]:
            console.print(
                f"note: {older:,} interactions that the old model had not are not trained on: they are no later than "
                "the latest that it was trained on, and count as histories and for neighbours alone"
            )
        table = Table("", *metrics["models"], title=f"the newest {rows:,} interactions, full ranking")
        for metric in metrics["models"]["before"]["full"]:
            table.add_row(metric, *(f"{values['full'][metric]:.4f}" for values in metrics["models"].values()))
        console.print(table)
        before, after = (metrics["models"][name]["full"]["ndcg@10"] for name in ("before", "update"))
        if after < before:
            console.print("note: the new model ranks them worse than the old one, which is where it was")
        console.print(f"updated in {metrics['seconds']['update']:.0f} s")
        console.print(f"  {self.out / 'metrics.json'}")
        for name, words in metrics["folders"].items():
            console.print(f"  {self.out / name}: {words}")
