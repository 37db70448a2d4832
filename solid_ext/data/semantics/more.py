"""Semantics of items that came after the semantics were made: the nearest cluster, without clustering again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from solid_ext.config import SemanticsConfig
from solid_ext.data.dataset import Dataset
from solid_ext.data.growth import of_items
from solid_ext.data.semantics.category import item_categories, semantics_from_categories
from solid_ext.data.semantics.clusters import concatenate_features, normalised
from solid_ext.data.semantics.cooccurrence import cooccurrence_features, folded_in
from solid_ext.data.semantics.files import read_features
from solid_ext.data.semantics.image import image_features
from solid_ext.data.semantics.make import feature_file, image_folder, semantics_source
from solid_ext.data.semantics.quality import sizes
from solid_ext.data.semantics.table import Semantics
from solid_ext.data.semantics.text import text_features

TOLERANCE = 0.01  # between features made again and those that a model has: rounding is a hundredth of it


@dataclass(frozen=True, eq=False)
class Added:
    """The items of a model and those that are added to it, by the model's numbers.

    Attributes:
        table: `[V']` rows, the model's V items first.
        first: of them, how many the model was first trained with: the text features are of their words.
        dataset: the interactions of all of them; None where there are none to be had.
        train_end: `[U] int64`, flat ends of what may be counted in the dataset.
        given: the dataset in its own order of items, which a file of features may have; None as above.
    """

    table: pl.DataFrame
    first: int
    dataset: Dataset | None = None
    train_end: np.ndarray | None = None
    given: Dataset | None = None


def more_semantics(config: SemanticsConfig, known: Semantics, added: Added, *, seed: int) -> Semantics:
    """The semantics of a model's items and of those that are added, made as the configuration says.

    Items that the model has keep their semantic and features, but for those that had no features: they are treated
    as new ones. A new item's features are in the space of the known ones: text by the words and projection of the first
    items, ids by the features of the items that it stands near, files and encoders of one item at a time as ever. Its
    semantic is that whose centre, the mean of its known items, is nearest; without features, or in a category that
    none has, it is the fallback, which is a new semantic where the model had no use for one.

    Args:
        known: table `[V + 1]`, and features `[V + 1, F]` where the model holds any.
        seed: that of the training, which the text features were made with.

    Returns:
        Table `[V' + 1]`; features `[V' + 1, F]`, None for categories.

    Raises:
        ValueError: features that cannot be made again as they were.

    Source: docs/keeping_up.md#new-items.
    """
    source = semantics_source(config, of_items(added.table[: added.first]))
    if source == "category":
        return _by_category(config, known, added)
    features, held = _features(source, config, known, added, seed)
    size, had = len(added.table) + 1, len(known.table)
    kept = np.zeros(size, dtype=bool)
    kept[:had] = features[:had].any(axis=1) if held is None else held.any(axis=1)
    fallback = _fallback(known, kept[:had])
    table = np.full(size, fallback, dtype=np.int64)
    table[:had] = known.table
    if held is not None:
        features[:had][kept[:had]] = held[kept[:had]]
    new = features.any(axis=1) & ~kept
    new[0] = False
    if new.any() and kept.any():
        table[new] = _nearest(features[new], features[kept], table[kept])
    count = max(int(table.max()), fallback)
    return Semantics(table, count, source, report=sizes(table, count), features=features)


def _fallback(known: Semantics, kept: np.ndarray) -> int:
    """The semantic of known items without features; the next number where all have some, or none has."""
    without = known.table[1:][~kept[1:]]
    return int(without[0]) if without.size and kept.any() else int(known.table.max()) + 1


def _nearest(points: np.ndarray, members: np.ndarray, semantic: np.ndarray) -> np.ndarray:
    """The semantic whose members' mean is nearest to each point: what k-means assigns."""
    found, place = np.unique(semantic, return_inverse=True)
    centres = np.zeros((found.size, members.shape[1]))
    np.add.at(centres, place, members)
    centres /= np.bincount(place)[:, None]
    distance = (centres**2).sum(1) - 2 * points.astype(np.float64) @ centres.T
    return found[distance.argmin(1)]


def _by_category(config: SemanticsConfig, known: Semantics, added: Added) -> Semantics:
    first = of_items(added.table[: added.first])
    made = semantics_from_categories(first, level=config.category_level, min_items=config.category_min_items)
    if not np.array_equal(made.table, known.table[: added.first + 1]):
        raise ValueError(
            "update: expected semantics of the categories that the model's items have, got others (it was fitted "
            "with semantics of one's own)"
        )
    assert made.names is not None
    number = {name: semantic for semantic, name in enumerate(made.names, 1)}
    table = np.zeros(len(added.table) + 1, dtype=np.int64)
    of_all = item_categories(of_items(added.table), level=config.category_level).to_list()
    table[1:] = [made.fallback if text is None else number.get(text, made.fallback) for text in of_all]
    table[: len(known.table)] = known.table
    return Semantics(table, made.count, made.source, made.names, sizes(table, made.count))


def _features(
    source: str, config: SemanticsConfig, known: Semantics, added: Added, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features `[V' + 1, F]` of all items, and those `[V + 1, F]` that the model holds, if it does."""
    kinds, held = source.split("+"), known.features
    parts = {kind: _part(kind, config, added, seed) for kind in kinds if kind != "id" or config.id_features}
    if "id" in kinds and "id" not in parts:
        width = None if held is None else held.shape[1] - sum(part.shape[1] for part in parts.values())
        parts["id"] = _of_ids(added, None if held is None else held[:, :width], seed)  # ids come first in a source
    made = [normalised(parts[kind]) for kind in kinds]
    features = made[0] if len(made) == 1 else normalised(concatenate_features(*made))
    if held is not None:
        expect_same(features, held, known, text=kinds == ["text"])
    return features, held


def expect_same(features: np.ndarray, held: np.ndarray, known: Semantics, *, text: bool) -> None:
    """Refuse features of another space than the model's.

    Raises:
        ValueError: of another width; text features of the model's own items that are not those it holds.
    """
    if features.shape[1] != held.shape[1]:
        raise ValueError(
            f"update: expected {held.shape[1]} features of each item, as the model has, got {features.shape[1]}"
        )
    had = held.any(axis=1)
    if text and had.any() and np.abs(features[: len(held)][had] - held[had]).max() > TOLERANCE:
        raise ValueError(
            "update: expected the text features that the model was trained with, got others (it was fitted with "
            "features of one's own, or by another version of scikit-learn: train it again)"
        )


def _part(kind: str, config: SemanticsConfig, added: Added, seed: int) -> np.ndarray:
    file = feature_file(kind, config)
    items = of_items(added.table)
    if file and added.given is None:
        return read_features(file, items, name=f"{kind}_features")
    if file:
        given = added.given
        assert given is not None
        own = read_features(file, given, name=f"{kind}_features")
        number = given.item_index(items.item_ids)
        return own[np.concatenate(([0], number))]
    if kind == "text":
        return text_features(items, encoder=config.text_encoder, seed=seed, first=added.first)
    return image_features(items, image_folder(config), encoder=config.image_encoder)


def _of_ids(added: Added, held: np.ndarray | None, seed: int) -> np.ndarray:
    """Features of ids by what they stand near; zeros where there are no interactions to tell."""
    size = len(added.table) + 1
    if held is None:
        if added.dataset is None or added.train_end is None:
            return np.zeros((size, 1), dtype=np.float32)
        return cooccurrence_features(added.dataset, added.train_end, seed=seed)
    features = np.zeros((size, held.shape[1]), dtype=np.float32)
    features[: len(held)] = normalised(held)
    if added.dataset is None or added.train_end is None:
        return features
    found = folded_in(added.dataset, added.train_end, features)
    unknown = ~features.any(axis=1)
    features[unknown] = found[unknown]
    return features
