"""Stage 1's complete model, the network over semantics instead of items, and what stage 2 takes from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.models.recommender import DynamicRecommender
from solid_ext.models.state import CandidateState, Catalogue, UserState


class SemanticRecommender(nn.Module):
    """A `DynamicRecommender` that sees the semantic of an item wherever it would see the item.

    It is asked about items; backbone, generator and targets read `semantics[item]`, so that the few, dense semantics
    train what the many, sparse items cannot. Items of one semantic score alike.

    Args:
        config: that of stage 2; the item branch is left out.
        semantics: [V + 1] integers, the semantic 1 .. C of each item, 0 for padding.

    Source: paper, Module 2 and Eq. 12; docs/method.md#algorithm-1.
    """

    semantics: Tensor
    items_of: Tensor

    def __init__(self, config: ModelConfig, semantics: np.ndarray) -> None:
        super().__init__()
        table = np.asarray(semantics).astype(np.int64)
        count = int(table.max(initial=1))
        without = replace(config, item=replace(config.item, item_branch=False))
        self.network = DynamicRecommender(without, count, np.arange(count + 1))
        self.register_buffer("semantics", torch.from_numpy(table))
        self.register_buffer(
            "items_of", torch.from_numpy(np.bincount(table, minlength=count + 1)[1:]), persistent=False
        )
        self.num_items = len(table) - 1
        self.length = self.network.length

    @property
    def device(self) -> torch.device:
        return self.network.device

    def forward(self, sequences: Tensor) -> UserState:
        """The user states of item sequences [B, L] int64, by their semantics."""
        check_sequences(sequences, self.num_items, self.length)
        return self.network(self.semantics[sequences])

    def encode(self, sequences: Tensor) -> Tensor | CandidateState:
        """The user state of sequences [B, L] int64, which `score` takes."""
        return self(sequences).vector

    def score(self, state: Tensor | CandidateState, candidates: Tensor) -> Tensor:
        """The logits [B, T] of candidates [B, T] or [T] int64, which are those of their semantics."""
        check_candidates(candidates, self.num_items)
        return self.network.score(state, self.semantics[candidates])

    def over_catalogue(self, state: Tensor, items: Tensor) -> Catalogue:
        """What a softmax over all items is computed from: all semantics, and how many items have each.

        A softmax over them is that over all items, as the items of a semantic score alike.
        """
        return self.network.over_catalogue(state, self.semantics[items])._replace(items=self.items_of)


def start_from(
    model: DynamicRecommender, stage1: SemanticRecommender, start: Literal["warm", "generator", "cold"]
) -> None:
    """Start a model of stage 2 from stage 1: its codebook always, and what `start` says.

    Parameters that stage 1 lacks, those of the item branch, stay as they are.

    Args:
        model: of stage 2, which is written to.
        stage1: trained.
        start: "warm" takes all that both have, an item's embedding being that of its semantic; "generator" takes the
            semantic generator alone, E_c and M_c; "cold" takes nothing.
    """
    trained = {name: tensor for name, tensor in stage1.network.state_dict().items() if name != "semantics"}
    trained["item_embedding.weight"] = trained["item_embedding.weight"][stage1.semantics]
    kept = {name: tensor for name, tensor in trained.items() if start == "warm" or _generates(name)}
    if start != "cold":
        model.load_state_dict(kept, strict=False)
    if stage1.network.config.semantic_trunk:
        model.initialise_codebook(stage1.network.semantic_embedding.table.weight.detach()[1:])


def _generates(name: str) -> bool:
    """Whether a parameter is the semantic generator's, the factors of dynamic layers of low rank among them."""
    shared = ("semantic_embedding.", "semantic_encoder.", "dynamic.enter.", "dynamic.leave.")
    return name.startswith(shared) or ".semantic_" in name
