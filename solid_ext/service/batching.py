"""Requests that arrive while the model is at work are answered together by its next call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from solid_ext.service.problem import Problem

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Collects questions and has them answered by one call at a time, in a thread.

    Nothing waits on purpose: a question that comes while no call runs is asked at once, with what else came in the
    same turn of the event loop; those that come during a call make the next one.

    Args:
        answer: questions to their answers, in their order; an answer that is an exception is raised to who asked.
        most: questions of a call.
        waiting: questions that may wait; another one is refused.

    Attributes:
        executor: whose thread calls; None for the event loop's own.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]], most: int, waiting: int) -> None:
        self._answer, self._most, self._waiting = answer, most, waiting
        self.executor: Executor | None = None
        self._pending: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._at_work = False

    async def ask(self, question: Q) -> A:
        """The answer to a question.

        Raises:
            Problem: too many wait already.
        """
        if len(self._pending) >= self._waiting:
            raise Problem(503, f"expected fewer than {self._waiting:,} requests that wait, got another one: try again")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._pending.append((question, future))
        if not self._at_work:
            self._at_work = True
            loop.call_soon(self._begin)
        return await future

    def _begin(self) -> None:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        while self._pending and len(batch) < self._most:
            question, future = self._pending.popleft()
            if not future.done():  # whoever asked may have gone
                batch.append((question, future))
        if not batch:
            self._at_work = False
            return
        work = asyncio.get_running_loop().run_in_executor(self.executor, self._answer, [asked for asked, _ in batch])
        work.add_done_callback(lambda done: self._end(batch, done))

    def _end(self, batch: list[tuple[Q, asyncio.Future[A]]], done: asyncio.Future[Sequence[A | Exception]]) -> None:
        failed = asyncio.CancelledError() if done.cancelled() else done.exception()
        answers: Sequence[A | Exception | BaseException] = [failed] * len(batch) if failed else done.result()
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._begin()
