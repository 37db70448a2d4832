"""A model and the neighbourhood of a history, whose logits are added: each knows what the other does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse
from torch import Tensor

from solid_ext.files import written
from solid_ext.nn.padding import ages, valid_mask
from solid_ext.scorers.itemknn import ItemKNN, last_occurrences

WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DECAYS = (0.8, 1.0, 0.6, 0.4)
CONTENTS = (0.0, 0.2, 0.4, 0.8)
ARRAYS = ("data", "indices", "indptr", "shape")


class _State(NamedTuple):
    model: Any
    added: sparse.csr_array  # [B, V + 1], what is added to the logits


class NoNetwork:
    """A `Scorer` to which all items are alike, with logits of 0: with neighbours around it they alone are ranked by."""

    def __init__(self, length: int) -> None:
        self.length = length

    def encode(self, sequences: Tensor) -> Tensor:
        """0 for each of `sequences: [B, L] int64`, [B, 1]."""
        return torch.zeros(len(sequences), 1, dtype=torch.float64, device=sequences.device)

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        """Logits of 0 of candidates [B, T] or [T] int64; [B, T] float64."""
        return state.expand(len(state), candidates.shape[-1])


class WithNeighbours:
    """A model's logit and ItemKNN's score of the same history, added; a `Scorer`.

    `logit(v) + w s(v) / sqrt(n)`, with `s(v) = sum_j r^age(j) S(j, v)` over the different items j of the history and
    `n = sum_j r^age(j)`. The last item has age 0, and S is the similarity of `ItemKNN`. Items that resemble none of the
    history's keep the model's logit. A network remembers pairs of items badly; a neighbourhood knows nothing else.

    Args:
        model: a `Scorer` whose scores are logits.
        knn: the similarities, counted in the training part.
        weight: w, 0 or more.
        decay: r in (0, 1], by which an item counts less than the one after it; 1 counts all of the history alike.
        content: the multiple of `content_similarity` that `knn` has in it, for who adds items to it.

    Raises:
        ValueError: a weight, decay or content out of range.

    Source: a product of experts, as in Hinton, Training products of experts by minimizing contrastive divergence, 2002.
    """

    def __init__(self, model: Any, knn: ItemKNN, weight: float, decay: float = 1.0, content: float = 0.0) -> None:
        if not weight >= 0:
            raise ValueError(f"WithNeighbours: expected weight >= 0, got {weight}")
        if not 0 < decay <= 1:
            raise ValueError(f"WithNeighbours: expected 0 < decay <= 1, got {decay}")
        if not 0 <= content < float("inf"):
            raise ValueError(f"WithNeighbours: expected content >= 0, got {content}")
        self.model, self.knn, self.weight, self.decay, self.content = model, knn, weight, decay, content
        self.length = model.length

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self.model, "device", None) or "cpu")

    def encode(self, sequences: Tensor) -> _State:
        """The model's state of sequences [B, L] int64, and what is added to its logits."""
        state = self.model.encode(sequences)
        history = sequences.cpu()
        added = self.knn.weighted(history, self._weights(history))
        return _State(state, added)

    def _weights(self, history: Tensor) -> Tensor:
        """What each position's similarities are multiplied by, [B, L] float64; 0 but at an item's last position."""
        counted = self.decay ** ages(valid_mask(history)).double() * last_occurrences(history)
        return self.weight * counted / counted.sum(1, keepdim=True).clamp(min=1).sqrt()

    def contributions(self, history: Tensor, items: Tensor) -> Tensor:
        """What each position of one sequence [1, L] adds to the logits of items [T] int64, [T, L] float64."""
        similar = self.knn.similarity[history[0].numpy()][:, items.numpy()].toarray()  # rows first: they are few
        return torch.from_numpy(similar.T.astype(np.float64)) * self._weights(history)

    def score(self, state: _State, candidates: Tensor) -> Tensor:
        """Logits of candidates [B, T] or [T] int64; [B, T]."""
        logits = self.model.score(state.model, candidates)
        return logits + self.knn.score(state.added, candidates.cpu()).to(logits)

    def narrow(self) -> WithNeighbours:
        """The same with similarities in float32, as a served model has them.

        On Amazon Scientific this changes none of the 8,442 ranks.
        """
        similarity = self.knn.similarity.astype(np.float32)
        return WithNeighbours(
            self.model, ItemKNN.of(similarity, self.knn.length), self.weight, self.decay, self.content
        )

    def save(self, path: Path) -> None:
        """Write similarities, weight, decay and content, but not the model, as one safetensors file.

        Indices are as narrow as V allows, similarities as they are held. A weight of 0 needs no similarities.

        Raises:
            ValueError: it cannot be written.
        """
        matrix = self.knn.similarity if self.weight else sparse.csr_array(self.knn.similarity.shape)
        narrow = np.uint16 if matrix.shape[1] <= 2**16 else np.int32
        arrays = {
            "data": matrix.data,
            "indices": matrix.indices.astype(narrow),
            "indptr": matrix.indptr.astype(np.int32 if matrix.nnz < 2**31 else np.int64),
            "shape": np.array(matrix.shape),
        }
        described = json.dumps({"weight": self.weight, "decay": self.decay, "content": self.content})
        with written(path) as partial:
            save_file(arrays, partial, metadata={"neighbours": described})

    @staticmethod
    def load(path: Path, model: Any) -> WithNeighbours:
        """Read what `save` wrote, around a model.

        Raises:
            ValueError: a file that holds something else, or similarities of other items than the model's.
        """
        try:
            with safe_open(path, framework="np") as file:
                described = json.loads((file.metadata() or {})["neighbours"])
                if not isinstance(described, dict) or {*described, "content"} != {"weight", "decay", "content"}:
                    raise ValueError(f"settings {described!r:.80}")
                weight, decay = float(described["weight"]), float(described["decay"])
                content = float(described.get("content", 0.0))  # which models of earlier versions do not tell
                data, indices, indptr, shape = (file.get_tensor(name) for name in ARRAYS)
            matrix = _checked_matrix(data, indices, indptr, shape, model.num_items + 1)
            return WithNeighbours(model, ItemKNN.of(matrix, model.length), weight, decay, content)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"load: expected neighbours in {path}, got {error}") from error


def _checked_matrix(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray, size: int
) -> sparse.csr_array:
    """The sparse matrix [size, size]; scipy checks nothing of it, and would follow any index.

    Raises:
        ValueError: arrays that are no such matrix of finite numbers of 0 or more.
    """
    if shape.tolist() != [size, size]:
        raise ValueError(f"similarities {shape.tolist()!s:.80} for a model of {size - 1} items")
    if data.dtype not in (np.float32, np.float64) or data.ndim != 1 or not (data >= 0).all() or np.isinf(data).any():
        raise ValueError("similarities that are no finite numbers of 0 or more")
    if indices.dtype.kind not in "iu" or indices.shape != data.shape:
        raise ValueError(f"indices {indices.dtype} {list(indices.shape)} of {len(data)} similarities")
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ValueError(f"indices {indices.min()} .. {indices.max()} of {size - 1} items")
    if indptr.dtype.kind not in "iu" or indptr.shape != (size + 1,):
        raise ValueError(f"row ends {indptr.dtype} {list(indptr.shape)} of {size - 1} items")
    ends = indptr.astype(np.int64)
    if ends[0] != 0 or ends[-1] != len(data) or (np.diff(ends) < 0).any():
        raise ValueError("row ends that do not rise from 0 to the number of similarities")
    wide = np.int32 if len(data) < 2**31 else np.int64
    return sparse.csr_array((data, indices.astype(wide), ends.astype(wide)), shape=(size, size))


class _AskedAgain:
    """A model that keeps what it was last asked, and gives it again without work; a `Scorer`."""

    def __init__(self, model: Any) -> None:
        self.model, self.length = model, model.length
        self.sequences: Tensor | None = None
        self.candidates: Tensor | None = None
        self.state: Any = None
        self.logits: Any = None

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self.model, "device", None) or "cpu")

    def encode(self, sequences: Tensor) -> Any:
        if self.sequences is None or not torch.equal(self.sequences, sequences):
            self.sequences, self.state, self.candidates = sequences, self.model.encode(sequences), None
        return self.state

    def score(self, state: Any, candidates: Tensor) -> Tensor:
        """The logits of the state that `encode` gave last."""
        if self.candidates is None or not torch.equal(self.candidates, candidates):
            self.candidates, self.logits = candidates, self.model.score(state, candidates)
        return self.logits


def choose_neighbours(
    model: Any,
    knn: ItemKNN,
    validate: Callable[[list[WithNeighbours]], list[float]],
    content: sparse.csr_array | None = None,
) -> WithNeighbours:
    """Choose weight, decay and share of content, one after the other, each the best on validation given the others.

    The round begins again until it changes nothing. Among equally good values the first one is chosen.

    The values that are compared are validated together: where `validate` asks all of their scorers about a batch of
    rows before the next one, as `Validation.of_each` does, the model encodes and scores the batch once for all.

    Args:
        model: a `Scorer` whose scores are logits.
        knn: the similarities, counted in the training part.
        validate: the metric of each scorer on the validation rows, larger being better.
        content: how much the items' features resemble each other, see `content_similarity`; the chosen multiple of it
            is added to the cosines of `knn`. None for none.

    Returns:
        The model with the neighbours that were chosen; a weight of 0 where none made it better.
    """

    @lru_cache(maxsize=1)  # most settings that follow each other have the same share
    def mixed(share: float) -> ItemKNN:
        return ItemKNN.of(knn.similarity + content * share, knn.length) if content is not None and share else knn

    once = _AskedAgain(model)
    measured: dict[tuple[float, ...], float] = {}
    choices = (WEIGHTS, DECAYS, CONTENTS if content is not None else CONTENTS[:1])
    chosen, before = tuple(values[0] for values in choices), None
    while chosen != before:
        before = chosen
        for place, values in enumerate(choices):
            settings = [(*chosen[:place], value, *chosen[place + 1 :]) for value in values]
            new = [setting for setting in settings if setting not in measured]
            scorers = [WithNeighbours(once, mixed(share), weight, decay) for weight, decay, share in new]
            measured.update(zip(new, validate(scorers), strict=True))
            chosen = max(settings, key=measured.__getitem__)
    weight, decay, share = chosen
    return WithNeighbours(model, mixed(share), weight, decay, share)
