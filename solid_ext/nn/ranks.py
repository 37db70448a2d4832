"""What the ranks of a distributed training know of their batches together."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class Ranks:
    """Sums over the ranks of `torch.distributed`; without it, or without `sync`, those of this process alone.

    Args:
        sync: whether the other ranks count.
    """

    def __init__(self, sync: bool) -> None:
        self.sync = sync

    @property
    def several(self) -> bool:
        """Whether other ranks count."""
        return self.sync and distributed.is_available() and distributed.is_initialized()

    def totals(self, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """counts [K] int64 and sums [K, D] of all ranks, in one all-reduce of float64."""
        if not self.several:
            return counts, sums
        summed = sums.shape[0] > 0  # without running means nobody asks for sums
        packed = torch.cat([counts.double().unsqueeze(1), *([sums.double()] if summed else [])], 1)
        distributed.all_reduce(packed)
        return packed[:, 0].to(counts.dtype), packed[:, 1:].to(sums.dtype) if summed else sums

    def place(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """How many rows the ranks before this one have, and how many all of them, each [] int64; this one has `own`."""
        if not self.several:
            return torch.zeros_like(own), own
        of_rank = own.new_zeros(distributed.get_world_size())
        of_rank[distributed.get_rank()] = own
        distributed.all_reduce(of_rank)
        return of_rank[: distributed.get_rank()].sum(), of_rank.sum()

    def owned(self, rows: Tensor, mine: Tensor) -> Tensor:
        """Rows [K, D] of which every rank knows those where mine [K] is True, each of one rank."""
        if not self.several:
            return rows
        rows = torch.where(mine.unsqueeze(1), rows, 0)
        distributed.all_reduce(rows)
        return rows
