"""The programs of docs/examples run, and what they show holds on small data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

pytestmark = pytest.mark.slow


def run(name: str, **options: Any) -> dict[str, dict[str, float]]:
    """What an example measures, a mean over its seeds for each contestant."""
    described = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    found = module.run(**options)
    return {who: {column: mean(row[column] for row in rows) for column in rows[0]} for who, rows in found.items()}


def test_a_generated_head_learns_what_a_static_one_does_not() -> None:
    found = run("head", users=3000, epochs=15, seeds=(0,))
    assert found["DynamicMLP"]["HR@1"] > 0.3 > found["static head"]["HR@1"]


def test_weights_of_each_request_tell_clicks_better() -> None:
    found = run("click_through", number=20000, epochs=3, seeds=(0,))
    assert found["DynamicMLP"]["AUC"] > found["static tower"]["AUC"] + 0.02


def test_digits_come_back_from_their_entries() -> None:
    found = run("digits", epochs=8, seeds=(0,))["Codebook"]
    assert found["squared error"] < 0.06  # the pixels' variance is .14
    assert found["perplexity"] > 8


def test_assignments_of_k_means_end_where_scikit_learns_do() -> None:
    found = run("kmeans", number=2000, dim=8, clusters=20, turns=10, seeds=(0,))
    assert found["nearest_code"]["inertia"] == pytest.approx(found["scikit-learn KMeans"]["inertia"], rel=1e-4)
