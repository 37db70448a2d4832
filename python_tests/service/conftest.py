"""A small served model, and its service without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from python_tests.untrained import untrained
from solid_ext import SOLID
from solid_ext.service import Follower, create_app

ITEMS = 60
TITLES = [f"The {number}th <b>title</b>" for number in range(ITEMS)]


@pytest.fixture(scope="session")
def solid() -> SOLID:
    return untrained(ITEMS, TITLES)


@pytest.fixture(scope="session")
def folder(solid: SOLID, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return solid.save(tmp_path_factory.mktemp("service") / "model")


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Follower(folder))) as client:
        yield client
