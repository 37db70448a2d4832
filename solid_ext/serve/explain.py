"""Why an item has its score: what each part of the model gave, and which items of the history mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import inference, scorer_device
from solid_ext.models import DynamicRecommender
from solid_ext.models.state import CandidateState
from solid_ext.nn.padding import valid_mask
from solid_ext.scorers import FineTuned, WithNeighbours, WithNewcomers
from solid_ext.serve.histories import check_unknown, checked_list, flattened, known_items


@dataclass(frozen=True)
class HistoryPart:
    """What one item of the history gave.

    Attributes:
        item: the raw id.
        title: its title.
        semantic: its semantic, 1 .. C.
        neighbours: what its resemblance to the explained item added; over the history these sum to
            `Explanation.neighbours`.
        effect: the score less that of the history without this item, which is no part of a sum; None where nothing
            would be left of the history.
    """

    item: Any
    title: str
    semantic: int
    neighbours: float
    effect: float | None


@dataclass(frozen=True)
class SemanticPart:
    """What one semantic of the history gave.

    Attributes:
        semantic: 1 .. C.
        items: raw ids of the history's items that have it, oldest first.
        effect: `Explanation.semantics` less what it would be without this semantic's positions, no part of a sum.
    """

    semantic: int
    items: tuple[Any, ...]
    effect: float


@dataclass(frozen=True)
class Explanation:
    """A score, and the parts that add up to it.

    With u(z_v, z_c) the user state by layers that the conditions z_v of the items and z_c of the semantics generate,
    e_0(v) the item's own embedding, and e(v) the same with the map of its features added,

        sequence  = <u(0, 0), t(e_0)>
        semantics = <u(0, z_c), t(e_0)> - <u(0, 0), t(e_0)>
        items     = <u(z_v, z_c), t(e_0)> - <u(0, z_c), t(e_0)>
        features  = <u(z_v, z_c), t(e)> - <u(z_v, z_c), t(e_0)>

    A condition of 0 leaves the layers that are the same for everybody. A branch that the model lacks gives 0.

    Attributes:
        item: the raw id of the explained item.
        title: its title.
        score: what `SOLID.score` gives; the sum of the six parts, up to rounding.
        sequence: the backbone's state of the sequence of items.
        semantics: the layers generated from the sequence of semantics (the trunk).
        items: the correction generated from the sequence of items.
        features: the explained item's features.
        neighbours: the history's items that it was seen with or resembles.
        popularity: for a history without a known item, the log odds of the item's count; every other part is 0 then.
        history: what each different item of the sequence gave, oldest first.
        by_semantic: what each semantic of the sequence gave, the largest effect first.
    """

    item: Any
    title: str
    score: float
    sequence: float
    semantics: float
    items: float
    features: float
    neighbours: float
    popularity: float
    history: tuple[HistoryPart, ...]
    by_semantic: tuple[SemanticPart, ...]

    @property
    def parts(self) -> dict[str, float]:
        """The six parts by their names."""
        names = ("sequence", "semantics", "items", "features", "neighbours", "popularity")
        return {name: getattr(self, name) for name in names}


def explain(
    scorer: Scorer, catalogue: Catalogue, history: Sequence[Any], item: Any, *, unknown: str = "error"
) -> Explanation:
    """Tell what the parts of a SOLID gave to the score of an item; see `Explanation`.

    Args:
        scorer: `SOLID.scorer`.
        history: raw ids, oldest first.
        item: the raw id of the explained item.
        unknown: of an item in the history: "error" refuses it, "ignore" reads the history without it.

    Raises:
        ValueError: an unknown item.
        TypeError: a history that is no list of ids, ids that are neither numbers nor text nor times.
    """
    check_unknown("explain", unknown)
    known = known_items("explain", "history", catalogue, [checked_list("explain", "history", history)], unknown)[0]
    number = known_items("explain", "item", catalogue, [checked_list("explain", "item", [item])], "refuse")[0]
    with inference(scorer) as asked:
        return _explained(asked, catalogue, known, number)


def _explained(scorer: Any, catalogue: Catalogue, known: Tensor, number: Tensor) -> Explanation:
    """`explain` in item numbers: known [n] and number [1], the scorer in eval mode."""
    device, raw = scorer_device(scorer), catalogue.raw_items(number.numpy())[0]
    title = catalogue.titles(number.numpy())[0]
    window = known[-scorer.length :]
    different = list(dict.fromkeys(reversed(window.tolist())))[::-1]  # each at its last place
    _, _, sequences = flattened([known, *(known[known != own] for own in different)], scorer.length)
    sequences = sequences.to(device)
    scores = scorer.score(scorer.encode(sequences), number.to(device)).double()[:, 0].tolist()
    if not len(known):
        return Explanation(raw, title, scores[0], 0.0, 0.0, 0.0, 0.0, 0.0, scores[0], (), ())
    if isinstance(scorer, WithNewcomers):
        scorer = scorer.model
    added = torch.zeros(scorer.length, dtype=torch.float64, device="cpu")
    if isinstance(scorer, WithNeighbours):
        added, scorer = scorer.contributions(sequences[:1].cpu(), int(number))[0], scorer.model
    parts = _Network(scorer, sequences[:1], number.to(device))
    left = [bool((known != own).any()) for own in different]
    effects = [scores[0] - other if there else None for other, there in zip(scores[1:], left, strict=True)]
    of_position = dict(zip(window.tolist(), added.tolist(), strict=False))  # of equal items the last one counts
    model, raws, titles = parts.model, catalogue.raw_items(different), catalogue.titles(different)
    semantics = model.semantics[torch.tensor(different, device=device)].tolist()
    history = tuple(
        HistoryPart(*own)
        for own in zip(raws, titles, semantics, map(of_position.__getitem__, different), effects, strict=True)
    )
    by_semantic = tuple(
        SemanticPart(
            semantic, tuple(own.item for own in history if own.semantic == semantic), parts.effect_of(semantic)
        )
        for semantic in (dict.fromkeys(semantics) if model.config.semantic_trunk else ())
    )
    ordered = tuple(sorted(by_semantic, key=lambda own: -abs(own.effect)))
    return Explanation(raw, title, scores[0], *parts.told(), float(added.sum()), 0.0, history, ordered)


class _Network:
    """The parts of one logit of the network: sequence [1, L], item [1]."""

    def __init__(self, network: Any, sequence: Tensor, item: Tensor) -> None:
        self.model: DynamicRecommender = network.model if isinstance(network, FineTuned) else network
        self.sequence, self.generated = sequence, not isinstance(self.model.dynamic, nn.Sequential)
        self.whole, self.own = self.model.item_embedding(item), self.model.item_embedding.weight[item]
        self.full = self.base = self.trunk = network.encode(sequence)
        if self.generated:
            conditions = self.model._conditions(sequence)
            self.z_item = None if conditions.item is None else torch.zeros_like(conditions.item)
            self.z_semantic = None if conditions.semantic is None else torch.zeros_like(conditions.semantic)
            self.base, self.trunk = self._state(self.z_semantic), self._state(conditions.semantic)

    def _state(self, z_semantic: Tensor | None) -> Tensor | CandidateState:
        """The user state by these semantics and no items."""
        layers = partial(self.model.dynamic, z_item=self.z_item, z_semantic=z_semantic)
        return self.model.user_state(self.sequence, layers)

    def _logit(self, state: Tensor | CandidateState, embedded: Tensor) -> float:
        """`<u, t(e)>` of an embedding e [1, d]."""
        if isinstance(state, CandidateState):
            embedded = embedded.unsqueeze(1)
            state = state.layers(self.model.backbone(state.embedded, state.mask, embedded))
        return float((state * self.model.target(embedded)).double().sum())

    def told(self) -> tuple[float, float, float, float]:
        """What sequence, semantics, items and features gave."""
        steps = [self._logit(state, self.own) for state in (self.base, self.trunk, self.full)]
        steps.append(self._logit(self.full, self.whole))
        return steps[0], steps[1] - steps[0], steps[2] - steps[1], steps[3] - steps[2]

    def effect_of(self, semantic: int) -> float:
        """The trunk's part less what it is where the positions of this semantic are left out of its sequence."""
        present = self.model.semantics[self.sequence[0]]
        kept = present[(present > 0) & (present != semantic)]
        z_semantic = self.z_semantic
        if len(kept):
            others = torch.zeros_like(self.sequence)
            others[0, : len(kept)] = kept
            z_semantic = self.model.semantic_encoder(self.model.semantic_embedding(others), valid_mask(others))
        return self._logit(self.trunk, self.own) - self._logit(self._state(z_semantic), self.own)
