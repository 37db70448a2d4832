"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before any test imports torch: idle threads then sleep (solid_ext/_native.py), and all tests survive a neighbour.
from solid_ext.threads import usable_processors

if TYPE_CHECKING:  # the kernels' tests run where there is no polars
    from solid_ext import Dataset
    from solid_ext.data import SyntheticTruth

# What cuBLAS wants before `torch.use_deterministic_algorithms`; torch reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_configure(config: pytest.Config) -> None:
    """All tests have one number of threads, so that two trainings have the same bits: a processor for each.

    The process that hands tests out to others sets nothing, as they would inherit it.
    """
    import torch

    if not config.getoption("numprocesses", None):
        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(usable_processors() // processes, 1)))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real interaction data that tests read (never part of the project)."""
    folder = Path(os.environ.get("SOLID_EXT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; SOLID_EXT_DATA names a folder of interactions.tsv.gz datasets")
    return folder


@pytest.fixture(scope="session")
def world() -> tuple[Dataset, SyntheticTruth]:
    """A small predictable world: 400 users, 60 items of 6 semantics."""
    from solid_ext.data import synthetic_dataset

    return synthetic_dataset(400, 60, 6, predictability=1.0, drift=0.0, seed=3)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Whatever number of threads a test sets, the next one has the number that all start with."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread inside, the old number outside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 7, 1 << 22], ids=["users", "blocks", "whole"])
def user_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many interactions are worked on at once where their order is needed: a user's, a few users', all."""
    from solid_ext.data.histories import blocks_of_users

    monkeypatch.setattr("solid_ext.data.histories.blocks_of_users", partial(blocks_of_users, size=request.param))
    return request.param
