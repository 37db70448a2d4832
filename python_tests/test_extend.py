"""The worked examples of CONTRIBUTING: a backbone, a method and a dataset of one's own, each a few lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from solid_ext.methods import METHODS
from solid_ext.models.backbones import BACKBONES

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def test_the_worked_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    section = CONTRIBUTING.read_text(encoding="utf-8").partition("## Adding a backbone, a method, a dataset")[2]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    assert len(example[1].splitlines()) < 40
    monkeypatch.setattr("solid_ext.models.backbones.BACKBONES", dict(BACKBONES))
    monkeypatch.setattr("solid_ext.methods.METHODS", dict(METHODS))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example[1], "CONTRIBUTING.md", "exec"), names)
    metrics = names["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["sampled"]["user_auc"] > 0.5
