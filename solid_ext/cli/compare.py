"""solid-ext compare: a grid of runs and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from solid_ext.cli.sources import open_dataset, read_fields, separated
from solid_ext.cli.terminal import console, one_line


@dataclass(frozen=True)
class Compare:
    """Run a grid, datasets x backbones x methods x seeds, and report means, spreads and tests over users.

    Example: solid-ext compare --datasets data/ratings --methods popularity,static,solid --seeds 0,1 --out runs/table

    The same command again goes on where it stopped; with more datasets, backbones, methods or seeds it adds their runs.
    The methods popularity, markov, itemknn, neighbours and sasrec-softmax have no backbone and run once a seed.
    """

    datasets: str
    """Named datasets, dataset folders or interactions files, separated by commas; a path that has one stands in double
    quotes beside others."""
    out: Path
    """The folder for the runs, runs.csv, costs.csv, report.md and report.png."""
    backbones: str = "sasrec"
    """Backbones, separated by commas."""
    methods: str = "popularity,itemknn,sasrec-softmax,static,solid"
    """Methods and peers, separated by commas."""
    seeds: str = "0"
    """Seeds, separated by commas."""
    preset: str = "paper"
    """paper: Table 2 of the paper; best: tuned."""
    config: Path | None = None
    """A YAML file of fields over the preset's; backbone, method, seed and threads are the grid's all the same."""
    jobs: int = 0
    """Processes at a time, one thread each; 0 for one a processor."""
    cluster: str | None = None
    """The address of a Dask scheduler, as tcp://HOST:8786, whose workers compute the runs; they see the folder at the
    same path. Needs the extra `cluster`."""

    def run(self) -> None:
        from solid_ext.compare import PlannedRun, compare, make_grid

        seeds = separated(self.seeds)
        if not all(seed.isdecimal() for seed in seeds):
            raise ValueError(f"seeds: expected numbers of 0 or more, got {self.seeds!r}")
        one = Path(self.datasets).exists()  # also a path that has a comma
        datasets = [open_dataset(name) for name in ([self.datasets] if one else separated(self.datasets))]
        grid = make_grid(
            datasets,
            separated(self.backbones),
            separated(self.methods),
            [int(seed) for seed in seeds],
            self.preset,
            read_fields(self.config),
        )

        def finished(place: int, count: int, planned: PlannedRun, problem: str | None) -> None:
            console.print(f"{place}/{count} {planned.name}" + ("" if problem is None else f" failed: {problem}"))

        compare(self.out, grid, datasets, jobs=self.jobs, cluster=self.cluster, on_finished=finished)
        show_comparison(self.out / "runs.csv")
        for file in ("report.md", "report.png", "runs.csv", "costs.csv"):
            console.print(f"  {self.out / file}")


def show_comparison(runs: Path) -> None:
    """Print one table a dataset: a line a backbone and method, the mean over seeds of the metrics in `runs.csv`."""
    import polars as pl

    shown = {
        "user-AUC": ("sampled", "user_auc"),
        "NDCG@10": ("sampled", "ndcg@10"),
        "full NDCG@10": ("full", "ndcg@10"),
        "full, history excluded": ("full, history excluded", "ndcg@10"),
    }
    of_line = ["dataset", "backbone", "method", "protocol", "metric"]
    found = pl.read_csv(runs, glob=False, schema_overrides={"dataset": pl.String}).group_by(
        of_line, maintain_order=True
    )
    lines: dict[str, dict[tuple[str, str], dict[tuple[str, str], str]]] = {}
    for dataset, backbone, method, protocol, metric, mean, spread in found.agg(
        pl.col("value").mean().alias("mean"), pl.col("value").std().alias("spread")
    ).iter_rows():
        number = f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
        lines.setdefault(dataset, {}).setdefault((backbone, method), {})[protocol, metric] = number
    for dataset, methods in lines.items():
        table = Table("backbone", "method", *shown, title=one_line(dataset))
        for names, numbers in methods.items():
            table.add_row(*names, *(numbers.get(metric, "") for metric in shown.values()))
        console.print(table)
