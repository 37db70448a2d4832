"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real interaction data that tests read (never part of the project)."""
    folder = Path(os.environ.get("SOLID_EXT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real data at {folder}; set SOLID_EXT_DATA to a folder of interactions.tsv.gz datasets"
        )
    return folder
