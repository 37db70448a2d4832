"""What a model is asked is checked before its tables are read: an id or a position past their end reads elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_sequences(sequences: Any, num_items: int, length: int | None = None) -> None:
    """Refuse what is no `[B, L]` int64 of ids 0 .. V, with L up to `length` where one is given.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: another shape, or an id out of range.
    """
    _check_ids("encode: expected sequences", sequences, num_items)
    if sequences.dim() != 2 or sequences.shape[1] < 1 or (length is not None and sequences.shape[1] > length):
        longest = "L >= 1" if length is None else f"L in 1..{length}"
        raise ValueError(f"encode: expected sequences [B, L] with {longest}, got {list(sequences.shape)}")


def check_candidates(candidates: Any, num_items: int) -> None:
    """Refuse what is no `[B, T]` or `[T]` int64 of ids 0 .. V.

    Raises: as `check_sequences`.
    """
    _check_ids("score: expected candidates", candidates, num_items)
    if candidates.dim() not in (1, 2):
        raise ValueError(f"score: expected candidates [B, T] or [T], got {list(candidates.shape)}")


def _check_ids(what: str, ids: Any, high: int) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{what} as an int64 tensor, got {got}")
    if not ids.numel() or torch.compiler.is_compiling():
        return
    least, most = (int(end) for end in torch.aminmax(ids))
    if least < 0 or most > high:
        raise ValueError(f"{what} of ids in 0..{high}, got {least}..{most}")
