"""The next batch is made while this one is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class OneAhead(Generic[T]):
    """The same values in the same order, the next one made in a thread while the caller is busy with this one.

    What making a value raises is raised where that value would have come. Values are made one after the other, so that
    they may draw from one generator.

    Attributes:
        waited: seconds for which the caller has waited for values, the first one among them.
    """

    def __init__(self, values: Iterator[T]) -> None:
        self.values, self.waited = values, 0.0

    def __iter__(self) -> Iterator[T]:
        end = object()
        with ThreadPoolExecutor(1, thread_name_prefix="one_ahead") as thread:
            coming = thread.submit(next, self.values, end)
            while True:
                asked = time.perf_counter()
                value = coming.result()
                self.waited += time.perf_counter() - asked
                if value is end:
                    return
                coming = thread.submit(next, self.values, end)
                yield value  # type: ignore[misc]
