"""A study, not a feature: an item table of which each process holds a part, two ways by torch's DTensor.

    OMP_NUM_THREADS=1 python -m bench.speed.bench_sharded [--items 1000000] [--json]

The model is the mean of a history's item vectors, a linear layer, and a softmax over the next item and shared
negatives. Its table (float32, d = 64) is held and updated

* `whole`: by every process, as solid_ext does today: by rows, their gradients sent to all;
* `dtensor`: in parts, `F.embedding` of a DTensor `Shard(0)` and AdamW as torch has them;
* `exchange`: in parts too, an embedding a process; ids go to the process that has their rows, the rows come back, their
  gradients go there again, and Adam by rows updates the part as it stands.

`same` is the same training in float64 over 997 items. `checkpoint` saves weights and moments of two processes by
`torch.distributed.checkpoint` in safetensors, and reads them with one, two and three.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from bench.harness import RESULTS, machine
from solid_ext import distributed
from solid_ext.train.gradients import sum_gradients
from solid_ext.train.row_adam import RowAdam

ROWS, LENGTH, NEGATIVES, DIM = 1020, 10, 1020, 64
BLOCK = 65_536  # rows of the first table that are drawn from one seed, whoever holds them
ADAM = {"lr": 0.001, "weight_decay": 0.0, "fused": True}


def part(items: int) -> tuple[int, int]:
    """The rows of this process, as DTensor divides them: first and last."""
    size = -(-items // distributed.count())
    return min(distributed.rank() * size, items), min((distributed.rank() + 1) * size, items)


def drawn(first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Those rows of the first table, [last - first, DIM]."""
    rows = torch.empty(last - first, DIM, dtype=dtype)
    for number in range(first // BLOCK, -(-last // BLOCK)):
        block = torch.randn(BLOCK, DIM, generator=torch.Generator().manual_seed(number)) / 8
        start = number * BLOCK
        mine = slice(max(first - start, 0), max(last - start, 0))
        rows[max(start - first, 0) : start + BLOCK - first] = block[mine]
    return rows


class Whole(nn.Embedding):
    """The whole table."""

    def __init__(self, items: int, dtype: torch.dtype) -> None:
        super().__init__(items, DIM, _weight=drawn(0, items, dtype))


class OfDTensor(nn.Module):
    """A DTensor, looked up as torch does it."""

    def __init__(self, items: int, dtype: torch.dtype, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh = mesh
        self.weight = nn.Parameter(as_dtensor(drawn(*part(items), dtype), items, mesh))

    def forward(self, ids: Tensor) -> Tensor:
        of_all = DTensor.from_local(ids, self.mesh, [Shard(0)])
        return F.embedding(of_all, self.weight).redistribute(placements=[Shard(0)]).to_local()


class Exchange(nn.Module):
    """Rows by their ids, from whichever process has them.

    What a process looks up are the rows that all processes asked it for, so that its table is an ordinary embedding,
    with a sparse gradient and an optimizer by rows.
    """

    def __init__(self, items: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.size, (self.first, last) = -(-items // distributed.count()), part(items)
        self.own = nn.Embedding(last - self.first, DIM, _weight=drawn(self.first, last, dtype))

    def forward(self, ids: Tensor) -> Tensor:
        wanted, place = torch.unique(ids, return_inverse=True)  # sorted, and so by the process that has them
        if distributed.count() == 1:
            return self.own(wanted)[place]
        group = torch.distributed.group.WORLD
        counts = torch.bincount(wanted // self.size, minlength=distributed.count())
        asked = torch.empty_like(counts)
        torch.distributed.all_to_all_single(asked, counts)
        here, there = asked.tolist(), counts.tolist()
        given = wanted.new_empty(sum(here))
        torch.distributed.all_to_all_single(given, wanted, here, there)
        return all_to_all_single_autograd(self.own(given - self.first), there, here, group)[place]


def as_dtensor(local: Tensor, items: int, mesh: DeviceMesh) -> DTensor:
    """A part of [items, DIM] as what it is a part of."""
    shape = torch.Size([items, DIM])
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(DIM, 1))


class Model(nn.Module):
    """The mean of a history's vectors, a linear layer, a softmax over the next item and negatives."""

    def __init__(self, table: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.linear = table, nn.Linear(DIM, DIM, dtype=dtype)

    def forward(self, sequences: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The sum of the rows' losses."""
        ids = torch.cat([sequences.flatten(), positives, negatives])
        history, positive, negative = self.table(ids).split([sequences.numel(), len(positives), len(negatives)])
        state = self.linear(history.view(*sequences.shape, DIM).mean(1))
        logits = torch.cat([(state * positive).sum(1, keepdim=True), state @ negative.T], dim=1)
        return F.cross_entropy(logits, torch.zeros(len(state), dtype=torch.int64), reduction="sum")


def trained(way: str, items: int, dtype: torch.dtype, steps: int) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """Losses, seconds and memory of a training; of `exchange` also the parts of its table and moments."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (distributed.count(),)) if distributed.count() > 1 else None
    if way == "dtensor":
        assert mesh is not None
        table: nn.Module = OfDTensor(items, dtype, mesh)
    else:
        table = (Whole if way == "whole" else Exchange)(items, dtype)
    model = Model(table, dtype)
    by_row = RowAdam(model.linear if way == "dtensor" else model, 100, **ADAM)
    of_table = torch.optim.AdamW(table.parameters(), **ADAM) if way == "dtensor" else None
    rng, losses, seconds = np.random.default_rng(0), [], []
    mine = distributed.parts(ROWS)[distributed.rank()]
    for _ in range(steps):
        batch = rng.integers(0, items, (ROWS, LENGTH + 1))
        negatives = torch.from_numpy(rng.integers(0, items, NEGATIVES))
        rows = torch.from_numpy(batch[mine])
        start = time.perf_counter()
        loss = model(rows[:, :LENGTH], rows[:, LENGTH], negatives) / ROWS
        loss.backward()
        if distributed.count() > 1:
            if way == "whole":
                sum_gradients(by_row)
            else:
                for parameter in model.linear.parameters():
                    assert parameter.grad is not None
                    distributed.summed(parameter.grad)
        for optimizer in (by_row, of_table):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        losses.append(float(distributed.summed(loss.detach().double())))
        seconds.append(time.perf_counter() - start)
    by_row.flush()
    found = {
        "losses": losses,
        "ms_a_step": round(1e3 * float(np.median(seconds[2:])), 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    tensors = {}
    if way == "exchange" and mesh is not None:
        weight = table.own.weight
        tensors = {"weight": weight.data, **{name: by_row.state[weight][name] for name in ("exp_avg", "exp_avg_sq")}}
        tensors = {name: as_dtensor(tensor, items, mesh) for name, tensor in tensors.items()}
    return found, tensors


def work(options: argparse.Namespace) -> dict[str, Any]:
    """What this process does."""
    torch.set_num_threads(1)
    if options.way == "read":
        return read(options.folder)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    exact, tensors = trained(options.way, 997, torch.float64, 12)
    if options.way == "exchange" and distributed.count() == 2:
        writer = HuggingFaceStorageWriter(str(options.folder / "checkpoint"), save_distributed=True)
        dcp.save(tensors, storage_writer=writer)
        whole = {name: one.full_tensor() for name, one in tensors.items()}
        if distributed.is_writer():
            save_file(whole, options.folder / "expected.safetensors")
    large, _ = trained(options.way, options.items, torch.float32, options.steps)
    return {"exact": exact["losses"], "before_mb": start, **{k: v for k, v in large.items() if k != "losses"}}


def read(folder: Path) -> dict[str, Any]:
    """Whether a checkpoint of two processes is read with the same bits by as many as there are."""
    expected = load_file(folder / "expected.safetensors")
    found: dict[str, Any] = {}
    if distributed.count() > 1:
        mesh, (first, last) = init_device_mesh("cpu", (distributed.count(),)), part(997)
        found = {name: as_dtensor(torch.zeros(last - first, DIM, dtype=torch.float64), 997, mesh) for name in expected}
    else:
        found = {name: torch.zeros(997, DIM, dtype=torch.float64) for name in expected}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(folder / "checkpoint")))
    whole = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in found.items()}
    return {"same_bits": all(torch.equal(whole[name], tensor) for name, tensor in expected.items())}


def of_processes(way: str, count: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What rank 0 of so many processes found."""
    flags = [f"--way={way}", f"--folder={folder}", f"--items={options.items}", f"--steps={options.steps}"]
    begin = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    subprocess.run(
        [sys.executable, *begin, "-m", "bench.speed.bench_sharded", *flags],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads((folder / "found.json").read_text())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--items", type=int, default=1_000_000)
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--json", action="store_true", help="write bench/results/sharded.json")
    arguments.add_argument("--way", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.way:
        with distributed.joined():
            found = work(options)
            if distributed.is_writer():
                (options.folder / "found.json").write_text(json.dumps(found))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [("whole", 1), ("whole", 2), ("dtensor", 2), ("exchange", 1), ("exchange", 2), ("exchange", 3)]
        found = {run: of_processes(*run, folder, options) for run in runs}
        alone = np.array(found["whole", 1].pop("exact"))
        for (way, count), row in found.items():
            exact = np.array(row.pop("exact", alone))
            difference = float(np.abs(exact / alone - 1).max())
            rows.append({"way": way, "processes": count, **row, "largest_relative_difference_of_losses": difference})
        same = [{"processes": n, **of_processes("read", n, folder, options)} for n in (1, 2, 3)]
        files = sorted(path.name for path in (folder / "checkpoint").iterdir())
    result = {
        "machine": machine(),
        "machine_shared": True,
        "items": options.items,
        "rows_of_table_a_batch_reads": ROWS * (LENGTH + 1) + NEGATIVES,
        "rows": rows,
        "checkpoint": {"files": files, "read_by": same},
    }
    Console().print_json(json.dumps(result))
    if options.json:
        (RESULTS / "sharded.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
