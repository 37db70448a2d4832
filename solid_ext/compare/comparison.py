"""A comparison: every run of a grid in a process of its own, then the tables and the report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from solid_ext.compare.cell import DATA, GRID, METRICS, RUNS
from solid_ext.compare.grid import Cell, Grid
from solid_ext.compare.report import write_report
from solid_ext.data import Dataset, make_split, semantics_from_categories
from solid_ext.data.semantics import semantics_source
from solid_ext.files import LOCK, owned

Told = Callable[[int, int, Cell, str | None], None]


def compare(out: Path, grid: Grid, datasets: Sequence[Dataset], *, jobs: int = 0, told: Told | None = None) -> None:
    """Run what is not finished yet, and write `runs.csv`, `costs.csv`, `report.md` and `report.png`.

    The same call again goes on where the last one stopped, however it stopped: a finished run is a folder with
    `metrics.json`, an unfinished one goes on from the checkpoints of its stages. A call with more datasets, backbones,
    methods or seeds adds their runs to those of the folder.

    Args:
        out: `compare.json` (the grid), `data/` (the datasets as they were), `runs/`, and what is written at the end.
        datasets: those that the grid was made of.
        jobs: processes at a time, each with one thread; 0 for one a processor.
        told: called for each finished run with its place, the number of runs, the run and what went wrong (or None).

    Raises:
        ValueError: before any run, `out` is a folder of something else or a dataset cannot be used as the runs ask;
            after all runs, some of them failed.
    """
    if jobs < 0:
        raise ValueError(f"jobs: expected 0 or more, got {jobs}")
    cells = grid.cells()
    for dataset in datasets:
        check_dataset(dataset, [cell for cell in cells if cell.dataset == dataset.name])
    with _opened(out, grid):
        for dataset in datasets:
            if not (out / DATA / dataset.name).exists():
                dataset.save(out / DATA / dataset.name)
        failed = {}
        for place, (cell, problem) in enumerate(_run_all(out, cells, jobs or _processors()), 1):
            if problem is not None:
                failed[cell.name] = problem
            if told is not None:
                told(place, len(cells), cell, problem)
        if len(failed) < len(cells):
            write_report(out, grid)
    if failed:
        name, problem = next(iter(failed.items()))
        raise ValueError(
            f"compare: expected {len(cells)} runs to finish, got {len(failed)} that failed ({name}: {problem})"
        )


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_dataset(dataset: Dataset, cells: list[Cell]) -> None:
    """Refuse a dataset that cannot be split, or has not the semantics, as one of its runs asks.

    Raises:
        ValueError: with the dataset's name.
    """
    try:
        for config in {(cell.config.evaluate, cell.config.semantics): cell.config for cell in cells}.values():
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


def _run_all(out: Path, cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, str | None]]:
    """Each run as it finishes, those that had finished before first, with what went wrong (None: nothing)."""
    todo = []
    for number, cell in enumerate(cells):
        if (out / RUNS / cell.name / METRICS).exists():
            yield cell, None
        else:
            todo.append(number)
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        while todo or running:
            while todo and len(running) < jobs:
                number = todo.pop(0)
                running[number] = _start(out, number, _log(out, cells[number]))
            ended = [number for number, process in running.items() if process.poll() is not None]
            for number in ended:
                with running.pop(number) as process:  # closes the pipe
                    code = process.wait()
                yield cells[number], _problem(code, _log(out, cells[number]))
            if not ended:
                time.sleep(0.05)
    finally:
        for process in running.values():
            with process:
                process.kill()


def _log(out: Path, cell: Cell) -> Path:
    folder = out / RUNS / cell.name
    return folder.with_name(folder.name + ".log")


def _start(out: Path, number: int, log: Path) -> subprocess.Popen[bytes]:
    """A process for one run; the pipe to it closes with this process, and then it ends as well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-m", "solid_ext.compare.cell", str(out), str(number)]
    with log.open("wb") as written:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=written, stderr=written, env=environment)


def _problem(code: int, log: Path) -> str | None:
    """The last line that a failed run wrote; the log of one that went well is deleted."""
    if code == 0:
        log.unlink()
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"
