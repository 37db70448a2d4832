"""SOLID as one object: from any form of interactions to recommendations, and back from a folder."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.data import Rows, SyntheticTruth, synthetic_dataset
from solid_ext.evaluate import Metrics, Scorer, evaluate_full
from solid_ext.methods import method_config
from solid_ext.train import Silent

TINY = Config().replace(length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=1, candidates=20)


@pytest.fixture(scope="module")
def fitted(world: tuple[Dataset, SyntheticTruth]) -> SOLID:
    return SOLID(TINY).fit(world[0])


def frame(dataset: Dataset) -> pl.DataFrame:
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    return pl.DataFrame(
        {
            "user_id": dataset.user_ids.gather(users),
            "item_id": dataset.item_ids.gather(dataset.items - 1),
            "timestamp": dataset.timestamps,
        }
    )


@pytest.mark.parametrize("form", ["dataset", "folder", "csv", "polars", "pandas", "arrays"])
def test_any_form_of_the_data_gives_the_same_model(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, form: str
) -> None:
    dataset = world[0]
    table = frame(dataset)
    if form == "dataset":
        data = dataset
    elif form == "folder":
        data = dataset.save(tmp_path / "data")
    elif form == "csv":
        table.write_csv(tmp_path / "interactions.csv")
        data = tmp_path / "interactions.csv"
    else:
        data = {
            "polars": lambda: table,
            "pandas": lambda: table.to_pandas(),
            "arrays": lambda: tuple(table[name].to_numpy() for name in table.columns),
        }[form]()
    solid = SOLID(TINY, semantics="id", num_semantics=4).fit(data)
    assert solid.fingerprint == dataset.fingerprint
    metrics = solid.evaluate()
    assert set(metrics) == {"sampled", "full"}
    history = dataset.item_ids.head(3).to_list()
    assert len(solid.recommend([history], k=4)[0]) == 4


def test_full_validation_leaves_stage1_to_the_sampled_protocol(world: tuple[Dataset, SyntheticTruth]) -> None:
    """Items of one semantic tie in stage 1, so that full ranking, where ties count against a model, is blind there."""
    by = {name: SOLID(TINY, validation=name).fit(world[0]).training.stages for name in ("sampled", "full")}
    first, second = (
        {name: [epoch.valid for epoch in stages[i].history] for name, stages in by.items()} for i in (0, 1)
    )
    assert first["full"] == first["sampled"]
    assert second["full"] != second["sampled"]


def test_saved_and_loaded_it_recommends_and_measures_the_same(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    loaded = SOLID.load(tmp_path / "model")
    histories = [world[0].item_ids.head(4).to_list(), world[0].item_ids.tail(2).to_list()]
    assert loaded.recommend(histories, 5) == fitted.recommend(histories, 5)
    assert loaded.evaluate(world[0]) == fitted.evaluate()
    with pytest.raises(ValueError, match="save: expected a folder that does not exist yet"):
        fitted.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected the dataset that the model was fitted on, as in evaluate\(data\)"):
        loaded.evaluate()
    with pytest.raises(ValueError, match="SOLID: expected a model fitted here"):
        _ = loaded.training


def test_the_same_seed_gives_the_same_model_and_another_another(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth]
) -> None:
    again = SOLID(TINY).fit(world[0])
    other = SOLID(TINY, seed=1).fit(world[0])
    key = "item_embedding.weight"
    assert torch.equal(again.model.state_dict()[key], fitted.model.state_dict()[key])
    assert not torch.equal(other.model.state_dict()[key], fitted.model.state_dict()[key])


def test_histories_of_any_length(fitted: SOLID, world: tuple[Dataset, SyntheticTruth]) -> None:
    items = world[0].item_ids.to_list()
    one, long = fitted.recommend([items[:1], items[:30]], k=3)
    assert len(one) == len(long) == 3
    assert (
        fitted.recommend([items[:30]], k=3, exclude_history=False)[0]
        == fitted.recommend([items[10:30]], k=3, exclude_history=False)[0]
    )


def test_code_usage_counts_every_valid_position(fitted: SOLID) -> None:
    usage = fitted.code_usage()
    lengths = fitted.training.split.test.positions - fitted.training.dataset.offsets[fitted.training.split.test.users]
    assert usage.sum() == np.minimum(lengths, 5).sum()
    assert usage.shape == (fitted.model.num_semantics,)


def test_before_fit_everything_says_so() -> None:
    for call in (lambda: SOLID().evaluate(), lambda: SOLID().recommend([[1]]), lambda: SOLID().save("x")):
        with pytest.raises(ValueError, match="expected a fitted model"):
            call()


def test_another_dataset_gets_a_sentence(fitted: SOLID, tmp_path: Path) -> None:
    other = synthetic_dataset(50, 60, 6, seed=9)[0]
    with pytest.raises(ValueError, match="evaluate: expected the dataset the model was fitted on"):
        fitted.evaluate(other)


def test_a_broken_model_folder_gets_a_sentence(fitted: SOLID, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"load: expected a folder with model\.safetensors"):
        SOLID.load(tmp_path)
    fitted.save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="checkpoint: expected safetensors in"):
        SOLID.load(tmp_path / "model")
    file.write_bytes(whole)
    save_file(load_file(file), file)  # without the state: a file of some other program
    with pytest.raises(ValueError, match="expected format version 1"):
        SOLID.load(tmp_path / "model")
    file.write_bytes(whole)
    config = tmp_path / "model" / "config.yaml"
    config.write_text(config.read_text().replace("dim: 16", "dim: 32"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"checkpoint: expected .* got .* in"):
        SOLID.load(tmp_path / "model")


def test_an_unknown_backbone_is_refused_before_any_work(
    world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("worked before the check")

    monkeypatch.setattr("solid_ext.solid.make_split", work)
    with pytest.raises(ValueError, match=r"backbone: expected one of din, .* got 'nope'"):
        SOLID(backbone="nope").fit(world[0])


def test_features_tell_what_no_interaction_does() -> None:
    """Two tastes; the last item, of the first taste by its title alone, is in nobody's training part."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 8)
    items = rng.integers(1, 21, users.size) + 20 * (users % 2)
    items[7::160] = 41  # as the test item of every twentieth user, all of the first taste
    titles = ["apple"] * 20 + ["brick"] * 20 + ["apple"]
    data = load_dataset((users, items, np.arange(users.size)), items={"item_id": range(1, 42), "title": titles})
    histories = torch.from_numpy(np.stack([items[16 * user : 16 * user + 5] for user in range(100)]))
    others = histories % 20 + 21

    def gap(known: bool) -> float:
        static = method_config(Config().replace(dim=16, epochs=12, candidates=9, num_semantics=2), "static")
        model = SOLID(static, item_features=known, neighbours=False, batch_size=64, monitor="user_auc").fit(data).model
        assert model is not None
        with torch.inference_mode():
            model.item_embedding.weight[41] = 0  # as random as it started
            first, second = (model.score(model.eval().encode(each), torch.tensor([41])) for each in (histories, others))
        return float((first - second).mean())

    assert gap(True) > 1
    assert gap(False) == 0


def test_neighbours_are_chosen_on_a_bounded_number_of_rows(
    world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solid_ext.solid.NEIGHBOUR_ROWS", 50)
    asked: list[int] = []

    def evaluate(scorer: Scorer, dataset: Dataset, rows: Rows, **options: Any) -> Metrics:
        asked.append(len(rows))
        return evaluate_full(scorer, dataset, rows, **options)

    monkeypatch.setattr("solid_ext.solid.evaluate_full", evaluate)
    solid = SOLID(TINY).fit(world[0])
    assert solid.neighbours is not None
    assert set(asked) == {50, world[0].num_users}
    assert asked.count(50) >= 13


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_fit_shows_its_progress_in_a_terminal_and_nothing_elsewhere(
    world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    SOLID(TINY).fit(world[0])
    assert capsys.readouterr() == ("", "")
    screen, asked = Screen(), Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    SOLID(TINY).fit(world[0])
    assert "stage2" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", asked)
    SOLID(TINY).fit(world[0], reporter=Silent())
    assert asked.getvalue() == ""
    assert capsys.readouterr().out == ""
