"""What every benchmark does the same way: interleaved timing, a measured limit, memory, tables and result files.

Machines are noisy, so contestants take turns, one call each per round, and every ratio is the median over rounds of
two calls made next to each other. Times are medians with the quartiles' distance. A large sgemm takes part in every
round: what the processor does in that very run is the limit that GFLOP/s are compared with.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import torch
from rich.console import Console
from rich.table import Table

from solid_ext import build_info

RESULTS = Path(__file__).parent / "results"
SGEMM = "sgemm"
SETTLING = 0.02  # seconds: after a call, OpenMP's idle threads spin for about 10 ms before they leave their core
SGEMM_SIZE = 1536  # 9.4 MB per matrix: large enough for its full speed, small enough for every round

Call = Callable[[], float]  # does the work once and returns its seconds


@dataclass(frozen=True)
class Row:
    """One contestant's line: seconds are medians over rounds, `ratio` is its time over the first contestant's."""

    case: str
    threads: int
    name: str
    seconds: float
    spread: float
    rounds: int
    ratio: float
    gflops: float | None = None
    of_sgemm: float | None = None
    peak_bytes: int | None = None


@dataclass
class Report:
    """Rows of one benchmark, to be printed and written."""

    name: str
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, float | int | str] = field(default_factory=dict)
    aims: list[dict[str, object]] = field(default_factory=list)  # figures beside what they were meant to reach

    def print(self) -> None:
        """Prints a table for each case and number of threads, then the notes."""
        console = Console()
        for case, threads in dict.fromkeys((row.case, row.threads) for row in self.rows):
            table = Table(
                "contestant", "ms", "spread", "x ours", "GFLOP/s", "of sgemm", "peak MB",
                title=f"{case}, {threads} thread{'s' * (threads > 1)}", title_justify="left",
            )  # fmt: skip
            for row in self.rows:
                if (row.case, row.threads) != (case, threads):
                    continue
                table.add_row(
                    row.name,
                    f"{row.seconds * 1e3:.3f}",
                    f"{row.spread:.0%}",
                    f"{row.ratio:.2f}",
                    "" if row.gflops is None else f"{row.gflops:.1f}",
                    "" if row.of_sgemm is None else f"{row.of_sgemm:.0%}",
                    "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.2f}",
                )
            console.print(table)
        for name, value in self.notes.items():
            console.print(f"{name}: {value}")
        for aim in self.aims:
            console.print("{row}: {reached} {unit} (aim {aim})".format(**aim))

    def write(self) -> Path:
        """Writes rows, machine, date and commit to `bench/results/<name>.json`; returns the path."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        content = {"machine": machine(), "notes": self.notes, "rows": [asdict(row) for row in self.rows]}
        if self.aims:
            content["aims"] = self.aims
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path


def machine() -> dict[str, object]:
    """Processor, versions, date and commit, as every result file states them."""
    names = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    commit = ""
    with contextlib.suppress(OSError):  # no git
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "cores": torch.get_num_threads(),
        "isa": build_info()["isa"],
        "compiler": build_info()["compiler"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit or "unknown",
    }


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Call:
    """A call in this process, timed by a clock: `time.process_time` leaves out what neighbours of one thread take."""

    def call() -> float:
        start = clock()
        work()
        return clock() - start

    return call


class Peer:
    """A contestant in a process of its own, which times one call for every line it reads.

    The process runs `script arguments..`, writes one line when it is ready, and then for each line on its input one
    line with the seconds of one call. A first line starting with "missing" means that it cannot take part.
    """

    def __init__(
        self, python: str, script: Path, arguments: Sequence[object], environment: dict[str, str] | None = None
    ) -> None:
        self.python = python
        self.process = subprocess.Popen(
            [python, str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.greeting = self._output.readline().strip()

    @property
    def _output(self) -> IO[str]:
        if self.process.stdout is None:
            raise RuntimeError("Peer: expected a process with a pipe for its output")
        return self.process.stdout

    @property
    def ready(self) -> bool:
        return self.greeting.startswith("ready")

    def __call__(self) -> float:
        if self.process.stdin is None:
            raise RuntimeError("Peer: expected a process with a pipe for its input")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._output.readline())

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._output.close()
        self.process.wait()


def compare(
    case: str,
    contestants: dict[str, Call],
    *,
    threads: int,
    flops: float | None = None,
    peak_bytes: dict[str, int] | None = None,
    seconds: float = 6.0,
    rounds: tuple[int, int] = (5, 101),
    clock: Callable[[], float] = time.perf_counter,
    sgemm: Call | None = None,
) -> list[Row]:
    """Times the contestants in turns and returns a row each; ratios are against the first one.

    Args:
        flops: floating-point operations of one call, for GFLOP/s; a sgemm then takes part as the limit.
        seconds: about how long to go on, within the bounds `rounds`.
        clock: what times the sgemm: the contestants' own.
        sgemm: a product of matrices of SGEMM_SIZE to take as the limit, in place of torch's in this process.
    """
    calls = dict(contestants)
    if flops is not None:
        matrix = torch.randn(SGEMM_SIZE, SGEMM_SIZE)
        calls[SGEMM] = sgemm or timed(lambda: matrix @ matrix, clock)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    previous: Call | None = None
    end = time.perf_counter() + seconds
    while (done := len(next(iter(times.values())))) < rounds[1] and (done < rounds[0] or time.perf_counter() < end):
        for name, call in calls.items():
            if isinstance(call, Peer) or isinstance(previous, Peer):
                time.sleep(SETTLING)  # or the threads of the one process stand in the way of the other's
                call()  # untimed: its own threads are awake again
            times[name].append(call())
            previous = call
    ours = times[next(iter(contestants))]
    rows = []
    for name, taken in times.items():
        operations = 2.0 * SGEMM_SIZE**3 if name == SGEMM else flops
        rate = None if operations is None else operations / statistics.median(taken) / 1e9
        fraction = None
        if flops is not None and operations is not None:
            fraction = statistics.median(
                operations / 2.0 / SGEMM_SIZE**3 * other / mine for mine, other in zip(taken, times[SGEMM], strict=True)
            )
        quartiles = statistics.quantiles(taken, n=4)
        rows.append(
            Row(
                case,
                threads,
                name,
                statistics.median(taken),
                (quartiles[2] - quartiles[0]) / statistics.median(taken),
                len(taken),
                statistics.median(mine / first for mine, first in zip(taken, ours, strict=True)),
                rate,
                fraction,
                (peak_bytes or {}).get(name),
            )
        )
    return rows


def peak_memory(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` holds at once beyond what existed before."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = most = 0
    events = profile.profiler.kineto_results.events() if profile.profiler else []
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def thread_counts() -> list[int]:
    """One thread, and all of them."""
    return sorted({1, torch.get_num_threads()})


def missing(peer: Peer, name: str) -> None:
    """Says on the terminal why a contestant does not take part."""
    Console(stderr=True).print(f"{name} left out: {peer.greeting or 'its process ended'} ({peer.python})")
