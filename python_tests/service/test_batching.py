"""Batches: what comes while the model is at work is asked together, and everybody gets their own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from solid_ext.service.batching import Batcher
from solid_ext.service.problem import Problem


class Held:
    """Answers each number with its square once it is let; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.free = threading.Event()

    def __call__(self, questions: Sequence[int]) -> list[int | Exception]:
        self.asked.append(list(questions))
        assert self.free.wait(10)
        return [ValueError(f"of {number}") if number < 0 else number * number for number in questions]


async def until(condition: object) -> None:
    for _ in range(2000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.005)
    raise AssertionError


def run(body: object, most: int = 3, waiting: int = 100) -> Held:
    held = Held()
    with ThreadPoolExecutor(1) as executor:

        async def all_of_it() -> None:
            batcher: Batcher[int, int] = Batcher(held, most, waiting)
            batcher.executor = executor
            await body(batcher, held)  # type: ignore[operator]

        asyncio.run(all_of_it())
    return held


def test_questions_that_come_during_a_call_make_the_next_ones() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        first = asyncio.create_task(batcher.ask(1))
        await until(lambda: held.asked)
        others = [asyncio.create_task(batcher.ask(number)) for number in range(2, 7)]
        await asyncio.sleep(0.01)
        held.free.set()
        assert await asyncio.gather(first, *others) == [1, 4, 9, 16, 25, 36]

    assert run(body).asked == [[1], [2, 3, 4], [5, 6]]


def test_questions_of_one_turn_of_the_loop_are_asked_together() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        held.free.set()
        await asyncio.gather(*(batcher.ask(number) for number in range(3)))
        assert await batcher.ask(7) == 49

    assert run(body).asked == [[0, 1, 2], [7]]


def test_an_error_is_of_who_asked_for_it() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        held.free.set()
        answers = await asyncio.gather(*(batcher.ask(number) for number in (2, -1, 3)), return_exceptions=True)
        assert answers[0] == 4
        assert answers[2] == 9
        assert str(answers[1]) == "of -1"

    run(body)


def test_an_answer_that_fails_as_a_whole_fails_for_all_and_the_next_one_is_answered() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        held.free.set()
        broken = batcher._answer
        batcher._answer = lambda questions: 1 / 0  # type: ignore[assignment, return-value]
        answers = await asyncio.gather(batcher.ask(1), batcher.ask(2), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2
        batcher._answer = broken
        assert await batcher.ask(3) == 9

    run(body)


def test_too_many_that_wait_are_told_to_come_again() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        first = asyncio.create_task(batcher.ask(1))
        await until(lambda: held.asked)
        waiting = [asyncio.create_task(batcher.ask(number)) for number in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="expected fewer than 2 requests that wait") as refused:
            await batcher.ask(4)
        assert refused.value.status == 503
        held.free.set()
        assert await asyncio.gather(first, *waiting) == [1, 4, 9]

    run(body, waiting=2)


def test_whoever_has_gone_is_not_answered() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        first = asyncio.create_task(batcher.ask(1))
        await until(lambda: held.asked)
        gone = asyncio.create_task(batcher.ask(2))
        last = asyncio.create_task(batcher.ask(3))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        held.free.set()
        assert await asyncio.gather(first, last) == [1, 9]

    assert run(body).asked == [[1], [3]]
