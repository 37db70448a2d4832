"""The vectors whose products are the network's logits: of items, of users, and how items resemble each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.data import Catalogue
from solid_ext.evaluate.scorer import inference
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import FineTuned
from solid_ext.serve.histories import checked_count, checked_list, flattened, known_histories, known_items
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.recommend import Recommendation, entries
from solid_ext.serve.top_items import ROWS, top_items


def item_vectors(model: DynamicRecommender, table: ItemTable | None = None) -> Tensor:
    """The target vectors t(v) of all items, [V, d] on the model's device; row v - 1 is item v's.

    They hold the item's embedding, its features and the target tower. `<u, t(v)>` with u of `user_vectors` is the
    network's logit; neighbours are in no vector.
    """
    with inference(model) as asked:
        keys = (table or ItemTable()).of(asked)
        return asked.target[2](keys) if isinstance(asked.target, nn.Sequential) else keys


def user_vectors(
    network: DynamicRecommender | FineTuned,
    catalogue: Catalogue,
    histories: Sequence[Sequence[Any]],
    *,
    unknown: str = "error",
) -> np.ndarray:
    """The user states u of histories, [B, d]: `u @ item_vectors.T` are the network's logits, without any bias.

    What `SOLID.recommend` adds to these logits has no vector: the neighbours of the history's items, and popularity in
    place of them for an empty history.

    Raises:
        ValueError: an unknown item, an empty history, a backbone whose user state depends on the candidate (din).
        TypeError: as `recommend`.
    """
    model = network.model if isinstance(network, FineTuned) else network
    if model.reads_candidates:
        raise ValueError(
            "user_vectors: expected a backbone with one state a user, got "
            f"{model.config.backbone!r}, whose state depends on the candidate"
        )
    known = known_histories("user_vectors", catalogue, histories, unknown)
    empty = [place for place, items in enumerate(known) if not len(items)]
    if empty:
        raise ValueError(
            "user_vectors: expected an item that the model knows in every history, got none in history "
            f"{empty[0]} (a newcomer gets popular items, of which no vector tells)"
        )
    found = [np.zeros((0, model.config.dim), np.float32)]
    with inference(network) as asked:
        for first in range(0, len(known), ROWS):
            _, _, sequences = flattened(known[first : first + ROWS], network.length)
            state: Any = asked.encode(sequences.to(network.device))
            found.append(state.cpu().numpy())
    return np.concatenate(found[1:] or found)


class _Cosine:
    """A `Scorer` of how much an item resembles the one item of the sequence."""

    length = 1

    def __init__(self, unit: Tensor) -> None:
        self.unit, self.device = unit, unit.device

    def encode(self, sequences: Tensor) -> Tensor:
        return self.unit[sequences[:, 0] - 1]

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        return state @ self.unit[candidates - 1].T


def similar_items(
    model: DynamicRecommender,
    catalogue: Catalogue,
    items: Sequence[Any],
    k: int,
    *,
    table: ItemTable | None = None,
) -> list[list[Recommendation]]:
    """The k items most like each item: `cos(t(v), t(w))` of the item vectors, the item itself left out.

    An item whose vector is zero resembles none, with a cosine of 0. Memory: V d values, and as `top_items`.

    Args:
        items: raw ids.

    Returns:
        For each item up to k others with their cosines as scores, the most similar first; of equal ones the lower item.

    Raises:
        ValueError: k < 1, an unknown item.
        TypeError: a k that is no integer, items that are no list of ids.
    """
    k = min(checked_count("similar_items", k), catalogue.num_items)
    asked = checked_list("similar_items", "items", items)
    known = known_items("similar_items", "items", catalogue, [asked], "refuse")[0]
    with torch.inference_mode():
        unit = F.normalize(item_vectors(model, table), dim=1)
    scores, found = top_items(_Cosine(unit), catalogue.num_items, list(known.unsqueeze(1)), k, True)
    return entries(catalogue, scores, found)
