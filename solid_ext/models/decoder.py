"""The codebook's decoder: entries to the metacode sequence that the item encoder reads (Module 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.nn.codebook import Codebook, CodebookOutput
from solid_ext.nn.padding import valid_positions
from solid_ext.ops._arguments import Backend
from solid_ext.ops._library import applied, exporting, first_order
from solid_ext.ops.segment_sum import sum_segments

SLOPE = 0.1  # of the LeakyReLU below zero
ROWS = 2048  # positions whose gradient is computed at once, so that the hidden layer's stays in a CPU's cache


class DecodedEntries(NamedTuple):
    """All codebook entries, each decoded once.

    Attributes:
        table: [K, d], the decoded entries.
        positive: [K, h] bool, where the hidden layer of each is above zero.
    """

    table: Tensor
    positive: Tensor


class CodebookDecoder(nn.Sequential):
    """`decoder(q) = W_2 leaky(W_1 q + b_1) + b_2`, a two-layer MLP d -> h -> d with LeakyReLU 0.1.

    The result depends on the entry alone. Where there are fewer entries than positions, `decode_entries` decodes each
    of them once and `look_up` reads the result of each position; both give what `forward` does position by position.

    Shapes: quantized [B, L, d] -> [B, L, d]. At padding the result is that of some entry and means nothing.

    Gradient: to quantized and to the decoder's parameters; the entries get theirs by way of quantized, in the lookup.

    Args:
        dim: d.
        hidden: h.
        backend: "native" decodes entries where that is less work; "reference" always decodes positions.

    Source: docs/method.md#module-4-semantic-codebook.
    """

    def __init__(self, dim: int, hidden: int, backend: Backend = "native") -> None:
        super().__init__(nn.Linear(dim, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, dim))
        self.backend: Backend = backend

    def decodes_entries(self, positions: int, codebook: Codebook) -> bool:
        """Whether decoding every entry is less work than decoding so many positions, whose number an export leaves
        open."""
        if exporting() or self.backend != "native" or codebook.metric != "l2":
            return False
        return codebook.num_codes <= positions

    def decode_entries(self, entries: Tensor) -> DecodedEntries:
        """All entries [K, d] decoded, as they were before a lookup that may move them."""
        first, _, last = self
        hidden = F.leaky_relu_(first(entries), SLOPE)
        return DecodedEntries(last(hidden), (hidden > 0).detach())

    def look_up(self, decoded: DecodedEntries, found: CodebookOutput, mask: Tensor) -> Tensor:
        """The metacode sequence `decoder(quantized)` [B, L, d], read from the decoded entries.

        What comes back for positions where mask [B, L] bool is False reaches no gradient.
        """
        first, _, last = self
        return applied(
            _DecodedLookup,
            decoded.table,
            decoded.positive,
            first.weight,
            last.weight,
            found.index.flatten(),
            mask.flatten(),
            found.quantized,
        )


class _DecodedLookup(torch.autograd.Function):
    """Rows of the decoded entries; the gradient of quantized is the decoder's own, position by position, and that of
    the decoded entries is a sum of the positions of each."""

    @staticmethod
    def forward(
        table: Tensor,
        positive: Tensor,
        first: Tensor,
        last: Tensor,
        index: Tensor,
        mask: Tensor,
        quantized: Tensor,
    ) -> Tensor:
        return table.index_select(0, index).view(quantized.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:6])

    @staticmethod
    @first_order("CodebookDecoder")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        positive, first, last, index, mask = ctx.saved_tensors
        rows = gradient.reshape(len(index), gradient.shape[-1])
        of_table = sum_segments(rows, index, mask, len(positive))
        of_quantized = torch.zeros_like(rows)
        slope = rows.new_full(positive.shape, SLOPE).masked_fill_(positive, 1)
        # Two of three positions of a batch may be padding.
        for at in valid_positions(mask).split(max(len(rows), 1) if rows.is_cuda else ROWS):
            hidden = (rows.index_select(0, at) @ last).mul_(slope.index_select(0, index.index_select(0, at)))
            of_quantized.index_copy_(0, at, hidden @ first)
        return of_table, None, None, None, None, None, of_quantized.view_as(gradient)
