"""catalogue_cross_entropy against torch's cross-entropy of the logits: a training step's forward and backward.

    python -m bench.speed.bench_catalogue_cross_entropy [--json] [--quick]

B = 1024; D = 32 and 64; V = 4385, 50,000 and 500,000. Contestants take turns in one process. With one thread the times
are the process's, so that neighbours on the machine count for less; with two they are those of the clock. "of sgemm" is
what three matrix products of the same size would take at the rate of a large one in the same round, over our time.
Every instruction set is compared with float64 before anything is timed; the levels of AVX-512 and AVX2 are timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Report, Row, compare, peak_memory, thread_counts, timed
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops import catalogue_cross_entropy

BATCH = 1024
OURS, ROWS, TORCH = "catalogue_cross_entropy", "reduction none", "F.cross_entropy"
FASTER, OF_SGEMM = 1.5, 0.8
LEVELS = [level for level in ("avx512", "avx2", "neon") if level in build_info()["isa_usable"]]


def operands(dim: int, items: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(BATCH, dim, generator=generator)
    table = torch.randn(items, dim, generator=generator) * dim**-0.5
    return state.requires_grad_(), table.requires_grad_(), torch.randint(items, (BATCH,), generator=generator)


def eager(state: Tensor, table: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(state @ table.T, target)


def by_rows(state: Tensor, table: Tensor, target: Tensor) -> Tensor:
    return catalogue_cross_entropy(state, table, target, reduction="none").mean()


def step(loss: Callable[..., Tensor], case: tuple[Tensor, Tensor, Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(*case), case[:2])


def validate() -> None:
    """Every instruction set against float64, before anything is timed."""
    state, table, target = operands(32, 4385)
    wide = state.detach().double().requires_grad_(), table.detach().double().requires_grad_(), target
    truth = [eager(*wide), *torch.autograd.grad(eager(*wide), wide[:2])]
    before = build_info()["isa"]
    for level in build_info()["isa_usable"]:
        kernels.set_isa(level)
        loss = catalogue_cross_entropy(state, table, target)
        for found, expected in zip([loss, *torch.autograd.grad(loss, (state, table))], truth, strict=True):
            if not float((found.double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max()):
                raise SystemExit(f"bench_catalogue_cross_entropy: expected float64's values at level {level}")
    kernels.set_isa(before)


def contest(report: Report, dim: int, items: int, level: str, threads: int, quick: bool) -> None:
    kernels.set_isa(level)
    case = operands(dim, items)
    works = {OURS: step(catalogue_cross_entropy, case), TORCH: step(eager, case), ROWS: step(by_rows, case)}
    name = f"D={dim} V={items:,} {level}"
    clock = time.process_time if threads == 1 else time.perf_counter
    huge = items > 100_000
    report.rows += compare(
        name,
        {key: timed(work, clock) for key, work in works.items()},
        threads=threads,
        flops=6.0 * BATCH * items * dim,
        peak_bytes={key: peak_memory(work) for key, work in works.items()} if threads == 1 else None,
        seconds=1.0 if quick else 6.0,
        rounds=(3, 3) if quick else (3, 4) if huge else (5, 101),
        clock=clock,
    )


def aims(rows: list[Row]) -> list[dict[str, object]]:
    """Each figure with what was asked of it."""
    found: list[dict[str, object]] = []
    for row in rows:
        where = f"softmax cross-entropy, {row.case}, {row.threads} thread{'s' * (row.threads > 1)}"
        if row.name == TORCH:
            found.append(
                {"row": f"{where}, torch's time over ours", "reached": round(row.ratio, 2), "aim": FASTER,
                 "better": "higher", "unit": "x"}
            )  # fmt: skip
            if row.peak_bytes is not None:
                ours = next(r.peak_bytes for r in rows if (r.case, r.threads, r.name) == (row.case, row.threads, OURS))
                found.append(
                    {"row": f"{where}, torch's memory over ours", "reached": round(row.peak_bytes / (ours or 1), 1),
                     "aim": 6.0, "better": "higher", "unit": "x"}
                )  # fmt: skip
        if row.name == OURS and row.of_sgemm is not None:
            found.append(
                {"row": f"{where}, of three large sgemms", "reached": round(row.of_sgemm, 2), "aim": OF_SGEMM,
                 "better": "higher", "unit": ""}
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="write bench/results/catalogue_cross_entropy.json")
    parser.add_argument("--quick", action="store_true", help="the two smaller catalogues, short")
    arguments = parser.parse_args()
    validate()
    report = Report("catalogue_cross_entropy")
    all_threads, before = thread_counts(), build_info()["isa"]
    for threads in all_threads:
        torch.set_num_threads(threads)
        for level in LEVELS:
            for items in (4385, 50_000) if arguments.quick else (4385, 50_000, 500_000):
                for dim in (32, 64):
                    contest(report, dim, items, level, threads, arguments.quick)
    kernels.set_isa(before)
    torch.set_num_threads(all_threads[-1])
    report.aims = aims(report.rows)
    report.print()
    if arguments.json:
        report.write()


if __name__ == "__main__":
    main()
