"""Checks of what a scorer is asked, made before its tables are read, as an id past their end would read elsewhere."""

from __future__ import annotations

from torch import Tensor

from solid_ext.ops._arguments import expect_ids, expect_tensor


def check_sequences(sequences: Tensor, num_items: int, length: int | None = None) -> None:
    """Refuse what is no `[B, L]` int64 of item ids 0 .. V, with L up to `length` where one is given.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: another shape, or an id out of range (on a GPU the lookup refuses it, as reading it here would wait
            for the device).
    """
    expect_tensor("encode", "sequences", sequences)
    if sequences.dim() != 2 or sequences.shape[1] < 1 or (length is not None and sequences.shape[1] > length):
        longest = "L >= 1" if length is None else f"L in 1 .. {length}"
        raise ValueError(f"encode: expected sequences [B, L] with {longest}, got {list(sequences.shape)}")
    expect_ids("encode", sequences, num_items + 1, "sequences of item ids")


def check_candidates(candidates: Tensor, num_items: int, batch: int | None = None) -> None:
    """Refuse what is no `[B, T]` or `[T]` int64 of item ids 0 .. V, for `batch` sequences where their number is given.

    Raises: as `check_sequences`.
    """
    expect_tensor("score", "candidates", candidates)
    rows = candidates.shape[0] if candidates.dim() == 2 else batch
    if candidates.dim() not in (1, 2) or (batch is not None and rows != batch):
        expected = "[B, T]" if batch is None else f"[B={batch}, T]"
        raise ValueError(f"score: expected candidates {expected} or [T], got {list(candidates.shape)}")
    expect_ids("score", candidates, num_items + 1, "candidates of item ids")
