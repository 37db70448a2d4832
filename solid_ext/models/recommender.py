"""The network: a backbone's user state, adaptive layers generated from the sequence, a target tower."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.config import ModelConfig
from solid_ext.models.backbone import make_backbone
from solid_ext.models.decoder import CodebookDecoder, Remade
from solid_ext.models.encoder import SequenceCode, valid_mask
from solid_ext.models.symbols import Lookup, SymbolEmbedding
from solid_ext.nn import Codebook, DynamicMLP


class UserState(NamedTuple):
    """What a forward pass knows of a batch of sequences."""

    vector: Tensor  # u [B, d]
    alignment: Tensor  # L_align, a scalar; 0 without a codebook or a trunk
    code: Tensor | None  # [B, L] int64, the codebook entry of each position; None without a codebook


class Looked(NamedTuple):
    """An item sequence after the codebook."""

    metacode: Remade  # [B, L, d], what the GRU reads
    quantized: Remade | None  # q [B, L, d], without gradient; None without a codebook
    code: Tensor | None  # [B, L] int64, the codebook entry of each position; None without a codebook


class ItemBranch(nn.Module):
    """Module 4 and the encoder E_v: item sequence -> codebook entries -> decoder -> code z_v.

    Shapes: sequences [B, L] int64 -> z_v [B, d].

    Source: design, solid, Modules 3 and 4.
    """

    def __init__(self, config: ModelConfig, num_items: int, num_semantics: int) -> None:
        super().__init__()
        dim = config.dim
        self.embedding = SymbolEmbedding(num_items, config.length, dim, config.backend)
        self.codebook = None
        if config.use_codebook:
            self.codebook = Codebook(
                num_semantics,
                dim,
                gradient=config.gradient,
                update=config.update,
                revive_after=config.revive_after,
                with_loss=False,
                backend=config.backend,
            )
            self.decoder = CodebookDecoder(dim, config.codebook_hidden, config.backend)
        self.code = SequenceCode(dim, config.adaptive_layers, config.backend)

    def look_up(self, sequences: Tensor) -> Looked:
        """The sequences through the codebook, where there is one."""
        embedded, mask = self.embedding(sequences), valid_mask(sequences)
        if self.codebook is None:
            return Looked(Remade(embedded), None, None)
        decoded = self.decoder.decoded(self.codebook) if self.decoder.pays(sequences, self.codebook) else None
        found = self.codebook(embedded, mask)
        if decoded is None:
            return Looked(Remade(self.decoder(found.quantized)), Remade(found.quantized.detach()), found.index)
        return Looked(*self.decoder.look_up(decoded, found, mask), found.index)

    def encode(self, metacode: Remade, mask: Tensor) -> Tensor:
        """z_v [B, d] of the sequences that were looked up."""
        with metacode.unkept():
            return self.code(metacode.value, mask)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.encode(self.look_up(sequences).metacode, valid_mask(sequences))


class DynamicRecommender(nn.Module):
    """A sequential recommender with static, semantic, item-generated or SOLID's two-branch adaptive layers.

    `u = adaptive(backbone(sequence))`, `t(v) = MLP(embedding(v))`, `logit = <u, t(v)>`. Which branches generate the
    adaptive layers is the configuration's `semantic_trunk`, `item_branch` and `use_codebook`; with neither branch
    the layers are an ordinary MLP of the same shape.

    Args:
        num_items: V. semantics: [V + 1] int, the semantic 1 .. C of each item, 0 for padding.

    A model is a `solid_ext.evaluate.Scorer`: `encode` once a sequence, `score` any candidates.

    Source: design, solid, "The four modules" and "Prediction and losses".
    """

    semantics: Tensor

    def __init__(self, config: ModelConfig, num_items: int, semantics: np.ndarray) -> None:
        super().__init__()
        table = np.asarray(semantics)
        if table.shape != (num_items + 1,) or table.dtype.kind not in "iu":
            raise ValueError(
                f"semantics: expected integers [V + 1 = {num_items + 1}], got {table.dtype} {list(table.shape)}"
            )
        if table[0] != 0 or (num_items and table[1:].min() < 1):
            raise ValueError("semantics: expected 0 for padding and 1 .. C for every item, got another id")
        self.config = config
        self.num_items = num_items
        self.num_semantics = int(table.max(initial=1))
        self.length = config.length
        dim = config.dim
        self.register_buffer("semantics", torch.from_numpy(table.astype(np.int64)))
        self.item_embedding = Lookup(num_items + 1, dim, padding_idx=0, backend=config.backend)
        nn.init.normal_(self.item_embedding.weight, std=dim**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
        self.backbone = make_backbone(config)
        self.target = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        if config.semantic_trunk:
            self.semantic_embedding = SymbolEmbedding(self.num_semantics, config.length, dim, config.backend)
            self.semantic_code = SequenceCode(dim, config.adaptive_layers, config.backend)
        if config.item_branch:
            self.item = ItemBranch(config, num_items, self.num_semantics)
        self.adaptive = self._adaptive_layers()

    def _adaptive_layers(self) -> nn.Module:
        config, dim = self.config, self.config.dim
        if config.semantic_trunk or config.item_branch:
            return DynamicMLP(
                (dim,) * (config.adaptive_layers + 1),
                code_dim=dim,
                delta=config.delta,
                branches="both"
                if config.semantic_trunk and config.item_branch
                else ("semantic" if config.semantic_trunk else "item"),
                backend=config.backend,
            )
        steps: list[nn.Module] = []
        for layer in range(config.adaptive_layers):
            steps += ([nn.Tanh()] if layer else []) + [nn.Linear(dim, dim)]
        return nn.Sequential(*steps)

    def initialise_codebook(self, entries: Tensor) -> None:
        """D = the semantic embedding table [C, d], without its padding row (Algorithm 1, between the stages)."""
        if self.config.item_branch and self.item.codebook is not None:
            self.item.codebook.initialise(entries)

    @property
    def device(self) -> torch.device:
        return self.item_embedding.weight.device

    def forward(self, sequences: Tensor) -> UserState:
        """The user states of item sequences [B, L] int64, right-padded with 0."""
        # What is computed last is freed first on the way back: the backbone's states before the generators'.
        z_item, z_semantic, alignment, code = self._codes(sequences)
        state = self.backbone(self.item_embedding(sequences), valid_mask(sequences))
        if z_item is None and z_semantic is None:
            return UserState(self.adaptive(state), state.new_zeros(()), None)
        if alignment is None:
            alignment = state.new_zeros(())
        return UserState(self.adaptive(state, z_item, z_semantic), alignment, code)

    def _codes(self, sequences: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """z_v, z_c, L_align and the codebook index, each where the configuration has it."""
        mask = valid_mask(sequences)
        z_item = z_semantic = alignment = looked = None
        if self.config.item_branch:
            looked = self.item.look_up(sequences)
        if self.config.semantic_trunk:
            embedded = self.semantic_embedding(self.semantics[sequences])
            if looked is not None and looked.quantized is not None:
                with looked.quantized.unkept():
                    # Both are zero on padding, so that the sum runs over valid positions.
                    squared = F.mse_loss(embedded, looked.quantized.value, reduction="sum")
                alignment = squared / mask.sum().clamp(min=1)
            z_semantic = self.semantic_code(embedded, mask)
        if looked is not None:
            z_item = self.item.encode(looked.metacode, mask)
        return z_item, z_semantic, alignment, None if looked is None else looked.code

    def encode(self, sequences: Tensor) -> Tensor:
        """u [B, d] of sequences [B, L]."""
        return self(sequences).vector

    def target_vectors(self, items: Tensor) -> Tensor:
        """t(v): item ids [...] int64 -> [..., d]."""
        return self.target(self.item_embedding(items))

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        """Logits of candidates: u [B, d], ids [B, T] (per sequence) or [T] (shared by all) -> [B, T].

        The target tower's last layer is applied to u: `<u, W h + b> = <W' u, h> + <u, b>`, one product a sequence
        in place of one a candidate.
        """
        hidden = self.target[1](self.target[0](self.item_embedding(candidates)))
        weight, bias = self.target[2].parameters()
        query, constant = state @ weight, (state @ bias).unsqueeze(1)
        if candidates.dim() == 1:
            return query @ hidden.T + constant
        return torch.bmm(hidden, query.unsqueeze(2)).squeeze(2) + constant
