"""gru_last_state against the loop over nn.GRUCell, nn.GRU, and torch.compile of the loop.

python -m bench.speed.bench_gru [--json] [--quick] [--no-compile]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import Report, compare, peak_memory, thread_counts, timed
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.ops.gru import gru_last_state

SHAPES = [(1024, 10, 32), (8192, 10, 32), (1024, 50, 64)]  # B, L, D = H; SOLID's own first
SERVING = (1, 10, 32)


def cell_loop(cell: nn.GRUCell, x: Tensor, mask: Tensor) -> Tensor:
    state = x.new_zeros(x.shape[0], cell.hidden_size)
    for position in range(x.shape[1]):
        state = torch.where(mask[:, position, None], cell(x[:, position], state), state)
    return state


def whole_gru(gru: nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """The states of all positions, of which the last valid one is taken: every sequence here has one."""
    last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, gru.hidden_size)
    return gru(x)[0].gather(1, last).squeeze(1)


def fused(cell: nn.GRUCell, x: Tensor, mask: Tensor) -> Tensor:
    return gru_last_state(x, mask, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)


def step(forward: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor], weight: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(forward(x), [x, *parameters], weight)


def validate(cell: nn.GRUCell, x: Tensor, mask: Tensor) -> None:
    """Every instruction set against float64, before anything is timed."""
    some = slice(0, 64)
    wide = nn.GRUCell(cell.input_size, cell.hidden_size, dtype=torch.float64)
    wide.load_state_dict(cell.state_dict())
    truth = cell_loop(wide, x[some].double(), mask[some])
    before = build_info()["isa"]
    for isa in build_info()["isa_usable"]:
        kernels.set_isa(isa)
        if not torch.allclose(fused(cell, x[some], mask[some]).double(), truth, rtol=0, atol=1e-5):
            raise SystemExit(f"bench_gru: expected the cell's states at level {isa}, got others")
    kernels.set_isa(before)


def contest(
    report: Report, shape: tuple[int, int, int], padded: bool, threads: int, arguments: argparse.Namespace
) -> None:
    batch, length, size = shape
    torch.manual_seed(0)
    cell, gru = nn.GRUCell(size, size), nn.GRU(size, size, batch_first=True)
    x, weight = torch.randn(batch, length, size).requires_grad_(), torch.randn(batch, size)
    valid = torch.randint(1, length + 1, (batch,)) if padded else torch.full((batch,), length)
    mask = torch.arange(length) < valid[:, None]
    validate(cell, x.detach(), mask)
    parameters, of_gru = list(cell.parameters()), list(gru.parameters())
    train = {
        "gru_last_state": step(lambda t: fused(cell, t, mask), x, parameters, weight),
        "GRUCell loop": step(lambda t: cell_loop(cell, t, mask), x, parameters, weight),
        "nn.GRU": step(lambda t: whole_gru(gru, t, mask), x, of_gru, weight),
    }
    serve: dict[str, Callable[[], Any]] = {
        "gru_last_state": lambda: fused(cell, x, mask),
        "GRUCell loop": lambda: cell_loop(cell, x, mask),
        "nn.GRU": lambda: whole_gru(gru, x, mask),
    }
    if not arguments.no_compile:
        compiled = torch.compile(lambda t: cell_loop(cell, t, mask), fullgraph=True, dynamic=False)
        train["compiled loop"] = step(compiled, x, parameters, weight)
    name = "B={} L={} D=H={}{}".format(*shape, " right-padded, half full" if padded else "")
    seconds = 1.5 if arguments.quick else 8.0
    # Each position that counts: one product with [3H, D] and one with [3H, H]; backward two of each.
    flops = 2.0 * 6 * size * size * float(valid.sum())
    if batch > SERVING[0]:
        report.rows += compare(
            f"forward + backward {name}",
            {key: timed(work) for key, work in train.items()},
            threads=threads,
            flops=3 * flops,
            peak_bytes={key: peak_memory(work) for key, work in train.items()},
            seconds=seconds,
        )
    with torch.no_grad():
        report.rows += compare(
            f"forward {name}", {key: timed(work) for key, work in serve.items()}, threads=threads, seconds=seconds / 2
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="write bench/results/gru.json")
    parser.add_argument("--quick", action="store_true", help="the first shape, short")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    report = Report("gru")
    for threads in thread_counts():
        torch.set_num_threads(threads)
        for shape in SHAPES[:1] if arguments.quick else SHAPES:
            contest(report, shape, False, threads, arguments)
        contest(report, SHAPES[0], True, threads, arguments)
        contest(report, SERVING, False, threads, arguments)
    report.print()
    if arguments.json:
        report.write()


if __name__ == "__main__":
    main()
