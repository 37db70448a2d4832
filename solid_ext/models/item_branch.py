"""Modules 3 and 4: the item sequence, through the codebook, to the condition of the item branch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.models.decoder import CodebookDecoder
from solid_ext.models.encoder import ConditionEncoder
from solid_ext.models.symbols import ItemEmbedding, RowEmbedding, SymbolEmbedding
from solid_ext.nn import Codebook
from solid_ext.nn.padding import unpack, valid_mask, valid_positions
from solid_ext.ops._library import applied


class Metacode(NamedTuple):
    """An item sequence after the codebook.

    Attributes:
        sequence: [B, L, k], what the encoder reads: decoded entries, or the item embeddings without a codebook.
        codebook_index: [B, L] int64, which entries they are, 0 at padding; None without a codebook.
        entries: [K, k], all entries as they were before the lookup, without gradient; None without a codebook.
    """

    sequence: Tensor
    codebook_index: Tensor | None = None
    entries: Tensor | None = None

    def squared_distance(self, embedded: Tensor, mask: Tensor) -> Tensor | None:
        """`sum ||H_c - q||^2` over valid positions, q being the position's entry, a scalar; None without a codebook.

        Gradient: to embedded alone.

        Args:
            embedded: H_c [B, L, k], zero at padding.
            mask: [B, L] bool, where a position is valid.
        """
        if self.entries is None:
            return None
        return applied(_SquaredDistance, embedded, self.entries, self.codebook_index, mask)


class _SquaredDistance(torch.autograd.Function):
    """Of valid positions alone; the backward looks q up again, so that what is kept of it is which entries."""

    @staticmethod
    def forward(embedded: Tensor, entries: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        return _from_entries(embedded, entries, index, mask)[1].square_().sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        embedded, entries, index, mask = ctx.saved_tensors
        at, difference = _from_entries(embedded, entries, index, mask)
        return unpack(difference.mul_(2 * gradient), at, mask), None, None, None


def _from_entries(embedded: Tensor, entries: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that work is done for, and at each of them H_c less its entry, which is 0 at padding."""
    at = valid_positions(mask)
    difference = embedded.flatten(0, 1).index_select(0, at)
    difference -= entries.index_select(0, index.flatten().index_select(0, at))
    return at, difference if at.shape[0] < mask.numel() else difference.mul_(mask.view(-1, 1))


class ItemBranch(nn.Module):
    """Item sequence -> codebook entries -> decoder -> encoder E_v -> condition z_v.

    Shapes: sequences [B, L] int64, ids 0 .. V with 0 for padding -> z_v [B, k], k the width of the generators.

    Args:
        config: with `use_codebook` False the encoder reads the item embeddings themselves; with `shared_items` these
            are the backbone's.
        num_items: V.
        num_semantics: C, which is also the number K of entries.

    Source: docs/method.md#module-4-semantic-codebook.
    """

    def __init__(self, config: ModelConfig, num_items: int, num_semantics: int) -> None:
        super().__init__()
        dim = config.code_dim
        self.embedding: RowEmbedding | SymbolEmbedding
        if config.item.shared_items:
            self.embedding = RowEmbedding(config.encoder_length, config.dim, dim)
        else:
            self.embedding = SymbolEmbedding(num_items, config.encoder_length, dim, config.backend)
        self.codebook = None
        entries = config.item.codebook
        if entries.use_codebook:
            self.codebook = Codebook(num_semantics, dim, update="gradient", with_loss=False, backend=config.backend)
            self.decoder = CodebookDecoder(dim, entries.codebook_hidden, config.backend)
        self.encoder = ConditionEncoder(dim, config.dynamic_layers, config.backend, config.dropout)

    def metacode(self, sequences: Tensor, items: ItemEmbedding) -> Metacode:
        """The sequences [B, L] through the codebook, where there is one; `items` are the backbone's embeddings."""
        mask = valid_mask(sequences)
        if isinstance(self.embedding, RowEmbedding):
            embedded = self.embedding(items(sequences), mask)
        else:
            embedded = self.embedding(sequences)
        if self.codebook is None:
            return Metacode(embedded)
        entries = self.codebook.weight.detach().clone()  # before the lookup: a codebook that learns by it moves them
        decoded = None
        if self.decoder.decodes_entries(sequences.numel(), self.codebook):
            decoded = self.decoder.decode_entries(entries)
        found = self.codebook(embedded, mask)
        sequence = self.decoder(found.quantized) if decoded is None else self.decoder.look_up(decoded, found, mask)
        return Metacode(sequence, found.index, entries)

    def forward(self, sequences: Tensor, items: ItemEmbedding) -> Tensor:
        return self.encoder(self.metacode(sequences, items).sequence, valid_mask(sequences))
