"""A model and the neighbourhood of a history, each right where the other is not: their logits added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse
from torch import Tensor

from solid_ext.models.encoder import recency as ages
from solid_ext.models.encoder import valid_mask
from solid_ext.models.itemknn import ItemKNN, last_occurrences

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
FLOORS = (0.01, 0.003, 0.03)
RECENCIES = (1.0, 0.8, 0.6, 0.4)
CONTENTS = (0.0, 0.2, 0.4, 0.8)
ARRAYS = ("data", "indices", "indptr", "shape")


class _State(NamedTuple):
    model: Any
    similar: sparse.csr_array  # [B, V + 1]
    size: Tensor  # [B, 1], n


class WithNeighbours:
    """`logit(v) + w log(1 + s(v) / (floor sqrt(n)))`: a model's logit and ItemKNN's score of one history; a `Scorer`.

    `s(v) = sum_j r^age(j) S(j, v)` over the history's different items, `n = sum_j r^age(j)`, the last item being of
    age 0; S is `ItemKNN`'s. Items that resemble none of the history's keep the model's logit. A network remembers
    pairs badly, and a neighbourhood knows nothing else.

    Args:
        model: a `Scorer` whose scores are logits. knn: of the training part. weight: w, 0 or more. floor: above 0.
        recency: r in (0, 1]; 1 counts all of the history alike.

    Raises:
        ValueError: a weight, floor or recency out of range.

    Source: a product of experts, as in Hinton, Training products of experts by minimizing contrastive divergence, 2002.
    """

    def __init__(self, model: Any, knn: ItemKNN, weight: float, floor: float, recency: float = 1.0) -> None:
        if not weight >= 0:
            raise ValueError(f"WithNeighbours: expected weight >= 0, got {weight}")
        if not floor > 0:
            raise ValueError(f"WithNeighbours: expected floor > 0, got {floor}")
        if not 0 < recency <= 1:
            raise ValueError(f"WithNeighbours: expected 0 < recency <= 1, got {recency}")
        self.model, self.knn, self.weight, self.floor, self.recency = model, knn, weight, floor, recency
        self.length = model.length

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self.model, "device", None) or "cpu")

    @property
    def training(self) -> bool:
        """The model's mode; `eval` and `train` are its own."""
        return bool(getattr(self.model, "training", False))

    def eval(self) -> WithNeighbours:
        self.model.eval()
        return self

    def train(self, mode: bool = True) -> WithNeighbours:
        self.model.train(mode)
        return self

    def encode(self, sequences: Tensor) -> _State:
        """Both states of sequences [B, L] int64."""
        weights = self.recency ** ages(valid_mask(sequences)).double() * last_occurrences(sequences)
        similar = self.knn.weighted(sequences.cpu(), weights.cpu())
        return _State(self.model.encode(sequences), similar, weights.sum(1, keepdim=True).clamp(min=1))

    def score(self, state: _State, candidates: Tensor) -> Tensor:
        """Logits of candidates [B, T] or [T] int64; [B, T]."""
        logits = self.model.score(state.model, candidates)
        similar = self.knn.score(state.similar, candidates.cpu()).to(logits)
        return logits + self.weight * torch.log1p(similar / (self.floor * state.size.sqrt().to(logits)))

    def save(self, path: Path) -> None:
        """Write similarities, weight and floor as one safetensors file; the model is not in it."""
        matrix = self.knn.similarity
        arrays = {"data": matrix.data, "indices": matrix.indices.astype(np.int64), "shape": np.array(matrix.shape)}
        arrays["indptr"] = matrix.indptr.astype(np.int64)
        described = json.dumps({"weight": self.weight, "floor": self.floor, "recency": self.recency})
        save_file(arrays, path, metadata={"neighbours": described})

    @staticmethod
    def load(path: Path, model: Any) -> WithNeighbours:
        """Read what `save` wrote, around a model.

        Raises:
            ValueError: a file that holds something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                described = json.loads((file.metadata() or {})["neighbours"])
                chosen = [float(described[name]) for name in ("weight", "floor", "recency")]
                data, indices, indptr, shape = (file.get_tensor(name) for name in ARRAYS)
            matrix = sparse.csr_array((data, indices, indptr), shape=tuple(int(size) for size in shape))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"load: expected neighbours in {path}, got {error}") from error
        return WithNeighbours(model, ItemKNN.of(matrix, model.length), *chosen)


def choose_neighbours(
    model: Any, knn: ItemKNN, validate: Callable[[Any], float], content: sparse.csr_array | None = None
) -> WithNeighbours:
    """The weight, then floor, recency and share of content, of the best validation metric; of equal ones the first.

    Args:
        content: how items resemble each other, see `content_similarity`; the chosen multiple of it is added to the
            cosines of `knn`. None for none.
    """

    def measured(weight: float, floor: float = FLOORS[0], recency: float = RECENCIES[0]) -> float:
        return validate(WithNeighbours(model, knn, weight, floor, recency))

    weight = max(WEIGHTS, key=measured)
    if not weight:
        return WithNeighbours(model, knn, weight, FLOORS[0])
    floor = max(FLOORS, key=lambda floor: measured(weight, floor))
    recency = max(RECENCIES, key=lambda recency: measured(weight, floor, recency))
    if content is None:
        return WithNeighbours(model, knn, weight, floor, recency)

    def mixed(share: float) -> WithNeighbours:
        both = ItemKNN.of(knn.similarity + share * content, knn.length) if share else knn
        return WithNeighbours(model, both, weight, floor, recency)

    return mixed(max(CONTENTS, key=lambda share: validate(mixed(share))))
