"""A model as the service shows it: its answers, its titles to search, its semantics in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from torch import Tensor

from solid_ext.serve import ItemTable, Recommendation, similar_items, top_items
from solid_ext.serve.histories import known_items
from solid_ext.serve.recommend import checked_rules, entries
from solid_ext.serve.top_items import Rules
from solid_ext.solid import SOLID

TYPICAL = 3  # titles that stand for a semantic
EXAMPLES, EVENTS = 6, 4  # example users, and the events of each


class Question(NamedTuple):
    """What is asked of a model, in its numbers of items: what `SOLID.recommend` takes in raw ids.

    Attributes:
        served: the model.
        history: [n] int64, oldest first.
        k: how many items.
        exclude_history: whether those of the history are left out.
        rules: what else may be recommended.
    """

    served: Served
    history: Tensor
    k: int
    exclude_history: bool
    rules: Rules


class Served:
    """A loaded model, and what the service makes of it once.

    Any number of threads may ask.

    Args:
        solid: with a catalogue.
        name: tells it from the model before it.
    """

    def __init__(self, solid: SOLID, name: str) -> None:
        if solid.model is None or solid.catalogue is None:
            raise ValueError("serve: expected a fitted model, got one before fit() or load()")
        self.solid, self.name, self.network, self.catalogue = solid, name, solid.model, solid.catalogue
        self._scorer, self._table = solid.scorer, ItemTable()
        self._making, self._for_devices = Lock(), dict[str, bytes]()

    def prepare(self) -> None:
        """Make all that is made once, before anyone waits for it."""
        self.recommend([self.question(self.catalogue.raw_items([1]))])
        self.search("", 1)
        self.examples  # noqa: B018
        self.semantic(1)

    def question(
        self,
        history: list[Any],
        k: int = 1,
        exclude_history: bool = True,
        exclude: list[Any] | None = None,
        include: list[Any] | None = None,
        unknown: str = "error",
    ) -> Question:
        """A question in raw ids, as this model numbers them.

        Raises: as `SOLID.recommend`, with the same sentences.
        """
        known = known_items("recommend", "histories", self.catalogue, [history], unknown)[0]
        rules = checked_rules("recommend", self.catalogue, 1, exclude, include, unknown)
        return Question(self, known, k, exclude_history, rules)

    def recommend(self, questions: Sequence[Question]) -> list[list[Recommendation]]:
        """The best items for the histories of questions that are alike in all else; as many as the largest k."""
        most = min(max(asked.k for asked in questions), self.catalogue.num_items)
        histories, first = [asked.history for asked in questions], questions[0]
        scores, items = top_items(
            self._scorer,
            self.catalogue.num_items,
            histories,
            most,
            first.exclude_history,
            table=self._table,
            rules=first.rules,
        )
        return entries(self.catalogue, scores, items)

    def items(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Raw ids and titles of items 1 .. V."""
        found = zip(self.catalogue.raw_items(numbers), self.catalogue.titles(numbers), strict=True)
        return [{"item": plain(raw), "title": title} for raw, title in found]

    @cached_property
    def _popularity(self) -> np.ndarray:
        counts = self.catalogue.counts
        return np.zeros(self.catalogue.num_items, dtype=np.int64) if counts is None else counts

    @cached_property
    def _searched(self) -> pl.DataFrame:
        """Items, the most popular first: number and title in small letters."""
        titles = pl.Series("title", self.catalogue.titles(np.arange(self.catalogue.num_items) + 1), dtype=pl.String)
        order = np.argsort(-self._popularity, kind="stable")
        return pl.DataFrame({"number": order + 1, "title": titles.str.to_lowercase()[order]})

    def search(self, query: str, limit: int) -> list[dict[str, Any]]:
        """Items whose title has the query in it, those that begin with it first, then the more popular ones."""
        table, wanted = self._searched, query.strip().lower()
        if wanted:
            table = table.filter(pl.col("title").str.contains(wanted, literal=True))
            table = table.sort(~pl.col("title").str.starts_with(wanted), maintain_order=True)
        return self.items(table["number"].head(limit).to_numpy())

    def similar(self, item: Any, k: int) -> list[Recommendation]:
        """The k items most like one, by its raw id."""
        return similar_items(self.network, self.catalogue, [item], k, table=self._table)[0]

    def on_device(self) -> dict[str, bytes]:
        """The static part for devices, by the names of its files.

        Raises:
            ValueError: a model that no device computes.
        """
        with self._making:
            self._for_devices = self._for_devices or self.solid.on_device().content()
        return self._for_devices

    def personalize(self, history: list[Any], unknown: str) -> bytes:
        """A device's blob for a history of raw ids.

        Raises: as `SOLID.personalize`, with the same sentences.
        """
        return self.solid.personalize(history, unknown=unknown)

    def semantic_of(self, number: int) -> int:
        """The semantic of an item."""
        return int(self._semantics[number])

    @cached_property
    def _semantics(self) -> np.ndarray:
        return self.network.semantics.cpu().numpy()

    @cached_property
    def _by_semantic(self) -> dict[int, np.ndarray]:
        """The items of each semantic, the most popular first."""
        of = self._semantics[1:]
        order = np.lexsort((-self._popularity, of))
        starts = np.flatnonzero(np.diff(of[order], prepend=-1))
        return {int(of[part[0]]): part + 1 for part in np.split(order, starts[1:])} if len(order) else {}

    def semantic(self, semantic: int) -> dict[str, Any]:
        """A semantic by the titles of its most popular items."""
        items = self._by_semantic.get(semantic, np.zeros(0, dtype=np.int64))[:TYPICAL]
        return {"semantic": semantic, "typical": self.catalogue.titles(items)}

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Users who are made up: each has the most popular items of one of the most popular semantics.

        A model's folder holds nothing of any person.
        """
        parts = sorted(self._by_semantic.items(), key=lambda part: -int(self._popularity[part[1] - 1].sum()))
        return [
            {"name": f"semantic {semantic}", "history": self.items(items[:EVENTS][::-1])}
            for semantic, items in parts[:EXAMPLES]
        ]


def answer(questions: Sequence[Question]) -> list[list[Recommendation] | Exception]:
    """The recommendations for each question; those without rules, of one model, are computed together."""
    groups: dict[Any, list[int]] = {}
    for place, asked in enumerate(questions):
        alone = place if any(rule is not None for rule in asked.rules) else None
        groups.setdefault((id(asked.served), asked.exclude_history, alone), []).append(place)
    found: list[list[Recommendation] | Exception] = [[] for _ in questions]
    for places in groups.values():
        some = [questions[place] for place in places]
        together: Sequence[list[Recommendation] | Exception]
        try:
            together = some[0].served.recommend(some)
        except Exception as error:
            together = [error] * len(some)
        for place, each, best in zip(places, some, together, strict=True):
            found[place] = best if isinstance(best, Exception) else best[: each.k]
    return found


def plain(raw: Any) -> Any:
    """A raw id as JSON has it: text and numbers as they are, times as text."""
    return raw if isinstance(raw, (str, int, float)) else str(raw)
