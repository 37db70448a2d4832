"""Module 1 as configured: which source, its features, their clusters, and how good those are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from solid_ext.config import SemanticsConfig
from solid_ext.data.dataset import Dataset
from solid_ext.data.semantics.category import item_categories, semantics_from_categories
from solid_ext.data.semantics.clusters import concatenate_features, semantics_from_features
from solid_ext.data.semantics.cooccurrence import cooccurrence_features
from solid_ext.data.semantics.files import read_features
from solid_ext.data.semantics.image import image_features
from solid_ext.data.semantics.quality import agreement
from solid_ext.data.semantics.table import Semantics
from solid_ext.data.semantics.text import item_text, text_features
from solid_ext.forked import check_not_forked


def semantics_source(config: SemanticsConfig, dataset: Dataset) -> str:
    """Where the semantics come from; "auto" is text where at least half of the items have any, else the ids.

    That is the rule of thumb where there is nothing to choose by; `fit` chooses on validation rows, see
    `solid_ext.train.semantics.chosen_semantics`.
    """
    if config.semantics != "auto":
        return config.semantics
    return "text" if config.text_features or 2 * item_text(dataset).count() >= dataset.num_items else "id"


def make_semantics(config: SemanticsConfig, dataset: Dataset, *, seed: int, train_end: np.ndarray) -> Semantics:
    """Every item's semantic from its category, or from clusters of id, text and image features.

    A mix is the concatenation of its parts, each L2-normalised. Text and images come first, so that whatever is wrong
    with them is said before the ids are factored.

    Args:
        seed: of the projections and the clustering.
        train_end: `[U] int64`, flat ends of the users' training parts, in which the ids' co-occurrence is counted.

    Returns:
        The semantics; their report says how well they agree with categories, where the items have any.

    Raises:
        ValueError: a source whose features are not there, cannot be read, or do not fit the items.

    Source: docs/method.md#module-1-item-to-semantic.
    """
    check_not_forked("make_semantics")
    source = semantics_source(config, dataset)
    if source == "category":
        return semantics_from_categories(dataset, level=config.category_level, min_items=config.category_min_items)
    _check_count(config, dataset)
    parts = {}
    for kind in sorted(source.split("+"), reverse=True):  # text, image, id
        parts[kind] = _features(kind, config, dataset, seed, train_end)
    features = parts[source] if len(parts) == 1 else concatenate_features(*(parts[kind] for kind in source.split("+")))
    made = semantics_from_features(
        features, config.num_semantics, seed=seed, source=source, num_items=dataset.num_items
    )
    known = agreement(made.table, made.count, item_categories(dataset, level=config.category_level), seed)
    return replace(made, report={**made.report, **known})


def check_semantics(config: SemanticsConfig, dataset: Dataset) -> None:
    """Refuse a source of semantics whose category, files, folder or number the dataset does not have.

    Raises:
        ValueError: as `make_semantics` does, for all that can be known without encoding anything.
    """
    source = semantics_source(config, dataset)
    if source == "category":
        semantics_from_categories(dataset, level=config.category_level, min_items=config.category_min_items)
        return
    _check_count(config, dataset)
    for kind in sorted(source.split("+"), reverse=True):
        file = feature_file(kind, config)
        if file:
            read_features(file, dataset, name=f"{kind}_features")
        elif kind == "image":
            image_folder(config)
        elif kind == "text" and not item_text(dataset).count():
            raise ValueError("text_features: expected items with a title or categories, got none")


def feature_file(kind: str, config: SemanticsConfig) -> str:
    return {"id": config.id_features, "text": config.text_features, "image": config.image_features}[kind]


def _features(kind: str, config: SemanticsConfig, dataset: Dataset, seed: int, train_end: np.ndarray) -> np.ndarray:
    """One kind's features `[V + 1, F]`: from its file if one is named, else made."""
    file = feature_file(kind, config)
    if file:
        return read_features(file, dataset, name=f"{kind}_features")
    if kind == "text":
        return text_features(dataset, encoder=config.text_encoder, seed=seed)
    if kind == "id":
        return cooccurrence_features(dataset, train_end, seed=seed)
    return image_features(dataset, image_folder(config), encoder=config.image_encoder)


def _check_count(config: SemanticsConfig, dataset: Dataset) -> None:
    if config.num_semantics > dataset.num_items:
        raise ValueError(
            f"num_semantics: expected at most the number of items, {dataset.num_items:,}, got {config.num_semantics:,}"
        )


def image_folder(config: SemanticsConfig) -> str:
    if not config.image_folder:
        raise ValueError(
            "semantics: expected image_features FILE or image_folder FOLDER for a source with images, got neither"
        )
    if not Path(config.image_folder).is_dir():
        raise ValueError(f"image_folder: expected a folder of images, got {config.image_folder!r}, which is none")
    return config.image_folder
