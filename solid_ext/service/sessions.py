"""The sessions of the service: histories that grow, bounded in number, length and age."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from solid_ext.service.limits import MOST_HISTORY


class Sessions:
    """Histories by name, of the last 1,000 events each.

    A name is 128 random bits, so that nobody guesses another's. They hold raw ids, so that they outlive a model that is
    replaced. All calls come from the event loop.

    Args:
        most: how many are kept; the one that was used the longest ago makes room.
        seconds: without use, after which one ends.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._clock = most, seconds, clock
        self._kept: OrderedDict[str, tuple[float, deque[Any]]] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self) -> str:
        """The name of a new one."""
        name = secrets.token_urlsafe(16)
        self._kept[name] = self._clock(), deque(maxlen=MOST_HISTORY)
        self._expire()
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return name

    def events(self, name: str) -> deque[Any] | None:
        """The events of one, oldest first, to read or to add to; None where there is no such session any more."""
        self._expire()
        if name not in self._kept:
            return None
        events = self._kept.pop(name)[1]
        self._kept[name] = self._clock(), events
        return events

    def _expire(self) -> None:
        now = self._clock()
        while self._kept:
            name, (used, _) = next(iter(self._kept.items()))
            if now - used <= self.seconds:
                return
            del self._kept[name]
