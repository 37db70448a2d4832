"""The model for use: trained again on all interactions, for as long as validation has chosen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from solid_ext.config import Config
from solid_ext.data import Dataset, Semantics, everything, make_semantics
from solid_ext.files import read_json, write_json
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import WithNeighbours
from solid_ext.train.algorithm import train_solid
from solid_ext.train.neighbourhood import counted_neighbours
from solid_ext.train.progress import Reporter
from solid_ext.train.stage_folder import Stage

CHOSEN = "chosen.json"


def refit_solid(
    config: Config,
    dataset: Dataset,
    semantics: Semantics,
    stages: Sequence[Stage],
    neighbours: WithNeighbours | None,
    *,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[DynamicRecommender, WithNeighbours | None, list[Stage]]:
    """Algorithm 1 on all interactions, each stage for the epochs that were best on validation.

    The parameters start from the same seed. Neighbours have the settings that were chosen, and are counted in all
    interactions. There is nothing left to measure the result on.

    Args:
        semantics: of the items, made of all interactions.
        stages: of the training whose epochs are taken.
        neighbours: that were chosen then.
        folder: as that of `train_solid`; what is there of another choice is deleted.

    Source: docs/keeping_up.md#the-model-for-use.
    """
    epochs = {stage.name: stage.best.epoch for stage in stages}
    if folder is not None:
        _begin(folder, epochs)
    features = None if semantics.features is None else torch.from_numpy(semantics.features)
    split = everything(dataset)
    model, again = train_solid(
        config,
        dataset,
        split,
        semantics.table,
        None,
        features=features,
        epochs=epochs,
        folder=folder,
        reporter=reporter,
    )
    return model, counted_neighbours(neighbours, model, dataset, semantics.features), again


def semantics_of_everything(config: Config, dataset: Dataset, semantics: Semantics) -> Semantics:
    """The semantics as the configuration makes them of all interactions, as many as they are.

    Those that interactions have no part in stay as they are.
    """
    if "id" not in semantics.source.split("+") or config.semantics.id_features or semantics.features is None:
        return semantics
    source: Any = semantics.source  # one of the configuration's names: the configuration made it
    same_count = replace(config.semantics, semantics=source, num_semantics=semantics.count - 1)
    return make_semantics(same_count, dataset, seed=config.train.seed, train_end=dataset.offsets[1:])


def _begin(folder: Path, epochs: dict[str, int]) -> None:
    """Write down the epochs that are to be trained, and delete what was trained for others."""
    with suppress(ValueError):
        if read_json(folder / CHOSEN, "refit") == {"epochs": epochs}:
            return
    for name in epochs:
        shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / CHOSEN, {"epochs": epochs})
