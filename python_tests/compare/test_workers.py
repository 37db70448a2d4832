"""Comparisons on a Dask cluster: a worker that is killed changes nothing, and mistakes get a sentence."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest

from solid_ext.compare import Grid, compare, make_grid
from solid_ext.compare.process import run_planned
from solid_ext.compare.report import write_report
from solid_ext.compare.workers import run_apart
from solid_ext.data import Dataset, SyntheticTruth

FIELDS = {"epochs": 12, "patience": 12, "dim": 8, "heads": 2, "length": 5, "batch_size": 128, "eval_negatives": 20}


@pytest.fixture
def grid(world: tuple[Dataset, SyntheticTruth]) -> Grid:
    return make_grid([world[0]], ["sasrec"], ["popularity", "static"], [0], "paper", FIELDS)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two worker processes of one thread."""
    distributed = pytest.importorskip("distributed", reason="no distributed: who has the extra `cluster` runs this")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as started:
        yield started


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_no_bit_of_the_table(
    cluster: Any, grid: Grid, world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    out, killed = tmp_path / "out", []

    def kill_one_that_trains() -> None:
        from distributed import Client

        while not (out / "runs/synthetic/sasrec/static/0/stage2/log.csv").exists():
            time.sleep(0.01)
        with Client(cluster, set_as_default=False) as client:
            pids = client.run(os.getpid)
            while len(busy := [worker for worker, tasks in client.processing().items() if tasks]) != 1:
                time.sleep(0.01)
        killed.append(pids[busy[0]])
        os.kill(killed[0], signal.SIGKILL)

    killer = Thread(target=kill_one_that_trains, daemon=True)
    killer.start()
    told: list[tuple[str, str | None]] = []
    compare(
        out,
        grid,
        [world[0]],
        cluster=cluster.scheduler_address,
        on_finished=lambda place, count, planned, problem: told.append((planned.method, problem)),
    )
    killer.join()
    assert len(killed) == 1
    assert told == [("popularity", None), ("static", None)]

    alone = tmp_path / "alone"
    for planned in grid.plan():
        run_planned(alone / "runs" / planned.name, planned, world[0])
    write_report(alone, grid)
    assert (out / "runs.csv").read_bytes() == (alone / "runs.csv").read_bytes()
    for planned in grid.plan():
        tables = [pl.read_parquet(folder / "runs" / planned.name / "users.parquet") for folder in (out, alone)]
        assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"jobs": 2, "cluster": "tcp://127.0.0.1:1"}, "jobs: expected 0 in a cluster, .* got 2"),
        ({"cluster": "nowhere"}, "cluster: expected the address of a Dask scheduler, as tcp://HOST:8786, got nowhere"),
    ],
)
def test_mistakes_get_a_sentence(
    arguments: dict[str, Any],
    sentence: str,
    grid: Grid,
    world: tuple[Dataset, SyntheticTruth],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if arguments.get("cluster") == "nowhere":
        distributed = pytest.importorskip("distributed", reason="no distributed: who has the extra `cluster` runs this")
        monkeypatch.setattr(distributed, "Client", None)  # refused before one is made
    with pytest.raises(ValueError, match=sentence):
        compare(tmp_path / "out", grid, [world[0]], **arguments)


def test_without_dask_one_sentence_says_what_to_install(
    grid: Grid, world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"cluster: expected the package distributed \(pip install 'solid_ext\[clus"):
        compare(tmp_path / "out", grid, [world[0]], cluster="tcp://127.0.0.1:1")


def test_a_worker_that_does_not_see_the_folder_says_so(grid: Grid, tmp_path: Path) -> None:
    problem = run_apart(tmp_path / "elsewhere", 1, grid.plan()[1], None)
    assert problem is not None
    assert "to be seen where its runs are computed" in problem
    assert not (tmp_path / "elsewhere").exists()
