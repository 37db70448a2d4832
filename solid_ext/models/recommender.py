"""The network: a backbone's user state, dynamic layers generated from the sequence, a target tower."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from solid_ext.config import ModelConfig
from solid_ext.models.backbones import make_backbone
from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.models.encoder import ConditionEncoder, plain_layers
from solid_ext.models.item_branch import ItemBranch
from solid_ext.models.personal_bias import PersonalBias
from solid_ext.models.state import CandidateState, Catalogue, Layers, UserState
from solid_ext.models.symbols import ItemEmbedding, SymbolEmbedding
from solid_ext.nn import DynamicMLP, LowRankMLP
from solid_ext.nn.dynamic import Branches
from solid_ext.nn.padding import most_recent, valid_mask
from solid_ext.ops._library import exporting, without_autocast

# Positions of pairs (sequence, candidate) that a backbone which reads candidates is given at once. At d = 32 a
# temporary is then 16 MB, which the allocator keeps: four times as large, every operation faults its pages in again.
# On a GPU the number only bounds memory: 512 MB of a temporary at d = 32.
PAIRS, PAIRS_ON_GPU = 2**17, 2**22


class Conditions(NamedTuple):
    """What generates the dynamic layers of a batch of sequences, and what is known beside it.

    Attributes:
        item: z_v [B, k]; None without the item branch.
        semantic: z_c [B, k]; None without the semantic trunk.
        auxiliary_loss: L_align, a scalar; None without a codebook or a trunk.
        codebook_index: [B, L] int64; None without a codebook.
    """

    item: Tensor | None
    semantic: Tensor | None
    auxiliary_loss: Tensor | None
    codebook_index: Tensor | None


class DynamicRecommender(nn.Module):
    """A sequential recommender whose last layers are generated from the sequence: the network of SOLID.

    The backbone reads the item sequence, the dynamic layers act on its state, and a candidate's logit is the product of
    the result with the candidate's target vector. By the default configuration,

        h = backbone(e(s)),  u = h + gate * dynamic(h; z_v, z_c),  t(v) = e(v),  logit = <u, t(v)>,

    where `e(v) = table[v] + W f(v)` adds a linear map of the item's features, the gate is a number that starts at 0,
    and the dynamic layers are of low rank (`LowRankMLP`). At the paper's settings (`solid_ext.config.PAPER`) it is

        u = dynamic(backbone(e(s)); z_v, z_c),  t(v) = MLP(e(v)),  logit = <u, t(v)>,

    with `e(v) = table[v]` and layers whose every weight is generated (`DynamicMLP`).

    The conditions z_c of the semantic sequence and z_v of the item sequence generate the weights. The configuration's
    `semantic_trunk`, `item_branch` and `use_codebook` say which of them there are; with neither, the dynamic layers are
    an ordinary MLP of the same shape, the static method's. Everything that makes the conditions is k wide, the
    configuration's `generator_dim`, and all the rest d; with `personal_bias` the layers are `PersonalBias`. With a
    `generator_length` above L the sequences are as long as that: the encoders read all of one, and the backbone its
    last L items.

    A model is a `solid_ext.evaluate.Scorer`: `encode` takes a sequence once, `score` any candidates.

    Args:
        config: all that depends on the configuration.
        num_items: V.
        semantics: [V + 1] integers, the semantic 1 .. C of each item, 0 for padding.
        features: f [V + 1, F] float32, what is known about each item, which `item_features` reads; None for none.

    Raises:
        ValueError: semantics or features that do not fit.

    Source: docs/method.md#prediction-and-losses.
    """

    semantics: Tensor

    def __init__(
        self, config: ModelConfig, num_items: int, semantics: np.ndarray, features: Tensor | None = None
    ) -> None:
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
        self.length = config.encoder_length if config.generates else config.length
        dim = config.dim
        self.register_buffer("semantics", torch.from_numpy(table.astype(np.int64)))
        known = features if config.item.item_features else None
        self.item_embedding = ItemEmbedding(num_items, dim, known, config.backend)
        self.backbone = make_backbone(config)
        self.target: nn.Module = nn.Identity()
        if config.target == "mlp":
            self.target = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        if config.semantic_trunk:
            width = config.code_dim
            self.semantic_embedding = SymbolEmbedding(self.num_semantics, self.length, width, config.backend)
            self.semantic_encoder = ConditionEncoder(width, config.dynamic_layers, config.backend, config.dropout)
        if config.item.item_branch:
            self.item = ItemBranch(config, num_items, self.num_semantics)
        self.dynamic = self._dynamic_layers()
        self.gate = nn.Parameter(torch.zeros(())) if config.dynamic_residual else None

    def _dynamic_layers(self) -> nn.Module:
        config, dim, code_dim = self.config, self.config.dim, self.config.code_dim
        sizes = (dim,) * (config.dynamic_layers + 1)
        if not config.generates:
            return plain_layers(dim, config.dynamic_layers)
        branches: Branches = "both" if config.item.item_branch else "semantic"
        if not config.semantic_trunk:
            branches = "item"
        delta = config.item.delta
        if config.personal_bias:
            return PersonalBias(dim, config.dynamic_layers, code_dim, delta, branches=branches)
        if config.low_rank:
            return LowRankMLP(sizes, code_dim, config.rank, delta, branches=branches, backend=config.backend)
        return DynamicMLP(sizes, code_dim, delta, branches=branches, backend=config.backend)

    def initialise_codebook(self, entries: Tensor) -> None:
        """Start the codebook, where there is one, at the semantic embeddings [C, k] (Algorithm 1, between stages)."""
        if self.config.item.item_branch and self.item.codebook is not None:
            self.item.codebook.initialise(entries)

    @property
    def device(self) -> torch.device:
        return self.item_embedding.weight.device

    @property
    def reads_candidates(self) -> bool:
        """Whether the user state depends on the candidate."""
        return bool(getattr(self.backbone, "reads_candidates", False))

    def forward(self, sequences: Tensor) -> UserState:
        """The user states of item sequences [B, L] int64, right-padded with 0.

        Raises:
            TypeError: sequences of another dtype.
            ValueError: another shape, or ids that are no items.
        """
        check_sequences(sequences, self.num_items, self.length)
        # What is computed last is freed first on the way back: the backbone's states before the generators'.
        # Under autocast the generators keep their parameters' precision; it is for the backbone and the targets.
        with without_autocast(sequences):
            conditions = self._conditions(sequences)
        vector = self.user_state(sequences, self._layers(conditions))
        auxiliary_loss = conditions.auxiliary_loss
        if auxiliary_loss is None:
            auxiliary_loss = self.item_embedding.weight.new_zeros(())
        return UserState(vector, auxiliary_loss, conditions.codebook_index)

    def _conditions(self, sequences: Tensor) -> Conditions:
        """What the generators read of the sequences, each part where the configuration has it."""
        mask = valid_mask(sequences)
        metacode = self.item.metacode(sequences, self.item_embedding) if self.config.item.item_branch else None
        z_item = z_semantic = auxiliary_loss = None
        if self.config.semantic_trunk:
            embedded = self.semantic_embedding(self.semantics[sequences])
            squared = None if metacode is None else metacode.squared_distance(embedded, mask)
            if squared is not None:
                auxiliary_loss = squared / mask.sum().clamp(min=1)
            z_semantic = self.semantic_encoder(embedded, mask)
        if metacode is None:
            return Conditions(None, z_semantic, None, None)
        z_item = self.item.encoder(metacode.sequence, mask)
        return Conditions(z_item, z_semantic, auxiliary_loss, metacode.codebook_index)

    def _layers(self, conditions: Conditions) -> Layers:
        """The last layers of these sequences as they act on the backbone's state."""
        if conditions.item is None and conditions.semantic is None:
            return self.gated(self.dynamic)
        layers = partial(self.dynamic, z_item=conditions.item, z_semantic=conditions.semantic)
        if isinstance(self.dynamic, LowRankMLP):
            return partial(layers, gate=self.gate)  # which its one call adds
        return self.gated(layers)

    def gated(self, layers: Layers) -> Layers:
        """How layers act on the backbone's state: directly, or added to it with `dynamic_residual`."""
        gate = self.gate
        return layers if gate is None else lambda state: state + gate * layers(state)

    def user_state(self, sequences: Tensor, layers: Layers) -> Tensor | CandidateState:
        """The user state of the last L items of sequences, with last layers that act so: u [B, d], or what makes it
        for a candidate."""
        sequences = most_recent(sequences, self.config.length)
        embedded, mask = self.item_embedding(sequences), valid_mask(sequences)
        if self.reads_candidates:
            return CandidateState(embedded, mask, layers)
        return layers(self.backbone(embedded, mask))

    def encode(self, sequences: Tensor) -> Tensor | CandidateState:
        """The user state of sequences [B, L] int64, which `score` takes.

        Raises: as `forward`.
        """
        return self(sequences).vector

    def target_vectors(self, items: Tensor) -> Tensor:
        """The target vectors t(v) of items [...] int64: [..., d]."""
        return self.target(self.item_embedding(items))

    def score(self, state: Tensor | CandidateState, candidates: Tensor) -> Tensor:
        """The logits [B, T] of candidates, by the state that `encode` made.

        The target tower's last layer is applied to u, `<u, W h + b> = <W' u, h> + <u, b>`, so that it takes one product
        for each sequence and not one for each candidate.

        Args:
            state: of B sequences.
            candidates: int64 ids, [B, T] of each sequence, or [T] shared by all.

        Raises:
            TypeError: candidates of another dtype.
            ValueError: another shape, or ids that are no items.
        """
        batch = (state.mask if isinstance(state, CandidateState) else state).shape[0]
        check_candidates(candidates, self.num_items, batch)
        if isinstance(state, CandidateState):
            return self._score_each(state, candidates)
        (query, constant), hidden = self.query(state), self.keys(candidates)
        logits = query @ hidden.T if candidates.dim() == 1 else torch.bmm(hidden, query.unsqueeze(2)).squeeze(2)
        return logits if constant is None else logits + constant

    def keys(self, items: Tensor) -> Tensor:
        """What `score` multiplies by `query`, [..., d] of items [...] int64: the target tower before its last layer."""
        return self._keys(self.item_embedding(items))

    def _keys(self, embedded: Tensor) -> Tensor:
        return self.target[1](self.target[0](embedded)) if isinstance(self.target, nn.Sequential) else embedded

    def query(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """q [B, d] and c [B, 1], or None for 0, of the user states u [B, d]: `logit(v) = <q, keys(v)> + c`."""
        if not isinstance(self.target, nn.Sequential):
            return state, None
        weight, bias = self.target[2].parameters()
        return state @ weight, (state @ bias).unsqueeze(1)

    def over_catalogue(self, state: Tensor, items: Tensor) -> Catalogue:
        """What a softmax over all items is computed from, with the positives `items` [B] int64.

        The constant of `query` adds the same to all logits of a sequence, so that no softmax depends on it.
        """
        query, _ = self.query(state)
        return Catalogue(query, self._keys(self.item_embedding.table()[1:]), items - 1, backend=self.config.backend)

    def _score_each(self, state: CandidateState, candidates: Tensor) -> Tensor:
        """Logits where every candidate has a user state of its own, a bounded number of pairs at a time."""
        batch, length = state.mask.shape
        most = PAIRS_ON_GPU if candidates.is_cuda else PAIRS
        candidates = candidates.expand(batch, -1)
        parts = [candidates] if exporting() else candidates.split(max(most // max(batch * length, 1), 1), dim=1)
        logits = []
        for part in parts:
            embedded = self.item_embedding(part)
            vector = state.layers(self.backbone(state.embedded, state.mask, embedded))
            logits.append((vector * self.target(embedded)).sum(2))
        return torch.cat(logits, dim=1) if logits else state.embedded.new_zeros(batch, 0)
