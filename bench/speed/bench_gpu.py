"""The kernels, the training step and epochs on a CUDA device: time, fraction of measured peaks, memory.

    python -m bench.speed.bench_gpu [--json FILE] [--device cuda] [--data FILE] [--small | --profile]

Every contestant is checked against float64 on a part of its input before it is timed. Times are medians of repeated
calls between device events. Limits are measured in the same run: a large product in float32, TF32 and bfloat16, and a
large copy. A roofline bound is the larger of operations over the product's rate and bytes that must be moved over the
copy's. `--device cpu --small` is a dry run of the script itself, whose numbers mean nothing. `--profile` calls the
two headline kernels once each, for ncu.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.harness import Report, Row, machine
from bench.speed.bench_train_step import batch_of, model_of
from solid_ext import SOLID, Config
from solid_ext.config import PAPER
from solid_ext.data import load_dataset
from solid_ext.nn import DynamicMLP
from solid_ext.ops import nearest_code
from solid_ext.train import Step, make_optimizer

Work = Callable[[], object]
NEAREST = [(10240, 590, 32), (1_000_000, 8192, 64), (1_000_000, 1024, 256)]  # N, K, D
BATCHES = [1024, 16384, 262144]


@dataclass(frozen=True)
class Limits:
    """What the device does in this run: GFLOP/s of a large product, GB/s of a large copy."""

    float32: float
    tf32: float
    bfloat16: float
    copy: float

    def bound(self, flops: float, moved: float, rate: float) -> float:
        """Milliseconds below which no kernel can be."""
        return max(flops / rate, moved / self.copy) / 1e6


def milliseconds(work: Work, device: torch.device, *, seconds: float = 1.0) -> list[float]:
    """Times of single calls between events, after a warm-up; on the CPU by the clock."""
    for _ in range(3):
        work()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 200):
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            work()
            last.record()
            last.synchronize()
            taken.append(first.elapsed_time(last))
        else:
            start = time.perf_counter()
            work()
            taken.append((time.perf_counter() - start) * 1e3)
    return taken


def peak_bytes(work: Work, device: torch.device) -> int | None:
    """The most memory that a call holds beyond what was there."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def compare(
    report: Report, case: str, contestants: dict[str, Work], device: torch.device, flops: float | None, peak: float
) -> None:
    """A row a contestant; the first one is ours. One that runs out of memory is left out, and said so."""
    times: dict[str, tuple[list[float], int | None]] = {}
    for name, work in contestants.items():
        try:
            times[name] = milliseconds(work, device), peak_bytes(work, device)
        except torch.OutOfMemoryError:
            report.notes[f"{case}, {name}"] = "out of memory"
    ours = statistics.median(next(iter(times.values()))[0])
    for name, (taken, memory) in times.items():
        median = statistics.median(taken)
        quartiles = statistics.quantiles(taken, n=4)
        rate = None if flops is None else flops / median / 1e6
        report.rows.append(
            Row(
                case,
                1,
                name,
                median / 1e3,
                (quartiles[2] - quartiles[0]) / median,
                len(taken),
                median / ours,
                rate,
                None if rate is None or not peak else rate / peak,
                memory,
            )
        )


def measured_limits(device: torch.device, small: bool) -> Limits:
    size, floats = (256, 1 << 16) if small else (8192, 1 << 28)

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return 2.0 * size**3 / statistics.median(milliseconds(lambda: a @ b, device)) / 1e6

    before = torch.backends.cuda.matmul.fp32_precision
    rates = {}
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        rates[precision] = product(torch.float32)
    torch.backends.cuda.matmul.fp32_precision = before
    source = torch.zeros(floats, device=device)
    target = torch.empty_like(source)
    copied = 8.0 * floats / statistics.median(milliseconds(lambda: target.copy_(source), device)) / 1e6
    return Limits(rates["ieee"], rates["tf32"], product(torch.bfloat16), copied)


def note_roofline(report: Report, case: str, limits: Limits, flops: float, moved: float, rates: list[str]) -> None:
    """Which fraction of the bound our row of `case` reaches, with the arithmetic at each of the named rates."""
    ours = next(row for row in report.rows if row.case == case)
    for name in rates:
        bound = limits.bound(flops, moved, getattr(limits, name))
        report.notes[f"{case}, fraction of the roofline with products in {name}"] = round(bound / ours.seconds / 1e3, 3)


def chunked(x: Tensor, codebook: Tensor, rows: int = 65536) -> Tensor:
    """`addmm + argmin`, a block of rows at a time, so that N x K never is whole."""
    half = codebook.square().sum(1) / 2
    return torch.cat([(half - part @ codebook.T).argmin(1) for part in x.split(rows)])


def bench_nearest_code(report: Report, device: torch.device, small: bool, limits: Limits) -> None:
    for rows, codes, dim in [(200, 50, 16)] if small else NEAREST:
        x, codebook = torch.randn(rows, dim, device=device), torch.randn(codes, dim, device=device)
        found = nearest_code(x, codebook).index[:4096]
        cost = (codebook.double().square().sum(1) - 2 * x[:4096].double() @ codebook.double().T).cpu()
        chosen, best = cost.gather(1, found.cpu().unsqueeze(1)).squeeze(1), cost.min(1).values
        scale = float(x.double().square().sum(1).max() + codebook.double().square().sum(1).max())
        if not bool((chosen <= best + 1e-6 * scale).all()):
            raise SystemExit(f"nearest_code {rows, codes, dim}: expected a nearest code, got another")
        contestants: dict[str, Work] = {
            "native": lambda x=x, c=codebook: nearest_code(x, c),
            "cdist + argmin": lambda x=x, c=codebook: torch.cat([torch.cdist(p, c).argmin(1) for p in x.split(65536)]),
        }
        if not small:
            compiled = torch.compile(chunked)
            contestants["chunked matmul + argmin, compiled"] = lambda x=x, c=codebook, f=compiled: f(x, c)
        work = 2.0 * rows * codes * dim
        case = f"nearest_code N = {rows}, K = {codes}, D = {dim}"
        compare(report, case, contestants, device, work, limits.float32)
        moved = 4.0 * (2 * rows * dim + codes * dim + 3 * rows)  # x, quantized, codebook, index and distance
        note_roofline(report, case, limits, work, moved, ["float32", "bfloat16"])


def bench_dynamic_mlp(report: Report, device: torch.device, small: bool, limits: Limits) -> None:
    for batch in [8] if small else BATCHES:
        torch.manual_seed(0)
        native = DynamicMLP((32, 32, 32), 32, 0.01).to(device)
        eager = DynamicMLP((32, 32, 32), 32, 0.01, backend="reference").to(device)
        eager.load_state_dict(native.state_dict())
        exact = DynamicMLP((32, 32, 32), 32, 0.01, backend="reference").double()
        exact.load_state_dict(native.state_dict())
        inputs = [torch.randn(batch, 32, device=device, requires_grad=True) for _ in range(3)]
        part = [t[:512] for t in inputs]
        error = (native(*part).double().cpu() - exact(*(t.double().cpu() for t in part))).abs().max()
        if not float(error.detach()) < 1e-4:
            raise SystemExit(f"dynamic_mlp, B = {batch}: expected an error below 1e-4, got {float(error):.1e}")
        layers = {"native": native, "eager": eager}
        if not small:
            layers["torch.compile"] = torch.compile(eager)

        def step(module: torch.nn.Module, inputs: list[Tensor] = inputs) -> object:
            return step_of(module, inputs)

        def forward(module: torch.nn.Module, inputs: list[Tensor] = inputs) -> object:
            with torch.no_grad():
                return module(*inputs)

        flops = 4.0 * 32 * 33 * 32 * 2 * batch
        for kind, times in (("forward", 1.0), ("forward + backward", 4.0)):
            run = forward if times == 1 else step
            calls: dict[str, Work] = {name: partial(run, module) for name, module in layers.items()}
            case = f"dynamic_mlp {kind}, B = {batch}"
            compare(report, case, calls, device, flops * times, limits.float32)
            moved = 4.0 * batch * 32 * 4 * times  # x, both codes and y, and their gradients
            note_roofline(report, case, limits, flops * times, moved, ["float32", "tf32"])


def note_flat_memory(report: Report, device: torch.device, small: bool) -> None:
    """Peak bytes of forward and backward beside those of the weights that are never written, for two widths."""
    batch = 8 if small else 16384
    for size in (32, 128):
        layer = DynamicMLP((size, size, size), 32, 0.01).to(device)
        inputs = [torch.randn(batch, n, device=device, requires_grad=True) for n in (size, 32, 32)]
        held = peak_bytes(partial(step_of, layer, inputs), device)
        if held is not None:
            report.notes[f"dynamic_mlp, B = {batch}, D = O = {size}: peak bytes"] = held
            report.notes[f"dynamic_mlp, B = {batch}, D = O = {size}: bytes of B D O floats"] = 4 * batch * size * size


def step_of(module: torch.nn.Module, inputs: list[Tensor]) -> object:
    return torch.autograd.grad(module(*inputs).sum(), [*inputs, *module.parameters()])


def profile(device: torch.device) -> None:
    """Each headline kernel once."""
    rows, codes, dim = NEAREST[1]
    nearest_code(torch.randn(rows, dim, device=device), torch.randn(codes, dim, device=device))
    layer = DynamicMLP((32, 32, 32), 32, 0.01).to(device)
    step_of(layer, [torch.randn(BATCHES[1], 32, device=device, requires_grad=True) for _ in range(3)])
    torch.cuda.synchronize(device)


def bench_training_step(report: Report, device: torch.device, small: bool) -> None:
    batch = 32 if small else 1024
    train = Config().replace(**PAPER).train
    contestants: dict[str, Work] = {}
    kinds = {"native": {}, "reference": {"backend": "reference"}}
    if device.type == "cuda":
        kinds = {"native, CUDA graph": {"cuda_graph": True}, **kinds, "native, bf16 autocast": {"amp": True}}
    for name, fields in kinds.items():
        backend = str(fields.get("backend", "native"))
        model = model_of(backend).to(device)
        config = (
            Config()
            .replace(**PAPER, device=str(device), **{key: value for key, value in fields.items() if key != "backend"})
            .train
        )
        step = Step(model, make_optimizer(model, config), config)
        given = tuple(t.to(device) for t in batch_of(batch))
        contestants[name] = lambda step=step, given=given: step(*given)
    compare(
        report, f"training step, B = {batch}, L = {Config().model.length}, {train.loss}", contestants, device, None, 0
    )


def largest_batch(report: Report, device: torch.device) -> None:
    """The largest power of two of sequences whose training step fits."""
    batch = 1024
    while True:
        try:
            model = model_of("native").to(device)
            config = Config().replace(**PAPER, device=str(device)).train
            Step(model, make_optimizer(model, config), config)(*(t.to(device) for t in batch_of(2 * batch)))
            torch.cuda.synchronize(device)
        except (torch.OutOfMemoryError, RuntimeError, ValueError) as error:
            report.notes["largest batch that fits"] = batch
            report.notes["the next one"] = str(error).splitlines()[0][:120]
            return
        batch *= 2


def epochs(report: Report, device: torch.device, data: Path) -> None:
    """Epochs per second of both stages on a dataset, and the metrics on the device beside those of the CPU."""
    dataset = load_dataset(data)
    for fields in ({}, {"cuda_graph": True}) if device.type == "cuda" else ({},):
        solid = SOLID(Config().replace(**PAPER, device=str(device), epochs=3, **fields)).fit(dataset)
        for stage in solid.training.stages:
            seconds = float(np.median([epoch.seconds for epoch in stage.history]))
            report.notes[f"{dataset.name}, {stage.name}, epochs per second{' (CUDA graph)' if fields else ''}"] = (
                1 / seconds
            )
        values = solid.evaluate()
        report.notes[f"{dataset.name}, user_auc after 3 epochs{' (CUDA graph)' if fields else ''}"] = values["sampled"][
            "user_auc"
        ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="the file to write")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--data", type=Path, help="a dataset's interactions, for epochs per second")
    arguments.add_argument("--small", action="store_true", help="tiny shapes: a dry run of the script")
    arguments.add_argument("--profile", action="store_true", help="the two headline kernels once each, and no more")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_gpu: expected a CUDA device, got none; --device cpu --small runs the script dry")
    if options.profile:
        profile(device)
        return
    report = Report("gpu")
    if device.type == "cuda":
        report.notes["device"] = torch.cuda.get_device_name(device)
    limits = measured_limits(device, options.small)
    for name, rate in asdict(limits).items():
        unit = "a large copy, GB/s" if name == "copy" else f"a large product in {name}, GFLOP/s"
        report.notes[unit] = round(rate)
    bench_nearest_code(report, device, options.small, limits)
    bench_dynamic_mlp(report, device, options.small, limits)
    note_flat_memory(report, device, options.small)
    bench_training_step(report, device, options.small)
    if device.type == "cuda" and not options.small:
        largest_batch(report, device)
    if options.data:
        epochs(report, device, options.data)
    report.print()
    if options.json:
        content = {"machine": machine(), "notes": report.notes, "rows": [asdict(row) for row in report.rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
