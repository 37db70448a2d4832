"""Semantics of items that came later: the space and the clusters of the first ones stay."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.cluster import KMeans

from solid_ext.config import SemanticsConfig
from solid_ext.data import Dataset, Semantics, load_dataset, make_semantics, text_features
from solid_ext.data.growth import of_items
from solid_ext.data.semantics import Added, more_semantics
from solid_ext.data.semantics.cooccurrence import folded_in

WORDS = ("red wine glass", "blue cotton shirt", "steel garden spade", "soft dog toy")


def titles(count: int) -> pl.DataFrame:
    return pl.DataFrame({
        "item_id": [f"i{number:03}" for number in range(count)],
        "title": [f"{WORDS[number % 4]} {'abcdefgh'[number % 7]}{number % 3}" for number in range(count)],
    })  # fmt: skip


def test_text_features_of_the_first_items_are_what_they_are_alone() -> None:
    table = titles(40)
    alone = text_features(of_items(table[:30]), seed=0)
    more = text_features(of_items(table), seed=0, first=30)
    assert np.array_equal(more[:31], alone)
    # Items 0 and 28 have the words of 84 apart, so of equal words: placed where the first ones are.
    same = table.with_columns(title=pl.Series([*table["title"][:30], *table["title"][:10]]))
    placed = text_features(of_items(same), seed=0, first=30)
    np.testing.assert_allclose(placed[31:41], placed[1:11], atol=1e-6)


@pytest.mark.parametrize("source", ["text", "auto"])
def test_a_new_item_takes_the_cluster_that_k_means_would_assign(source: str) -> None:
    table, config = titles(60), SemanticsConfig(semantics=source, num_semantics=4)  # type: ignore[arg-type]
    known = make_semantics(config, of_items(table[:40]), seed=0, train_end=np.zeros(1, dtype=np.int64))
    made = more_semantics(config, known, Added(table, 40), seed=0)
    assert np.array_equal(made.table[:41], known.table)
    assert made.features is not None
    assert known.features is not None
    fitted = KMeans(4, n_init=1, random_state=0).fit(known.features[1:])
    expected = fitted.predict(made.features[41:])
    of_cluster = dict(zip(fitted.labels_, known.table[1:], strict=True))
    assert made.table[41:].tolist() == [of_cluster[label] for label in expected]
    assert np.array_equal(made.features[:41], known.features)


def test_an_item_of_which_nothing_is_known_takes_the_fallback() -> None:
    table, config = titles(41), SemanticsConfig(semantics="text", num_semantics=4)
    table = table.with_columns(title=pl.Series([*table["title"][:40], None]))
    known = make_semantics(config, of_items(table[:40]), seed=0, train_end=np.zeros(1, dtype=np.int64))
    made = more_semantics(config, known, Added(table, 40), seed=0)
    assert made.table[41] == made.fallback == 5


def test_items_added_twice_stay_in_the_space_of_the_first() -> None:
    table, config = titles(60), SemanticsConfig(semantics="text", num_semantics=4)
    known = make_semantics(config, of_items(table[:40]), seed=0, train_end=np.zeros(1, dtype=np.int64))
    once = more_semantics(config, known, Added(table, 40), seed=0)
    between = more_semantics(config, known, Added(table[:50], 40), seed=0)
    twice = more_semantics(config, between, Added(table, 40), seed=0)
    assert np.array_equal(once.table, twice.table)
    np.testing.assert_allclose(once.features, twice.features, atol=1e-6)  # type: ignore[arg-type]


def test_categories_name_the_semantic_and_an_unknown_one_is_the_fallback() -> None:
    table = pl.DataFrame({"item_id": list(range(8)), "categories": ["x", "y"] * 3 + ["y", "z"]})
    config = SemanticsConfig(semantics="category", category_min_items=1)
    known = make_semantics(config, of_items(table[:6]), seed=0, train_end=np.zeros(1, dtype=np.int64))
    made = more_semantics(config, known, Added(table, 6), seed=0)
    assert made.table.tolist() == [0, 1, 2, 1, 2, 1, 2, 2, 3]


def test_features_of_another_making_are_refused() -> None:
    table, config = titles(40), SemanticsConfig(semantics="text", num_semantics=4)
    known = make_semantics(config, of_items(table[:30]), seed=0, train_end=np.zeros(1, dtype=np.int64))
    turned = Semantics(known.table, known.count, "text", features=np.roll(known.features, 1, axis=1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected the text features that the model was trained with"):
        more_semantics(config, turned, Added(table, 30), seed=0)
    narrow = Semantics(known.table, known.count, "text", features=known.features[:, :5])  # type: ignore[index]
    with pytest.raises(ValueError, match="expected 5 features of each item, as the model has, got 64"):
        more_semantics(config, narrow, Added(table, 30), seed=0)


def two_circles() -> Dataset:
    """Users of items 0 .. 4 and of items 5 .. 9, and one of each kind who has item 10 or item 11."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        kind = user % 2
        items = [*(5 * kind + rng.permutation(5)), *([10 + kind] if user < 8 else [])]
        rows += [(user, int(item), time) for time, item in enumerate(items)]
    return load_dataset(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


def test_an_item_folded_in_by_ids_is_like_those_that_it_stands_near() -> None:
    dataset = two_circles()
    features = np.zeros((13, 2), dtype=np.float32)
    features[1:6, 0] = features[6:11, 1] = 1
    found = folded_in(dataset, dataset.offsets[1:], features)
    np.testing.assert_allclose(found[11:], [[1, 0], [0, 1]], atol=0.2)
    np.testing.assert_allclose(np.linalg.norm(found[1:], axis=1), 1, atol=1e-6)


def test_a_new_item_takes_the_semantic_of_those_that_it_stands_near() -> None:
    dataset, config = two_circles(), SemanticsConfig(semantics="id", num_semantics=2)
    rows = pl.Series(dataset.items <= 10)
    from solid_ext.data.append import as_rows

    old = load_dataset(as_rows(dataset).filter(rows))
    known = make_semantics(config, old, seed=0, train_end=old.offsets[1:])
    made = more_semantics(config, known, Added(dataset.item_table, 10, dataset, dataset.offsets[1:], dataset), seed=0)
    assert made.table[11] == made.table[1]
    assert made.table[12] == made.table[6]
    assert np.array_equal(made.table[:11], known.table)


def test_a_file_of_features_is_read_in_the_order_of_the_dataset(tmp_path: object) -> None:
    given = load_dataset(pl.DataFrame({"user_id": [0] * 4, "item_id": ["a", "b", "c", "d"], "timestamp": range(4)}))
    file = f"{tmp_path}/features.npy"
    np.save(file, np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=np.float32))
    config = SemanticsConfig(semantics="text", text_features=file, num_semantics=2)
    features = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.float32)
    known = Semantics(np.array([0, 1, 2]), 2, "text", features=features)
    table = pl.DataFrame({"item_id": ["c", "a", "b", "d"]})  # the model's own order: b and d are new
    with pytest.raises(ValueError, match="expected the text features"):  # c and a are not what the file has
        more_semantics(config, Semantics(known.table, 2, "text", features=features[[0, 2, 1]]), Added(table, 2), seed=0)
    made = more_semantics(config, known, Added(table, 2, given=given), seed=0)
    assert made.table.tolist() == [0, 1, 2, 2, 1]
