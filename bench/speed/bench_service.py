"""The service under load: 64 clients on the processors of this machine, and what a session saves.

The model is the untrained one of `bench_serve` with 50,000 items, titles, features and neighbours. `solid-ext serve`'s
process answers `POST /recommend` with histories of 5 to 39 ids and k = 10; the clients, 64 connections of one process
beside it, take their share of the same processors. Each client sends its next request when it has the answer to the
last one; where a rate is given, no earlier than its turn. The answer to a request is checked against Python's before
anything is timed. Without batches, every request is a call of the model of its own.

A session is measured against the same recommendations from the whole history, in CPU time of one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harness import RESULTS, machine
from bench.speed.bench_serve import histories, untrained, with_neighbours
from solid_ext import SOLID
from solid_ext.threads import usable_processors

ROOT = Path(__file__).parents[2]
ITEMS, CLIENTS, K = 50_000, 64, 10
SERVER = """
import sys
from pathlib import Path
from solid_ext.service import Limits, serve
serve(Path(sys.argv[1]), port=0, limits=Limits(batch=int(sys.argv[2])), on_start=lambda at: print(at, flush=True))
"""


@dataclass(frozen=True)
class Load:
    """What so many requests met."""

    case: str
    requests: int
    errors: int
    seconds: float
    requests_a_second: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    server_ms: float  # of CPU time a request, of all its threads


@contextmanager
def server(folder: Path, batch: int) -> Any:
    """A service in a process of its own, and its port."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(batch)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("bench_service: expected a process with a pipe for its output")
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        for _ in range(100):
            try:
                asyncio.run(answered(port, request("GET", "/health")))
                break
            except OSError:
                time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def request(method: str, path: str, body: Any = None) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def exchanged(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to one request."""
    reader, writer = streams
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


async def answered(port: int, sent: bytes) -> tuple[int, bytes]:
    streams = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchanged(streams, sent)
    finally:
        streams[1].close()


async def load(port: int, bodies: Sequence[bytes], count: int, rate: float | None) -> tuple[list[float], int, float]:
    """Seconds of each of `count` answers, how many were errors, and the seconds of it all."""
    taken: list[float] = []
    errors, turn = 0, 0
    start = time.perf_counter()

    async def client() -> None:
        nonlocal errors, turn
        streams = await asyncio.open_connection("127.0.0.1", port)
        while turn < count:
            mine, turn = turn, turn + 1
            if rate is not None:
                await asyncio.sleep(max(start + mine / rate - time.perf_counter(), 0))
            before = time.perf_counter()
            try:
                status, _ = await exchanged(streams, bodies[mine % len(bodies)])
            except (OSError, EOFError, ValueError):
                status = 0
                streams = await asyncio.open_connection("127.0.0.1", port)
            taken.append(time.perf_counter() - before)
            errors += status != 200
        streams[1].close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return taken, errors, time.perf_counter() - start


def measured(
    case: str,
    process: subprocess.Popen[str],
    port: int,
    bodies: Sequence[bytes],
    count: int,
    rate: float | None = None,
) -> Load:
    before = processor_seconds(process)
    taken, errors, seconds = asyncio.run(load(port, bodies, count, rate))
    used = processor_seconds(process) - before
    parts = statistics.quantiles(taken, n=100)
    found = Load(
        case, count, errors, round(seconds, 2), round(count / seconds, 1),
        round(parts[49] * 1e3, 2), round(parts[98] * 1e3, 2), round(max(taken) * 1e3, 2),
        round(used / count * 1e3, 3),
    )  # fmt: skip
    print(found, flush=True)
    return found


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: subprocess.Popen[str]) -> float:
    """MB of memory of a process."""
    for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("bench_service: expected VmRSS in /proc, got none")


def validate(port: int, solid: SOLID, asked: Sequence[Sequence[str]], bodies: Sequence[bytes]) -> None:
    """The service's answers are Python's."""
    for history, body in zip(asked[:8], bodies[:8], strict=True):
        status, content = asyncio.run(answered(port, body))
        theirs = [entry["item"] for entry in json.loads(content)["items"]]
        if status != 200 or theirs != [entry.item for entry in solid.recommend([history], K)[0]]:
            raise SystemExit(f"bench_service: expected the items that Python recommends, got {theirs}")


def sessions(solid: SOLID, events: int) -> dict[str, float]:
    """Milliseconds of CPU time of one thread, medians over events."""
    torch.set_num_threads(1)
    asked, _ = histories(solid, events)
    history = list(asked[0])
    session, whole, event, again = solid.session(history), [], [], []
    for other in asked[1:]:
        history.append(other[0])
        times = [time.thread_time()]
        expected = solid.recommend([history], K)[0]
        times.append(time.thread_time())
        session.observe(other[0])
        found = session.recommend(K)
        times.append(time.thread_time())
        session.recommend(K)
        times.append(time.thread_time())
        if found != expected:
            raise SystemExit("bench_service: expected a session's answers to be those of the whole history")
        for kept, first, last in zip((whole, event, again), times, times[1:], strict=False):
            kept.append(last - first)
    medians = [statistics.median(kept) * 1e3 for kept in (whole, event, again)]
    names = ("recommend from the whole history", "observe and recommend", "recommend again")
    return {name: round(value, 3) for name, value in zip(names, medians, strict=True)}


def aim(row: str, reached: float, wanted: float, unit: str, better: str = "lower") -> dict[str, object]:
    return {"row": row, "reached": round(reached, 3), "aim": wanted, "better": better, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="write bench/results/service.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    arguments = parser.parse_args()
    share = 10 if arguments.quick else 1
    before = os.getloadavg()
    solid = with_neighbours(untrained(ITEMS))
    saved = sessions(solid, 400 // share)
    asked, _ = histories(solid, 2000)
    bodies = [request("POST", "/recommend", {"history": history, "k": K}) for history in asked]
    rows, memory = [], {}
    with tempfile.TemporaryDirectory() as folder:
        solid.save(Path(folder) / "model")
        with server(Path(folder) / "model", 1) as (process, port):
            validate(port, solid, asked, bodies)
            rows.append(measured("64 clients, one history a call", process, port, bodies, 3000 // share))
        with server(Path(folder) / "model", 64) as (process, port):
            validate(port, solid, asked, bodies)
            measured("warm", process, port, bodies, 500)
            memory["start"] = resident(process)
            rows.append(measured("64 clients, as fast as they can", process, port, bodies, 50_000 // share))
            memory["middle"] = resident(process)
            for rate in (100, 200, 400, 600, 800, 1000, 1200, 1500):
                if rate < 0.95 * rows[1].requests_a_second:
                    rows.append(
                        measured(f"64 clients, {rate} a second", process, port, bodies, rate * 20 // share, rate)
                    )
            done = sum(row.requests for row in rows[1:])
            rows.append(measured("64 clients, the rest", process, port, bodies, max(100_000 // share - done, 1000)))
            memory["end"] = resident(process)
    served = rows[1:]
    within = [row for row in served if row.p99_ms < 50]
    best = max((row.requests_a_second for row in within), default=0.0)
    total, errors = sum(row.requests for row in served), sum(row.errors for row in served)
    ratio = saved["observe and recommend"] / saved["recommend from the whole history"]
    grown, batched = memory["end"] / memory["middle"], rows[1].requests_a_second / rows[0].requests_a_second
    aims = [
        aim("service, 64 clients as fast as they can, p99", rows[1].p99_ms, 50, "ms"),
        aim(f"service, errors in {total:,} requests", errors, 0, ""),
        aim("service, memory at the end over the middle", grown, 1.02, "x"),
        aim("service, requests a second over one history a call", batched, 1.0, "x", "higher"),
        aim("session, an event over the whole history", ratio, 1.0, "x"),
    ]
    content = {
        "machine": machine(),
        "notes": {
            "processors": usable_processors(),
            "load average before": round(before[0], 2),
            "requests a second at p99 < 50 ms": best,
            "clients": "a process on the same processors",
        },
        "rows": [asdict(row) for row in rows],
        "memory_mb": {name: round(value, 1) for name, value in memory.items()},
        "session_ms": saved,
        "aims": aims,
    }
    print(json.dumps({name: content[name] for name in ("notes", "memory_mb", "session_ms", "aims")}, indent=1))
    if arguments.json:
        (RESULTS / "service.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
