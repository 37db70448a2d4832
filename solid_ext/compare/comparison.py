"""A comparison: every run of a grid in a process of its own, then the tables and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from solid_ext.compare.grid import Grid, PlannedRun
from solid_ext.compare.process import DATA, GRID
from solid_ext.compare.report import write_report
from solid_ext.compare.workers import run_all
from solid_ext.data import Dataset, make_split, semantics_from_categories
from solid_ext.data.semantics import semantics_source
from solid_ext.files import LOCK, checked_path, owned
from solid_ext.threads import usable_processors

OnFinished = Callable[[int, int, PlannedRun, str | None], None]


def compare(
    out: Path,
    grid: Grid,
    datasets: Sequence[Dataset],
    *,
    jobs: int = 0,
    cluster: str | None = None,
    on_finished: OnFinished | None = None,
) -> None:
    """Run what is not finished yet, and write `runs.csv`, `costs.csv`, `report.md` and `report.png`.

    The same call again goes on where the last one stopped, however it stopped: a finished run is a folder with
    `metrics.json` and `users.parquet`, both whole; another one goes on from the checkpoints of its stages. A call with
    more datasets, backbones, methods or seeds adds their runs to those of the folder.

    Args:
        out: `compare.json` (the grid), `data/` (the datasets as they were), `runs/`, and what is written at the end.
        datasets: those that the grid was made of.
        jobs: processes at a time, each with one thread; 0 for one a processor.
        cluster: the address of a Dask scheduler, whose workers compute the runs; they see `out` at the same path.
        on_finished: called for each finished run with its place, the number of runs, the run and what went wrong (or
            None).

    Raises:
        ValueError: before any run, `out` is a folder of something else or a dataset cannot be used as the runs ask;
            after all runs, some of them failed.
    """
    if jobs < 0:
        raise ValueError(f"jobs: expected 0 or more, got {jobs}")
    if cluster is not None and jobs:
        raise ValueError(
            f"jobs: expected 0 in a cluster, where workers have a run for each of their threads, got {jobs}"
        )
    checked_path(out, "out")
    plan = grid.plan()
    for dataset in datasets:
        check_dataset(dataset, [planned for planned in plan if planned.dataset == dataset.name])
    with _opened(out, grid):
        for dataset in datasets:
            if not (out / DATA / dataset.name).exists():
                dataset.save(out / DATA / dataset.name)
        failed = {}
        for place, (planned, problem) in enumerate(run_all(out, plan, jobs or usable_processors(), cluster), 1):
            if problem is not None:
                failed[planned.name] = problem
            if on_finished is not None:
                on_finished(place, len(plan), planned, problem)
        if len(failed) < len(plan):
            write_report(out, grid)
    if failed:
        name, problem = next(iter(failed.items()))
        raise ValueError(
            f"compare: expected {len(plan)} runs to finish, got {len(failed)} that failed ({name}: {problem})"
        )


def check_dataset(dataset: Dataset, plan: list[PlannedRun]) -> None:
    """Refuse a dataset that cannot be split, or has not the semantics, as one of its runs asks.

    Raises:
        ValueError: with the dataset's name.
    """
    try:
        for config in {
            (planned.config.evaluate, planned.config.semantics): planned.config for planned in plan
        }.values():
            make_split(config.evaluate.split, dataset)
            if semantics_source(config.semantics, dataset) == "category":
                semantics_from_categories(
                    dataset, level=config.semantics.category_level, min_items=config.semantics.category_min_items
                )
    except ValueError as error:
        raise ValueError(f"{dataset.name}: {error}") from error


@contextmanager
def _opened(out: Path, grid: Grid) -> Iterator[None]:
    """The folder of this grid, new or of a part of it, held by this process alone."""
    path = out / GRID
    saved = Grid.load(path) if path.exists() else None
    if saved is not None:
        _check_holds(out, grid, saved)
    elif os.path.lexists(out) and (not out.is_dir() or any(entry.name != LOCK for entry in out.iterdir())):
        raise ValueError(f"out: expected a new folder or one of this comparison, got {out}, which holds something else")
    with owned(out, "out"):
        if saved != grid:
            grid.save(path)
        yield


def _check_holds(out: Path, grid: Grid, saved: Grid) -> None:
    """Refuse a grid that has not all of the saved one's runs, or would run them otherwise."""
    for name in Grid.__dataclass_fields__:
        before, asked = getattr(saved, name), getattr(grid, name)
        if isinstance(before, tuple):
            same = set(before) <= set(asked)
        elif name == "datasets":
            same = before.items() <= asked.items()
        else:
            same = before == asked
        if not same:
            raise ValueError(
                f"out: expected a new folder or one of a part of this comparison, got {out} with "
                f"{name} {_short(before)}, not {_short(asked)}"
            )


def _short(value: object) -> str:
    if isinstance(value, dict):
        return (
            ", ".join(f"{name}={item if len(str(item)) < 32 else str(item)[:12]}" for name, item in value.items())
            or "none"
        )
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
