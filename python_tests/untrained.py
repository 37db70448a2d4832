"""Models of random parameters, for tests of what is asked of a model and not of what it has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from scipy import sparse

from solid_ext import SOLID
from solid_ext.data import Catalogue
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import ItemKNN, WithNeighbours
from solid_ext.scorers.finetune import fine_tuned


def random_similarity(size: int, density: float, rng: np.random.Generator) -> sparse.csr_array:
    """A sparse similarity of that many items in float32, as every version of scipy makes it."""
    values = rng.random((size, size), dtype=np.float32)
    return sparse.csr_array(np.where(rng.random((size, size)) < density, values, np.float32(0)))


def untrained(items: int, titles: list[str] | None = None, seed: int = 0, **fields: Any) -> SOLID:
    """A small model with features, 12 semantics and neighbours; item v has the raw id 10 (v - 1)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    solid = SOLID(length=6, dim=16, codebook_hidden=16, **fields)
    features = torch.randn(items + 1, 8)
    features[0] = 0
    semantics = np.concatenate([[0], np.arange(items) % 12 + 1])
    solid.model = DynamicRecommender(solid.config.model, items, semantics, features).eval()
    with torch.no_grad():
        for parameter in (solid.model.item_embedding.feature_map, solid.model.gate):
            if parameter is not None:
                parameter.normal_(std=0.2)
    table = pl.DataFrame({"item_id": np.arange(items) * 10})
    if titles is not None:
        table = table.with_columns(pl.Series("title", titles))
    solid.catalogue = Catalogue(table, rng.integers(0, 50, items))
    similarity = random_similarity(items + 1, 0.2, rng)
    knn = ItemKNN.of(similarity, solid.model.length)
    solid.neighbours = WithNeighbours(fine_tuned(solid.model), knn, 2.0, 0.8)
    return solid
