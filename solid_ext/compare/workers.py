"""Where the runs of a comparison are computed: a process each, on this machine or on the workers of a Dask cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from solid_ext.compare.grid import PlannedRun
from solid_ext.compare.process import RUNS, finished

CONNECTED = 10  # seconds for a scheduler, and then for its first worker, to answer


def run_all(
    out: Path, plan: Sequence[PlannedRun], jobs: int, cluster: str | None
) -> Iterator[tuple[PlannedRun, str | None]]:
    """Each run as it finishes, those that had finished before first, with what went wrong (None: nothing).

    Each is a process of its own, so that its threads, its peak of memory and its end are its own too, and whoever has
    it started only waits: on this machine a thread, in a cluster a worker's. A run whose worker is lost is given to
    another one, which goes on from its checkpoints.

    Args:
        jobs: processes at a time on this machine.
        cluster: the address of a Dask scheduler, whose workers see `out` at the same path; each computes as many runs
            at a time as it has threads.

    Raises:
        ValueError: no Dask, no scheduler or no worker at the address.
    """
    todo = []
    for number, planned in enumerate(plan):
        if finished(out / RUNS / planned.name):
            yield planned, None
        else:
            _log(out, planned).parent.mkdir(parents=True, exist_ok=True)
            todo.append((number, planned))
    if not todo:
        return
    with _here(jobs) if cluster is None else _on_cluster(cluster) as (executor, lifeline):
        runs = {executor.submit(run_apart, out.absolute(), *each, lifeline): each[1] for each in todo}
        for run in as_completed(runs):
            lost = run.exception()
            yield runs[run], run.result() if lost is None else f"expected a worker that lives, got {lost!s:.120}"


def run_apart(out: Path, number: int, planned: PlannedRun, lifeline: FileIO | None) -> str | None:
    """What went wrong with a run of the plan (None: nothing), once a process of its own has ended.

    Args:
        lifeline: the end of a pipe that lasts as long as the run may; None for one that lasts as long as this process.
    """
    log = _log(out, planned)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-m", "solid_ext.compare.process", str(out), str(number)]
    try:
        with log.open("wb") as written:
            process = subprocess.Popen(
                command, stdin=lifeline or subprocess.PIPE, stdout=written, stderr=written, env=environment
            )
        with process:
            return _problem(process.wait(), log)
    except OSError as error:
        return f"{planned.name}: expected {out} to be seen where its runs are computed, got {error}"


@contextmanager
def _here(jobs: int) -> Iterator[tuple[Executor, FileIO]]:
    """Threads of this process, whose runs end with the body."""
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as lifeline, ThreadPoolExecutor(jobs) as threads:
        try:
            yield threads, lifeline
        finally:
            os.close(write)
            threads.shutdown(cancel_futures=True)


@contextmanager
def _on_cluster(address: str) -> Iterator[tuple[Executor, None]]:
    """The workers of a Dask cluster."""
    try:
        from distributed import Client
        from distributed.comm import resolve_address
    except ImportError as error:
        raise ValueError(
            "cluster: expected the package distributed (pip install 'solid_ext[cluster]'), found none"
        ) from error
    try:
        resolve_address(address)  # a client of what is no address complains again when it goes away
        client = Client(address, timeout=CONNECTED, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cluster: expected the address of a Dask scheduler, as tcp://HOST:8786, got {address} ({error!s:.120})"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECTED)
        except TimeoutError as error:
            raise ValueError(f"cluster: expected a worker at {address}, got none") from error
        workers = client.get_executor(pure=False)
        try:
            yield workers, None
        finally:
            workers.shutdown(wait=False)


def _log(out: Path, planned: PlannedRun) -> Path:
    folder = out / RUNS / planned.name
    return folder.with_name(folder.name + ".log")


def _problem(code: int, log: Path) -> str | None:
    """The last line that a failed run wrote; the log of one that went well is deleted."""
    if code == 0:
        log.unlink()
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"
