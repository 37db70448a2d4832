"""A session: one user's history, which grows by an event at a time, and what is recommended after each."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

import numpy as np
import torch

from solid_ext.data import Catalogue
from solid_ext.data.catalogue import listed
from solid_ext.data.tables import shown
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer, inference, scorer_device
from solid_ext.serve.catalogue_scores import RangeScores, catalogue_scores
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.recommend import Recommendation, checked_count, known_items, named
from solid_ext.serve.top_items import best_of_ranges, block_of


class Session:
    """One user's history, to which events are added, and the recommendations of each moment.

    `session.recommend(k)` is `recommend([history], k)` of everything observed so far, bit for bit. What is kept between
    calls is what the next one needs again: the events as numbers of items, which items there were, and, until the next
    event, the user's state and what the neighbours add. An event makes the state anew, for the age of every item of the
    window changes with it, and the encoders read the ages.

    Memory: the last `scorer.length` events and every different item, 8 bytes each, and one user's state. One thread at
    a time may use a session; any number of sessions may share a model.

    Args:
        scorer: what scores; as it is when an event has been observed and recommendations are asked for.
        catalogue: of its items.
        history: raw ids, oldest first; any number, none for a newcomer.
        unknown: "error" refuses an id that the catalogue lacks, here and in `observe`; "ignore" goes on without it.
        table: that keeps what the scores read of the items; None for one of the session's own.

    Raises:
        ValueError: an unknown item.
        TypeError: no scorer; a history that is no list; ids that are neither numbers nor text.
    """

    def __init__(
        self,
        scorer: Scorer,
        catalogue: Catalogue,
        history: Any = (),
        *,
        unknown: str = "error",
        table: ItemTable | None = None,
    ) -> None:
        check_scorer("session", scorer)
        events = listed(history)
        if events is None:
            raise TypeError(f"session: expected a history as a list of item ids, got {shown(history)}")
        self._scorer, self._catalogue, self._unknown = scorer, catalogue, unknown
        self._table = table or ItemTable()
        self._window: deque[int] = deque(maxlen=scorer.length)
        self._different = array("q")
        self._present: set[int] = set()
        self._scores: RangeScores | None = None
        for item in known_items("session", catalogue, [events], unknown)[0].tolist():
            self._add(item)

    @property
    def history(self) -> list[Any]:
        """The raw ids of the last events, oldest first, as many as the model reads."""
        return self._catalogue.raw_items(list(self._window))

    def observe(self, item: Any) -> None:
        """Add an event: the raw id of what the user interacted with just now.

        Raises:
            ValueError: an item that the catalogue lacks; the session is as before.
            TypeError: an id that is neither a number nor text.
        """
        for known in known_items("observe", self._catalogue, [[item]], self._unknown)[0].tolist():
            self._add(known)

    def recommend(self, k: int = 10, *, exclude_history: bool = True) -> list[Recommendation]:
        """The k best items after the last event, best first; without one, what a newcomer gets.

        Raises:
            ValueError: k < 1, or scores that are not finite.
            TypeError: a k that is no integer.
        """
        k = min(checked_count(k), self._catalogue.num_items)
        with inference(self._scorer) as asked:
            if self._scores is None:
                self._scores = self._scored(asked)
            left_out = None
            if exclude_history:
                items = torch.from_numpy(np.array(self._different, dtype=np.int64))
                left_out = torch.zeros_like(items), items
            block = block_of(1)
            scores, items = best_of_ranges(self._scores, self._catalogue.num_items, 1, k, left_out, block)
        return named(self._catalogue, scores, items)[0]

    def _scored(self, asked: Any) -> RangeScores:
        """The scores of the catalogue for the window as it is."""
        device = scorer_device(asked)
        sequence = torch.zeros(1, asked.length, dtype=torch.int64, device="cpu")
        sequence[0, : len(self._window)] = torch.tensor(self._window, dtype=torch.int64, device="cpu")
        return catalogue_scores(asked, asked.encode(sequence.to(device)), device, self._table)

    def _add(self, item: int) -> None:
        self._window.append(item)
        if item not in self._present:
            self._present.add(item)
            self._different.append(item)
        self._scores = None
