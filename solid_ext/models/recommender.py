"""The network: a backbone's user state, adaptive layers generated from the sequence, a target tower."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.config import ModelConfig
from solid_ext.models.backbones import make_backbone
from solid_ext.models.checks import check_candidates, check_sequences
from solid_ext.models.decoder import CodebookDecoder, Remade
from solid_ext.models.encoder import SequenceCode
from solid_ext.models.finetune import NEGATIVES, PREFIXES, finetuned
from solid_ext.models.symbols import ItemEmbedding, SymbolEmbedding
from solid_ext.nn import Codebook, DynamicMLP
from solid_ext.nn.dynamic import Branches
from solid_ext.nn.low_rank import LowRankMLP
from solid_ext.nn.padding import valid_mask

Layers = Callable[[Tensor], Tensor]
# Positions of pairs (sequence, candidate) that a backbone which reads candidates is given at once. At d = 32 a
# temporary is then 16 MB, which the allocator keeps: four times as large, every operation faults its pages in again.
PAIRS = 2**17


class CandidateState(NamedTuple):
    """A user state that waits for its candidates, of a backbone that reads them."""

    embedded: Tensor  # [B, L, d]
    mask: Tensor  # [B, L] bool
    layers: Layers  # the adaptive layers of these sequences


class UserState(NamedTuple):
    """What a forward pass knows of a batch of sequences."""

    vector: Tensor | CandidateState  # u [B, d], or what makes it for a candidate
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

    Source: docs/method.md#module-4-semantic-codebook.
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
                gradient=config.codebook_gradient,
                update=config.codebook_update,
                revive_after=config.revive_after,
                backend=config.backend,
            )
            self.decoder = CodebookDecoder(dim, config.codebook_hidden, config.backend)
        self.code = SequenceCode(dim, config.dynamic_layers, config.backend, config.dropout)

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
        features: [V + 1, F] float32, what is known about each item, read with `item_features`; None for none.

    A model is a `solid_ext.evaluate.Scorer`: `encode` once a sequence, `score` any candidates.

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
        self.length = config.length
        dim = config.dim
        self.register_buffer("semantics", torch.from_numpy(table.astype(np.int64)))
        known = features if config.item_features else None
        self.item_embedding = ItemEmbedding(num_items, dim, known, config.backend)
        self.backbone = make_backbone(config)
        self.target: nn.Module = nn.Identity()
        if config.target == "mlp":
            self.target = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        if config.semantic_trunk:
            self.semantic_embedding = SymbolEmbedding(self.num_semantics, config.length, dim, config.backend)
            self.semantic_code = SequenceCode(dim, config.dynamic_layers, config.backend, config.dropout)
        if config.item_branch:
            self.item = ItemBranch(config, num_items, self.num_semantics)
        self.adaptive = self._adaptive_layers()
        self.gate = nn.Parameter(torch.zeros(())) if config.dynamic_residual else None

    def _adaptive_layers(self) -> nn.Module:
        config, dim = self.config, self.config.dim
        sizes = (dim,) * (config.dynamic_layers + 1)
        if not (config.semantic_trunk or config.item_branch):
            steps: list[nn.Module] = []
            for layer in range(config.dynamic_layers):
                steps += ([nn.Tanh()] if layer else []) + [nn.Linear(dim, dim)]
            return nn.Sequential(*steps)
        branches: Branches = "both" if config.item_branch else "semantic"
        if not config.semantic_trunk:
            branches = "item"
        if config.low_rank:
            return LowRankMLP(sizes, dim, config.rank, config.delta, branches=branches, backend=config.backend)
        return DynamicMLP(sizes, dim, config.delta, branches=branches, backend=config.backend)

    def initialise_codebook(self, entries: Tensor) -> None:
        """D = the semantic embedding table [C, d], without its padding row (Algorithm 1, between the stages)."""
        if self.config.item_branch and self.item.codebook is not None:
            self.item.codebook.initialise(entries)

    @property
    def device(self) -> torch.device:
        return self.item_embedding.weight.device

    def forward(self, sequences: Tensor) -> UserState:
        """The user states of item sequences [B, L] int64, right-padded with 0."""
        check_sequences(sequences, self.num_items, self.length)
        # What is computed last is freed first on the way back: the backbone's states before the generators'.
        # Under autocast the generators keep their parameters' precision; it is for the backbone and the targets.
        with torch.autocast(sequences.device.type, enabled=False):
            z_item, z_semantic, alignment, code = self._codes(sequences)
        layers: Layers = self.adaptive
        if z_item is not None or z_semantic is not None:
            layers = partial(self.adaptive, z_item=z_item, z_semantic=z_semantic)
        layers = self._through(layers)
        embedded, mask = self.item_embedding(sequences), valid_mask(sequences)
        if alignment is None:
            alignment = embedded.new_zeros(())
        if self.reads_candidates:
            return UserState(CandidateState(embedded, mask, layers), alignment, code)
        return UserState(layers(self.backbone(embedded, mask)), alignment, code)

    def _through(self, layers: Layers) -> Layers:
        """How the adaptive layers act on a state: directly, or added to it."""
        gate = self.gate
        return layers if gate is None else lambda state: state + gate * layers(state)

    @property
    def reads_candidates(self) -> bool:
        """Whether the user state depends on the candidate."""
        return bool(getattr(self.backbone, "reads_candidates", False))

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

    def encode(self, sequences: Tensor) -> Tensor | CandidateState:
        """The user state of sequences [B, L], that `score` takes; fine-tuned where the configuration says so.

        Raises:
            TypeError, ValueError: sequences of another dtype or shape, ids that are no items.
        """
        if self.config.finetune_steps == 0:
            return self(sequences).vector
        check_sequences(sequences, self.num_items, self.length)
        layers = self._finetuned(sequences)
        embedded, mask = self.item_embedding(sequences), valid_mask(sequences)
        if self.reads_candidates:
            return CandidateState(embedded, mask, layers)
        return layers(self.backbone(embedded, mask))

    def _finetuned(self, sequences: Tensor) -> Layers:
        """The static layers, adapted to each sequence on what came next in it."""
        prefixes, following = [], []
        rest = sequences.clone()
        for _ in range(min(PREFIXES, sequences.shape[1] - 1)):
            last = (rest > 0).sum(1, keepdim=True) - 1
            following.append(rest.gather(1, last.clamp(min=0)))
            rest = rest.scatter(1, last.clamp(min=0), 0)
            prefixes.append(rest)
        if not prefixes:
            return self._through(self.adaptive)
        others = torch.linspace(1, self.num_items, NEGATIVES, device=sequences.device).round().long()
        pairs = [torch.cat([item, others.expand(len(item), -1)], dim=1) for item in following]  # [B, 1 + m] a prefix
        states = []
        for prefix, candidates in zip(prefixes, pairs, strict=True):
            given = self.item_embedding(prefix), valid_mask(prefix)
            if self.reads_candidates:
                states.append(self.backbone(*given, self.item_embedding(candidates)))
            else:
                states.append(self.backbone(*given).unsqueeze(1).expand(-1, 1 + NEGATIVES, -1))
        label = torch.eye(1, 1 + NEGATIVES, device=sequences.device)
        valid = torch.cat([(prefix[:, :1] > 0).expand(-1, 1 + NEGATIVES) for prefix in prefixes], dim=1)
        assert isinstance(self.adaptive, nn.Sequential)
        return finetuned(
            self.adaptive,
            torch.cat(states, dim=1),
            self.target_vectors(torch.cat(pairs, dim=1)),
            label.repeat(1, len(prefixes)).squeeze(0).to(states[0].dtype),
            valid,
            steps=self.config.finetune_steps,
            rate=self.config.finetune_rate,
            through=self._through,
        )

    def target_vectors(self, items: Tensor) -> Tensor:
        """t(v): item ids [...] int64 -> [..., d]."""
        return self.target(self.item_embedding(items))

    def score(self, state: Tensor | CandidateState, candidates: Tensor) -> Tensor:
        """Logits of candidates: a user state, ids [B, T] (per sequence) or [T] (shared by all) -> [B, T].

        The target tower's last layer is applied to u: `<u, W h + b> = <W' u, h> + <u, b>`, one product a sequence
        in place of one a candidate.

        Raises:
            TypeError, ValueError: candidates of another dtype or shape, ids that are no items (on the CPU).
        """
        batch = (state.mask if isinstance(state, CandidateState) else state).shape[0]
        check_candidates(candidates, self.num_items, batch)
        if isinstance(state, CandidateState):
            return self._score_each(state, candidates)
        hidden = self.item_embedding(candidates)
        query, constant = state, None
        if isinstance(self.target, nn.Sequential):
            hidden = self.target[1](self.target[0](hidden))
            weight, bias = self.target[2].parameters()
            query, constant = state @ weight, (state @ bias).unsqueeze(1)
        logits = query @ hidden.T if candidates.dim() == 1 else torch.bmm(hidden, query.unsqueeze(2)).squeeze(2)
        return logits if constant is None else logits + constant

    def over_catalogue(self, state: Tensor, items: Tensor) -> tuple[Tensor, Tensor, None]:
        """What a softmax over all items takes, for items [B]: logits [B, V], each item's column [B]."""
        return self.score(state, torch.arange(1, self.num_items + 1, device=items.device)), items - 1, None

    def _score_each(self, state: CandidateState, candidates: Tensor) -> Tensor:
        """Logits where every candidate has a user state of its own, a bounded number of pairs at a time."""
        batch, length = state.mask.shape
        some = max(PAIRS // max(batch * length, 1), 1)
        logits = []
        for part in candidates.expand(batch, -1).split(some, dim=1):
            embedded = self.item_embedding(part)
            vector = state.layers(self.backbone(state.embedded, state.mask, embedded))
            logits.append((vector * self.target(embedded)).sum(2))
        return torch.cat(logits, dim=1) if logits else state.embedded.new_zeros(batch, 0)
