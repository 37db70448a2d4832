"""The configuration: every field by its name, checked, written and read back."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from solid_ext import Config
from solid_ext.config import FULL_RANKING_PAIRS, FULL_SOFTMAX_ITEMS, PAPER


def test_fields_are_unique_so_that_a_name_is_enough() -> None:
    sections = [getattr(Config(), section.name) for section in dataclasses.fields(Config)]
    names = [field.name for section in sections for field in dataclasses.fields(section)]
    assert len(names) == len(set(names))
    assert set(Config().flat()) == set(names)


def test_the_papers_fields_are_its_table_2() -> None:
    flat = Config().replace(**PAPER).flat()
    expected = {
        "length": 10,
        "dim": 32,
        "adaptive_layers": 2,
        "codebook_hidden": 64,
        "delta": 0.01,
        "alignment": 0.1,
        "learning_rate": 0.001,
        "batch_size": 1024,
        "negatives": 4,
        "loss": "bce",
    }
    assert {name: flat[name] for name in expected} == expected


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = Config().replace(dim=64, delta=math.inf, loss="full_softmax", use_codebook=False, learning_rate=3e-4)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert Config.from_yaml(tmp_path / "config.yaml") == config


def test_a_partial_file_keeps_the_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 3\n", encoding="utf-8")
    assert Config.from_yaml(tmp_path / "config.yaml") == Config().replace(epochs=3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dimension": 3}, "config: expected one of .*dim.*, got 'dimension'"),
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"dim": 31}, "heads: expected a divisor of dim=31, got 2"),
        ({"delta": 0.0}, "delta: expected a positive number or inf, got 0.0"),
        ({"delta": math.nan}, "delta: expected a positive number or inf, got nan"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1, got 1.0"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number, got -1.0"),
        ({"alignment": math.inf}, "alignment: expected a number of 0 or more, got inf"),
        ({"loss": "hinge"}, "loss: expected one of auto, bce, sampled_softmax, full_softmax, got 'hinge'"),
        ({"validation": "full", "monitor": "user_auc"}, "monitor: expected ndcg@10 .* got user_auc"),
    ],
)
def test_a_bad_value_gets_a_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Config().replace(**fields)


def test_a_wrong_type_gets_a_sentence() -> None:
    with pytest.raises(TypeError, match="dim: expected int, got '32'"):
        Config().replace(dim="32")
    with pytest.raises(TypeError, match="epochs: expected int, got True"):
        Config().replace(epochs=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1\n", "expected `name: value` lines"),
        ("dim: [\n", "expected YAML in"),
        ("colour: 1\n", "got 'colour'"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        Config.from_yaml(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"expected a YAML file, got .*none\.yaml"):
        Config.from_yaml(tmp_path / "none.yaml")


def test_auto_is_decided_by_the_size_of_the_dataset_and_the_backbone() -> None:
    def decided(users: int, items: int, **fields: object) -> tuple[str, bool, str]:
        train = Config().replace(**fields).resolved(users, items).train
        return train.loss, train.log_q, train.validation

    most = FULL_SOFTMAX_ITEMS
    assert decided(10, most) == ("full_softmax", False, "full")
    assert decided(10, most + 1) == ("sampled_softmax", True, "full")
    assert decided(FULL_RANKING_PAIRS // 100 + 1, 100) == ("full_softmax", False, "sampled")
    assert decided(10, 10, backbone="din") == ("sampled_softmax", True, "sampled")
    assert decided(10, 10, monitor="user_auc") == ("full_softmax", False, "sampled")
    given = Config().replace(**PAPER)
    assert given.resolved(10, 10) == given
