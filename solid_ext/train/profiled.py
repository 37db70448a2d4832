"""Where the time of a step goes: some steps of each stage under torch's profiler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from solid_ext.files import write_text, written
from solid_ext.train.progress import Epoch, Passing, Reporter

WARM_UP, PROFILED = 3, 20  # steps of a stage: the first ones allocate, and a longer trace no viewer opens
SLOWEST = 15  # rows of the table


class Profiled(Passing):
    """Profiles some steps of each stage, and passes everything on.

    Of each stage the folder gets `STAGE.json`, a trace for https://ui.perfetto.dev, and `STAGE.txt`, a table of the
    slowest operations by their own time. The profiler itself makes a step slower.

    Args:
        folder: for both, made when the first are written.

    Attributes:
        tables: the table of each stage.
    """

    def __init__(self, folder: Path, after: Reporter) -> None:
        super().__init__(after)
        self.folder, self.tables = folder, dict[str, str]()
        self._stage, self._steps = "", 0
        self._profile: profile | None = None

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        super().begin(stage, steps, epochs)
        self._stage, self._steps = stage, 0
        if steps <= WARM_UP:
            self._start()

    def step(self) -> None:
        self._steps += 1
        if self._steps == WARM_UP and self._profile is None:
            self._start()
        elif self._steps == WARM_UP + PROFILED:
            self._stop()
        super().step()

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        self._stop()
        super().epoch(epoch, best)

    def end(self, stage: str, best: Epoch) -> None:
        self._stop()
        super().end(stage, best)

    def _start(self) -> None:
        devices = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profile = profile(activities=devices)
        self._profile.start()

    def _stop(self) -> None:
        if self._profile is None or self._stage in self.tables:
            return
        self._profile.stop()
        found = self._profile.key_averages()
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.table(sort_by=by, row_limit=SLOWEST, max_name_column_width=60)
        self.tables[self._stage] = table
        name = self._stage.replace(" ", "_")
        with written(self.folder / f"{name}.json") as partial:
            self._profile.export_chrome_trace(str(partial))
        write_text(self.folder / f"{name}.txt", table + "\n")
        self._profile = None
