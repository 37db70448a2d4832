"""The kernels, the training step and epochs on a CUDA device: time, fraction of measured peaks, memory.

    python -m bench.speed.bench_gpu [--json FILE] [--sections NAME ..] [--device cuda] [--data FILE]
                                    [--small | --profile]

Sections, each in the file as soon as each of its cases has been measured: limits, nearest_code, dynamic_mlp, gru,
cross_entropy, low_rank, memory, step, largest_batch, epochs, compiled (peers through `torch.compile`, last because
compiling takes longest). A file that exists is added to, and its limits are used, so that sections may run in processes
of their own.

The kernels are checked against float64 before anything of a case is timed. Times are medians of repeated calls between
device events; small sizes are those of Python unless a graph is replayed, which rows named "graph" are. A contestant
that fails is left out, and said so. Limits are measured in the same run: a large product in float32, TF32 and bfloat16,
and a large copy of random numbers. A roofline bound is the larger of operations over the product's rate and bytes that
must be moved over the copy's. `--device cpu --small` is a dry run of the script itself, whose numbers mean nothing.
`--profile` calls the headline kernels once each, for ncu.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness import Report, Row, machine
from solid_ext.nn import DynamicMLP, LowRankMLP
from solid_ext.ops import nearest_code
from solid_ext.ops.catalogue_cross_entropy import catalogue_cross_entropy
from solid_ext.ops.gru import gru_last_state

Work = Callable[[], object]
NEAREST = [(10240, 590, 32), (1_000_000, 8192, 64), (1_000_000, 1024, 256)]  # N, K, D
BATCHES = [1024, 16384, 262144]
GRU = (1024, 10, 32)  # B, L, D = H
CATALOGUES = [(1024, 64, 4385), (1024, 64, 50_000), (1024, 64, 500_000)]  # B, D, V
SHORT = 20_000  # rows or sequences: below, calls last so short that only a graph's replay shows the device


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


class Bench:
    """The device, the sizes, and a report that is written after every case."""

    def __init__(self, device: torch.device, small: bool, path: Path | None, data: Path | None) -> None:
        self.device, self.small, self.path, self.data = device, small, path, data
        self.on_gpu = device.type == "cuda"
        self.report = Report("gpu")
        self.wrong = False
        if path is not None and path.exists():
            content = json.loads(path.read_text())
            self.report.notes |= content["notes"]
            self.report.rows += [Row(**row) for row in content["rows"]]
        if self.on_gpu:
            self.report.notes["device"] = torch.cuda.get_device_name(device)
        self._limits: Limits | None = None

    @property
    def limits(self) -> Limits:
        """The measured limits: of this process, or of the file."""
        if self._limits is None:
            if "limits" not in self.report.notes:
                measure_limits(self)
            self._limits = Limits(**json.loads(str(self.report.notes["limits"])))
        return self._limits

    def note(self, name: str, value: float | str) -> None:
        self.report.notes[name] = value
        self.write()

    def write(self) -> None:
        if self.path is not None:
            content = {"machine": machine(), "notes": self.report.notes, "rows": [asdict(r) for r in self.report.rows]}
            self.path.write_text(json.dumps(content, indent=1) + "\n")

    def is_right(self, case: str, error: float, bound: float) -> bool:
        """Whether our result is within the bound; if not, the case is not timed and the process fails in the end."""
        if not error <= bound:
            self.wrong = True
            self.note(f"{case}, WRONG", f"expected an error of at most {bound:.1e}, got {error:.1e}")
        return error <= bound

    def compare(self, case: str, contestants: dict[str, Work], flops: float | None = None) -> None:
        """A row a contestant, ratios against the case's first row, ours; one that fails is left out, and said so."""
        for name, work in contestants.items():
            try:
                taken, memory = milliseconds(work, self.device), peak_bytes(work, self.device)
            except Exception as error:  # whatever a peer dies of, the others are still measured
                self.note(f"{case}, {name}", f"left out: {type(error).__name__}: {str(error).splitlines()[:1]}"[:200])
                continue
            median, quartiles = statistics.median(taken), statistics.quantiles(taken, n=4)
            first = next((row.seconds * 1e3 for row in self.report.rows if row.case == case), median)
            rate = None if flops is None else flops / median / 1e6
            spread = (quartiles[2] - quartiles[0]) / median
            of_peak = None if rate is None else rate / self.limits.float32
            self.report.rows.append(
                Row(case, 1, name, median / 1e3, spread, len(taken), median / first, rate, of_peak, memory)
            )
            self.write()

    def note_roofline(self, case: str, flops: float, moved: float, rates: list[str]) -> None:
        """Which fraction of the bound our fastest row of `case` reaches, with the arithmetic at each named rate."""
        ours = [row.seconds for row in self.report.rows if row.case == case and row.name.startswith("native")]
        for name in rates if ours else ():
            bound = self.limits.bound(flops, moved, getattr(self.limits, name))
            fraction = round(bound / min(ours) / 1e3, 3)
            self.note(f"{case}, fraction of the roofline with products in {name}", fraction)


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


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """float32 products in "ieee" or "tf32"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def in_tf32(work: Work) -> Work:
    def call() -> object:
        with products("tf32"):
            return work()

    return call


class Replayed:
    """The work recorded in a graph, when it is first called, and replayed."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> object:
        if self.graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.work()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.kept = self.work()
        self.graph.replay()
        return self.kept


def with_graphs(contestants: dict[str, Work], wanted: bool) -> dict[str, Work]:
    """Behind each contestant the same as a graph, where that is wanted."""
    both: dict[str, Work] = {}
    for name, work in contestants.items():
        both[name] = work
        if wanted:
            both[f"{name}, graph"] = Replayed(work)
    return both


def measure_limits(bench: Bench) -> None:
    """Rates of large products of random numbers, and of a large copy: zeros would be copied faster."""
    size, floats = (256, 1 << 16) if bench.small else (8192, 1 << 28)

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        return 2.0 * size**3 / statistics.median(milliseconds(lambda: a @ b, bench.device)) / 1e6

    rates = {}
    for name, precision in (("float32", "ieee"), ("tf32", "tf32")):
        with products(precision):
            rates[name] = product(torch.float32)
    rates["bfloat16"] = product(torch.bfloat16)
    source = torch.randn(floats, device=bench.device)
    target = torch.empty_like(source)
    rates["copy"] = 8.0 * floats / statistics.median(milliseconds(lambda: target.copy_(source), bench.device)) / 1e6
    bench.note("limits", json.dumps({name: float(f"{rate:.4g}") for name, rate in rates.items()}))


def chunked(x: Tensor, codebook: Tensor, rows: int = 65536) -> Tensor:
    """`addmm + argmin`, a block of rows at a time, so that N x K never is whole."""
    half = codebook.square().sum(1) / 2
    return torch.cat([(half - part @ codebook.T).argmin(1) for part in x.split(rows)])


def nearest_case(bench: Bench, sizes: tuple[int, int, int]) -> tuple[str, Tensor, Tensor]:
    rows, codes, dim = sizes
    torch.manual_seed(0)
    x, codebook = torch.randn(rows, dim, device=bench.device), torch.randn(codes, dim, device=bench.device)
    return f"nearest_code N = {rows}, K = {codes}, D = {dim}", x, codebook


def bench_nearest_code(bench: Bench) -> None:
    for sizes in [(200, 50, 16)] if bench.small else NEAREST:
        rows, codes, dim = sizes
        case, x, codebook = nearest_case(bench, sizes)
        found = nearest_code(x, codebook).index[:4096].cpu()
        cost = codebook.cpu().double().square().sum(1) - 2 * x[:4096].cpu().double() @ codebook.cpu().double().T
        excess = float((cost.gather(1, found.unsqueeze(1)).squeeze(1) - cost.min(1).values).max())
        scale = float(x.square().sum(1).max() + codebook.square().sum(1).max())
        if not bench.is_right(case, excess / scale, 1e-6):
            continue

        def cdist(x: Tensor = x, codebook: Tensor = codebook) -> object:
            return torch.cat([torch.cdist(part, codebook).argmin(1) for part in x.split(65536)])

        ours: dict[str, Work] = {"native": partial(nearest_code, x, codebook)}
        product: dict[str, Work] = {"matmul + argmin": partial(chunked, x, codebook)}
        product["matmul + argmin, TF32"] = in_tf32(product["matmul + argmin"])
        graphs = bench.on_gpu and rows < SHORT
        contestants = {**with_graphs(ours, graphs), "cdist + argmin": cdist, **with_graphs(product, graphs)}
        work = 2.0 * rows * codes * dim
        bench.compare(case, contestants, work)
        moved = 4.0 * (2 * rows * dim + codes * dim + 3 * rows)  # x, quantized, codebook, index and distance
        bench.note_roofline(case, work, moved, ["float32", "bfloat16"])


def step_of(module: torch.nn.Module, inputs: list[Tensor]) -> object:
    return torch.autograd.grad(module(*inputs).sum(), [*inputs, *module.parameters()])


class Dynamic:
    """The layers of one batch size: ours and the plain one with its parameters, and calls of both."""

    def __init__(self, bench: Bench, batch: int) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.native = DynamicMLP((32, 32, 32), 32, 0.01).to(bench.device)
        self.eager = DynamicMLP((32, 32, 32), 32, 0.01, backend="reference").to(bench.device)
        self.eager.load_state_dict(self.native.state_dict())
        self.inputs = [torch.randn(batch, 32, device=bench.device, requires_grad=True) for _ in range(3)]

    def case(self, kind: str) -> str:
        return f"dynamic_mlp {kind}, B = {self.batch}"

    def error(self) -> float:
        exact = DynamicMLP((32, 32, 32), 32, 0.01, backend="reference").double()
        exact.load_state_dict(self.native.state_dict())
        part = [t.detach()[:512] for t in self.inputs]
        with torch.no_grad():
            return float((self.native(*part).double().cpu() - exact(*(t.double().cpu() for t in part))).abs().max())

    def calls(self, kind: str, layers: dict[str, Any]) -> dict[str, Work]:
        return {
            name: partial(self.forward if kind == "forward" else self.step, layer) for name, layer in layers.items()
        }

    def forward(self, module: nn.Module) -> object:
        with torch.no_grad():
            return module(*self.inputs)

    def step(self, module: nn.Module) -> object:
        return step_of(module, self.inputs)


DYNAMIC_KINDS = (("forward", 1.0), ("forward + backward", 4.0))


def dynamic_flops(batch: int) -> float:
    return 4.0 * 32 * 33 * 32 * 2 * batch


def bench_dynamic_mlp(bench: Bench) -> None:
    for batch in [8] if bench.small else BATCHES:
        layers = Dynamic(bench, batch)
        if not bench.is_right(f"dynamic_mlp, B = {batch}", layers.error(), 1e-4):
            continue
        for kind, times in DYNAMIC_KINDS:
            calls = layers.calls(kind, {"native": layers.native, "eager": layers.eager})
            rounded = {f"{name}, TF32": in_tf32(work) for name, work in calls.items()}
            flops = dynamic_flops(batch) * times
            bench.compare(layers.case(kind), with_graphs({**calls, **rounded}, bench.on_gpu and batch < SHORT), flops)
            moved = 4.0 * batch * 32 * 4 * times  # x, both codes and y, and their gradients
            bench.note_roofline(layers.case(kind), flops, moved, ["float32", "tf32"])


def bench_gru(bench: Bench) -> None:
    batch, length, size = (8, 3, 4) if bench.small else GRU
    torch.manual_seed(0)
    cell = nn.GRUCell(size, size).to(bench.device)
    whole = nn.GRU(size, size, batch_first=True).to(bench.device)
    whole.load_state_dict({f"{name}_l0": tensor for name, tensor in cell.state_dict().items()})
    x = torch.randn(batch, length, size, device=bench.device, requires_grad=True)
    mask = torch.ones(batch, length, dtype=torch.bool, device=bench.device)

    def ours() -> Tensor:
        return gru_last_state(x, mask, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)

    def other() -> Tensor:
        return whole(x)[0][:, -1]

    case = f"gru_last_state forward + backward, B = {batch}, L = {length}, D = H = {size}"
    if not bench.is_right(case, float((ours() - other()).detach().abs().max()), 1e-3):  # cuDNN's may be in TF32
        return
    contestants: dict[str, Work] = {
        "native": lambda: torch.autograd.grad(ours().sum(), [x, *cell.parameters()]),
        "nn.GRU": lambda: torch.autograd.grad(other().sum(), [x, *whole.parameters()]),
    }
    bench.compare(case, with_graphs(contestants, bench.on_gpu))


def gradients_of(loss: Callable[..., Tensor], leaves: list[Tensor]) -> object:
    return torch.autograd.grad(loss(*leaves), leaves)


def bench_cross_entropy(bench: Bench) -> None:
    """The loss over a catalogue and its gradients, beside torch's, which holds [B, V] several times."""
    for batch, dim, items in [(4, 8, 50)] if bench.small else CATALOGUES:
        torch.manual_seed(0)
        leaves = [torch.randn(n, dim, device=bench.device, requires_grad=True) for n in (batch, items)]
        target = torch.randint(items, (batch,), device=bench.device)
        case = f"catalogue_cross_entropy forward + backward, B = {batch}, D = {dim}, V = {items}"
        state, table = leaves[0].detach()[:64], leaves[1].detach()
        found = catalogue_cross_entropy(state, table, target[:64], reduction="none").double().cpu()
        exact = F.cross_entropy(state.cpu().double() @ table.cpu().double().T, target[:64].cpu(), reduction="none")
        if not bench.is_right(case, float((found - exact).abs().max() / exact.abs().max()), 1e-5):
            continue
        calls: dict[str, Work] = {
            "native": partial(gradients_of, partial(catalogue_cross_entropy, target=target), leaves),
            "eager": partial(gradients_of, lambda x, t, target=target: F.cross_entropy(x @ t.T, target), leaves),
        }
        calls |= {f"{name}, TF32": in_tf32(work) for name, work in calls.items()}
        bench.compare(case, calls, 6.0 * batch * dim * items)


def bench_low_rank(bench: Bench) -> None:
    """The default generator at the default's sizes."""
    for batch in [8] if bench.small else (1, *BATCHES):
        torch.manual_seed(0)
        native = LowRankMLP((64, 64), 64, 16, 0.01).to(bench.device)
        eager = LowRankMLP((64, 64), 64, 16, 0.01, backend="reference").to(bench.device)
        eager.load_state_dict(native.state_dict())
        inputs = [torch.randn(batch, 64, device=bench.device, requires_grad=True) for _ in range(3)]
        case = f"low_rank_mlp forward + backward, B = {batch}, D = O = k = 64, r = 16"
        if not bench.is_right(case, float((native(*inputs) - eager(*inputs)).detach().abs().max()), 1e-3):
            continue
        calls: dict[str, Work] = {"native": partial(step_of, native, inputs), "eager": partial(step_of, eager, inputs)}
        bench.compare(case, with_graphs(calls, bench.on_gpu and batch < SHORT))


def note_flat_memory(bench: Bench) -> None:
    """Peak bytes of forward and backward beside those of the weights that are never written, for two widths."""
    batch = 8 if bench.small else 16384
    for size in (32, 128):
        layer = DynamicMLP((size, size, size), 32, 0.01).to(bench.device)
        inputs = [torch.randn(batch, n, device=bench.device, requires_grad=True) for n in (size, 32, 32)]
        held = peak_bytes(partial(step_of, layer, inputs), bench.device)
        if held is not None:
            bench.note(f"dynamic_mlp, B = {batch}, D = O = {size}: peak bytes", held)
            bench.note(f"dynamic_mlp, B = {batch}, D = O = {size}: bytes of B D O floats", 4 * batch * size * size)


def bench_compiled(bench: Bench) -> None:
    """The peers that `torch.compile` makes, in the same cases as the others."""
    for sizes in [] if bench.small else NEAREST:
        case, x, codebook = nearest_case(bench, sizes)
        rows, codes, dim = sizes
        compiled: Work = partial(torch.compile(chunked), x, codebook)
        work = {"matmul + argmin, compiled": compiled, "matmul + argmin, compiled, TF32": in_tf32(compiled)}
        bench.compare(case, work, 2.0 * rows * codes * dim)
    for batch in [] if bench.small else BATCHES:
        layers = Dynamic(bench, batch)
        for kind, times in DYNAMIC_KINDS:
            calls = layers.calls(kind, {"torch.compile": torch.compile(layers.eager)})
            calls["torch.compile, TF32"] = in_tf32(calls["torch.compile"])
            bench.compare(layers.case(kind), calls, dynamic_flops(batch) * times)


def profile(device: torch.device) -> None:
    """Each headline kernel once."""
    rows, codes, dim = NEAREST[1]
    nearest_code(torch.randn(rows, dim, device=device), torch.randn(codes, dim, device=device))
    for precision in ("ieee", "tf32"):
        layer = DynamicMLP((32, 32, 32), 32, 0.01).to(device)
        with products(precision):
            step_of(layer, [torch.randn(BATCHES[1], 32, device=device, requires_grad=True) for _ in range(3)])
    torch.cuda.synchronize(device)


# What follows trains, and needs all that the package imports: polars too.


def bench_training_step(bench: Bench) -> None:
    from bench.speed.bench_train_step import batch_of, model_of
    from solid_ext import Config
    from solid_ext.config import PAPER
    from solid_ext.train import Step, make_optimizer

    batch = 32 if bench.small else 1024
    contestants: dict[str, Work] = {}
    kinds: dict[str, dict[str, Any]] = {"native": {}, "reference": {"backend": "reference"}}
    if bench.on_gpu:
        plain = {name: fields | {"cuda_graph": False} for name, fields in kinds.items()}
        kinds = {"native, graph": {}, **plain}
        kinds |= {"native, graph, TF32": {"tf32": True}, "native, graph, bf16 autocast": {"amp": True}}
    for name, fields in kinds.items():
        config = Config().replace(**PAPER | {"device": str(bench.device)} | fields)
        model = model_of(config.model.backend).to(bench.device)
        step = Step(model, make_optimizer(model, config.train), config.train)
        given = tuple(t.to(bench.device) for t in batch_of(batch))
        contestants[name] = partial(step, *given)
    train = Config().replace(**PAPER).train
    bench.compare(f"training step, B = {batch}, L = {Config().model.length}, {train.loss}", contestants)


def largest_batch(bench: Bench) -> None:
    """The largest power of two of sequences whose training step fits."""
    from bench.speed.bench_train_step import batch_of, model_of
    from solid_ext import Config
    from solid_ext.config import PAPER
    from solid_ext.train import Step, make_optimizer

    batch = 1024
    while bench.on_gpu and not bench.small:
        try:
            model = model_of("native").to(bench.device)
            config = Config().replace(**PAPER, device=str(bench.device)).train
            Step(model, make_optimizer(model, config), config)(*(t.to(bench.device) for t in batch_of(2 * batch)))
            torch.cuda.synchronize(bench.device)
        except (torch.OutOfMemoryError, RuntimeError, ValueError) as error:
            bench.note("largest batch that fits", batch)
            bench.note("the next one", str(error).splitlines()[0][:120])
            return
        batch *= 2


def epochs(bench: Bench) -> None:
    """Epochs per second of both stages on a dataset, and the metrics on the device beside those of the CPU."""
    from solid_ext import SOLID, Config
    from solid_ext.config import PAPER
    from solid_ext.data import load_dataset

    if bench.data is None:
        return
    dataset = load_dataset(bench.data)
    for fields in ({}, {"cuda_graph": False}) if bench.on_gpu else ({},):
        solid = SOLID(
            Config().replace(**PAPER | {"device": str(bench.device), "epochs": 1 if bench.small else 3} | fields)
        ).fit(dataset)
        how = " (CUDA graph)" if bench.on_gpu and not fields else ""
        for stage in solid.training.stages:
            seconds = statistics.median([epoch.seconds for epoch in stage.history])
            bench.note(f"{dataset.name}, {stage.name}, epochs per second{how}", 1 / seconds)
        bench.note(f"{dataset.name}, user_auc after 3 epochs{how}", solid.evaluate()["sampled"]["user_auc"])


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "limits": measure_limits,
    "nearest_code": bench_nearest_code,
    "dynamic_mlp": bench_dynamic_mlp,
    "gru": bench_gru,
    "cross_entropy": bench_cross_entropy,
    "low_rank": bench_low_rank,
    "memory": note_flat_memory,
    "step": bench_training_step,
    "largest_batch": largest_batch,
    "epochs": epochs,
    "compiled": bench_compiled,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="the file to write, or to add to")
    arguments.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--data", type=Path, help="a dataset's interactions, for epochs per second")
    arguments.add_argument("--small", action="store_true", help="tiny shapes: a dry run of the script")
    arguments.add_argument("--profile", action="store_true", help="the headline kernels once each, and no more")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_gpu: expected a CUDA device, got none; --device cpu --small runs the script dry")
    if options.profile:
        profile(device)
        return
    bench = Bench(device, options.small, options.json, options.data)
    failed = []
    for name in options.sections:
        try:
            SECTIONS[name](bench)
        except Exception as error:  # the next section is measured all the same
            failed.append(name)
            bench.note(f"{name}, FAILED", f"{type(error).__name__}: {error}"[:300])
    bench.report.print()
    if failed or bench.wrong:
        raise SystemExit(f"bench_gpu: {', '.join(failed) or 'a case'} failed; the notes say how")


if __name__ == "__main__":
    main()
