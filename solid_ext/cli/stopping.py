"""SIGTERM and Ctrl-C: the first ends a training after its step, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from solid_ext.train import Epoch, Passing, Reporter, StopTraining

STOPPING = (signal.SIGINT, signal.SIGTERM)


class _Watching(Passing):
    """Passes everything on, and ends the training after the step or epoch in which a signal came."""

    def __init__(self, after: Reporter) -> None:
        super().__init__(after)
        self.training, self.number = False, 0

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        super().begin(stage, steps, epochs)
        self.training = True

    def step(self) -> None:
        super().step()
        self._end_if_asked()

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        super().epoch(epoch, best)
        self._end_if_asked()

    def end(self, stage: str, best: Epoch) -> None:
        self.training = False
        super().end(stage, best)
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self.number:
            raise StopTraining

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.number:
            raise KeyboardInterrupt(number)
        self.number = number
        # Not through `sys.stderr`, which may be in the middle of a line.
        os.write(2, b"solid-ext: stopping after this step, which is kept; once more stops at once\n")


@contextmanager
def stoppable(reporter: Reporter) -> Iterator[Reporter]:
    """A reporter for a training that the signals of `STOPPING` end, the first after its step and the second at once.

    Between stages there is no step to finish, and the first one ends the command. Signals that the process ignores
    (`nohup`) stay ignored. In another thread than the main one signals are left as they are.

    Raises:
        KeyboardInterrupt: with the signal's number; after the step in which the first one came, which the folder of
            the training then holds, or at once.
    """
    watching = _Watching(reporter)
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOPPING}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, watching.handle)
    try:
        yield watching
    except StopTraining:  # without a number where the signal came to another rank, see `solid_ext.distributed`
        raise KeyboardInterrupt(watching.number or signal.SIGTERM) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
