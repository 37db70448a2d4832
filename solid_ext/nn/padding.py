"""Right-padded sequences: which positions hold a symbol, of what age each one is, and the state at the last one."""

from __future__ import annotations

import torch
from torch import Tensor

from solid_ext.ops._library import under_transforms


def valid_mask(sequences: Tensor) -> Tensor:
    """[B, L] bool: True where a position holds an item, False where it is padding (id 0)."""
    return sequences > 0


def ages(mask: Tensor) -> Tensor:
    """The age of each position: 0 for the most recent valid one, counting up to the oldest; 0 on padding.

    Args:
        mask: [B, L] bool, sequences right-padded.

    Returns:
        [B, L] int64. Positions are counted from the end, so that the last item has one age whatever the length of the
        history.
    """
    length = mask.sum(1, keepdim=True)
    return (length - 1 - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0)


def most_recent(sequences: Tensor, length: int) -> Tensor:
    """The last `length` items of each of sequences [B, L] int64, right-padded as they are: [B, min(L, length)]."""
    if sequences.shape[1] <= length:
        return sequences
    first = (valid_mask(sequences).sum(1, keepdim=True) - length).clamp(min=0)
    return sequences.gather(1, first + torch.arange(length, device=sequences.device))


def valid_positions(mask: Tensor) -> Tensor:
    """The positions of mask [B, L] bool that work is done for, numbered as in its memory: [N] int64, rising.

    On the CPU those that are valid, elsewhere all, as their number would have to be waited for, and all where torch
    compiles or transforms, whose shapes may not depend on values.
    """
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not under_transforms():
        return mask.flatten().nonzero().squeeze(1)
    return torch.arange(mask.numel(), device=mask.device)


def unpack(rows: Tensor, at: Tensor, mask: Tensor) -> Tensor:
    """Rows [N, d] of the positions `at` [N] as states [B, L, d], zero where there is none."""
    return rows.new_zeros(mask.numel(), rows.shape[1]).index_copy(0, at, rows).view(*mask.shape, -1)


def last_valid(states: Tensor, mask: Tensor) -> Tensor:
    """The state at the last valid position.

    Args:
        states: [B, L, d].
        mask: [B, L] bool, sequences right-padded.

    Returns:
        [B, d]; zeros for a sequence that is all padding.
    """
    length = mask.sum(1)
    last = (length - 1).clamp(min=0)
    state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
    return state * (length > 0).unsqueeze(1)
