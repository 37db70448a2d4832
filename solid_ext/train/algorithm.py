"""Algorithm 1: the semantic generator first, then both generators, tied by the codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from solid_ext.config import Config, ModelConfig
from solid_ext.data import Dataset, Split
from solid_ext.models import DynamicRecommender
from solid_ext.train.progress import Reporter
from solid_ext.train.stage import Stage, train_stage

Validate = Callable[[DynamicRecommender], float]


def build_model(
    config: Config, model: ModelConfig, num_items: int, semantics: np.ndarray
) -> DynamicRecommender:
    """A network with parameters drawn from the configuration's seed alone, in its dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return DynamicRecommender(model, num_items, semantics).to(getattr(torch, config.train.dtype))


def static_model(model: ModelConfig) -> ModelConfig:
    """The static method: an MLP where the others generate weights."""
    return replace(model, semantic_trunk=False, item_branch=False)


def train_static(
    config: Config,
    dataset: Dataset,
    split: Split,
    validate: Validate,
    *,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[DynamicRecommender, Stage]:
    """Train the static backbone that SOLID is compared with, and whose item embeddings can be clustered."""
    no_semantics = np.minimum(np.arange(dataset.num_items + 1), 1)
    model = build_model(config, static_model(config.model), dataset.num_items, no_semantics)
    stage = train_stage(
        "static", model, dataset, split, config.train, validate, folder=folder, reporter=reporter
    )
    return model, stage


def train_solid(
    config: Config,
    dataset: Dataset,
    split: Split,
    semantics: np.ndarray,
    validate: Validate,
    *,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[DynamicRecommender, list[Stage]]:
    """Train both stages.

    Stage 1 minimises Eq. 12 over the semantic generator and the network around it; the codebook is then its semantic
    embedding table; stage 2 minimises Eq. 13 over everything, from stage 1's parameters (warm) or from random ones
    (cold). A configuration without a trunk or without an item branch has one stage.

    Args:
        semantics: [V + 1] int64 from Module 1. folder: holds a sub-folder a stage; what is there is resumed.

    Source: paper, Algorithm 1.
    """

    def train(name: str, model: DynamicRecommender) -> Stage:
        where = None if folder is None else folder / name
        return train_stage(
            name, model, dataset, split, config.train, validate, folder=where, reporter=reporter
        )

    full = build_model(config, config.model, dataset.num_items, semantics)
    if not (config.model.semantic_trunk and config.model.item_branch):
        name = "stage1" if config.model.semantic_trunk else "stage2" if config.model.item_branch else "static"
        return full, [train(name, full)]
    trunk = build_model(config, replace(config.model, item_branch=False), dataset.num_items, semantics)
    first = train("stage1", trunk)
    if config.train.stage2_start == "warm":
        full.load_state_dict(trunk.state_dict(), strict=False)
    full.initialise_codebook(trunk.semantic_embedding.table.weight.detach()[1:])
    return full, [first, train("stage2", full)]
