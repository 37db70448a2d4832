"""A trained model that goes on: with more interactions, users and items, for a few epochs from where it is."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from solid_ext.config import Config
from solid_ext.data import Catalogue, Dataset, Semantics, Split, everything
from solid_ext.data.catalogue import listed
from solid_ext.data.dataset import NOTE, read_items
from solid_ext.data.growth import expect_ids_like, joined_items
from solid_ext.data.prepare import align_items
from solid_ext.data.semantics import Added, more_semantics
from solid_ext.evaluate import Validation
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import WithNeighbours
from solid_ext.train.grow import grow_model
from solid_ext.train.neighbourhood import chosen_neighbours, counted_neighbours, grown_neighbours
from solid_ext.train.progress import Reporter
from solid_ext.train.stage import Stage, train_stage

EPOCHS = 5  # of an update at most


class Updated(NamedTuple):
    """What an update left.

    Attributes:
        model: trained on all that is new, for use.
        neighbours: of that model.
        validated: what was validated on the newest interactions, and not trained on them.
        stages: the logs of both.
    """

    model: DynamicRecommender
    neighbours: WithNeighbours | None
    validated: DynamicRecommender | WithNeighbours
    stages: list[Stage]


def update_solid(
    config: Config,
    model: DynamicRecommender,
    dataset: Dataset,
    split: Split,
    semantics: Semantics,
    fresh: np.ndarray,
    *,
    after: int | None = None,
    epochs: int = EPOCHS,
    reporter: Reporter | None = None,
) -> Updated:
    """Train the model of the items on, on what is new, twice from the same start: validated, and then with all of that.

    The semantic trunk, the codebook and both generators are in the model of stage 2 and go on with it by Eq. 13;
    stage 1 makes a start, and an update has a better one. Epochs and neighbours are chosen on the validation rows.

    Args:
        model: the trained network, which is not changed.
        dataset: in the model's order of items, see `solid_ext.data.in_order_of`.
        split: that holds out the newest interactions, see `solid_ext.data.newest`.
        semantics: of all items, see `solid_ext.data.semantics.more_semantics`.
        fresh: [V' + 1] bool, items that the model was not trained on.
        after: the latest time that the model was trained on.
        epochs: at most so many.

    Source: docs/keeping_up.md#updates.
    """
    features = None if semantics.features is None else torch.from_numpy(semantics.features)

    def go_on(name: str, rows: Split, validation: Validation | None, most: int) -> tuple[DynamicRecommender, Stage]:
        started = grow_model(model, config, semantics.table, features, fresh)
        train = replace(config.train, epochs=most)
        return started, train_stage(name, started, dataset, rows, train, validation, reporter=reporter)

    validated, stage = go_on("update", split, Validation(config, dataset, split), epochs)
    chosen = chosen_neighbours(config, validated, dataset, split, semantics.features)
    used, again = go_on("refit", everything(dataset, after), None, stage.best.epoch)
    counted = counted_neighbours(chosen, used, dataset, semantics.features)
    return Updated(used, counted, validated if chosen is None else chosen, [stage, again])


def more_of(
    config: Config, model: DynamicRecommender, catalogue: Catalogue, dataset: Dataset, given: Dataset, first: int
) -> tuple[Semantics, np.ndarray]:
    """The semantics of a dataset's items, the model's first, and which of them the model has not been trained on.

    Ids are counted in all interactions, as the semantics of `refit` are.

    Args:
        dataset: in the model's order of items.
        given: the same in its own.
        first: how many items the model was first trained with.
    """
    added = Added(dataset.item_table, first, dataset, dataset.offsets[1:], given)
    return more_semantics(config.semantics, _known(model), added, seed=config.train.seed), _fresh(catalogue, dataset)


def add_items(
    config: Config,
    model: DynamicRecommender,
    neighbours: WithNeighbours | None,
    catalogue: Catalogue,
    items: Any,
    first: int,
    named: dict[str, str | None],
) -> tuple[DynamicRecommender, WithNeighbours | None, Catalogue]:
    """The model, its neighbours and its catalogue with items that nobody has had; see `SOLID.add_items`.

    Args:
        named: as of `read_items`.
    """
    _expect_no_truths(items)
    described, notes = read_items(items, "item_id", named)
    ids = described["item_id"].drop_nulls().unique(maintain_order=True)
    ids = ids.filter(pl.Series(catalogue.item_index(ids) == 0))
    expect_ids_like("add_items", catalogue.table["item_id"], ids)
    if not ids.len():
        raise ValueError(
            f"add_items: expected items that the model has not yet, got none among {len(described):,} rows"
        )
    for name, note in notes.items():
        if name.startswith(NOTE):
            warnings.warn(f"add_items: {note}", stacklevel=3)
    aligned, counted = align_items(described, ids)
    for count, which in (
        (counted["metadata_without_ids"], "without an id"),
        (counted["metadata_duplicates"], "with an id that came before"),
    ):
        if count:
            warnings.warn(f"add_items: left out {count:,} of {len(described):,} rows, {which}", stacklevel=3)
    table = joined_items(catalogue.table, aligned)
    counts = None if catalogue.counts is None else np.append(catalogue.counts, np.zeros(ids.len(), dtype=np.int64))
    grown = Catalogue(table, counts)
    semantics = more_semantics(config.semantics, _known(model), Added(table, first), seed=config.train.seed)
    features = None if semantics.features is None else torch.from_numpy(semantics.features)
    fresh = np.arange(len(table) + 1) > catalogue.num_items
    # On the device where the model is, which need not be the configuration's.
    here = config.replace(device=str(model.device), tf32=False) if model.device.type == "cpu" else config
    network = grow_model(model, here, semantics.table, features, fresh)
    return network, grown_neighbours(neighbours, network, semantics.features), grown


def _expect_no_truths(items: Any) -> None:
    """Refuse True and False as ids, which would be read as the text "true" and "false", by which nobody asks."""
    try:
        ids = listed(items["item_id"])
    except (KeyError, TypeError, IndexError, pl.exceptions.PolarsError):  # a path, or no such column
        return
    if any(isinstance(value, (bool, np.bool_)) for value in ids or ()):
        raise TypeError("add_items: expected item ids as numbers, text or times, got True or False")


def _known(model: DynamicRecommender) -> Semantics:
    """The semantics and features that a model holds."""
    table, features = model.semantics.cpu().numpy(), model.item_embedding.features
    return Semantics(table, int(table.max()), "model", features=None if features is None else features.cpu().numpy())


def _fresh(catalogue: Catalogue, dataset: Dataset) -> np.ndarray:
    """[V' + 1] bool: the items that are new, and those of the catalogue that had no interactions to train on."""
    fresh = np.arange(dataset.num_items + 1) > catalogue.num_items
    if catalogue.counts is not None:
        fresh[1 : catalogue.num_items + 1] = catalogue.counts == 0
    return fresh
