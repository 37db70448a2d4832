"""What evaluation asks of a model, and the few things it does to one while asking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Scorer(Protocol):
    """Anything that scores candidate items for a sequence: a model, a baseline, a peer's model in a wrapper.

    The sequence is encoded once and scored against any number of candidates. For the log loss a score is
    read as a logit; every other metric depends on the order of the scores alone.

    An optional attribute `device` says where the sequences and candidates have to be (default: the CPU).
    """

    length: int
    """`L`, the number of most recent items that `encode` reads."""

    def encode(self, sequences: Tensor) -> Any:
        """Turns `sequences: [B, L] int64` (oldest first, zeros on the right) into a state."""
        ...

    def score(self, state: Any, candidates: Tensor) -> Tensor:
        """Scores `candidates: [B, T]` (per sequence) or `[T]` (shared) int64; returns `[B, T]` float."""
        ...


def scorer_device(scorer: Scorer) -> torch.device:
    """The scorer's `device` attribute, or the CPU where it has none."""
    return torch.device(getattr(scorer, "device", None) or "cpu")


@contextmanager
def inference(scorer: Scorer) -> Iterator[None]:
    """Runs the body under `torch.inference_mode` with the scorer in eval mode, then restores its mode.

    The mode of every submodule is restored by itself, so that a frozen part of a training model stays in
    eval mode. A scorer that is no `nn.Module` is switched if it has `training`, `eval` and `train`.
    """
    modules = list(scorer.modules()) if isinstance(scorer, nn.Module) else []
    modes = [module.training for module in modules]
    switchable = all(hasattr(scorer, name) for name in ("training", "eval", "train"))
    was_training = bool(getattr(scorer, "training", False))
    try:
        if switchable:
            scorer.eval()  # type: ignore[attr-defined]
        with torch.inference_mode():
            yield
    finally:
        if modules:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
        elif switchable:
            scorer.train(was_training)  # type: ignore[attr-defined]


def checked_scores(name: str, scorer: Scorer, state: Any, candidates: Tensor, rows: int) -> Tensor:
    """`scorer.score(state, candidates)`, refused unless it is a finite floating `[rows, T]`.

    Raises:
        ValueError: a wrong shape, or a score that is NaN or infinite.
        TypeError: scores that are not floating point.
    """
    scores = scorer.score(state, candidates)
    expected = (rows, candidates.shape[-1])
    if tuple(scores.shape) != expected:
        raise ValueError(f"{name}: expected scores [B={rows}, T={expected[1]}], got {list(scores.shape)}")
    if not scores.is_floating_point():
        raise TypeError(f"{name}: expected floating point scores, got {scores.dtype}")
    low, high = torch.aminmax(scores)  # one pass and no array of flags: NaN reaches both ends
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        bad = ~torch.isfinite(scores)
        row, column = (int(index) for index in bad.nonzero()[0])
        item = int(candidates[column] if candidates.dim() == 1 else candidates[row, column])
        kind = "NaN" if bool(scores[row, column].isnan()) else "infinity"
        raise ValueError(
            f"{name}: expected finite scores, got {kind} for item {item} "
            f"({int(bad.sum())} of {scores.numel()} scores in this batch)"
        )
    return scores
