"""Modules 3 and 4: the item sequence, through the codebook, to the condition of the item branch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.models.decoder import CodebookDecoder
from solid_ext.models.encoder import ConditionEncoder
from solid_ext.models.symbols import SymbolEmbedding
from solid_ext.nn import Codebook
from solid_ext.nn.padding import valid_mask


class Metacode(NamedTuple):
    """An item sequence after the codebook.

    Attributes:
        sequence: [B, L, d], what the encoder reads: decoded entries, or the item embeddings without a codebook.
        quantized: q [B, L, d], the entries, zero at padding and without gradient; None without a codebook.
        codebook_index: [B, L] int64, which entries they are, 0 at padding; None without a codebook.
    """

    sequence: Tensor
    quantized: Tensor | None = None
    codebook_index: Tensor | None = None


class ItemBranch(nn.Module):
    """Item sequence -> codebook entries -> decoder -> encoder E_v -> condition z_v.

    Shapes: sequences [B, L] int64, ids 0 .. V with 0 for padding -> z_v [B, d].

    Args:
        config: with `use_codebook` False the encoder reads the item embeddings themselves.
        num_items: V.
        num_semantics: C, which is also the number K of entries.

    Source: docs/method.md#module-4-semantic-codebook.
    """

    def __init__(self, config: ModelConfig, num_items: int, num_semantics: int) -> None:
        super().__init__()
        dim = config.dim
        self.embedding = SymbolEmbedding(num_items, config.length, dim, config.backend)
        self.codebook = None
        entries = config.item.codebook
        if entries.use_codebook:
            self.codebook = Codebook(
                num_semantics,
                dim,
                gradient=entries.codebook_gradient,
                update=entries.codebook_update,
                revive_after=entries.revive_after,
                with_loss=False,
                backend=config.backend,
            )
            self.decoder = CodebookDecoder(dim, entries.codebook_hidden, config.backend)
        self.encoder = ConditionEncoder(dim, config.dynamic_layers, config.backend, config.dropout)

    def metacode(self, sequences: Tensor) -> Metacode:
        """The sequences [B, L] through the codebook, where there is one."""
        embedded, mask = self.embedding(sequences), valid_mask(sequences)
        if self.codebook is None:
            return Metacode(embedded)
        decoded = None
        if self.decoder.decodes_entries(sequences.numel(), self.codebook):
            decoded = self.decoder.decode_entries(self.codebook)  # before the lookup, which may move the entries
        found = self.codebook(embedded, mask)
        sequence = self.decoder(found.quantized) if decoded is None else self.decoder.look_up(decoded, found)
        return Metacode(sequence, found.quantized.detach(), found.index)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.encoder(self.metacode(sequences).sequence, valid_mask(sequences))
