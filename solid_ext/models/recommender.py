"""The network: a backbone's user state, adaptive layers generated from the sequence, a target tower."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.models.backbone import make_backbone
from solid_ext.models.encoder import SequenceCode, SymbolEmbedding, valid_mask
from solid_ext.nn import Codebook, DynamicMLP


class UserState(NamedTuple):
    """What a forward pass knows of a batch of sequences."""

    vector: Tensor  # u [B, d]
    alignment: Tensor  # L_align, a scalar; 0 without a codebook or a trunk
    code: Tensor | None  # [B, L] int64, the codebook entry of each position; None without a codebook


class ItemBranch(nn.Module):
    """Module 4 and the encoder E_v: item sequence -> codebook entries -> decoder -> code z_v.

    Shapes: sequences [B, L] int64 -> z_v [B, d], quantized [B, L, d] and code index [B, L], both None without codebook.

    Source: design, solid, Modules 3 and 4.
    """

    def __init__(self, config: ModelConfig, num_items: int, num_semantics: int) -> None:
        super().__init__()
        dim = config.dim
        self.embedding = SymbolEmbedding(num_items, config.length, dim)
        self.codebook = None
        if config.use_codebook:
            self.codebook = Codebook(
                num_semantics,
                dim,
                gradient=config.gradient,
                update=config.update,
                revive_after=config.revive_after,
                backend=config.backend,
            )
            hidden = config.codebook_hidden
            self.decoder = nn.Sequential(nn.Linear(dim, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, dim))
        self.encode = SequenceCode(dim, config.adaptive_layers, config.backend)

    def forward(self, sequences: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        mask = valid_mask(sequences)
        embedded = self.embedding(sequences)
        if self.codebook is None:
            return self.encode(embedded, mask), None, None
        found = self.codebook(embedded, mask)
        return self.encode(self.decoder(found.quantized), mask), found.quantized.detach(), found.index


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
        self.item_embedding = nn.Embedding(num_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.item_embedding.weight, std=dim**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
        self.backbone = make_backbone(config)
        self.target = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        if config.semantic_trunk:
            self.semantic_embedding = SymbolEmbedding(self.num_semantics, config.length, dim)
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
        mask = valid_mask(sequences)
        state = self.backbone(self.item_embedding(sequences), mask)
        alignment = state.new_zeros(())
        if not (self.config.semantic_trunk or self.config.item_branch):
            return UserState(self.adaptive(state), alignment, None)
        z_semantic = z_item = quantized = code = None
        if self.config.semantic_trunk:
            embedded = self.semantic_embedding(self.semantics[sequences])
            z_semantic = self.semantic_code(embedded, mask)
        if self.config.item_branch:
            z_item, quantized, code = self.item(sequences)
        if z_semantic is not None and quantized is not None:
            squared = (embedded - quantized).square().sum(2)
            alignment = (squared * mask).sum() / mask.sum().clamp(min=1)
        return UserState(self.adaptive(state, z_item, z_semantic), alignment, code)

    def encode(self, sequences: Tensor) -> Tensor:
        """u [B, d] of sequences [B, L]."""
        return self(sequences).vector

    def target_vectors(self, items: Tensor) -> Tensor:
        """t(v): item ids [...] int64 -> [..., d]."""
        return self.target(self.item_embedding(items))

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        """Logits of candidates: u [B, d], ids [B, T] (per sequence) or [T] (shared by all) -> [B, T]."""
        targets = self.target_vectors(candidates)
        if candidates.dim() == 1:
            return state @ targets.T
        return torch.bmm(targets, state.unsqueeze(2)).squeeze(2)
