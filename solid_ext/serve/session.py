"""A session: one user's history, which grows by an event at a time, and what is recommended after each."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import check_scorer, inference, scorer_device
from solid_ext.serve.histories import check_unknown, checked_count, checked_flag, checked_list, known_items
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.recommend import Recommendation, checked_rules, entries
from solid_ext.serve.top_items import Mask, best_of_state


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
        check_unknown("session", unknown)
        events = checked_list("session", "history", history)
        self._scorer, self._catalogue = scorer, catalogue
        self._unknown = "session" if unknown == "error" else unknown  # which its methods do not take
        self._table = table or ItemTable()
        self._window: deque[int] = deque(maxlen=scorer.length)
        self._different = array("q")
        self._present: set[int] = set()
        self._state: Any = None
        for item in known_items("session", "history", catalogue, [events], unknown)[0].tolist():
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
        for known in known_items("observe", "histories", self._catalogue, [[item]], self._unknown)[0].tolist():
            self._add(known)

    def recommend(
        self,
        k: int = 10,
        *,
        exclude_history: bool = True,
        exclude: Sequence[Any] | None = None,
        include: Sequence[Any] | None = None,
    ) -> list[Recommendation]:
        """The k best items after the last event, best first; without one, what a newcomer gets.

        Args and errors: as `solid_ext.serve.recommend` has them.
        """
        k = min(checked_count("recommend", k), self._catalogue.num_items)
        own = None
        if checked_flag("recommend", "exclude_history", exclude_history):
            items = torch.from_numpy(np.array(self._different, dtype=np.int64))
            own = items, torch.zeros_like(items)
        rules = checked_rules("recommend", self._catalogue, 1, exclude, include, self._unknown)
        with inference(self._scorer) as asked:
            if self._state is None:
                self._state = self._encoded(asked)
            mask = Mask(self._catalogue.num_items, rules, own)
            scores, items = best_of_state(asked, self._state, 1, k, mask, self._table)
        return entries(self._catalogue, scores, items)[0]

    def _encoded(self, asked: Any) -> Any:
        """What the scorer makes of the window as it is."""
        sequence = torch.zeros(1, asked.length, dtype=torch.int64, device="cpu")
        sequence[0, : len(self._window)] = torch.tensor(self._window, dtype=torch.int64, device="cpu")
        return asked.encode(sequence.to(scorer_device(asked)))

    def _add(self, item: int) -> None:
        self._window.append(item)
        if item not in self._present:
            self._present.add(item)
            self._different.append(item)
        self._state = None
