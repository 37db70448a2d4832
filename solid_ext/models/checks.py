"""What the networks ask of sequences and candidates before they read a row for them."""

from __future__ import annotations

from torch import Tensor

from solid_ext.ops._arguments import expect_ids, expect_tensor


def check_sequences(sequences: Tensor, length: int, num_items: int) -> None:
    """ValueError or TypeError unless these are sequences [B, 1 .. length] int64 of item ids 0 .. num_items."""
    expect_tensor("encode", "sequences", sequences)
    if sequences.dim() != 2 or not 1 <= sequences.shape[1] <= length:
        raise ValueError(f"encode: expected sequences [B, L] with L in 1 .. {length}, got {list(sequences.shape)}")
    expect_ids("encode", sequences, num_items + 1, "sequences of item ids")


def check_candidates(candidates: Tensor, batch: int, num_items: int) -> None:
    """ValueError or TypeError unless these are candidates [B, T] or [T] int64 of item ids 0 .. num_items."""
    expect_tensor("score", "candidates", candidates)
    if candidates.dim() != 1 and (candidates.dim() != 2 or candidates.shape[0] != batch):
        raise ValueError(f"score: expected candidates [B={batch}, T] or [T], got {list(candidates.shape)}")
    expect_ids("score", candidates, num_items + 1, "candidates of item ids")
