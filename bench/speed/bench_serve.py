"""What an answer costs: `SOLID.recommend` beside the same tower with FAISS or implicit, and the command line's start.

The model is an untrained one of the default configuration with V items, whose speed is a trained one's: text features
of 64 numbers, titles, and, where the name says so, neighbours (100 an item; 20 at 500,000). Histories have 5 to 39 ids.
The rival encodes the same histories, already numbers, by the network in plain torch (`backend="reference"`), and then
searches as many vectors for the 10 largest products; it leaves out no history and knows no ids, titles or neighbours.
With "our tower" it encodes by the kernels. One thread is measured in CPU time of the thread, two by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy import sparse

from bench.harness import RESULTS, Call, Peer, Report, Row, compare, machine, missing, thread_counts
from solid_ext import SOLID, build_info
from solid_ext._native import kernels
from solid_ext.data import Catalogue
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import inference
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import ItemKNN, WithNeighbours

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CASES = [(5_000, 1), (50_000, 1), (500_000, 1), (5_000, 256), (50_000, 256)]
K = 10
FEATURES = 64


def untrained(items: int, **fields: Any) -> SOLID:
    """A model of random parameters."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    solid = SOLID(**fields)
    semantics = np.concatenate([[0], np.arange(items) % min(max(items // 10, 16), 1024) + 1])
    features = torch.randn(items + 1, FEATURES)
    features[0] = 0
    solid.model = DynamicRecommender(solid.config.model, items, semantics, features).eval()
    with torch.no_grad():
        for parameter in (solid.model.item_embedding.feature_map, solid.model.gate):
            if parameter is not None:
                parameter.normal_(std=0.1)
    ids = [f"B{number:09d}" for number in range(items)]
    table = pl.DataFrame({"item_id": ids, "title": [f"The title of item {raw}, as a shop has it" for raw in ids]})
    solid.catalogue = Catalogue(table, rng.integers(0, 100, items))
    return solid


def with_neighbours(solid: SOLID) -> SOLID:
    """The same model with random neighbours."""
    if solid.model is None or solid.catalogue is None:
        raise ValueError("with_neighbours: expected a model, got none")
    items, rng = solid.model.num_items, np.random.default_rng(1)
    each = 20 if items > 100_000 else 100
    columns = rng.integers(1, items + 1, (items, each), dtype=np.int32)
    columns.sort(axis=1)
    ends = np.concatenate([[0], np.arange(items + 1) * each]).astype(np.int32)
    similarity = sparse.csr_array(
        (rng.random(items * each, dtype=np.float32), columns.ravel(), ends), shape=(items + 1, items + 1)
    )
    similarity.sum_duplicates()
    other = SOLID(solid.config)
    other.model, other.catalogue = solid.model, solid.catalogue
    other.neighbours = WithNeighbours(solid.model, ItemKNN.of(similarity, solid.model.length), 8.0, 0.8)
    return other


def histories(solid: SOLID, count: int) -> tuple[list[list[str]], torch.Tensor]:
    """Raw ids, and the sequences [B, L] that are encoded of them."""
    if solid.model is None:
        raise ValueError("histories: expected a model, got none")
    rng, items, length = np.random.default_rng(2), solid.model.num_items, solid.model.length
    asked, sequences = [], torch.zeros(count, length, dtype=torch.int64)
    for row in range(count):
        history = rng.integers(items, size=rng.integers(5, 40))
        asked.append([f"B{number:09d}" for number in history])
        recent = torch.from_numpy(history[-length:]) + 1
        sequences[row, : len(recent)] = recent
    return asked, sequences


def validate(solid: SOLID, asked: list[list[str]], sequences: torch.Tensor) -> None:
    """The answers are what scoring every item, leaving the history out and sorting gives, before anything is timed."""
    found = solid.recommend(asked[:8], K)
    with inference(solid.scorer) as scorer:
        everything = torch.arange(1, solid.model.num_items + 1 if solid.model else 1)
        scores = scorer.score(scorer.encode(sequences[:8]), everything)
    scores = scores.clone()
    for row, entries in enumerate(found):
        scores[row, [int(raw[1:]) for raw in asked[row]]] = -torch.inf
        best = scores[row].topk(K).values
        theirs = scores[row, [int(entry.item[1:]) for entry in entries]]
        if not torch.allclose(theirs, best, rtol=1e-4, atol=1e-5):
            raise SystemExit("bench_serve: expected the best items, got others")


def clocked(work: Callable[[], object], threads: int) -> Call:
    """A call by the clock that the number of threads has."""
    clock = time.thread_time if threads == 1 else time.perf_counter

    def call() -> float:
        start = clock()
        work()
        return clock() - start

    return call


def at_level(isa: str, work: Call) -> Call:
    def call() -> float:
        kernels.set_isa(isa)
        return work()

    return call


def after(tower: Call, search: Peer) -> Call:
    """A tower here and a search there, one after the other; the peer's first call wakes it."""

    def call() -> float:
        seconds = tower()
        search()
        return seconds + search()

    return call


def encoding(scorer: Scorer | None, sequences: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with inference(scorer) as asked:
            return None if asked is None else asked.encode(sequences)

    return run


def answers(report: Report, case: tuple[int, int], threads: int, arguments: argparse.Namespace) -> None:
    """The contestants of one catalogue and batch."""
    items, batch = case
    plain = untrained(items)
    near = with_neighbours(plain)
    asked, sequences = histories(plain, batch)
    validate(plain, asked, sequences)
    validate(near, asked, sequences)
    network, plainly = plain.model, plain.config.replace(backend="reference").model
    reference = DynamicRecommender(plainly, items, network.semantics.numpy(), network.item_embedding.features).eval()
    reference.load_state_dict(network.state_dict())
    tower, ours = (clocked(encoding(model, sequences), threads) for model in (reference, network))
    levels = [isa for isa in ("avx2", build_info()["isa_usable"][-1]) if isa in build_info()["isa_usable"]]
    calls: dict[str, Call] = {}
    for isa in dict.fromkeys(reversed(levels)):
        calls[f"recommend {isa}"] = at_level(isa, clocked(lambda: plain.recommend(asked, K), threads))
        calls[f"recommend with neighbours {isa}"] = at_level(isa, clocked(lambda: near.recommend(asked, K), threads))
    peers = []
    for library in ("faiss",) if batch == 1 else ("faiss", "implicit"):
        peer = Peer(
            arguments.faiss_python,
            FOLDER / "peer_serve.py",
            [library, items, plain.config.model.dim, batch, K, threads],
        )
        peers.append(peer)
        if peer.ready:
            calls[f"tower + {library}"] = after(tower, peer)
            calls[f"our tower + {library}"] = after(at_level(levels[-1], ours), peer)
        else:
            missing(peer, library)
    seconds = 3.0 if arguments.quick else 20.0
    name = f"V={items} B={batch}"
    report.rows += compare(name, calls, threads=threads, seconds=seconds, rounds=(5, 301))
    for peer in peers:
        peer.close()


def of_case(rows: Sequence[Row], case: tuple[int, int]) -> dict[str, Row]:
    return {row.name: row for row in rows if row.case == "V={} B={}".format(*case) and row.threads == 1}


def aims(report: Report, started: dict[str, float]) -> list[dict[str, object]]:
    """What was reached of what was asked for, one thread."""
    found: list[dict[str, object]] = []

    def add(row: str, reached: float, aim: float, unit: str) -> None:
        found.append({"row": row, "reached": round(reached, 3), "aim": aim, "better": "lower", "unit": unit})

    for case in CASES:
        rows = of_case(report.rows, case)
        shown, library = f"{case[0] // 1000} k items", "faiss" if case[1] == 1 else "implicit"
        for name, mine in rows.items():
            if not name.startswith("recommend"):
                continue
            for tower in ("tower", "our tower"):
                rival = rows.get(f"{tower} + {library}")
                if rival is not None:
                    add(
                        f"{name}, batch {case[1]}, {shown}, over {tower} + {library}",
                        mine.ratio / rival.ratio,
                        1.2,
                        "x",
                    )
            if case == (50_000, 1):
                add(f"{name}, batch 1, {shown}, median", mine.seconds * 1e3, 2.0, "ms")
    torch_alone = started["import torch"]
    add("solid-ext --help, CPU", started["solid-ext --help"], 0.5, "s")
    add("solid-ext recommend over import torch, CPU", started["solid-ext recommend"] - torch_alone, 0.5, "s")
    return found


def starting(quick: bool) -> dict[str, float]:
    """CPU seconds of whole processes, the median of alternating rounds."""
    with tempfile.TemporaryDirectory() as folder:
        solid = with_neighbours(untrained(5_000))
        solid.save(Path(folder) / "model")
        command = [sys.executable, "-m", "solid_ext.cli"]
        asked = ["recommend", "--run", str(Path(folder) / "model"), "--history", "B000000001", "B000000002"]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "solid-ext --help": [*command, "--help"],
            "solid-ext recommend": [*command, *asked],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for _ in range(3 if quick else 7):
            for name, arguments in commands.items():
                process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                if process.returncode:
                    raise SystemExit(f"bench_serve: expected {name} to end well, got exit code {process.returncode}")
                taken[name].append(usage.ru_utime + usage.ru_stime)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="write bench/results/serve.json")
    parser.add_argument("--quick", action="store_true", help="a few seconds per case")
    parser.add_argument("--faiss-python", default=sys.executable, help="interpreter that has faiss and implicit")
    arguments = parser.parse_args()
    report = Report("serve")
    for threads in thread_counts():
        torch.set_num_threads(threads)
        for case in CASES:
            answers(report, case, threads, arguments)
    started = starting(arguments.quick)
    report.notes |= {f"{name}, CPU seconds": round(seconds, 3) for name, seconds in started.items()}
    report.print()
    reached = aims(report, started)
    for aim in reached:
        print(f"{aim['row']}: {aim['reached']} {aim['unit']} (aim: {aim['aim']})")
    if arguments.json:
        content = {"machine": machine(), "notes": report.notes, "rows": [asdict(row) for row in report.rows]}
        (RESULTS / "serve.json").write_text(json.dumps({**content, "aims": reached}, indent=1) + "\n")


if __name__ == "__main__":
    main()
