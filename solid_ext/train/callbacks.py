"""What others want to know of a training: callbacks, for MLflow, Weights & Biases and one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solid_ext.train.progress import Epoch, Passing, Reporter, Silent
from solid_ext.train.stage_folder import Stage

CALLS = ("on_step", "on_epoch", "on_end")


@dataclass(frozen=True)
class StepDone:
    """A step that has been computed.

    Attributes:
        stage: its name.
        epoch: from 1.
        step: of the epoch, from 1; an epoch that goes on where it was stopped counts from its first step here.
        steps: of an epoch.
    """

    stage: str
    epoch: int
    step: int
    steps: int
    _loss: Tensor | None = None

    @property
    def loss(self) -> float:
        """The step's prediction loss; on a GPU reading it waits for the step."""
        return float("nan") if self._loss is None else float(self._loss)


class Callback:
    """Told of a training; a subclass overrides what it wants to know.

    A callback runs between steps, so that what it takes counts. What it raises ends the training; `StopTraining` ends
    it so that it can go on.
    """

    def on_step(self, done: StepDone) -> None:
        """After each step."""

    def on_epoch(self, epoch: Epoch, best: Epoch) -> None:
        """After each epoch, its validation and its checkpoint.

        Args:
            epoch: its losses, validation and seconds.
            best: of its stage until now.
        """

    def on_end(self, stages: Sequence[Stage]) -> None:
        """Once, when everything has been trained.

        Args:
            stages: with the log of each.
        """


def check_callbacks(call: str, callbacks: Any) -> None:
    """Refuse what is no callback, before anything is trained.

    Raises:
        TypeError: an object without any of the three calls, or no sequence.
    """
    if isinstance(callbacks, (str, bytes)) or not isinstance(callbacks, Sequence):
        raise TypeError(f"{call}: expected a list of callbacks, got {callbacks!r:.80}")
    for callback in callbacks:
        calls = {name: getattr(callback, name) for name in CALLS if hasattr(callback, name)}
        if isinstance(callback, type) or not calls:
            raise TypeError(f"{call}: expected callbacks with some of {', '.join(CALLS)}, got {callback!r:.80}")
        for name, own in calls.items():
            if not callable(own):
                raise TypeError(f"{call}: expected {name} of a callback that can be called, got {own!r:.80}")


class Calling(Passing):
    """A reporter that tells callbacks, and passes everything on."""

    def __init__(self, callbacks: Sequence[Any], after: Reporter | None) -> None:
        super().__init__(after or Silent())
        self.callbacks = callbacks
        self._stage, self._epoch, self._step, self._steps = "", 1, 0, 0
        self._loss: Tensor | None = None

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        self._stage, self._epoch, self._step, self._steps = stage, 1, 0, steps
        super().begin(stage, steps, epochs)

    def computed(self, loss: Tensor) -> None:
        self._loss = loss
        super().computed(loss)

    def step(self) -> None:
        self._step += 1
        super().step()
        self._tell("on_step", StepDone(self._stage, self._epoch, self._step, self._steps, self._loss))

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        self._epoch, self._step = epoch.epoch + 1, 0
        super().epoch(epoch, best)
        self._tell("on_epoch", epoch, best)

    def finish(self, stages: Sequence[Stage]) -> None:
        """Everything has been trained."""
        self._tell("on_end", stages)

    def _tell(self, name: str, *what: Any) -> None:
        for callback in self.callbacks:
            call = getattr(callback, name, None)
            if call is not None:
                call(*what)
