"""Item semantics from categories and from clusters of features, and how good they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.metrics.cluster import contingency_matrix

from solid_ext.data import (
    Dataset,
    Semantics,
    concatenate_features,
    load_dataset,
    semantics_from_categories,
    semantics_from_features,
    synthetic_dataset,
    text_features,
)
from solid_ext.data.semantics.clusters import SEARCH_COUNTS, search_count
from solid_ext.data.semantics.quality import agreement, purity

ROWS = [("a|b", "t"), ("a|c", "u"), ("a|b", ""), ("", ""), ("d", "")]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    items = {"item_id": list(range(5)), "categories": [c for c, _ in ROWS], "title": [t for _, t in ROWS]}
    return load_dataset(([0] * 5, list(range(5))), items=items)


@pytest.mark.parametrize(
    ("level", "min_items", "table", "names"),
    [
        ("all", 1, [0, 1, 2, 1, 4, 3], ["a|b", "a|c", "d", "(other)"]),
        ("first", 1, [0, 1, 1, 1, 3, 2], ["a", "d", "(other)"]),
        ("last", 1, [0, 1, 2, 1, 4, 3], ["b", "c", "d", "(other)"]),
        ("all", 2, [0, 1, 2, 1, 2, 2], ["a|b", "(other)"]),
        ("first", 3, [0, 1, 1, 1, 2, 2], ["a", "(other)"]),
    ],
)
def test_categories_by_hand(dataset: Dataset, level: str, min_items: int, table: list[int], names: list[str]) -> None:
    semantics = semantics_from_categories(dataset, level=level, min_items=min_items)  # type: ignore[arg-type]
    assert semantics.table.tolist() == table
    assert semantics.table.dtype == np.int64
    assert semantics.names == names
    assert semantics.count == semantics.fallback == len(names)
    assert semantics.report["fallback_items"] == table.count(len(names))
    assert semantics.report["items"] == 5
    assert semantics.source == f"categories:{level}"


def test_categories_of_the_synthetic_world_are_the_planted_ones() -> None:
    world, truth = synthetic_dataset(50, 90, 12, seed=4)
    semantics = semantics_from_categories(world)
    np.testing.assert_array_equal(semantics.table, truth.semantics)
    assert semantics.names == [*truth.names, "(other)"]
    assert semantics.count == 13


def test_categories_that_cannot_be() -> None:
    bare = load_dataset(([1], [1]))
    with pytest.raises(ValueError, match="expected a column 'categories' of the items, got item_id"):
        semantics_from_categories(bare)
    blank = load_dataset(([1], [1]), items={"item_id": [1], "categories": [" "]})
    with pytest.raises(ValueError, match="expected a category of at least 1 items in 'categories', got none"):
        semantics_from_categories(blank)
    with pytest.raises(ValueError, match="expected level all, first or last, got 'middle'"):
        semantics_from_categories(blank, level="middle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected min_items >= 1, got 0"):
        semantics_from_categories(blank, min_items=0)


def blobs(count: int = 6, each: int = 20, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features [V + 1, F] around orthogonal directions, and the direction of every item."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(count), each))
    features = np.eye(dim)[truth] + 0.1 * rng.normal(size=(truth.size, dim))
    return np.vstack([np.zeros(dim), features]), truth


def test_clusters_find_what_was_planted_whatever_the_norm() -> None:
    features, truth = blobs()
    scales = 10.0 ** np.random.default_rng(1).uniform(-150, 150, size=(features.shape[0], 1))
    for matrix in (features, features * scales, features.astype(np.float32), features[1:]):
        semantics = semantics_from_features(matrix, 6, seed=0, source="text")
        assert semantics.table.shape == (truth.size + 1,)
        assert semantics.count == 7
        assert semantics.names is None
        assert semantics.source == "text"
        assert purity(semantics.table[1:], truth) == 1.0
        found = {name: semantics.report[name] for name in ("items", "clusters", "fallback_items", "empty")}
        assert found == {"items": 120, "clusters": 6, "fallback_items": 0, "empty": 0}
        assert {semantics.report[name] for name in ("smallest", "median", "largest")} == {20}
        assert semantics.report["largest_share"] == 20 / 120


def test_items_without_features_fall_back_and_are_no_cluster() -> None:
    features, truth = blobs()
    features[[5, 9]] = 0.0
    semantics = semantics_from_features(features, 6, seed=0)
    assert semantics.table[[0, 5, 9]].tolist() == [0, 7, 7]
    assert semantics.report["fallback_items"] == 2
    known = np.setdiff1d(np.arange(1, truth.size + 1), [5, 9])
    assert semantics.table[known].max() == 6
    assert purity(semantics.table[known], truth[known - 1]) == 1.0


def test_number_of_items_settles_what_the_first_row_is() -> None:
    features, _ = blobs()
    assert semantics_from_features(features[1:], 3, seed=0, num_items=120).table.size == 121
    assert semantics_from_features(features + 1.0, 3, seed=0, num_items=120).table.size == 121
    featureless_first = np.vstack([np.zeros(8), features[2:]])
    assert semantics_from_features(featureless_first, 3, seed=0, num_items=120).table[1] == 4
    with pytest.raises(ValueError, match="expected 7 or 8 rows of features, got 121"):
        semantics_from_features(features, 3, seed=0, num_items=7)


def test_clusters_are_the_same_for_the_same_seed() -> None:
    features = np.random.default_rng(0).normal(size=(301, 5))
    first, second, other = (semantics_from_features(features, 20, seed=seed, num_items=300) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.table, second.table)
    assert not np.array_equal(first.table, other.table)


def test_the_order_of_the_items_changes_names_of_clusters_at_most() -> None:
    features, _ = blobs()
    order = np.random.default_rng(5).permutation(120)
    straight = semantics_from_features(features[1:], 6, seed=0, num_items=120).table[1:]
    permuted = semantics_from_features(features[1:][order], 6, seed=0, num_items=120).table[1:]
    assert adjusted_rand_score(straight[order], permuted) == 1.0


def test_inertia_is_what_the_table_says() -> None:
    features, _ = blobs()
    semantics = semantics_from_features(features, 4, seed=0)
    points = features[1:] / np.linalg.norm(features[1:], axis=1, keepdims=True)
    centres = np.stack([points[semantics.table[1:] == label].mean(axis=0) for label in range(1, 5)])
    inertia = np.square(points - centres[semantics.table[1:] - 1]).sum()
    assert semantics.report["inertia"] == pytest.approx(inertia, rel=1e-4)
    total = np.square(points - points.mean(axis=0)).sum()
    assert semantics.report["explained"] == pytest.approx(1 - inertia / total, rel=1e-4)


@pytest.mark.parametrize("count", [3, 6, 12])
def test_search_finds_the_planted_number(count: int) -> None:
    features, truth = blobs(count, each=25, dim=16)
    semantics = semantics_from_features(features, -1, seed=0)
    assert semantics.report["clusters"] == count
    assert purity(semantics.table[1:], truth) == 1.0
    points = (features[1:] / np.linalg.norm(features[1:], axis=1, keepdims=True)).astype(np.float32)
    expected = silhouette_score(points, semantics.table[1:])
    silhouettes = semantics.report["silhouettes"]
    assert silhouettes[str(count)] == pytest.approx(expected, rel=1e-4)
    assert max(silhouettes.values()) == silhouettes[str(count)]
    most = max(count for count in SEARCH_COUNTS if count <= max(truth.size // 10, 16))
    assert max(int(candidate) for candidate in silhouettes) == most


def test_search_takes_a_sample_of_a_large_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs(6, each=100, dim=16)
    monkeypatch.setattr("solid_ext.data.semantics.clusters.SEARCH_ITEMS", 150)
    count, silhouettes = search_count(features[1:].astype(np.float32), seed=0)
    assert count == 6
    assert max(int(candidate) for candidate in silhouettes) == 16


@pytest.mark.parametrize("items", [1, 2, 3])
def test_rules_for_the_count_hold_for_the_smallest_catalogues(items: int) -> None:
    for rule in (0, -1):
        semantics = semantics_from_features(np.eye(4)[:items], rule, seed=0, num_items=items)
        assert 1 <= semantics.report["clusters"] <= items


def test_a_tenth_of_the_items_between_16_and_1024_and_never_more_than_there_are() -> None:
    features = np.random.default_rng(0).normal(size=(400, 3))
    assert semantics_from_features(features, 0, seed=0, num_items=400).report["clusters"] == 40
    assert semantics_from_features(features[:100], 0, seed=0, num_items=100).report["clusters"] == 16
    assert semantics_from_features(features[:9], 0, seed=0, num_items=9).report["clusters"] == 9


def test_purity_and_agreement_are_what_scikit_learn_says() -> None:
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(1, 9, 300), rng.integers(0, 5, 300)
    assert purity(labels, classes) == contingency_matrix(classes, labels).max(axis=0).sum() / 300
    names = pl.Series([None if index < 20 else f"c{value}" for index, value in enumerate(classes)])
    labels[20:30] = 9  # the fallback
    found = agreement(np.concatenate(([0], labels)), 9, names, seed=0)
    assert found["categories"] == 5
    assert found["purity"] == purity(labels[30:], classes[30:])
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(classes[30:], labels[30:]))
    # These labels know nothing of the classes: they do as well as chance, which is what chance is reported for.
    assert found["purity_by_chance"] == pytest.approx(found["purity"], abs=0.1)
    perfect = agreement(np.concatenate(([0], classes + 1)), 9, pl.Series([f"c{value}" for value in classes]), seed=0)
    assert perfect["purity"] == perfect["nmi"] == 1.0
    assert perfect["purity_by_chance"] < 0.5
    for nothing in (pl.Series([None] * 300, dtype=pl.String), pl.Series(["one"] * 300)):
        assert agreement(np.concatenate(([0], labels)), 9, nothing, seed=0) == {}


def test_saved_and_read_back(tmp_path: Path) -> None:
    features, _ = blobs()
    made = semantics_from_features(features, 6, seed=0)
    made.save(tmp_path / "semantics.safetensors")
    read = Semantics.load(tmp_path / "semantics.safetensors")
    np.testing.assert_array_equal(read.table, made.table)
    assert (read.count, read.source, read.names, read.report) == (7, "id", None, made.report)
    (tmp_path / "broken").write_bytes(b"no tensors")
    for path in (tmp_path / "broken", tmp_path / "none"):
        with pytest.raises(ValueError, match="Semantics: expected a file of semantics, got"):
            Semantics.load(path)


def test_large_catalogues_are_clustered_in_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solid_ext.data.semantics.clusters.LLOYD_MAX_ITEMS", 100)
    features, truth = blobs()
    assert purity(semantics_from_features(features, 12, seed=0).table[1:], truth) == 1.0


def test_features_that_cannot_be_clustered() -> None:
    features, _ = blobs()
    broken = features.copy()
    broken[4, 2] = np.nan
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinity for item 4"):
        semantics_from_features(broken, 3, seed=0)
    with pytest.raises(ValueError, match="expected at least 5 different rows for 5 clusters, got 4"):
        semantics_from_features(np.repeat(np.eye(4), 10, axis=0), 5, seed=0)
    with pytest.raises(ValueError, match="expected at least 1 different rows for 1 clusters, got 0"):
        semantics_from_features(np.zeros((5, 3)), 1, seed=0)
    with pytest.raises(ValueError, match="expected count >= 1, 0 or -1, got -2"):
        semantics_from_features(features, -2, seed=0)
    for rule in (0, -1):
        with pytest.raises(ValueError, match="expected at least 1 different rows"):
            semantics_from_features(np.zeros((5, 3)), rule, seed=0)
    for wrong in (features[0], features.astype(str), features.tolist()):
        with pytest.raises(TypeError, match=r"expected features \[V \+ 1, F\] or \[V, F\] of numbers"):
            semantics_from_features(wrong, 3, seed=0)


def test_concatenated_parts_weigh_the_same_and_missing_ones_nothing() -> None:
    first = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    second = np.array([[0.0], [0.5], [-2.0]])
    joined = concatenate_features(first, second)
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined, [[0, 0, 0], [0.6, 0.8, 1], [0, 0, -1]], atol=1e-7)
    for parts in ((), (first, second[1:]), (first[0],)):
        with pytest.raises(ValueError, match="expected matrices with the same number of rows"):
            concatenate_features(*parts)


def test_text_features_follow_the_words(dataset: Dataset) -> None:
    features = text_features(dataset, dim=8, seed=0)
    assert features.shape == (6, 8)
    assert features.dtype == np.float32
    assert not features[[0, 4]].any()
    assert features[[1, 2, 3, 5]].any(axis=1).all()
    similarity = concatenate_features(features) @ concatenate_features(features).T
    assert similarity[1, 3] > similarity[1, 2] > similarity[1, 5]
    np.testing.assert_array_equal(features, text_features(dataset, dim=8, seed=0))


def test_text_of_the_synthetic_world_clusters_into_what_was_planted() -> None:
    world, truth = synthetic_dataset(50, 120, 6, seed=4)
    semantics = semantics_from_features(text_features(world, dim=6, seed=0), 6, seed=0, source="text")
    assert purity(semantics.table[1:], truth.semantics[1:]) > 0.95


@pytest.mark.parametrize("titles", [["same", "same"], ["a b", "b a"], ["one", ""]])
def test_text_that_says_the_same_of_every_item(titles: list[str]) -> None:
    items = {"item_id": [1, 2], "title": titles}
    features = text_features(load_dataset(([1, 1], [1, 2]), items=items), dim=3, seed=0)
    expected = [[0.0], [1.0], [1.0 if titles[1] else 0.0]]
    np.testing.assert_allclose(np.abs(features), np.pad(expected, ((0, 0), (0, 2))), atol=1e-6)


def test_no_text() -> None:
    for items in (None, {"item_id": [1], "title": ["  "]}, {"item_id": [1], "categories": ["!?"]}):
        with pytest.raises(ValueError, match="text_features: expected items with a title or categories, got none"):
            text_features(load_dataset(([1], [1]), items=items), seed=0)
    with pytest.raises(ValueError, match="expected dim >= 1, got 0"):
        text_features(load_dataset(([1], [1])), dim=0, seed=0)


@pytest.mark.parametrize(
    ("table", "count", "names", "error"),
    [
        (np.array([0, 1, 4]), 3, None, ValueError),
        (np.array([0, 1, 0]), 3, None, ValueError),
        (np.array([1, 1, 2]), 3, None, ValueError),
        (np.array([0, 1, 2]), 3, ["a"], ValueError),
        (np.array([0.0, 1.0]), 3, None, TypeError),
        (np.array([0]), 3, None, TypeError),
    ],
)
def test_semantics_out_of_range(table: np.ndarray, count: int, names: list[str] | None, error: type[Exception]) -> None:
    with pytest.raises(error, match="Semantics: expected"):
        Semantics(table, count, "test", names)


def test_shared_data(shared_data: Path) -> None:
    dataset = load_dataset(shared_data / "amazon_scientific")
    semantics = semantics_from_categories(dataset)
    assert semantics.report["fallback_items"] == 134
    features = text_features(dataset, dim=32, seed=0)
    assert features[1:].any(axis=1).all()
    clusters = semantics_from_features(features, 100, seed=0, source="text", num_items=dataset.num_items)
    assert clusters.report["fallback_items"] == 0
    # Clusters of the text share a category far more often than chance would have it.
    shuffled = np.random.default_rng(0).permutation(clusters.table[1:])
    by_chance = purity(shuffled, semantics.table[1:])
    assert purity(clusters.table[1:], semantics.table[1:]) > 3 * by_chance
