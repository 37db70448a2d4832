"""nearest_code and Codebook against FAISS, scikit-learn, plain torch and vector-quantize-pytorch.

python -m bench.speed.bench_nearest_code [--json] [--quick] [--faiss-python PATH] [--quantize-path FOLDER]
python -m bench.speed.bench_nearest_code --grid [--json]    ratios over N, K and D, for plots
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.harness import RESULTS, Call, Peer, Report, compare, machine, missing, peak_memory, thread_counts, timed
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.nn.codebook import Codebook
from solid_ext.ops.nearest_code import nearest_code

FOLDER = Path(__file__).parent
BEST = build_info()["isa"]  # before any case sets another
SHAPES = [(10240, 590, 32), (10240, 8192, 32), (65536, 1024, 64)]  # N, K, D; SOLID's own first
STEP_SHAPES = [(10240, 590, 32), (10240, 1024, 64)]
VALIDATED_ROWS = 256
GRID = [  # one size at a time, around SOLID's own shape
    *((rows, 590, 32) for rows in (1, 16, 128, 1024, 10240, 65536)),
    *((10240, codes, 32) for codes in (16, 64, 256, 1024, 4096)),
    *((10240, 590, dim) for dim in (4, 8, 16, 64, 128, 256)),
]


def cdist_argmin(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(x, codebook).argmin(1)


def addmm_argmin(x: Tensor, codebook: Tensor) -> Tensor:
    half_norm = codebook.square().sum(1) / 2
    return torch.addmm(half_norm, x, codebook.T, alpha=-1).argmin(1)


def at_level(isa: str, work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        kernels.set_isa(isa)
        return work()

    return run


def validate(x: Tensor, codebook: Tensor) -> None:
    """Every instruction set against float64 on some rows, before anything is timed."""
    some = x[:VALIDATED_ROWS]
    truth = (some.double().unsqueeze(1) - codebook.double()).square().sum(2)
    best = truth.min(1).values
    size = some.double().square().sum(1) + codebook.double().square().sum(1).max()
    for isa in build_info()["isa_usable"]:
        kernels.set_isa(isa)
        chosen = truth.gather(1, nearest_code(some, codebook).index.unsqueeze(1)).squeeze(1)
        if not bool((chosen <= best + 1e-5 * size).all()):
            raise SystemExit(f"bench_nearest_code: expected the nearest codes at level {isa}, got others")


def world(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Rows and codes, the same as in peer_search.py."""
    rows, codes, dim = shape
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((rows, dim), dtype=np.float32))
    return x, torch.from_numpy(random.standard_normal((codes, dim), dtype=np.float32))


def search(report: Report, shape: tuple[int, int, int], threads: int, arguments: argparse.Namespace) -> None:
    rows, codes, dim = shape
    x, codebook = world(shape)
    validate(x, codebook)
    usable = [isa for isa in reversed(build_info()["isa_usable"]) if isa != "baseline" or arguments.baseline]
    levels = sorted(usable, key=lambda isa: isa != BEST)  # the ratios are over the first one
    work = {f"nearest_code {isa}": at_level(isa, lambda: nearest_code(x, codebook)) for isa in levels}
    work["cdist + argmin"] = lambda: cdist_argmin(x, codebook)
    work["addmm + argmin"] = lambda: addmm_argmin(x, codebook)
    peaks = {name: peak_memory(one) for name, one in work.items()}
    calls = {name: timed(one) for name, one in work.items()}
    peers = {}
    for library in ("faiss", "sklearn"):
        peer = Peer(arguments.faiss_python, FOLDER / "peer_search.py", [library, *shape, threads])
        if peer.ready:
            peers[library] = peer
        else:
            missing(peer, library)
    names = {"faiss": "FAISS IndexFlatL2", "sklearn": "scikit-learn"}
    calls.update({names[library]: peer for library, peer in peers.items()})
    seconds = 2.0 if arguments.quick else 12.0
    report.rows += compare(
        "search N={} K={} D={}".format(*shape),
        calls,
        threads=threads,
        flops=2.0 * rows * codes * dim,
        peak_bytes=peaks,
        seconds=seconds,
    )
    for peer in peers.values():
        peer.close()


def warm(work: Callable[[], object]) -> Call:
    """One call untimed, as a peer gets it, and one timed: small ones would measure who came before."""

    def call() -> float:
        work()
        return timed(work)()

    return call


def grid(arguments: argparse.Namespace) -> None:
    """Time of the others over ours at every point of GRID; a list of rows, for plots."""
    points = []
    for threads in reversed(thread_counts()):
        torch.set_num_threads(threads)
        for shape in GRID:
            x, codebook = world(shape)
            validate(x, codebook)
            kernels.set_isa(BEST)
            searches = {"ours": nearest_code, "addmm": addmm_argmin, "cdist": cdist_argmin}
            calls = {name: warm(partial(one, x, codebook)) for name, one in searches.items()}
            peer = Peer(arguments.faiss_python, FOLDER / "peer_search.py", ["faiss", *shape, threads])
            if peer.ready:
                calls["faiss"] = peer
            rows = compare("", calls, threads=threads, seconds=0.6, rounds=(9, 201))
            peer.close()
            ratios = {row.name: round(row.ratio, 3) for row in rows}
            point: dict[str, object] = {
                "op": "nearest_code",
                **dict(zip("NKD", shape, strict=True)),
                "threads": threads,
            }
            point |= {f"ratio_{name}": ratios.get(name) for name in ("addmm", "cdist", "faiss")}
            print(point, flush=True)
            points.append(point)
    if arguments.json:
        path = RESULTS / "nearest_code_grid.json"
        path.write_text(json.dumps({"machine": machine(), "rows": points}, indent=1) + "\n")


def training_step(report: Report, shape: tuple[int, int, int], threads: int, arguments: argparse.Namespace) -> None:
    rows, codes, dim = shape
    torch.manual_seed(0)
    x, weight = torch.randn(1, rows, dim).requires_grad_(), torch.randn(1, rows, dim)

    def step(layer: Codebook) -> Callable[[], object]:
        def run() -> None:
            x.grad = None
            found = layer(x)
            (found.loss + (found.quantized * weight).sum()).backward()

        return run

    work = {
        "Codebook native": step(Codebook(codes, dim, update="ema", decay=0.99)),
        "Codebook reference": step(Codebook(codes, dim, update="ema", decay=0.99, backend="reference")),
    }
    peaks = {name: peak_memory(one) for name, one in work.items()}
    calls = {name: timed(one) for name, one in work.items()}
    environment = dict(os.environ)
    if arguments.quantize_path:
        environment["PYTHONPATH"] = arguments.quantize_path
    peer = Peer(sys.executable, FOLDER / "peer_vector_quantize.py", [*shape, threads], environment)
    if peer.ready:
        calls["vector-quantize-pytorch"] = peer
    else:
        missing(peer, "vector-quantize-pytorch")
    report.rows += compare(
        "training step N={} K={} D={}".format(*shape),
        calls,
        threads=threads,
        peak_bytes=peaks,
        seconds=2.0 if arguments.quick else 8.0,
    )
    peer.close()


def overhead(report: Report) -> None:
    """What Python adds to the kernel for one row and 16 codes."""
    x, codebook = torch.randn(1, 32), torch.randn(16, 32)
    found = nearest_code(x, codebook)
    addresses = (
        False, x.data_ptr(), 32, 1, 32, codebook.data_ptr(), 16, 0, 0,
        found.index.data_ptr(), found.quantized.data_ptr(), found.distance.data_ptr(), 0, 0, 1,
    )  # fmt: skip
    calls = 1000

    def repeat(one: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            for _ in range(calls):
                one()

        return run

    kernel = timed(repeat(lambda: kernels.nearest_code(*addresses)))
    whole = timed(repeat(lambda: nearest_code(x, codebook)))
    pairs = [(kernel(), whole()) for _ in range(30)]
    alone, together = (min(taken) / calls * 1e6 for taken in zip(*pairs, strict=True))
    report.notes["microseconds per call of the kernel, N=1 K=16 D=32, best of 30"] = round(alone, 2)
    report.notes["microseconds that Python adds, best of 30"] = round(together - alone, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="write bench/results/nearest_code.json")
    parser.add_argument("--quick", action="store_true", help="a few seconds per case")
    parser.add_argument("--baseline", action="store_true", help="time the baseline instruction set too")
    parser.add_argument("--faiss-python", default=sys.executable, help="interpreter that has faiss and sklearn")
    parser.add_argument("--quantize-path", default="", help="folder that has vector_quantize_pytorch")
    parser.add_argument("--grid", action="store_true", help="only ratios over N, K and D: nearest_code_grid.json")
    arguments = parser.parse_args()
    if arguments.grid:
        grid(arguments)
        return
    report = Report("nearest_code")
    for threads in reversed(thread_counts()):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            search(report, shape, threads, arguments)
        kernels.set_isa(BEST)
        for shape in STEP_SHAPES:
            training_step(report, shape, threads, arguments)
    torch.set_num_threads(1)
    overhead(report)
    report.print()
    if arguments.json:
        print(f"written to {report.write().relative_to(RESULTS.parents[1])}")


if __name__ == "__main__":
    main()
