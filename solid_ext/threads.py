"""How many CPU threads a process of ours takes: measured beside whatever else the machine is doing."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from solid_ext.forked import is_forked_child

WINDOW = 0.04  # seconds of a measurement: many times the few milliseconds for which a scheduler lets others run
ROUNDS = 3  # of each number, in turns; the middle one counts
GAIN = 1.15  # more threads are taken if they are this much faster: they cost a neighbour more than they look


@dataclass(frozen=True)
class Threads:
    """A number of threads and why it is that."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} ({self.reason})"


def set_threads(count: int) -> None:
    """Have torch and the kernels use this many threads here; with 0 as many as before.

    A forked child takes one, and warns if more were asked for: the others stayed with its parent, and OpenMP would wait
    for them for ever.
    """
    if is_forked_child():
        if count > 1:
            warnings.warn(f"threads: expected 1 in a forked process, got {count}; it goes on with 1", stacklevel=3)
        count = 1
    if count:
        torch.set_num_threads(count)


def use_threads(asked: int, run: Path | None = None) -> Threads:
    """Decide how many threads torch and the kernels use in this process, and set it.

    Args:
        asked: a number, or 0 to decide here: `OMP_NUM_THREADS` if it is set; else what the run to go on with had, so
            that it goes on to the same bits; else what was fastest just now, of 1, 2, 4 .. up to all that may be used.
        run: the folder of a run that is resumed.
    """
    usable = usable_processors()
    if is_forked_child():
        found = Threads(1, "a forked process has one")
    elif asked:
        found = Threads(asked, "as asked")
    elif os.environ.get("OMP_NUM_THREADS"):
        found = Threads(torch.get_num_threads(), _of_environment(os.environ["OMP_NUM_THREADS"]))
    elif (before := _threads_of(run)) is not None:
        found = Threads(before, "as the run had before")
    else:
        most = min(torch.get_num_threads(), usable)
        found = _measured(most) if most > 1 else Threads(1, "all that may be used")
    torch.set_num_threads(found.count)
    return found


def _of_environment(value: str) -> str:
    """Why torch has the threads that it has, `OMP_NUM_THREADS` being set: it does not take every value."""
    first = value.partition(",")[0].strip()  # the others are of threads inside threads
    if first == str(torch.get_num_threads()):
        return "OMP_NUM_THREADS"
    return f"torch's choice; OMP_NUM_THREADS={value!r:.40} was not used"


def usable_processors() -> int:
    """Processors that this process may use: of the machine, of its affinity, of its control group's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"))
    return count if quota is None else max(1, min(count, round(quota)))


def _quota(root: Path) -> float | None:
    """Processors' worth of time that a control group allows, of version 2 or 1; None without a limit."""
    try:
        if (root / "cpu.max").exists():
            limit, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        else:
            limit, period = (
                (root / "cpu" / name).read_text(encoding="utf-8").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return None if limit in ("max", "-1") else float(limit) / float(period)
    except (OSError, ValueError):
        return None


def _threads_of(run: Path | None) -> int | None:
    """What a run's description says it was trained with."""
    if run is None:
        return None
    try:
        found = json.loads((run / "run.json").read_text(encoding="utf-8"))["build"]["threads"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def _measured(most: int) -> Threads:
    """The smallest of 1, 2, 4 .. `most` that the next ones do not beat by GAIN."""
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            speeds[count].append(_speed(count))
    speed = {count: sorted(found)[ROUNDS // 2] for count, found in speeds.items()}
    best = counts[0]
    for count in counts[1:]:
        if speed[count] > GAIN * speed[best]:
            best = count
    speeds_in_words = ", ".join(f"{count}: {speed[count] / speed[1]:.2f}" for count in counts)
    return Threads(best, f"measured, speed by threads {speeds_in_words}; --threads sets it")


def _speed(threads: int) -> float:
    """Passes a second of what a training step does most: a product, an activation, a normalisation, a sum."""
    torch.set_num_threads(threads)
    x = torch.linspace(-1, 1, 1024 * 64, device="cpu").view(1024, 64)
    weights = torch.linspace(-1, 1, 64 * 64, device="cpu").view(64, 64)

    def work() -> None:
        torch.nn.functional.layer_norm(torch.nn.functional.gelu(x @ weights), (64,)).sum()

    with torch.inference_mode():
        work()  # the threads are there
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < WINDOW:
            work()
            done += 1
        return done / (time.perf_counter() - start)
