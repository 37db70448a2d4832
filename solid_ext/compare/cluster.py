"""The runs of a comparison on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from solid_ext.compare.grid import Grid
from solid_ext.compare.process import GRID
from solid_ext.compare.processes import log_of, problem_of, start_run

RETRIES = 3  # workers that a run may lose


def run_on(address: str, out: Path, todo: Sequence[int]) -> Iterator[tuple[int, str | None]]:
    """The number of each run as it ends, with what went wrong (None: nothing); one at a time on each worker's thread.

    A run is a process beside its worker and ends with it. Dask gives it to another worker then, where it goes on from
    its checkpoints, so that the result has the same bits.

    Raises:
        ValueError: Dask is not there, or no scheduler answers.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ValueError(
            f"cluster: expected the package distributed, got none (pip install 'solid_ext[cluster]'; {error})"
        ) from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster: expected a Dask scheduler at {address}, got {error}") from error
    with client:
        place = os.path.abspath(out)
        tasks = {client.submit(_run, place, number, pure=False, retries=RETRIES): number for number in todo}
        for task in as_completed(tasks):
            failure = task.exception()
            yield tasks[task], task.result() if failure is None else f"{type(failure).__name__}: {failure}"


def _run(place: str, number: int) -> str | None:
    """On a worker: the run in a process of its own, and what went wrong."""
    out = Path(place)
    log = log_of(out, Grid.load(out / GRID).plan()[number])
    with start_run(out, number, log) as process:
        return problem_of(process.wait(), log)
