"""dynamic_mlp against the reference, eager and compiled: time, fraction of a large sgemm, memory.

Validates every contestant against float64 first. GFLOP/s count the nominal work, forward 4 k (D + 1) O per sequence
and layer and backward three times that; the kernel's backward does less (2.5 times), so its fraction of sgemm may
exceed one.

    python -m bench.speed.bench_dynamic_mlp [--json] [--quick] [--seconds S] [--threads N ..] [--batches B ..]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import SGEMM_SIZE, Peer, Report, compare, peak_memory, thread_counts, timed
from solid_ext import build_info
from solid_ext._native import kernels
from solid_ext.nn import DynamicMLP

Inputs = tuple[Tensor, Tensor, Tensor]
DELTA = 0.01


def inputs(batch: int, size: int, codes: int, targets: int | None, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    x = normal(batch, size) if targets is None else normal(batch, targets, size)
    return x, normal(batch, codes), normal(batch, codes)


def steps(layers: torch.nn.Module, arguments: Inputs) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """A forward pass without gradients, and a forward and backward pass."""
    leaves = [*arguments, *layers.parameters()]
    upstream = torch.ones_like(layers(*arguments))

    def forward() -> Tensor:
        with torch.no_grad():
            return layers(*arguments)

    return forward, lambda: torch.autograd.grad(layers(*arguments), leaves, upstream)


def validate(layers: torch.nn.Module, arguments: Inputs) -> float:
    """Largest error of the result and of all gradients against float64, relative to each tensor's largest value.

    Weights within rounding of the bound may pass their gradient on one side only, so a few elements may differ more:
    errors are root mean squares.
    """
    doubles = DynamicMLP(layers.sizes, arguments[1].shape[1], DELTA, backend="reference").double()
    doubles.load_state_dict(layers.state_dict())
    worst = 0.0
    found, expected = (
        [y := module(*given), *torch.autograd.grad(y, [*given, *module.parameters()], torch.ones_like(y))]
        for module, given in (
            (layers, arguments),
            (doubles, tuple(t.detach().double().requires_grad_() for t in arguments)),
        )
    )
    for one, other in zip(found, expected, strict=True):
        error = (one.double() - other).square().mean().sqrt() / other.square().mean().sqrt()
        worst = max(worst, float(error.detach()))
    return worst


def flops(batch: int, size: int, codes: int, layers: int) -> float:
    """Nominal work of a forward pass: 2 branches of k multiply-adds for each of (D + 1) O weights."""
    return 4.0 * codes * (size + 1) * size * layers * batch


def repeated(work: Callable[[], object], times: int) -> Callable[[], float]:
    """A contestant that does the work several times and returns the seconds of one."""

    def all_of_them() -> None:
        for _time in range(times):
            work()

    call = timed(all_of_them)
    return lambda: call() / times


def overhead(size: int) -> dict[str, float]:
    """Microseconds per call of a batch of one, and what the compiled function takes of them."""
    layers = DynamicMLP((size, size, size), size, DELTA)
    forward, _step = steps(layers, inputs(1, size, size, None))
    inside = 0.0
    real = kernels.dynamic_forward

    def clocked(*arguments: object) -> None:
        nonlocal inside
        start = time.perf_counter()
        real(*arguments)
        inside += time.perf_counter() - start

    def best(repeats: int = 2000) -> tuple[float, float]:
        nonlocal inside
        found = []
        for _round in range(9):
            inside = 0.0
            start = time.perf_counter()
            for _call in range(repeats):
                forward()
            found.append(((time.perf_counter() - start) / repeats * 1e6, inside / repeats * 1e6))
        return min(found)

    whole, _none = best()
    kernels.dynamic_forward = clocked
    try:
        _with_clock, kernel = best()
    finally:
        kernels.dynamic_forward = real
    return {"call, B = 1 (us)": round(whole, 1), "of it the kernel (us)": round(kernel, 1)}


def confined_sgemm() -> Peer:
    """torch's sgemm confined to the vectors of four floats that the level "baseline" has.

    MKL heeds MKL_ENABLE_INSTRUCTIONS on Intel's processors alone; its reproducible results for any processor, computed
    with SSE2, are had everywhere.
    """
    script = Path(__file__).with_name("peer_sgemm.py")
    return Peer(sys.executable, script, [SGEMM_SIZE], {**os.environ, "MKL_CBWR": "COMPATIBLE"})


def sizes_at_every_level(report: Report, seconds: float) -> list[dict[str, object]]:
    """The forward pass at B = 1,024 over D = O = k, one thread, processor time, beside a large sgemm; and the aims.

    torch's sgemm runs at its own level whatever ours is, which for AVX-512 on AMD's processors is AVX2. At the level
    "baseline" the sgemm is confined to it.
    """
    aims: list[dict[str, object]] = []
    before = build_info()["isa"]
    torch.set_num_threads(1)
    for level in [level for level in ("baseline", "avx2", "avx512", "neon") if level in build_info()["isa_usable"]]:
        kernels.set_isa(level)
        confined = confined_sgemm() if level == "baseline" and "mkl" in torch.__config__.show().lower() else None
        if level == "baseline" and confined is None:
            continue  # no sgemm of this level to compare with
        for size in (32, 64, 128):
            torch.manual_seed(0)
            forward, _step = steps(DynamicMLP((size, size, size), size, DELTA), inputs(1024, size, size, None))
            rows = compare(
                f"forward, B = 1024, D = O = k = {size}, P = 2, {level}",
                {"native": timed(forward, time.process_time)},
                threads=1,
                flops=flops(1024, size, size, 2),
                seconds=seconds,
                clock=time.process_time,
                sgemm=confined,
            )
            report.rows += rows
            name = f"DynamicMLP forward of sgemm{' confined to SSE2' if confined else ''}, D = {size}, {level}"
            reached = round(rows[0].of_sgemm or 0.0, 2)
            aims.append({"row": name, "reached": reached, "aim": 0.75, "better": "higher", "unit": "x"})
        if confined:
            confined.close()
    kernels.set_isa(before)
    return aims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="write bench/results/dynamic_mlp.json")
    parser.add_argument("--quick", action="store_true", help="the headline cases only")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each comparison")
    parser.add_argument("--threads", type=int, nargs="*", default=thread_counts())
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 1024, 8192, 65536])
    options = parser.parse_args()
    report = Report("dynamic_mlp")
    cases = [(batch, 32, None, torch.float32) for batch in options.batches]
    if not options.quick:
        cases += [(1024, size, None, torch.float32) for size in (8, 31, 64, 128)]
        cases += [(8, 32, None, torch.float32), (64, 32, None, torch.float32)]
        cases += [(1024, 32, 5, torch.float32), (64, 32, 100, torch.float32), (2, 32, 1000, torch.float32)]
        cases += [(1024, 32, None, torch.bfloat16)]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch, size, targets, dtype in cases:
            torch.manual_seed(0)
            native = DynamicMLP((size, size, size), size, DELTA)
            reference = DynamicMLP((size, size, size), size, DELTA, backend="reference")
            reference.load_state_dict(native.state_dict())
            native, reference = native.to(dtype), reference.to(dtype)
            torch._dynamo.reset()  # else the limit of recompilations turns later cases into eager ones
            compiled = torch.compile(reference, dynamic=False)
            arguments = inputs(batch, size, size, targets, dtype)
            case = f"B = {batch}, " + ("" if targets is None else f"T = {targets}, ") + f"D = O = k = {size}, P = 2"
            case += "" if dtype == torch.float32 else f", {str(dtype).removeprefix('torch.')}"
            if batch <= 1024:
                error = validate(native, arguments)
                report.notes[f"error, {case}"] = f"{error:.1e}"
                limit = 1e-3 if dtype == torch.float32 else 2e-2
                if not error < limit:
                    raise SystemExit(f"{case}: expected errors below {limit}, got {error}")
            passes = {name: steps(m, arguments) for name, m in
                      [("native", native), ("eager", reference), ("compile", compiled)]}  # fmt: skip
            work = flops(batch, size, size, 2)
            for at, (kind, times) in enumerate([("forward", 1), ("forward + backward", 4)]):
                # Calls of microseconds are timed many at once, and without the sgemm, which would empty the caches.
                repeats = 200 if batch * (targets or 1) <= 8 else 1
                report.rows += compare(
                    f"{kind}, {case}",
                    {name: repeated(both[at], repeats) for name, both in passes.items()},
                    threads=threads,
                    flops=work * times if repeats == 1 else None,
                    peak_bytes={name: peak_memory(both[at]) for name, both in passes.items() if name != "compile"},
                    seconds=options.seconds,
                    rounds=(3, 101),
                )
    torch.set_num_threads(1)
    report.notes |= overhead(32)
    aims = sizes_at_every_level(report, options.seconds / 2)
    report.print()
    for aim in aims:
        print("{row}: {reached} (aim {aim})".format(**aim))
    if options.json:
        path = report.write()
        path.write_text(json.dumps({**json.loads(path.read_text()), "aims": aims}, indent=1) + "\n")


if __name__ == "__main__":
    main()
