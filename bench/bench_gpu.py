"""The kernels, the training step and epochs on a CUDA device: time, fraction of measured peaks, memory.

    python bench/bench_gpu.py [--json] [--device cuda] [--data FOLDER] [--small]

Every contestant is checked against float64 on a part of its input before it is timed. Times are medians of repeated
calls between device events. `--device cpu --small` is a dry run of the script itself, whose numbers mean nothing and
are not written.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_train_step import batch_of, model_of
from harness import Report, Row
from torch import Tensor

from solid_ext import SOLID, Config
from solid_ext.data import load_dataset
from solid_ext.nn import DynamicMLP
from solid_ext.ops import nearest_code
from solid_ext.train import Step, make_optimizer

Work = Callable[[], object]


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


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """GFLOP/s of a large product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / statistics.median(milliseconds(lambda: a @ b, device)) / 1e6


def chunked(x: Tensor, codebook: Tensor, rows: int = 65536) -> Tensor:
    """`addmm + argmin`, a block of rows at a time, so that N x K never is whole."""
    half = codebook.square().sum(1) / 2
    return torch.cat([(half - part @ codebook.T).argmin(1) for part in x.split(rows)])


def bench_nearest_code(report: Report, device: torch.device, small: bool, peak: float) -> None:
    shapes = [(10240, 590, 32), (1_000_000, 8192, 64), (1_000_000, 1024, 256)]
    for rows, codes, dim in [(200, 50, 16)] if small else shapes:
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
        compare(report, f"nearest_code N = {rows}, K = {codes}, D = {dim}", contestants, device, work, peak)


def bench_dynamic_mlp(report: Report, device: torch.device, small: bool, peak: float) -> None:
    for batch in [8] if small else [1024, 16384, 262144]:
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
            return torch.autograd.grad(module(*inputs).sum(), [*inputs, *module.parameters()])

        def forward(module: torch.nn.Module, inputs: list[Tensor] = inputs) -> object:
            with torch.no_grad():
                return module(*inputs)

        flops = 4.0 * 32 * 33 * 32 * 2 * batch
        for kind, times in (("forward", 1.0), ("forward + backward", 4.0)):
            run = forward if times == 1 else step
            calls: dict[str, Work] = {name: partial(run, module) for name, module in layers.items()}
            compare(report, f"dynamic_mlp {kind}, B = {batch}", calls, device, flops * times, peak)


def bench_training_step(report: Report, device: torch.device, small: bool) -> None:
    batch = 32 if small else 1024
    train = Config().train
    contestants: dict[str, Work] = {}
    kinds = {"native": {}, "reference": {"backend": "reference"}}
    if device.type == "cuda":
        kinds = {"native, CUDA graph": {"cuda_graph": True}, **kinds, "native, bf16 autocast": {"amp": True}}
    for name, fields in kinds.items():
        backend = str(fields.get("backend", "native"))
        model = model_of(backend).to(device)
        config = (
            Config()
            .replace(device=str(device), **{key: value for key, value in fields.items() if key != "backend"})
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
            config = Config().replace(device=str(device)).train
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
        solid = SOLID(Config().replace(device=str(device), epochs=3, **fields)).fit(dataset)
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
    arguments.add_argument("--json", action="store_true", help="write bench/results/gpu.json")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--data", type=Path, help="a dataset folder, for epochs per second")
    arguments.add_argument("--small", action="store_true", help="tiny shapes: a dry run of the script")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_gpu: expected a CUDA device, got none; --device cpu --small runs the script dry")
    report = Report("gpu")
    if device.type == "cuda":
        report.notes["device"] = torch.cuda.get_device_name(device)
    size = 256 if options.small else 8192
    peaks = {dtype: matrix_peak(device, dtype, size) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in peaks.items():
        report.notes[f"a large product in {str(dtype).removeprefix('torch.')}, GFLOP/s"] = round(rate)
    bench_nearest_code(report, device, options.small, peaks[torch.float32])
    bench_dynamic_mlp(report, device, options.small, peaks[torch.float32])
    bench_training_step(report, device, options.small)
    if device.type == "cuda" and not options.small:
        largest_batch(report, device)
    if options.data:
        epochs(report, device, options.data)
    report.print()
    if options.json and device.type == "cuda" and not options.small:
        report.write()


if __name__ == "__main__":
    main()
