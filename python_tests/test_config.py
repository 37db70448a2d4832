"""The configuration: every field by its name, checked, written and read back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solid_ext import Config
from solid_ext.config import FULL_RANKING_PAIRS, FULL_SOFTMAX_ITEMS, OLD_NAMES, PAPER, ModelConfig, TrainConfig


def test_fields_are_unique_so_that_a_name_is_enough() -> None:
    def names(section: object) -> list[str]:
        found = []
        for name, value in vars(section).items():
            found += names(value) if dataclasses.is_dataclass(value) else [name]
        return found

    assert len(names(Config())) == len(set(names(Config())))
    assert list(Config().flat()) == names(Config())


def test_the_papers_fields_are_its_table_2() -> None:
    flat = Config().replace(**PAPER).flat()
    expected = {
        "length": 10,
        "dim": 32,
        "dynamic_layers": 2,
        "codebook_hidden": 64,
        "delta": 0.01,
        "alignment": 0.1,
        "learning_rate": 0.001,
        "batch_size": 1024,
        "negatives": 4,
        "loss": "bce",
    }
    assert {name: flat[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Config(dim=8), r"Config: .* got dim, a field of ModelConfig \(Config\(\)\.replace\(dim=8\) sets it\)"),
        (lambda: ModelConfig(loss="bce"), r"ModelConfig: .* loss, a field of TrainConfig \(.*replace\(loss='bce'\)"),
        (lambda: ModelConfig(delta=1.0), "ModelConfig: .* delta, a field of ItemConfig"),
        (lambda: TrainConfig(learning_rat=1.0), "TrainConfig: expected one of .*; did you mean learning_rate?"),
        (lambda: Config(residual=True), "Config: .* 'residual', which is now dynamic_residual"),
    ],
)
def test_a_field_in_the_wrong_section_is_told_where_it_lies(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        make()


def test_sections_are_copied_and_pickled() -> None:
    config = Config(train=TrainConfig(epochs=3))
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert list(inspect.signature(Config).parameters) == ["semantics", "model", "train", "evaluate"]


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
        ({"loss": "hinge"}, "loss: expected one of auto, bce, .*, full_softmax, got 'hinge'"),
        ({"validation": "full:user_auc"}, "validation: expected one of auto, full:ndcg@10, .*, got 'full:user_auc'"),
        ({"validation": "full"}, "validation: expected one of auto, full:ndcg@10, .*, got 'full'"),
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
        ("dim: {\n", "got a mapping inside another, line 1"),
        ("dim: 'x\n", "expected YAML in"),
        ("colour: 1\n", "got 'colour'"),
        ("learnig_rate: 0.1\n", r"got 'learnig_rate'; did you mean learning_rate\?"),
        ("loss: bec\n", r"got 'bec'; did you mean bce\?"),
        ("1: 2\n", "got the name 1, which is no word"),
        ("null: 2\n", "got the name None, which is no word"),
        ("2020-01-01: 2\n", r"got the name datetime\.date"),
        ("dim: 2020-13-45\n", "expected YAML in"),
        pytest.param("dim: " + "9" * 5_000 + "\n", "expected YAML in", id="digits"),
        ("dim: 8\nheads: 4\ndim: 16\n", "each name once, got 'dim' again, line 3"),
        ("dim: 8\n---\ndim: 16\n", "got a second document, line 2"),
        pytest.param("[" * 100_000, "got a list, line 1", id="lists"),
        pytest.param("a: " + "{a: " * 100_000, "got a mapping inside another, line 1", id="mappings"),
        ("a: &a 1\nb: *a\n", "got an alias, line 2"),
        ("dim: !!python/object/apply:os.system [ls]\n", "got a list, line 1"),
        ("blocks: 1000000\n", "blocks: expected at most 1,000, got 1,000,000"),
        ("dim: 1000000000\n", "dim: expected at most 65,536, got 1,000,000,000"),
        pytest.param("#" * 2**20 + "\n", "got 1,048,577 bytes", id="bytes"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        Config.from_yaml(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"expected a YAML file, got .*none\.yaml"):
        Config.from_yaml(tmp_path / "none.yaml")


def test_a_date_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("dim: 2020-01-01\n", encoding="utf-8")
    with pytest.raises(TypeError, match=r"dim: expected int, got datetime\.date"):
        Config.from_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E3", 1e3), ("2.5e+1", 25.0), (".5", 0.5), ("inf", math.inf), (".inf", math.inf), ("3", 3)],
)
def test_numbers_are_written_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"delta: {text}\n", encoding="utf-8")
    assert Config.from_yaml(tmp_path / "config.yaml").model.item.delta == value


def test_numbers_of_numpy_are_numbers() -> None:
    config = Config().replace(
        dim=np.int64(32), learning_rate=np.float64(0.1), neighbours=np.bool_(False), seed=np.uint8(3)
    )
    assert config == Config().replace(dim=32, learning_rate=0.1, neighbours=False, seed=3)
    assert type(config.model.dim) is int
    with pytest.raises(TypeError, match=r"dim: expected int, got 32\.0"):
        Config().replace(dim=np.float64(32))


def test_a_misspelt_field_is_told_its_name() -> None:
    with pytest.raises(ValueError, match=r"got 'learnig_rate'; did you mean learning_rate\?"):
        Config().replace(learnig_rate=0.1)
    with pytest.raises(TypeError, match="dim: expected int, got 'x'"):
        Config(model=ModelConfig(dim="x")).checked()


def test_what_differs_from_the_defaults_is_all_that_makes_a_configuration() -> None:
    config = Config().replace(dim=32, delta=math.inf)
    assert config.changes() == {"dim": 32, "delta": math.inf}
    assert Config().replace(**config.changes()) == config


def test_auto_is_decided_by_the_size_of_the_dataset_and_the_backbone() -> None:
    def decided(users: int, items: int, **fields: object) -> tuple[str, str]:
        train = Config().replace(**fields).resolved(users, items).train
        return train.loss, train.validation

    most = FULL_SOFTMAX_ITEMS
    assert decided(10, most) == ("full_softmax", "full:ndcg@10")
    assert decided(10, most + 1) == ("sampled_softmax_log_q", "full:ndcg@10")
    assert decided(FULL_RANKING_PAIRS // 100 + 1, 100) == ("full_softmax", "sampled:ndcg@10")
    assert decided(10, 10, backbone="din") == ("sampled_softmax_log_q", "sampled:ndcg@10")
    assert decided(10, 10, validation="sampled:user_auc") == ("full_softmax", "sampled:user_auc")
    given = Config().replace(**PAPER)
    assert given.resolved(10, 10) == given


@pytest.mark.parametrize("name", sorted(OLD_NAMES))
def test_a_name_of_an_earlier_version_is_told_what_became_of_it(name: str, tmp_path: Path) -> None:
    assert name not in Config().flat()
    sentence = f"got '{name}', which is {OLD_NAMES[name]}$"
    with pytest.raises(ValueError, match=sentence):
        Config().replace(**{name: 1})
    (tmp_path / "config.yaml").write_text(f"{name}: 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        Config.from_yaml(tmp_path / "config.yaml")


def test_what_became_of_an_earlier_name_is_there() -> None:
    flat = Config().flat()
    for name, advice in OLD_NAMES.items():
        if advice.startswith("now "):
            word = advice.split()[1].strip(",")
            assert word in flat or name in ("monitor", "log_q"), name


@pytest.mark.parametrize(
    ("text", "found"),
    [("010", 10), ("+8", 8), ("1:30", None), ("0x10", None), ("0b11", None), ("0o17", None), ("1_000", None)],
)
def test_whole_numbers_are_to_the_base_ten_or_none(text: str, found: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"epochs: {text}\n", encoding="utf-8")
    if found is not None:
        assert Config.from_yaml(tmp_path / "config.yaml").train.epochs == found
    else:
        with pytest.raises(TypeError, match=f"epochs: expected int, got '{text}'"):
            Config.from_yaml(tmp_path / "config.yaml")


def test_no_other_number_is_to_the_base_60(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("delta: 1:30.5\n", encoding="utf-8")
    with pytest.raises(TypeError, match=r"delta: expected float, got '1:30\.5'"):
        Config.from_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("device", ["cuda:99999999999999999999", "cuda:1000", "cuda:٣", "cuda:-1"])
def test_a_device_is_a_number_that_there_may_be(device: str) -> None:
    with pytest.raises(ValueError, match=r"device: expected cpu, cuda or cuda:N, got"):
        Config().replace(device=device)


def test_more_threads_than_any_machine_has_are_refused() -> None:
    with pytest.raises(ValueError, match="threads: expected at most 1,024, got 100,000"):
        Config().replace(threads=100_000)


def test_a_tab_in_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "tab.yaml").write_text("heads: 2\ndim:\t8\n")
    with pytest.raises(ValueError, match=r"config: expected YAML in .*, got .*line 2"):
        Config.from_yaml(tmp_path / "tab.yaml")
