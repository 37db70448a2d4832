"""low_rank_mlp, the default generator's layers, against the same in plain torch: time, fraction of sgemm, memory.

Both are the module that the recommender uses (d = 64, r = 16, two layers, the gate), at each instruction set that is
asked for. Every contestant is validated against float64 first. With one thread times are processor time, which a
neighbour on a shared machine does not enter. GFLOP/s count the work without keeping anything: forward two products with
the maps and two with the factors a layer, backward twice that.

    python -m bench.speed.bench_low_rank [--json] [--quick] [--seconds S] [--threads N ..] [--batches B ..]
        [--levels LEVEL ..]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness import Report, Row, compare, peak_memory, thread_counts
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.nn import LowRankMLP

DIM, RANK, LAYERS, DELTA = 64, 16, 2, 0.01
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
AIMS = {1: 2.0, 256: 2.5, 1024: 2.5}  # of eager torch's time over ours, forward and backward


def inputs(batch: int) -> Inputs:
    generator = torch.Generator().manual_seed(batch)
    x, z_item, z_semantic = (torch.randn(batch, DIM, generator=generator).requires_grad_() for _ in range(3))
    return x, z_item, z_semantic, torch.tensor(0.5, requires_grad=True)


def layers(backend: str) -> LowRankMLP:
    return LowRankMLP((DIM,) * (LAYERS + 1), DIM, RANK, DELTA, backend=backend)  # type: ignore[arg-type]


def steps(module: Any, given: Inputs) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """A forward pass without gradients, and a forward and backward pass."""
    leaves = [*given, *module.parameters()]
    upstream = torch.ones_like(given[0])

    def forward() -> Tensor:
        with torch.no_grad():
            return module(*given)

    return forward, lambda: torch.autograd.grad(module(*given), leaves, upstream)


def validate(module: LowRankMLP, given: Inputs) -> float:
    """The largest root mean square error of the result and all gradients, relative to each tensor's own."""
    doubles = layers("reference").double()
    doubles.load_state_dict(module.state_dict())
    passes = []
    for one, arguments in ((module, given), (doubles, [t.detach().double().requires_grad_() for t in given])):
        y = one(*arguments)
        passes.append([y.detach(), *torch.autograd.grad(y, [*arguments, *one.parameters()], torch.ones_like(y))])
    return max(
        float((found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        for found, expected in zip(*passes, strict=True)
    )


def clocked(work: Callable[[], object], times: int, threads: int) -> Callable[[], float]:
    """A contestant that does the work several times and returns the seconds of one."""
    clock = time.process_time if threads == 1 else time.perf_counter

    def call() -> float:
        start = clock()
        for _time in range(times):
            work()
        return (clock() - start) / times

    return call


def flops(batch: int) -> float:
    """Of a forward pass."""
    core = 2 * (RANK + 1) * RANK * DIM
    return 2.0 * batch * LAYERS * (core + 2 * DIM * RANK)


def aims_of(rows: list[Row]) -> list[dict[str, object]]:
    found = []
    for row in rows:
        kind, _, case = row.case.partition(", B = ")
        batch = int(case.split(",")[0])
        if row.name == "eager" and kind == "forward + backward" and batch in AIMS:
            name = f"LowRankMLP over eager, {row.case}, {row.threads} thread{'s' * (row.threads > 1)}"
            found.append(
                {"row": name, "reached": round(row.ratio, 2), "aim": AIMS[batch], "better": "higher", "unit": "x"}
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="write bench/results/low_rank.json")
    parser.add_argument("--quick", action="store_true", help="short, and without torch.compile")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each comparison")
    parser.add_argument("--threads", type=int, nargs="*", default=thread_counts())
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 256, 1024, 8192])
    usable = build_info()["isa_usable"]
    chosen = [level for level in ("avx2", "avx512", "neon") if level in usable] or usable[-1:]
    parser.add_argument("--levels", nargs="*", default=chosen, help="instruction sets")
    options = parser.parse_args()
    seconds = 1.5 if options.quick else options.seconds
    report = Report("low_rank")
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in options.batches:
            for level in options.levels:
                kernels.set_isa(level)
                torch.manual_seed(0)
                native, reference = layers("native"), layers("reference")
                reference.load_state_dict(native.state_dict())
                given = inputs(batch)
                case = f"B = {batch}, {level}"
                if batch <= 1024:
                    error = validate(native, given)
                    report.notes[f"error, {case}"] = f"{error:.1e}"
                    if not error < 1e-3:
                        raise SystemExit(f"{case}: expected errors below 1e-3, got {error}")
                contestants: dict[str, Any] = {"native": native, "eager": reference}
                if not options.quick:
                    torch._dynamo.reset()
                    contestants["compile"] = torch.compile(reference, dynamic=False)
                passes = {name: steps(module, given) for name, module in contestants.items()}
                for at, (kind, times) in enumerate([("forward", 1), ("forward + backward", 3)]):
                    # Calls of microseconds are timed many at once, and without the sgemm, which would empty the caches.
                    repeats = 100 if batch <= 16 else 1
                    report.rows += compare(
                        f"{kind}, {case}",
                        {name: clocked(both[at], repeats, threads) for name, both in passes.items()},
                        threads=threads,
                        flops=flops(batch) * times if repeats == 1 else None,
                        peak_bytes={n: peak_memory(both[at]) for n, both in passes.items() if n != "compile"},
                        seconds=seconds,
                        rounds=(5, 101),
                    )
    report.print()
    aims = aims_of(report.rows)
    for aim in aims:
        print("{row}: {reached} (aim {aim})".format(**aim))
    if options.json:
        path = report.write()
        path.write_text(json.dumps({**json.loads(path.read_text()), "aims": aims}, indent=1) + "\n")


if __name__ == "__main__":
    main()
