"""Batches that are made one ahead are the same batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from solid_ext.train.ahead import OneAhead


def draws(seed: int, count: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.random()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_order_and_draws_are_those_of_the_values_themselves(count: int) -> None:
    assert list(OneAhead(draws(3, count))) == list(draws(3, count))


def test_the_next_value_is_made_while_this_one_is_used() -> None:
    made = threading.Event()

    def values() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    given = iter(OneAhead(values()))
    assert next(given) == 1
    assert made.wait(30)  # nobody has asked for the second one
    assert next(given) == 2


def test_no_more_than_one_is_made_ahead() -> None:
    made: list[int] = []

    def values() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    for number in OneAhead(values()):
        assert max(made) <= number + 1


def test_an_error_comes_where_its_value_would_have_come() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise ValueError("no second one")

    given = iter(OneAhead(values()))
    assert next(given) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(given)


def test_only_waiting_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("solid_ext.train.ahead.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    given = OneAhead(iter("abc"))
    for _ in given:
        next(clock)  # what the caller does meanwhile
    assert given.waited == 4  # one tick for each value and for the end


def test_who_stops_early_leaves_no_thread_behind() -> None:
    for number in OneAhead(iter(range(100))):
        if number == 2:
            break
    assert not any(thread.name.startswith("one_ahead") for thread in threading.enumerate())
