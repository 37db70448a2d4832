"""A model, and popularity for users without a history."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from solid_ext.scorers.popularity import log_odds


class _State(NamedTuple):
    model: Any
    new: Tensor  # [B] bool, sequences of padding alone


class WithNewcomers:
    """A model's logits, and for an empty sequence the log odds of `Popularity`; a `Scorer`.

    No row that a model is trained on has an empty history, so that its state of one is as random as its start.

    Args:
        model: a `Scorer`.
        counts: [V] integers, how often each item was interacted with in the training part.
    """

    def __init__(self, model: Any, counts: Tensor) -> None:
        self.model, self.counts, self.length = model, counts, model.length

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self.model, "device", None) or "cpu")

    def encode(self, sequences: Tensor) -> _State:
        """The model's state of sequences [B, L] int64, and which of them hold nothing."""
        return _State(self.model.encode(sequences), (sequences == 0).all(1))

    def score(self, state: _State, candidates: Tensor) -> Tensor:
        """Logits of candidates [B, T] or [T] int64; [B, T]."""
        logits = self.model.score(state.model, candidates)
        if not state.new.any():
            return logits
        popular = log_odds(self.counts)[candidates.cpu() - 1].to(logits)
        return torch.where(state.new.unsqueeze(1), popular, logits)
