"""Why an item has its score: what each part of the model gave, and which items of the history mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import inference, scorer_device
from solid_ext.models import DynamicRecommender
from solid_ext.models.recommender import PAIRS, Conditions
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
    return _asked("explain", "item", scorer, catalogue, history, [item], unknown)[0]


def explain_items(
    scorer: Scorer, catalogue: Catalogue, history: Sequence[Any], items: Sequence[Any], *, unknown: str = "error"
) -> list[Explanation]:
    """`explain` for several items and one history, whose states are computed once for all of them.

    Args:
        items: raw ids, any number of them.
        scorer, history, unknown: as in `explain`.

    Returns:
        An explanation for each item, in their order: what `explain` says of it, up to rounding.

    Raises: as `explain`.
    """
    return _asked("explain_items", "items", scorer, catalogue, history, items, unknown)


def _asked(
    name: str, what: str, scorer: Scorer, catalogue: Catalogue, history: Any, items: Any, unknown: Any
) -> list[Explanation]:
    """The explanations of the items, which errors call `what`."""
    check_unknown(name, unknown)
    known = known_items(name, "history", catalogue, [checked_list(name, "history", history)], unknown)[0]
    numbers = known_items(name, what, catalogue, [checked_list(name, what, items)], "refuse")[0]
    if not len(numbers):
        return []
    with inference(scorer) as asked:
        return _explained(asked, catalogue, known, numbers)


def _explained(scorer: Any, catalogue: Catalogue, known: Tensor, numbers: Tensor) -> list[Explanation]:
    """`explain_items` in item numbers: known [n] and numbers [T], T of at least 1, the scorer in eval mode."""
    device = scorer_device(scorer)
    raws, titles = catalogue.raw_items(numbers.numpy()), catalogue.titles(numbers.numpy())
    window = known[-scorer.length :].tolist()
    different = list(dict.fromkeys(reversed(window)))[::-1]  # each at its last place
    _, _, sequences = flattened([known, *(known[known != own] for own in different)], scorer.length)
    sequences = sequences.to(device)
    scores = scorer.score(scorer.encode(sequences), numbers.to(device)).double().cpu()  # [1 + different, T]
    totals = scores[0].tolist()
    if not different:
        return [
            Explanation(raw, title, score, 0.0, 0.0, 0.0, 0.0, 0.0, score, (), ())
            for raw, title, score in zip(raws, titles, totals, strict=True)
        ]
    if isinstance(scorer, WithNewcomers):
        scorer = scorer.model
    added = torch.zeros(len(numbers), scorer.length, dtype=torch.float64, device="cpu")
    if isinstance(scorer, WithNeighbours):
        added, scorer = scorer.contributions(sequences[:1].cpu(), numbers), scorer.model
    last = {own: place for place, own in enumerate(window)}
    neighbours = added[:, [last[own] for own in different]].tolist()
    effects = (scores[:1] - scores[1:]).T.tolist()
    left = [bool((known != own).any()) for own in different]
    model: DynamicRecommender = scorer.model if isinstance(scorer, FineTuned) else scorer
    semantics = model.semantics[torch.tensor(different, device=device)].tolist()
    described = list(zip(catalogue.raw_items(different), catalogue.titles(different), semantics, strict=True))
    members = {
        semantic: tuple(raw for raw, _, own in described if own == semantic)
        for semantic in (dict.fromkeys(semantics) if model.config.semantic_trunk else ())
    }
    parts, lost = _network_parts(scorer, model, sequences[:1], numbers.to(device), list(members))
    found = []
    for place, own_parts in enumerate(parts):
        history = tuple(
            HistoryPart(*own, near, effect if there else None)
            for own, near, effect, there in zip(described, neighbours[place], effects[place], left, strict=True)
        )
        by_semantic = [SemanticPart(*own, effect) for own, effect in zip(members.items(), lost[place], strict=True)]
        ordered = tuple(sorted(by_semantic, key=lambda part: -abs(part.effect)))
        near = float(added[place].sum())
        found.append(Explanation(raws[place], titles[place], totals[place], *own_parts, near, 0.0, history, ordered))
    return found


def _network_parts(
    network: Any, model: DynamicRecommender, sequence: Tensor, items: Tensor, semantics: list[int]
) -> tuple[list[tuple[float, float, float, float]], list[list[float]]]:
    """What the network gave to the logits of items [T] for one sequence [1, L].

    Args:
        network: the model, or the fine-tuned one around it.
        semantics: S of the sequence's; none without a trunk.

    Returns:
        Sequence, semantics, items and features of each item, and the effects [T][S] of each semantic: the semantics'
        part less what it is where the positions of this one are left out of the sequence of semantics.
    """
    own, whole = model.item_embedding.weight[items], model.item_embedding(items)
    if isinstance(model.dynamic, nn.Sequential):
        state = network.encode(sequence)
        base = trunk = full = _logits(model, state, own)[0]
        others, last = base.new_zeros(0, len(items)), _logits(model, state, whole)[0]
    else:
        # One pass over the layers, a row each: (0, 0), (0, z_c), (z_v, z_c), and (0, z_c without a semantic).
        given, rows = model._conditions(sequence), 3 + len(semantics)
        z_item = z_semantic = None
        if given.item is not None:
            z_item = given.item.new_zeros(rows, given.item.shape[1])
            z_item[2] = given.item[0]
        if given.semantic is not None:
            z_semantic = torch.cat([torch.zeros_like(given.semantic), given.semantic, given.semantic])
            z_semantic = torch.cat([z_semantic, _without_each(model, sequence, semantics)])
        layers = model._layers(Conditions(z_item, z_semantic, None, None))
        state = model.user_state(sequence, lambda read: layers(read.expand(rows, *read.shape[1:])))
        base, trunk, full, *rest = _logits(model, state, own)
        others, last = torch.stack(rest) if rest else base.new_zeros(0, len(items)), _logits(model, state, whole)[2]
        # What the model lacks gives 0, and not the rounding of one row against another.
        trunk = base if given.semantic is None else trunk
        full = trunk if given.item is None else full
    parts = [step.tolist() for step in (base, trunk - base, full - trunk, last - full)]
    return list(zip(*parts, strict=True)), (trunk - others).T.tolist()


def _without_each(model: DynamicRecommender, sequence: Tensor, semantics: list[int]) -> Tensor:
    """z_c [S, d] of the sequence [1, L] without the positions of each semantic; 0 where that leaves none."""
    present = model.semantics[sequence[0]].cpu()
    left = [present[(present > 0) & (present != semantic)] for semantic in semantics]
    others = flattened(left, sequence.shape[1])[2].to(sequence.device)
    mask = valid_mask(others)
    encoded = model.semantic_encoder(model.semantic_embedding(others), mask)
    return torch.where(mask.any(1, keepdim=True), encoded, torch.zeros_like(encoded))


def _logits(model: DynamicRecommender, state: Tensor | CandidateState, embedded: Tensor) -> Tensor:
    """`<u, t(e)>` [N, T] in float64 of embeddings e [T, d], by the state of N layers and one sequence."""
    if not isinstance(state, CandidateState):
        return state.double() @ model.target(embedded).double().T
    logits = []
    for part in embedded.unsqueeze(0).split(max(PAIRS // state.mask.shape[1], 1), dim=1):
        vector = state.layers(model.backbone(state.embedded, state.mask, part))
        logits.append((vector * model.target(part)).double().sum(2))
    return torch.cat(logits, dim=1)
