"""What evaluation asks of a model, and the few things it does to one while asking."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from solid_ext.forked import is_forked_child

S = TypeVar("S")


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


def check_scorer(name: str, scorer: Any) -> None:
    """Refuse what is no `Scorer`, in the words of the function `name`.

    Raises:
        TypeError: an object without `length`, `encode` or `score`.
    """
    if not all(hasattr(scorer, part) for part in ("length", "encode", "score")):
        raise TypeError(
            f"{name}: expected a scorer (with length, encode and score; of a SOLID its .scorer), "
            f"got {type(scorer).__name__}"
        )


@contextmanager
def inference(scorer: S) -> Iterator[S]:
    """Runs the body under `torch.inference_mode` and yields the scorer to ask: `in_eval_mode(scorer)`.

    Nothing of the given scorer is written, not even its mode, so that several threads may ask one scorer. A forked
    process asks with one thread: the others stayed with its parent, and OpenMP would wait for them.
    """
    if is_forked_child():
        torch.set_num_threads(1)
    with torch.inference_mode():
        yield in_eval_mode(scorer)


def in_eval_mode(scorer: Any) -> Any:
    """The scorer itself where it is in eval mode, else a view of it that is: the same tensors under other modules.

    A view is a shallow copy of every module (or, of a scorer that is no `nn.Module`, of the object and of the modules
    and scorers that are its attributes) with `training` False; parameters, buffers and everything else are shared.
    A wrapper that has a mode of its own (`training`, `eval`) is switched in its copy.
    """
    if isinstance(scorer, nn.Module):
        return _eval_view(scorer, {}) if any(module.training for module in scorer.modules()) else scorer
    owned = {
        name: value
        for name, value in getattr(scorer, "__dict__", {}).items()
        if isinstance(value, nn.Module) or (hasattr(value, "encode") and hasattr(value, "score"))
    }
    views = {name: in_eval_mode(value) for name, value in owned.items()}
    switched = bool(getattr(scorer, "training", False)) and hasattr(scorer, "eval")
    if not switched and all(views[name] is owned[name] for name in owned):
        return scorer
    view = copy.copy(scorer)
    for name, value in views.items():
        object.__setattr__(view, name, value)
    if switched:
        view.eval()
    return view


def _eval_view(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """A copy of the tree of modules over the same tensors; a module that occurs twice stays one."""
    if id(module) not in seen:
        view = module.__new__(type(module))
        seen[id(module)] = view
        view.__dict__.update(module.__dict__)
        children = {name: None if m is None else _eval_view(m, seen) for name, m in module._modules.items()}
        view.__dict__.update(training=False, _modules=children)
    return seen[id(module)]


def checked_scores(name: str, scorer: Scorer, state: Any, candidates: Tensor, rows: int) -> Tensor:
    """`scorer.score(state, candidates)`, refused unless it is a finite floating `[rows, T]`.

    Raises:
        ValueError: a wrong shape, or a score that is NaN or infinite.
        TypeError: scores that are not floating point.
    """
    return check_scores(name, scorer.score(state, candidates), candidates, rows)


def check_scores(name: str, scores: Tensor, candidates: Tensor, rows: int) -> Tensor:
    """The scores of candidates [T] or [rows, T] themselves, unless they are no finite floating [rows, T].

    Raises: as `checked_scores`.
    """
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
