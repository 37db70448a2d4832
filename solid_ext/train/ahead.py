"""The next batch is made while a GPU computes this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values in the same order, the next one made in a thread while the caller is busy with this one.

    What making a value raises is raised where that value would have come. Values are made one after the other, so that
    they may draw from one generator.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="one_ahead") as thread:
        coming = thread.submit(next, values, end)
        while (value := coming.result()) is not end:
            coming = thread.submit(next, values, end)
            yield value  # type: ignore[misc]
