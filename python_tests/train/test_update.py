"""Models that keep up: refit on everything, update with more data, items that nobody has had."""

from __future__ import annotations

import io
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.config import PAPER
from solid_ext.data import SyntheticTruth, in_order_of, make_split, newest, synthetic_dataset
from solid_ext.data.append import as_rows
from solid_ext.data.growth import of_items
from solid_ext.evaluate import evaluate_full, ranks_of_known
from solid_ext.files import MANIFEST, describe_folder, read_json
from solid_ext.model_folder import WEIGHTS
from solid_ext.train import Silent, Stage, build_model, load_checkpoint, save_checkpoint, train_stage
from solid_ext.train.grow import ITEM_ROWS, grow_model

TINY = Config().replace(
    length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=5, eval_negatives=20, num_semantics=6
)
HIDDEN = 6  # the last items of the catalogue, which the first data lack


def weights(model: SOLID) -> dict[str, torch.Tensor]:
    return model._fitted().state_dict()


def assert_same(one: SOLID, other: SOLID) -> None:
    assert weights(one).keys() == weights(other).keys()
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.fixture(scope="module")
def planted() -> tuple[Dataset, SyntheticTruth]:
    return synthetic_dataset(500, 60, 6, predictability=1.0, drift=0.0, seed=3)


@pytest.fixture(scope="module")
def old(planted: tuple[Dataset, SyntheticTruth]) -> Dataset:
    """The first two thirds of the time, and without items 55 .. 60."""
    dataset = planted[0]
    assert dataset.timestamps is not None
    early = dataset.timestamps < np.quantile(dataset.timestamps, 0.67)
    kept = early & (dataset.items <= dataset.num_items - HIDDEN)
    return load_dataset(as_rows(dataset).filter(pl.Series(kept)), items=dataset.item_table)


@pytest.fixture(scope="module")
def fitted(old: Dataset) -> SOLID:
    return SOLID(TINY).fit(old, reporter=Silent())


@pytest.fixture(scope="module")
def refitted(fitted: SOLID) -> SOLID:
    return fitted.refit()


@pytest.fixture(scope="module")
def updated(refitted: SOLID, planted: tuple[Dataset, SyntheticTruth]) -> SOLID:
    return refitted.update(planted[0])


def of_known_taste(model: SOLID, dataset: Dataset, truth: SyntheticTruth, item: int, k: int) -> tuple[float, float]:
    """How often an item is among the k best of histories whose successor it is of, and of those of other semantics."""
    found: dict[bool, list[bool]] = {True: [], False: []}
    last = np.flatnonzero(np.diff(dataset.offsets) >= 5)[:200]
    histories = [
        dataset.catalogue.raw_items(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]) for user in last
    ]
    raw = dataset.item_ids[item - 1]
    ends = truth.semantics[dataset.items[dataset.offsets[last + 1] - 1]]
    for end, listed in zip(ends, model.recommend(histories, k, unknown="ignore"), strict=True):
        found[truth.successor[end] == truth.semantics[item]].append(raw in [entry.item for entry in listed])
    return float(np.mean(found[True])), float(np.mean(found[False]))


def test_a_refitted_model_is_the_seeds_bit_for_bit_and_the_measured_one_stays(
    fitted: SOLID, refitted: SOLID, old: Dataset
) -> None:
    before = {name: tensor.clone() for name, tensor in weights(fitted).items()}
    one, other = refitted, SOLID(TINY).fit(old, reporter=Silent()).refit()
    assert_same(one, other)
    assert all(torch.equal(tensor, weights(fitted)[name]) for name, tensor in before.items())
    assert not torch.equal(weights(one)["item_embedding.weight"], before["item_embedding.weight"])


def test_a_refit_trains_on_every_interaction_for_the_epochs_that_were_best(fitted: SOLID, refitted: SOLID) -> None:
    used = refitted
    best = {stage.name: stage.best.epoch for stage in fitted.training.stages}
    assert {stage.name: len(stage.history) for stage in used.training.stages} == best
    assert all(epoch.valid is None for stage in used.training.stages for epoch in stage.history)
    assert used.catalogue is not None
    assert used.catalogue.counts is not None
    assert used.catalogue.counts.sum() == fitted.training.dataset.num_interactions


def test_a_refitted_model_refuses_to_be_measured_even_after_it_was_loaded(
    fitted: SOLID, refitted: SOLID, old: Dataset, tmp_path: Path
) -> None:
    used = refitted
    with pytest.raises(ValueError, match="not trained on"):
        used.evaluate()
    with pytest.raises(ValueError, match="not trained on"):
        SOLID.load(used.save(tmp_path / "model")).evaluate(old)
    assert fitted.evaluate()["full"]["ndcg@10"] > 0


class Stopped(Exception):
    pass


class StopsAfter(Silent):
    """Ends the training after so many epochs, as a kill would."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_refit_that_was_stopped_goes_on_to_the_same_bits(
    fitted: SOLID, refitted: SOLID, tmp_path: Path, epochs: int
) -> None:
    with pytest.raises(Stopped):
        fitted.refit(folder=tmp_path, reporter=StopsAfter(epochs))
    assert_same(fitted.refit(folder=tmp_path), refitted)


def test_a_refit_for_other_epochs_begins_anew(fitted: SOLID, tmp_path: Path) -> None:
    shorter = copy(fitted)
    stages = [Stage(stage.name, stage.history[:1]) for stage in fitted.training.stages]
    shorter._training = replace(fitted.training, stages=stages)
    fitted.refit(folder=tmp_path)
    again = shorter.refit(folder=tmp_path)
    assert [len(stage.history) for stage in again.training.stages] == [1, 1]
    assert_same(again, shorter.refit())


def test_a_stage_without_validation_ends_at_its_last_epoch_as_it_was_on_the_way_to_a_later_one(
    fitted: SOLID, old: Dataset
) -> None:
    split, semantics, train = fitted.training.split, fitted.training.semantics.table, TINY.resolved(500, 54).train
    models, stages = [], []
    for epochs, validate in ((2, None), (4, iter([0.0, 1.0, 0.0, 0.0]).__next__)):
        models.append(build_model(TINY, TINY.model, 54, semantics, fitted._fitted().item_embedding.features))
        by = None if validate is None else lambda _, given=validate: given()
        stages.append(train_stage("stage2", models[-1], old, split, replace(train, epochs=epochs), by))
    assert [stage.best.epoch for stage in stages] == [2, 2]
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_update_keeps_the_numbers_of_known_items_and_puts_new_ones_behind(
    updated: SOLID, fitted: SOLID, refitted: SOLID
) -> None:
    assert updated.catalogue is not None
    assert fitted.catalogue is not None
    ids = updated.catalogue.table["item_id"]
    assert ids.head(fitted.catalogue.num_items).equals(fitted.catalogue.table["item_id"])
    assert ids.len() == fitted.catalogue.num_items + HIDDEN
    had = fitted.catalogue.num_items + 1
    assert torch.equal(weights(updated)["semantics"][:had], weights(refitted)["semantics"])


def test_an_updated_model_recommends_new_items_to_those_who_like_their_semantic(
    updated: SOLID, planted: tuple[Dataset, SyntheticTruth]
) -> None:
    dataset, truth = planted
    found = [of_known_taste(updated, dataset, truth, item, 12) for item in range(55, 61)]
    right, wrong = np.mean(found, axis=0)
    assert right > 0.7
    assert wrong < 0.2


def test_an_update_ranks_the_newest_better_than_the_model_it_goes_on_from(
    refitted: SOLID, updated: SOLID, planted: tuple[Dataset, SyntheticTruth]
) -> None:
    training = updated.training
    assert training.measured is not None
    assert updated.catalogue is not None
    rows = training.split.valid
    after = ranks_of_known(training.measured, updated.catalogue, training.dataset, rows)
    assert refitted.catalogue is not None
    before = ranks_of_known(refitted.scorer, refitted.catalogue, training.dataset, rows)
    assert np.mean(after <= 10) > np.mean(before <= 10)


def test_an_update_is_the_seeds_bit_for_bit_from_a_loaded_model_too(
    refitted: SOLID, updated: SOLID, planted: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    loaded = SOLID.load(refitted.save(tmp_path / "model"))
    again = loaded.update(planted[0])
    assert_same(again, updated)
    saved = SOLID.load(again.save(tmp_path / "again"))
    assert_same(saved, updated)
    history = [planted[0].catalogue.raw_items(planted[0].items[:4])]
    assert saved.recommend(history, 5) == updated.recommend(history, 5)


def test_items_that_vanish_are_kept(fitted: SOLID, planted: tuple[Dataset, SyntheticTruth]) -> None:
    dataset = planted[0]
    without = load_dataset(as_rows(dataset).filter(pl.Series(dataset.items != 1)), items=dataset.item_table)
    updated = fitted.update(without, epochs=1)
    assert updated.catalogue is not None
    assert updated.catalogue.item_index([dataset.item_ids[0]]) == [1]
    assert updated.catalogue.counts is not None
    assert updated.catalogue.counts[0] == 0


def test_an_update_refuses_a_dataset_of_the_new_interactions_alone(
    fitted: SOLID, planted: tuple[Dataset, SyntheticTruth]
) -> None:
    rows = as_rows(planted[0]).filter(pl.col("timestamp") > fitted.trained.until)
    with pytest.raises(ValueError, match="expected the old interactions and the new ones, at least"):
        fitted.update(rows)


def test_an_update_refuses_a_dataset_with_nothing_new(refitted: SOLID, old: Dataset) -> None:
    with pytest.raises(ValueError, match="expected interactions later than"):
        refitted.update(old)


def test_an_update_refuses_a_dataset_without_times_where_the_model_had_some(fitted: SOLID, old: Dataset) -> None:
    with pytest.raises(ValueError, match="expected a dataset with timestamps"):
        fitted.update(replace(old, timestamps=None))


@pytest.mark.parametrize("epochs", [0, -1, 2.5, True])
def test_an_update_refuses_other_epochs_than_a_number_of_one_or_more(fitted: SOLID, old: Dataset, epochs: Any) -> None:
    with pytest.raises(ValueError, match="update: expected epochs as a whole number of 1 or more, got"):
        fitted.update(old, epochs=epochs)


def test_without_times_each_users_last_interaction_is_validated_on(old: Dataset) -> None:
    timeless = replace(old, timestamps=None)
    model = SOLID(TINY.replace(epochs=1)).fit(timeless, reporter=Silent())
    split = model.update(timeless, epochs=1).training.split
    assert np.array_equal(split.valid.positions, old.offsets[1:][np.diff(old.offsets) >= 2] - 1)


def test_an_update_trains_on_what_is_new_and_validates_on_the_newest_of_it(updated: SOLID, refitted: SOLID) -> None:
    training, trained = updated.training, refitted.trained
    assert trained.until is not None
    times, split = training.dataset.timestamps, training.split
    assert times is not None
    new = int((times > trained.until).sum())
    held_out = int((training.dataset.offsets[1:] - split.train_end).sum())
    assert held_out == round(new / 5)
    assert times[split.train.positions].min() > trained.until
    assert times[split.valid.positions].min() >= times[split.train.positions].max()
    assert not len(split.test)


def test_interactions_of_one_day_are_validated_by_users_where_the_whole_day_is_new(old: Dataset) -> None:
    day = replace(old, timestamps=np.ones(old.num_interactions, dtype=np.int64))
    split = newest(day, 0)
    assert len(split.train)
    assert len(split.valid)
    assert int((old.offsets[1:] - split.train_end).sum()) == round(old.num_interactions / 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"semantics": "category"},
        {"semantics": "id"},
        {"semantics": "id", "item_features": False},
        {"semantics": "id+text"},
        {"item_features": False},
        {"neighbours": False},
        {**PAPER, "length": 5, "dim": 16},
    ],
    ids=lambda fields: ",".join(f"{name}={value}" for name, value in list(fields.items())[:2]),
)
def test_every_kind_of_model_goes_on(
    old: Dataset, planted: tuple[Dataset, SyntheticTruth], fields: dict[str, Any], tmp_path: Path
) -> None:
    model = SOLID(TINY.replace(**fields, epochs=1)).fit(old, reporter=Silent())
    updated = model.update(planted[0], epochs=1)
    assert updated._fitted().num_items == 60
    added = updated.add_items({"item_id": ["new", "nothing known"], "categories": ["semantic-1", None]})
    loaded = SOLID.load(added.save(tmp_path / "model"))
    assert {entry.item for entry in loaded.recommend([["item-01"]], 61)[0]} >= {"new", "nothing known"}


def test_an_item_that_nobody_has_had_is_recommended_by_its_title_to_those_who_like_its_semantic(
    fitted: SOLID, planted: tuple[Dataset, SyntheticTruth]
) -> None:
    dataset, truth = planted
    added = fitted.add_items(dataset.item_table)
    assert added.catalogue is not None
    assert added.catalogue.num_items == 60
    found = [of_known_taste(added, dataset, truth, item, 12) for item in range(55, 61)]
    right, wrong = np.mean(found, axis=0)
    assert right > 0.7
    assert wrong < 0.2


def test_items_that_were_added_are_known_when_somebody_has_had_them(
    fitted: SOLID, updated: SOLID, planted: tuple[Dataset, SyntheticTruth]
) -> None:
    added = fitted.add_items(planted[0].item_table)
    later = added.update(planted[0], epochs=1)
    assert later._fitted().num_items == 60
    assert torch.equal(weights(later)["semantics"], weights(added)["semantics"])
    assert torch.equal(weights(later)["item_embedding.features"], weights(added)["item_embedding.features"])
    assert torch.equal(weights(later)["semantics"], weights(updated)["semantics"])


def test_adding_items_changes_no_score_of_the_others(fitted: SOLID, planted: tuple[Dataset, SyntheticTruth]) -> None:
    dataset = planted[0]
    added, history = fitted.add_items(dataset.item_table), [["item-01", "item-20"]]
    before = {entry.item: entry.score for entry in fitted.recommend(history, 60)[0]}
    after = {entry.item: entry.score for entry in added.recommend(history, 60)[0]}
    assert len(after) == len(before) + HIDDEN
    assert all(after[item] == pytest.approx(score, abs=1e-5) for item, score in before.items())


def test_an_added_item_takes_the_semantic_of_items_with_its_words(
    fitted: SOLID, planted: tuple[Dataset, SyntheticTruth]
) -> None:
    dataset, truth = planted
    semantics = weights(fitted.add_items(dataset.item_table))["semantics"].numpy()
    own = in_order_of(fitted.catalogue, dataset)  # type: ignore[arg-type]
    planted_of = truth.semantics[1:][[int(raw[-2:]) - 1 for raw in own.item_ids]]
    for item in range(55, 61):
        alike = semantics[1:55][planted_of[:54] == planted_of[item - 1]]
        assert semantics[item] == np.bincount(alike).argmax()


def test_fresh_rows_start_at_the_mean_of_their_semantic(fitted: SOLID) -> None:
    model, table = fitted._fitted(), weights(fitted)["semantics"].numpy()
    semantics, fresh = np.append(table, [table[1], table.max() + 1]), np.zeros(len(table) + 2, dtype=bool)
    fresh[-2:] = True
    features = torch.cat([model.item_embedding.features, torch.zeros(2, 64)])  # type: ignore[list-item]
    grown = grow_model(model, TINY, semantics, features, fresh)
    old, new = model.state_dict(), grown.state_dict()
    for name in ITEM_ROWS:
        torch.testing.assert_close(new[name][-2], old[name][table == table[1]].mean(0))
        torch.testing.assert_close(new[name][-1], old[name][1:].mean(0))
        assert torch.equal(new[name][:-2], old[name])
    same = [name for name, tensor in old.items() if tensor.shape == new[name].shape]
    assert all(torch.equal(old[name], new[name]) for name in same)


def test_add_items_refuses_what_holds_no_new_item(fitted: SOLID, old: Dataset) -> None:
    with pytest.raises(
        ValueError, match="add_items: expected items that the model has not yet, got none among 54 rows"
    ):
        fitted.add_items(old.item_table)
    with pytest.raises(ValueError, match="items: expected columns item_id"):
        fitted.add_items(pl.DataFrame({"title": ["x"]}))


def test_ranks_of_what_a_model_does_not_know_are_behind_all_items(
    fitted: SOLID, planted: tuple[Dataset, SyntheticTruth], old: Dataset
) -> None:
    dataset, split = planted[0], make_split("leave_one_out", planted[0])
    assert fitted.catalogue is not None
    ranks = ranks_of_known(fitted.scorer, fitted.catalogue, dataset, split.test)
    unknown = dataset.items[split.test.positions] > 54
    assert (ranks[unknown] == 61).all()
    assert (ranks[~unknown] <= 54).all()
    rows = make_split("leave_one_out", old).test
    same = evaluate_full(fitted.scorer, old, rows).values["mrr"]
    assert np.mean(1 / ranks_of_known(fitted.scorer, fitted.catalogue, old, rows)) == pytest.approx(same)


def test_a_model_of_an_earlier_version_says_nothing_of_its_training_and_goes_on(
    fitted: SOLID, planted: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    from solid_ext.files import MANIFEST, describe_folder, read_json
    from solid_ext.train import load_checkpoint, save_checkpoint

    folder = fitted.save(tmp_path / "model")
    tensors, state = load_checkpoint(folder / "model.safetensors")
    del state["trained"]
    save_checkpoint(folder / "model.safetensors", tensors, state)
    manifest = read_json(folder / MANIFEST, "test")
    del manifest["files"]
    (folder / MANIFEST).unlink()
    describe_folder(folder, MANIFEST, manifest)
    assert SOLID.load(folder).update(planted[0], epochs=1)._fitted().num_items == 60


def test_items_without_interactions_make_a_dataset_of_nothing() -> None:
    dataset = of_items(pl.read_csv(io.StringIO("item_id,title\na,A\nb,B\n")))
    assert (dataset.num_items, dataset.num_interactions) == (2, 0)


@pytest.fixture(scope="module")
def numbered() -> tuple[SOLID, pl.DataFrame]:
    """A model whose items are numbers, and the rows it was fitted on."""
    dataset = synthetic_dataset(60, 30, 3, seed=0)[0]
    rows = as_rows(dataset).with_columns(item_id=pl.Series(dataset.items.astype(np.int64)))
    return SOLID(TINY.replace(epochs=1)).fit(load_dataset(rows), reporter=Silent()), rows


@pytest.mark.parametrize(
    ("ids", "named"),
    [(["901", "x9"], "'x9'"), ([901.0, 5000.5], "'5000.5'"), ([2**70], str(2**70)), (["007"], "'007'")],
)
def test_ids_stay_numbers_and_an_id_that_is_none_is_refused(
    numbered: tuple[SOLID, pl.DataFrame], ids: list[Any], named: str
) -> None:
    model, rows = numbered
    with pytest.raises(
        ValueError, match=rf"add_items: expected new items with ids that are whole numbers.*got '?{named}"
    ):
        model.add_items({"item_id": ids})
    late = pl.DataFrame({"user_id": [rows["user_id"][0]] * len(ids), "item_id": [str(value) for value in ids]})
    late = late.with_columns(timestamp=pl.lit(int(rows["timestamp"].to_numpy().max()) + 1, dtype=pl.Int64))
    both = pl.concat([rows.with_columns(pl.col("item_id").cast(pl.String)), late])
    with pytest.raises(ValueError, match=f"update: expected new items with ids that are whole numbers.*got '?{named}"):
        model.update(both)


def test_ids_that_spell_numbers_are_numbers_beside_numbers(numbered: tuple[SOLID, pl.DataFrame]) -> None:
    model, rows = numbered
    added = model.add_items({"item_id": ["901", "902"]})
    assert added.catalogue is not None
    assert added.catalogue.table["item_id"].tail(2).to_list() == [901, 902]
    new = rows.tail(40).with_columns(pl.col("timestamp") + 10_000_000, item_id=pl.lit(77))
    text = pl.concat([rows, new.cast(rows.schema)]).with_columns(pl.col("item_id").cast(pl.String))
    updated = model.update(text, epochs=1)
    assert updated.catalogue is not None
    assert updated.catalogue.table["item_id"].dtype == pl.Int64
    assert 77 in updated.catalogue.table["item_id"]


@pytest.mark.parametrize("ids", [[True], [901, True], pl.Series([False]), np.array([True])])
def test_truths_are_no_ids(fitted: SOLID, ids: Any) -> None:
    with pytest.raises(TypeError, match="add_items: expected item ids as numbers, text or times, got True or False"):
        fitted.add_items({"item_id": ids})


def test_a_column_that_looks_like_titles_is_named_and_can_be_read(fitted: SOLID) -> None:
    items = {"item_id": ["new"], "titel": ["Semantic-3 No. 61"]}
    with pytest.warns(
        UserWarning, match="add_items: The items have no column 'title', and 'titel' is not read"
    ) as said:
        added = fitted.add_items(items)
    assert said[0].filename == __file__
    read = fitted.add_items(items, title="titel")
    assert added.catalogue is not None
    assert read.catalogue is not None
    assert added.catalogue.titles([55]) == ["new"]
    assert read.catalogue.titles([55]) == ["Semantic-3 No. 61"]


def test_a_model_with_added_items_refuses_to_be_measured_as_its_negatives_would_be_others(
    fitted: SOLID, planted: tuple[Dataset, SyntheticTruth], old: Dataset
) -> None:
    with pytest.raises(ValueError, match="evaluate: expected a model of the dataset's 54 items, got one with 6 more"):
        fitted.add_items(planted[0].item_table).evaluate(old)


def test_an_update_counts_the_interactions_that_come_too_late_to_be_trained_on(
    refitted: SOLID, fitted: SOLID, old: Dataset
) -> None:
    until = refitted.trained.until
    assert until is not None
    rows = as_rows(old)
    tied = rows.head(70).with_columns(timestamp=pl.lit(until, dtype=pl.Int64), item_id=pl.lit("item-03"))
    late = rows.head(30).with_columns(pl.col("timestamp") - 1)
    new = rows.head(100).with_columns(timestamp=pl.lit(until + 1, dtype=pl.Int64), item_id=pl.lit("item-04"))
    both = load_dataset(pl.concat([rows, tied, late, new]), items=old.item_table, drop_duplicates=False)
    report = refitted.update(both, epochs=1).training.split.report
    assert (report["new_interactions"], report["older_not_trained_on"]) == (100, 100)
    assert fitted.catalogue is not None
    assert fitted.catalogue.counts is not None
    report = fitted.update(both, epochs=1).training.split.report
    assert both.timestamps is not None
    assert fitted.trained.until is not None
    later = int(np.sum(both.timestamps > fitted.trained.until))
    assert report["older_not_trained_on"] == both.num_interactions - later - int(fitted.catalogue.counts.sum())


def test_an_update_tells_the_time_that_the_model_was_trained_until_in_the_unit_of_its_data(
    refitted: SOLID, old: Dataset
) -> None:
    rows, until = as_rows(old), refitted.trained.until
    assert until is not None
    new = rows.head(100).with_columns(timestamp=pl.lit(until + 1, dtype=pl.Int64), item_id=pl.lit("item-04"))
    whole = load_dataset(pl.concat([rows, new]), items=old.item_table)
    assert whole.timestamps is not None
    finer = replace(
        whole, timestamps=whole.timestamps * 10**6, report={**whole.report, "timestamp_unit": "microseconds"}
    )
    dated = copy(refitted)
    dated.trained = replace(refitted.trained, unit="seconds")
    report = dated.update(finer, epochs=1).training.split.report
    assert report["new_interactions"] == refitted.update(whole, epochs=1).training.split.report["new_interactions"]
    numbers = copy(refitted)
    numbers.trained = replace(refitted.trained, until=1_600_000_000, unit="as in the source")
    milliseconds = replace(whole, timestamps=whole.timestamps - whole.timestamps.max() + 1_600_000_000_000, report={})
    with pytest.raises(ValueError, match=r"update: expected new times of the unit that the dataset's have, .*like sec"):
        numbers.update(milliseconds, epochs=1)


@pytest.mark.parametrize(
    ("users", "got"),
    [([-1], r"got 0 and 0 of 1 new ones"), ([None], "got 1 and 0 of 1 new ones"), ([-1, -2, -3], "of 3 new ones")],
)
def test_too_few_new_interactions_are_refused_in_words_of_what_is_new(
    refitted: SOLID, old: Dataset, users: list[Any], got: str
) -> None:
    rows, until = as_rows(old), refitted.trained.until
    assert until is not None
    known = int(rows["user_id"][0])
    new = pl.DataFrame({"user_id": [user or known for user in users], "item_id": ["item-01"] * len(users)})
    new = new.with_columns(timestamp=pl.lit(until + 5, dtype=pl.Int64)).cast(rows.schema)
    with pytest.raises(
        ValueError, match=f"update: expected at least two new interactions that follow.*{got}; wait for"
    ):
        refitted.update(pl.concat([rows, new]))


def test_what_an_updated_model_cannot_do_is_said_in_a_sentence(
    fitted: SOLID, refitted: SOLID, updated: SOLID, tmp_path: Path
) -> None:
    loaded = SOLID.load(updated.save(tmp_path / "model"))
    for model in (updated, loaded):
        with pytest.raises(
            ValueError, match=r"^refit: expected a model that fit\(\) trained, got one that update\(\) made$"
        ):
            model.refit()
        with pytest.raises(ValueError, match=r"\(what update\(\) gained is measured on the newest interactions"):
            model.evaluate()
    for asked in (updated.code_usage, lambda: updated.evaluate_scorer(updated.scorer)):
        with pytest.raises(ValueError, match=r"^evaluate: expected test rows in .*, got none in the split "):
            asked()
    assert refitted.code_usage() is not None
    assert fitted.evaluate_scorer(fitted.scorer)["full"] == fitted.evaluate()["full"]


def test_a_model_without_a_training_says_what_it_is(fitted: SOLID, old: Dataset, tmp_path: Path) -> None:
    added = fitted.add_items({"item_id": ["brand new"]})
    for model in (added, SOLID.load(fitted.save(tmp_path / "model"))):
        for asked in (model.refit, lambda model=model: model.training):
            with pytest.raises(ValueError, match=r"trained here, got one that load\(\) or add_items\(\) made$"):
                asked()
        with pytest.raises(ValueError, match=r"\(a model that load\(\) or add_items\(\) made does not hold it\)"):
            model.code_usage()
    with pytest.raises(ValueError, match=r"trained here, got one before fit\(\)$"):
        SOLID(TINY).refit()


def test_a_model_that_does_not_say_whether_it_was_updated_is_read_as_one_that_was_not(
    updated: SOLID, tmp_path: Path
) -> None:
    folder = updated.save(tmp_path / "model")
    assert SOLID.load(folder).trained.updated
    tensors, state = load_checkpoint(folder / WEIGHTS)
    del state["trained"]["updated"]
    save_checkpoint(folder / WEIGHTS, tensors, state)
    manifest = read_json(folder / MANIFEST, "test")
    (folder / MANIFEST).unlink()
    describe_folder(folder, MANIFEST, {name: value for name, value in manifest.items() if name != "files"})
    assert SOLID.load(folder).trained == replace(updated.trained, updated=False)
