"""solid-ext tune: a search for the best configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from solid_ext.cli.sources import Dataset, open_dataset, read_fields, separated
from solid_ext.cli.terminal import console


@dataclass(frozen=True)
class Tune:
    """Search fields of the configuration for the best validation metric; the test rows are never looked at.

    Example: solid-ext tune --dataset data/ratings --fields learning_rate,dropout,delta --trials 30 --out runs/search

    The same command again goes on where it stopped, with more --trials further. Needs the extra `tune` (Optuna).
    """

    dataset: Dataset
    """A named dataset, a dataset folder, or an interactions file."""
    out: Path
    """The folder for the trials, journal.log and best.yaml, which `train` and `compare` take as --config."""
    fields: str = "learning_rate,dropout,weight_decay"
    """The fields to search, separated by commas."""
    trials: int = 20
    """Trials altogether."""
    backbone: str = "sasrec"
    """The backbone."""
    method: str = "solid"
    """The method."""
    preset: str = "best"
    """Where the other fields come from, as in `compare`."""
    config: Path | None = None
    """A YAML file of fields over the preset's."""
    storage: str | None = None
    """A journal file or the URL of a database where several processes, each with its own --out, keep one search's
    trials."""
    seed: int = 0
    """Of the search and of every trial."""

    def run(self) -> None:
        from solid_ext.tune import Trial, make_search, tune

        search = make_search(
            separated(self.fields), self.method, self.backbone, self.preset, read_fields(self.config), self.seed
        )

        def finished(trial: Trial) -> None:
            values = ", ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
            metric = "diverged" if trial.metric is None else f"{trial.metric:.4f}"
            console.print(f"{trial.number + 1}/{self.trials} {metric}  {values}")

        best = tune(
            self.out,
            search,
            open_dataset(self.dataset),
            trials=self.trials,
            storage=self.storage,
            on_finished=finished,
        )
        console.print(f"best: {best.metric:.4f}, trial {best.number + 1}\n  {self.out / 'best.yaml'}")
