"""A comparison on a Dask cluster: the table is that of this machine's processes, also after a worker is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from solid_ext import Dataset
from solid_ext.compare import compare, make_grid
from solid_ext.data import SyntheticTruth

FIELDS = {"epochs": 3, "dim": 8, "heads": 2, "length": 5, "batch_size": 64, "eval_negatives": 20}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask's own, of ports, files and a worker that is gone
def test_the_table_has_the_same_bits_although_a_worker_is_killed(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    grid = make_grid([world[0]], ["sasrec"], ["itemknn", "static"], [0, 1], "paper", FIELDS)
    out, here = tmp_path / "cluster", tmp_path / "here"
    begun = out / "runs" / "synthetic" / "sasrec" / "static" / "0"
    killed = []

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:

        def kill_the_worker_of_a_run() -> None:
            while not list(begun.glob("stage2/last.safetensors")):
                time.sleep(0.01)
            with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
                busy = {worker for workers in client.processing().items() if workers[1] for worker in [workers[0]]}
                pids = client.run(os.getpid)
            for worker in sorted(busy)[:1]:
                os.kill(pids[worker], signal.SIGKILL)
                killed.append(worker)

        killer = threading.Thread(target=kill_the_worker_of_a_run, daemon=True)
        killer.start()
        compare(out, grid, [world[0]], cluster=cluster.scheduler_address)
        killer.join(60)
    assert killed
    compare(here, grid, [world[0]], jobs=2)
    assert pl.read_csv(out / "runs.csv").equals(pl.read_csv(here / "runs.csv"))


def test_a_cluster_that_is_not_there_is_refused(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    grid = make_grid([world[0]], ["sasrec"], ["itemknn"], [0], "paper", FIELDS)
    with pytest.raises(ValueError, match="cluster: expected a Dask scheduler at nonsense://x, got"):
        compare(tmp_path / "out", grid, [world[0]], cluster="nonsense://x")
