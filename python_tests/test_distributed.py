"""Several processes are one: the same curves, weights and metrics; parts, sums, refusals; and one that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.worlds import TRAININGS
from solid_ext import distributed
from solid_ext.files import write_json
from solid_ext.run import begun_by

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where one process, which imports everything once, has written what all others found."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    subprocess.run([sys.executable, "-m", "python_tests.jobs", folder], check=True, cwd=ROOT, env=environment)
    return folder


@pytest.fixture(scope="module")
def worlds(found: Path) -> dict[int, list[dict[str, Any]]]:
    """What each rank of one, two and three processes found, see `python_tests.worlds`."""
    return {int(count): ranks for count, ranks in json.loads((found / "worlds.json").read_text()).items()}


@pytest.fixture(scope="module")
def jobs(found: Path) -> dict[str, dict[str, Any]]:
    """What came of torchrun's jobs, see `python_tests.jobs`."""
    return json.loads((found / "jobs.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", sorted(set(TRAININGS) - {"single"}))
def test_the_curve_is_that_of_one_process_but_for_rounding(worlds: Any, name: str, count: int) -> None:
    """Dropout, negatives, the last batch of one row and rows of tables included: in float64 a difference would show."""
    alone = worlds[1][0]["trained"][name]
    assert alone["rows"] % TRAININGS[name]["batch_size"] == 1
    for found in worlds[count]:
        together = found["trained"][name]
        np.testing.assert_allclose(together["curve"], alone["curve"], rtol=1e-10)
        np.testing.assert_allclose(together["table"], alone["table"], rtol=1e-8, atol=1e-10)
        assert together["valid"] == alone["valid"]
        assert together["usage"] == alone["usage"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_in_float32_the_first_epochs_agree_to_five_digits(worlds: Any, count: int) -> None:
    alone, together = (worlds[number][0]["trained"]["single"]["curve"] for number in (1, count))
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_all_ranks_have_the_same_bits(worlds: Any, count: int) -> None:
    first, *others = worlds[count]
    for other in others:
        assert other["trained"] == first["trained"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_gives_every_rank_the_ranks_and_metrics_of_one_process(worlds: Any, count: int) -> None:
    for found in worlds[count]:
        assert found["evaluated"] == worlds[1][0]["evaluated"]


@pytest.mark.slow
def test_what_differs_between_ranks_or_the_writer_refuses_is_refused_on_each(worlds: Any) -> None:
    for found in worlds[2]:
        assert found["refused"] == {
            "values": "run: expected the same b on every rank, got 0 on rank 0 and 1 on rank 1",
            "weights": "epoch 1: expected the same bias on every rank, got 0 on rank 0 and 1 on rank 1",
            "writer": "out: expected a folder that does not exist yet, as rank 0 finds",
        }
    assert [worlds[1][0]["refused"][name] for name in ("values", "weights")] == ["nothing", "nothing"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_the_writer_and_parts_reach_every_rank(worlds: Any, count: int) -> None:
    for found in worlds[count]:
        total, writer, whole = found["sums"]
        assert total == [count, sum(range(count))]
        assert writer == {"rank": 0}
        assert np.array_equal(whole, np.arange(20.0).reshape(10, 2))


@pytest.mark.parametrize("together", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_leave_out_no_row_and_have_none_twice(monkeypatch: pytest.MonkeyPatch, count: int, together: int) -> None:
    monkeypatch.setattr(distributed, "count", lambda: count)
    for rows in range(40):
        parts = distributed.parts(rows, together)
        assert len(parts) == count
        assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
        assert all(part.start % together == 0 or part.start == rows for part in parts)
        assert rows == 0 or parts[0].stop > 0
        blocks = [-(-(part.stop - part.start) // together) for part in parts]
        assert max(blocks) - min(blocks) <= 1


LOST = "solid-ext: ranks: expected all 2 processes to go on, lost one, as rank 0 found; the run's checkpoints are whole"
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of torchrun in /proc")


@linux
@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_with_a_sentence(jobs: Any) -> None:
    assert jobs["for good"]["codes"] == [1]
    assert LOST in jobs["for good"]["printed"]
    assert jobs["for good"]["models"] is None


@linux
@pytest.mark.slow
@pytest.mark.parametrize("how", ["the writer", "a second machine", "resumed by 1", "resumed by 3"])
def test_a_job_that_lost_a_rank_goes_on_to_the_curve_of_one_process(jobs: Any, how: str) -> None:
    """Restarted by torchrun, which keeps the addresses of the dead, or resumed by another number of processes."""
    alone, found = jobs["alone"], jobs[how]
    assert set(found["codes"]) == {0}
    assert len(found["losses"]) == len(alone["losses"]) == 4
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-9)
    assert found["valid"] == alone["valid"]
    one, other = dict(numbers(found["models"])), dict(numbers(alone["models"]))
    assert one.keys() == other.keys()
    np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-9)


def numbers(tree: dict[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries, each with its place."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{name}/{key}")
        else:
            yield f"{name}/{key}", value


def test_a_start_does_not_answer_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rank 0 of an earlier start has left, complete or not, is not taken for the one that is to come."""
    monkeypatch.setattr(distributed, "ASKED_AGAIN", timedelta(milliseconds=50))
    for left in ({"start": "old", "old/all": "of others"}, {"start": "old"}):
        store = torch.distributed.HashStore()
        for name, value in left.items():
            store.set(name, value)
        with ThreadPoolExecutor() as pool:
            other = pool.submit(distributed._of_this_start, store, 1, 2)
            while not store.check(["old/1"]):
                time.sleep(0.001)
            distributed._of_this_start(store, 0, 2).set("said", "new")
            assert other.result().get("said") == b"new"


def test_a_restart_knows_its_own_run_and_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert distributed.restarted_job() is None
    write_json(tmp_path / "run.json", {"job": distributed.job()})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert begun_by(tmp_path, distributed.restarted_job())
    assert not begun_by(tmp_path / "nothing", distributed.restarted_job())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun without --rdzv-id: known by its process
    assert distributed.job() == f"process {os.getppid()}"
    assert not begun_by(tmp_path, distributed.restarted_job())


def test_a_numbered_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device: expected cuda, of which each of several processes takes its own"):
        distributed.joined("cuda:1").__enter__()
