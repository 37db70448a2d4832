"""Module 1 as configured: every source, every mix, and what is said before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file
from sklearn.metrics import adjusted_rand_score

from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.cli.train import show_semantics
from solid_ext.config import SemanticsConfig
from solid_ext.data import Semantics, SyntheticTruth, cooccurrence_features, make_semantics, semantics_source
from solid_ext.data.semantics.clusters import normalised
from solid_ext.run import train_run

ITEMS = 240
WAYS = {"id": 2, "text": 3, "image": 4}  # each kind of feature tells the items apart in so many ways of its own
SOURCES = ["id", "text", "image", "id+text", "id+image", "text+image", "id+text+image"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, np.ndarray], dict[str, str]]:
    """A dataset, the way of every item by kind of feature, and a file of features for each kind."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("features")
    ways = {kind: rng.permutation(np.arange(ITEMS) % count) for kind, count in WAYS.items()}
    # Very different lengths: without normalised parts the images would decide alone.
    rows = {
        kind: (scale * (np.eye(count + 3)[ways[kind]] + 0.03 * rng.normal(size=(ITEMS, count + 3)))).astype(np.float32)
        for (kind, count), scale in zip(WAYS.items(), (0.01, 1.0, 100.0), strict=True)
    }
    np.save(folder / "id.npy", rows["id"])
    save_file({"features": rows["text"]}, folder / "text.safetensors")
    shuffled = rng.permutation(ITEMS)
    frame = pl.DataFrame({"item_id": np.arange(ITEMS)[shuffled] + 1, "vector": rows["image"][shuffled].tolist()})
    frame.write_parquet(folder / "image.parquet")
    files = {"id_features": "id.npy", "text_features": "text.safetensors", "image_features": "image.parquet"}
    numbers = np.arange(1, ITEMS + 1)
    table = {"item_id": numbers, "categories": [f"c{way}" for way in ways["text"]]}
    dataset = load_dataset((np.ones(ITEMS, dtype=int), numbers), items=table)
    return dataset, ways, {name: str(folder / file) for name, file in files.items()}


@pytest.mark.parametrize("source", SOURCES)
def test_each_mix_tells_apart_what_its_parts_do(
    planted: tuple[Dataset, dict[str, np.ndarray], dict[str, str]], source: str
) -> None:
    dataset, ways, files = planted
    kinds = source.split("+")
    count = int(np.prod([WAYS[kind] for kind in kinds]))
    truth = np.ravel_multi_index([ways[kind] for kind in kinds], [WAYS[kind] for kind in kinds])
    best = 0.0
    for seed in range(3):  # k-means may stop short of the planted optimum
        config = SemanticsConfig(semantics=source, num_semantics=count, **files)
        made = make_semantics(config, dataset, seed=seed, train_end=dataset.offsets[1:])
        again = make_semantics(config, dataset, seed=seed, train_end=dataset.offsets[1:])
        np.testing.assert_array_equal(made.table, again.table)
        best = max(best, adjusted_rand_score(truth, made.table[1:]))
    assert best == 1.0
    assert made.source == source
    assert made.count == count + 1
    assert made.report["categories"] == WAYS["text"]
    assert (made.report["purity"] > 0.9) == ("text" in kinds)
    if "text" not in kinds:  # the categories are the text's ways, of which the other kinds know nothing
        assert made.report["purity"] == pytest.approx(made.report["purity_by_chance"], abs=0.1)


def test_ids_come_from_the_training_part_unless_a_file_has_them() -> None:
    """Four groups of items in the training parts; what follows them says the opposite."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 25)
    users = [rng.permutation(np.flatnonzero(group == user % 4))[:12] for user in range(200)]
    later = [rng.integers(0, 100, 12) for _ in users]
    items = np.concatenate([np.concatenate(both) for both in zip(users, later, strict=True)])
    dataset = load_dataset((np.repeat(np.arange(200), 24), items + 100, np.arange(items.size)))
    truth = group[dataset.item_ids.to_numpy() - 100]
    config = SemanticsConfig(semantics="id", num_semantics=4)
    end = dataset.offsets[:-1] + 12
    made = make_semantics(config, dataset, seed=0, train_end=end)
    assert adjusted_rand_score(truth, made.table[1:]) == 1.0
    features = cooccurrence_features(dataset, end, seed=0)
    np.testing.assert_array_equal(made.features, normalised(features))


def test_an_item_needs_one_of_the_parts_of_a_mix(tmp_path: Path) -> None:
    dataset = load_dataset(([1] * 6, list(range(6))))
    np.save(tmp_path / "text.npy", [[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]])
    np.save(tmp_path / "image.npy", [[1.0, 0], [1, 0], [0, 1], [0, 0], [0, 1], [0, 0]])
    files = {"text_features": str(tmp_path / "text.npy"), "image_features": str(tmp_path / "image.npy")}
    config = SemanticsConfig(semantics="text+image", num_semantics=2, **files)
    made = make_semantics(config, dataset, seed=0, train_end=dataset.offsets[1:])
    first, second = made.table[1], made.table[3]
    assert made.table[1:].tolist() == [first, first, second, second, second, 3]
    assert made.report["fallback_items"] == 1


def test_auto_takes_text_where_half_of_the_items_have_any(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset = world[0]
    assert semantics_source(SemanticsConfig(), dataset) == "text"
    bare = load_dataset(([1], [1]))
    assert semantics_source(SemanticsConfig(), bare) == "id"
    blank = load_dataset(([1], [1]), items={"item_id": [1], "title": [" "]})
    assert semantics_source(SemanticsConfig(), blank) == "id"
    for titles, source in (([" ", "drill", "saw"], "text"), ([" ", "", "saw"], "id")):
        some = load_dataset(([1, 1, 1], [1, 2, 3]), items={"item_id": [1, 2, 3], "title": titles})
        assert semantics_source(SemanticsConfig(), some) == source
    assert semantics_source(SemanticsConfig(text_features="some.npy"), bare) == "text"
    assert semantics_source(SemanticsConfig(semantics="image"), dataset) == "image"


def test_planted_categories_become_the_semantics(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    found = make_semantics(SemanticsConfig(semantics="category"), dataset, seed=0, train_end=dataset.offsets[1:])
    pairs = set(zip(found.table[1:].tolist(), truth.semantics[1:].tolist(), strict=True))
    assert len(pairs) == 6


def _short(path: Path) -> None:
    np.save(path, np.ones((7, 2)))


@pytest.mark.parametrize("source", ["image", "id+image", "text+image", "id+text+image"])
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "semantics: expected image_features FILE or image_folder FOLDER for a source with images, got neither"),
        ({"image_features": "short.npy"}, "image_features: expected 60 rows .* got 7"),
        ({"image_folder": "nowhere"}, "image_folder: expected a folder of images, got .*nowhere"),
        ({"num_semantics": 61}, "num_semantics: expected at most the number of items, 60, got 61"),
    ],
)
def test_wrong_features_are_said_before_anything_is_trained(
    world: tuple[Dataset, SyntheticTruth],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    fields: dict[str, object],
    sentence: str,
) -> None:
    _short(tmp_path / "short.npy")
    monkeypatch.setattr("solid_ext.solid.train_solid", lambda *_, **__: pytest.fail("a model was trained"))
    fields = {name: str(tmp_path / value) if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(ValueError, match=sentence):
        SOLID(semantics=source, eval_negatives=5, **fields).fit(world[0])


@pytest.mark.parametrize("source", ["text", "id+text", "id+text+image"])
def test_text_sources_without_text_are_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("solid_ext.solid.train_solid", lambda *_, **__: pytest.fail("a model was trained"))
    bare = load_dataset((np.repeat(np.arange(9), 5), np.arange(45) % 15))
    with pytest.raises(ValueError, match="text_features: expected items with a title or categories, got none"):
        SOLID(semantics=source, eval_negatives=5).fit(bare)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Config().replace(semantics="text+id"), r"semantics: expected one of auto, .* got 'text\+id'"),
        (lambda: Config().replace(semantics="smell"), "semantics: expected one of auto, .* got 'smell'"),
        (lambda: Config().replace(num_semantics=-2), "num_semantics: expected a number, 0 or -1, got -2"),
    ],
)
def test_a_combination_that_cannot_be(make: Callable[[], Config], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.slow
def test_a_run_trains_on_a_mix_and_says_what_it_found(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, truth = world
    np.save(tmp_path / "image.npy", np.eye(8)[truth.semantics[1:]])
    config = Config().replace(
        semantics="id+text+image", image_features=str(tmp_path / "image.npy"), num_semantics=6,
        length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=1, eval_negatives=20,
    )  # fmt: skip
    run = train_run(tmp_path / "run", config, dataset, baseline=False)
    kept = Semantics.load(tmp_path / "run" / "semantics.safetensors")
    np.testing.assert_array_equal(kept.table, run.solid.model.semantics.numpy())
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["semantics"]
    assert told == {"source": "id+text+image", "count": 7, **kept.report}
    assert told["purity"] > told["purity_by_chance"]
    assert [stage["stage"] for stage in run.metrics["stages"]] == ["stage1", "stage2"]
    show_semantics(told)
    printed = capsys.readouterr().out
    for name in ("purity", "purity_by_chance", "nmi", "nmi_by_chance"):
        assert f"{told[name]:.3f}" in printed
    assert f"id+text+image: 6 of {told['smallest']} to {told['largest']} items" in printed
