"""How long a run still trains: all of its stages, not only the one that is computed."""

from __future__ import annotations

from collections.abc import Sequence

from solid_ext.train.progress import Epoch


class TimeLeft:
    """Bounds of the time that training still takes, from the seconds of the epochs until now.

    A stage ends at the earliest when no further epoch is better, `patience` after its best one, and at the latest after
    `epochs`. A stage that has not begun has the seconds an epoch that the others had. Measuring and saving come on top.

    Args:
        stages: that will be trained, in their order.
        epochs, patience: of each, as in the configuration.
    """

    def __init__(self, stages: Sequence[str], epochs: int, patience: int) -> None:
        self.waiting = dict.fromkeys(stages, (min(patience + 1, epochs), epochs))
        self.patience = patience
        self._now = (0, 0)  # epochs of this stage, at least and at most
        self._seconds, self._epochs, self._most = 0.0, 0, epochs

    def begin(self, stage: str, epochs: int) -> None:
        """A stage begins that has at most so many epochs."""
        self._now = self.waiting.pop(stage, (0, epochs))
        self._most = epochs

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        """An epoch of it has ended."""
        self._seconds += epoch.seconds
        self._epochs += 1
        most = max(self._most - epoch.epoch, 0)
        least = most if epoch.valid is None else min(best.epoch + self.patience - epoch.epoch, most)
        self._now = (max(least, 0), most)

    def end(self) -> None:
        """It has ended."""
        self._now = (0, 0)

    def seconds(self) -> tuple[float, float] | None:
        """At least and at most so many; None before the first epoch has ended."""
        if not self._epochs:
            return None
        each = self._seconds / self._epochs
        least, most = (sum(epochs) * each for epochs in zip(self._now, *self.waiting.values(), strict=True))
        return least, most

    def words(self) -> str:
        """`, 2 to 9 min of training left`; nothing before the first epoch has ended."""
        found = self.seconds()
        if found is None:
            return ""
        unit, size = ("s", 1) if found[1] < 120 else ("min", 60) if found[1] < 7200 else ("h", 3600)
        least, most = (round(seconds / size) for seconds in found)
        return f", {most if least == most else f'{least} to {most}'} {unit} of training left"
