"""The codebook's decoder: entries to the metacode sequence that the item generator reads (Module 4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from solid_ext.nn.codebook import Codebook, CodebookOutput
from solid_ext.ops.gru import Backend
from solid_ext.ops.segment_sum import segment_sum

SLOPE = 0.1  # of the LeakyReLU below zero
ROWS = 2048  # positions whose gradient is computed at once: the hidden layer's stays in the cache


class Remade(NamedTuple):
    """A tensor, and how to make it again where it need not be kept."""

    value: Tensor
    again: Callable[[], Tensor] | None = None

    def unkept(self) -> AbstractContextManager[object]:
        """Inside, autograd keeps no copy of the value for the backward, which makes it again."""
        again = self.again
        if again is None or torch.compiler.is_compiling():
            return nullcontext()
        address, shape = self.value.data_ptr(), self.value.shape

        def pack(saved: Tensor) -> Any:
            return again if saved.data_ptr() == address and saved.shape == shape else saved

        def unpack(packed: Any) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed()

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class Decoded(NamedTuple):
    """Codebook entries, each decoded once."""

    entries: Tensor  # [K, d], as they were
    table: Tensor  # [K, d], decoded
    positive: Tensor  # [K, h] bool, the signs of the hidden layer


class CodebookDecoder(nn.Sequential):
    """`decoder(q) = W_2 leaky(W_1 q + b_1) + b_2`, a two-layer MLP d -> h -> d with LeakyReLU 0.1.

    Shapes: entries [K, d], quantized [B, L, d], index [B, L] with `quantized = entries[index]` where a position
    is valid -> [B, L, d]. At padding the result is that of some entry and means nothing.

    Gradient: to quantized and the decoder's parameters; the entries get theirs through quantized, from the lookup.

    Args:
        dim: d. hidden: h.
        backend: "native" decodes each entry once and looks the results up, where there are fewer entries than
            positions; "reference" decodes every position.

    Source: design, solid, Module 4.
    """

    def __init__(self, dim: int, hidden: int, backend: Backend = "native") -> None:
        super().__init__(nn.Linear(dim, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, dim))
        self.backend: Backend = backend

    def pays(self, positions: Tensor, codebook: Codebook) -> bool:
        """Whether decoding every entry is less work than decoding every position."""
        return self.backend == "native" and codebook.metric == "l2" and codebook.num_codes <= positions.numel()

    def decoded(self, codebook: Codebook) -> Decoded:
        """All entries decoded, to be taken before a lookup that may move them."""
        first, _, last = self
        entries = codebook.weight.detach().clone()
        hidden = F.leaky_relu_(first(entries), SLOPE)
        return Decoded(entries, last(hidden), (hidden > 0).detach())

    def look_up(self, decoded: Decoded, found: CodebookOutput, mask: Tensor) -> tuple[Remade, Remade]:
        """The metacode sequence `decoder(quantized)`, and quantized, read from the entries."""
        first, _, last = self
        index, shape = found.index.flatten(), found.quantized.shape
        value = _DecodedLookup.apply(decoded.table, decoded.positive, first.weight, last.weight, index, found.quantized)
        table = decoded.table.detach()
        metacode = Remade(value, lambda: table.index_select(0, index).view(shape))
        valid = mask.unsqueeze(2)
        quantized = Remade(
            found.quantized.detach(), lambda: decoded.entries.index_select(0, index).view(shape).mul_(valid)
        )
        return metacode, quantized


class _DecodedLookup(torch.autograd.Function):
    """Forward reads rows of the decoded entries; backward is the decoder's own, position by position to quantized
    and summed by entry to the decoded table."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, positive: Tensor, first: Tensor, last: Tensor, index: Tensor, quantized: Tensor
    ) -> Tensor:
        ctx.save_for_backward(positive, first, last, index)
        return table.index_select(0, index).view(quantized.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        positive, first, last, index = ctx.saved_tensors
        rows = gradient.reshape(len(index), -1)
        found = torch.empty_like(rows)
        slope = rows.new_full(positive.shape, SLOPE).masked_fill_(positive, 1)
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            hidden = (rows[part] @ last).mul_(slope.index_select(0, index[part]))
            torch.mm(hidden, first, out=found[part])
        return segment_sum(rows, index, None, len(positive)), None, None, None, None, found.view_as(gradient)
