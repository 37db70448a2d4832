"""What training reports while it runs, and to whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from torch import Tensor

from solid_ext import distributed
from solid_ext.files import write_text

if TYPE_CHECKING:
    from solid_ext.train.time_left import TimeLeft


@dataclass(frozen=True)
class Epoch:
    """One line of the training log."""

    stage: str
    epoch: int  # from 1
    loss: float  # mean training loss, with the alignment term
    alignment: float  # mean L_align, unweighted
    valid: float | None  # the monitored validation metric; None where nothing is validated
    seconds: float
    waited: float = 0.0  # seconds of these for which steps waited for their batch

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Reporter(Protocol):
    """Told what training does; each call returns at once."""

    def begin(self, stage: str, steps: int, epochs: int) -> None: ...
    def step(self) -> None: ...
    def epoch(self, epoch: Epoch, best: Epoch) -> None: ...
    def end(self, stage: str, best: Epoch) -> None: ...


class StopTraining(Exception):
    """What a reporter raises to end a training after the step or epoch that it is told of.

    A stage that has a folder keeps all that is trained, also of the epoch that has begun, and goes on from there.
    """


class Silent:
    """Reports nothing."""

    def begin(self, stage: str, steps: int, epochs: int) -> None: ...
    def step(self) -> None: ...
    def epoch(self, epoch: Epoch, best: Epoch) -> None: ...
    def end(self, stage: str, best: Epoch) -> None: ...


def tell_loss(reporter: Reporter, loss: Tensor) -> None:
    """Give a reporter the loss of the step that it is told of next, if it has a method `computed` for it."""
    computed = getattr(reporter, "computed", None)
    if computed is not None:
        computed(loss)


def check_reporter(call: str, reporter: Any) -> None:
    """Refuse what cannot be told of a training, before it starts.

    Raises:
        TypeError: neither None nor an object with the methods of `Reporter`.
    """
    told = ("begin", "step", "epoch", "end")
    if reporter is not None and not all(callable(getattr(reporter, name, None)) for name in told):
        raise TypeError(
            f"{call}: expected reporter None or an object with the methods {', '.join(told)}, such as "
            f"solid_ext.train.Silent(), got {reporter!r:.80}"
        )


class Passing:
    """Passes everything on to another reporter."""

    def __init__(self, after: Reporter) -> None:
        self.after = after

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        self.after.begin(stage, steps, epochs)

    def computed(self, loss: Tensor) -> None:
        """A step's loss, before `step`: for reporters that have this method too."""
        tell_loss(self.after, loss)

    def step(self) -> None:
        self.after.step()

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        self.after.epoch(epoch, best)

    def end(self, stage: str, best: Epoch) -> None:
        self.after.end(stage, best)


class _Agreeing(Passing):
    """Passes everything on; a training that one of several processes ends, all of them end after the same step."""

    def step(self) -> None:
        self._agree(self.after.step)

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        self._agree(self.after.epoch, epoch, best)

    def end(self, stage: str, best: Epoch) -> None:
        self._agree(self.after.end, stage, best)

    def _agree(self, tell: Callable[..., None], *what: Any) -> None:
        own = None
        try:
            tell(*what)
        except StopTraining as stop:
            own = stop
        if distributed.summed(torch.tensor(float(own is not None), device="cpu")):
            raise own or StopTraining()


def together(reporter: Reporter) -> Reporter:
    """The reporter of this process, whose wish to stop is that of all."""
    return _Agreeing(reporter) if distributed.count() > 1 else reporter


class Renamed(Passing):
    """Passes everything on to another reporter, every stage under one name."""

    def __init__(self, name: str, after: Reporter) -> None:
        super().__init__(after)
        self.name = name

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        super().begin(self.name, steps, epochs)

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        super().epoch(replace(epoch, stage=self.name), replace(best, stage=self.name))

    def end(self, stage: str, best: Epoch) -> None:
        super().end(self.name, replace(best, stage=self.name))


class Prefixed(Passing):
    """Passes everything on to another reporter, with words before each stage's name."""

    def __init__(self, words: str, after: Reporter) -> None:
        super().__init__(after)
        self.words = words

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        super().begin(self.words + stage, steps, epochs)

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        epoch, best = (replace(one, stage=self.words + one.stage) for one in (epoch, best))
        super().epoch(epoch, best)

    def end(self, stage: str, best: Epoch) -> None:
        super().end(self.words + stage, replace(best, stage=self.words + best.stage))


class ProgressBar:
    """A rich progress bar, one line a stage; a context manager.

    Args:
        left: how long the whole run still trains; None says nothing of it.
    """

    def __init__(self, console: Console, metric: str, left: TimeLeft | None = None) -> None:
        self.metric, self.left = metric, left
        self.bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self.task: TaskID | None = None
        self.start = 0.0

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        self.start = time.perf_counter()
        if self.left is not None:
            self.left.begin(stage, epochs)
        self.task = self.bar.add_task(stage, total=steps, status=f"epoch 1 of at most {epochs}")

    def step(self) -> None:
        if self.task is not None:
            self.bar.advance(self.task)

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        if self.left is not None:
            self.left.epoch(epoch, best)
        if self.task is not None:
            status = f"epoch {epoch.epoch + 1}  loss {epoch.loss:.4f}"
            if epoch.valid is not None:
                status += f"  {self.metric} {epoch.valid:.4f} (best {best.valid:.4f} at {best.epoch})"
            if self.left is not None:
                status += self.left.words()
            self.bar.update(self.task, completed=0, status=status)

    def end(self, stage: str, best: Epoch) -> None:
        if self.left is not None:
            self.left.end()
        if self.task is not None:
            task, seconds = self.bar.tasks[self.task], time.perf_counter() - self.start
            status = (
                f"{best.epoch} epochs"
                if best.valid is None
                else (f"best {self.metric} {best.valid:.4f} at epoch {best.epoch}")
            )
            self.bar.update(self.task, completed=task.total, status=f"{status}, {seconds:.0f} s")


class TensorBoard(Passing):
    """Writes each epoch's loss, alignment and validation metric as TensorBoard scalars, and passes everything on.

    Raises:
        ValueError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, after: Reporter) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "tensorboard: expected the package tensorboard (pip install 'solid_ext[tensorboard]'), found none"
            ) from error
        self.open_writer = lambda: SummaryWriter(str(folder))
        super().__init__(after)

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        self.writer = self.open_writer()
        super().begin(stage, steps, epochs)

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        for name in ("loss", "alignment", "valid") if epoch.valid is not None else ("loss", "alignment"):
            self.writer.add_scalar(f"{epoch.stage}/{name}", getattr(epoch, name), epoch.epoch)
        super().epoch(epoch, best)

    def end(self, stage: str, best: Epoch) -> None:
        self.writer.close()
        super().end(stage, best)


def write_log(path: Path, history: list[Epoch]) -> None:
    """The training log as CSV, one line an epoch."""
    names = list(Epoch.__dataclass_fields__)
    cells = [["" if (value := getattr(epoch, name)) is None else str(value) for name in names] for epoch in history]
    lines = [",".join(row) for row in (names, *cells)]
    write_text(path, "\n".join(lines) + "\n")
