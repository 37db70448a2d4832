"""Processes that train one model together: whose share is what, sums over all of them, and who writes.

`torchrun` starts N processes, `joined` makes them the ranks of one training, and everything else here is asked what
concerns one of them. Outside `joined`, and with one process, each rank has everything and nothing is sent.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(hours=1)  # a rank that has died is noticed at once; this is for one that hangs
ASKED_AGAIN = timedelta(seconds=1)
T = TypeVar("T")
_state = {"joined": False}


class Share(NamedTuple):
    """What of a batch is this rank's, and how much of it that is.

    Attributes:
        rows: of the batch.
        of_rows: their share of the batch's rows, by which a mean over rows counts.
        of_positions: the share of their items, by which a mean over valid positions counts.
    """

    rows: slice
    of_rows: float
    of_positions: float


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """The body runs as one of torchrun's processes, with the others; alone where torchrun has not started it.

    On CUDA each process of a machine takes the GPU of its number there. Numbers of the CPU go by gloo, those of a GPU
    by NCCL. Inside, whatever trains or evaluates has to be called by all ranks alike.

    Raises:
        ValueError: a device with a number, though each rank has its own.
        ConnectionError: the others do not come, or one of them is lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _state["joined"]:
        yield
        return
    if device.startswith("cuda"):
        if device != "cuda":
            raise ValueError(f"device: expected cuda, of which each of several processes takes its own, got {device}")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _all_needed():
        store, number, many = next(rendezvous("env://", timeout=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        own = _of_this_start(store, number, many)
        dist.init_process_group(backend, store=own, rank=number, world_size=many, timeout=PATIENCE)
    _state["joined"] = True
    try:
        yield
    finally:
        _state["joined"] = False
        dist.destroy_process_group()


def _of_this_start(store: dist.Store, number: int, many: int) -> dist.Store:
    """The part of torchrun's store that belongs to this start of the processes.

    Torchrun keeps one store over its restarts, and processes that are gone have left their addresses in it
    (https://github.com/pytorch/pytorch/issues/135712). Its count of restarts is of each machine alone and so no name
    for a start. Rank 0 makes one up and says who has answered it; who reads the name of an earlier start is not among
    those, and asks again.
    """
    own = uuid.uuid4().hex
    if number == 0:
        store.set("start", own)
        answers = [store.get(f"{own}/{other}").decode() for other in range(1, many)]
        store.set(f"{own}/all", " ".join(answers))
        return dist.PrefixStore(own, store)
    while True:
        start = store.get("start").decode()
        store.set(f"{start}/{number}", own)
        with suppress(dist.DistStoreError):
            store.wait([f"{start}/all"], ASKED_AGAIN)
            if own in store.get(f"{start}/all").decode():
                return dist.PrefixStore(start, store)
        time.sleep(0.05)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _state["joined"] else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if _state["joined"] else 0


def is_writer() -> bool:
    """Whether this process is the one that holds the run's folder, writes and reports."""
    return rank() == 0


def restarted_job() -> str | None:
    """What tells torchrun's job from others, where torchrun has started its processes again; None where it has not.

    Each machine counts what it has started again because of its own processes, so that all ranks have to ask.
    """
    restarts = summed(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), device="cpu"))
    return job() if restarts else None


def job() -> str | None:
    """What tells torchrun's job from others: its `--rdzv-id`, or the process that started this one; None without."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return f"process {os.getppid()}" if name == "none" else name


def parts(rows: int, together: int = 1) -> list[slice]:
    """Which of `rows` rows are each rank's, one after the other, none left out and none twice, as equal as may be.

    Where there is a row, the first rank has one.

    Args:
        together: so many rows from the first on are never divided, as they are computed in one call.
    """
    blocks, many = -(-rows // together), count()
    ends = [min(-(-blocks * number // many) * together, rows) for number in range(many + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


def share_of(items: np.ndarray) -> Share | None:
    """This rank's share of a batch whose rows have so many items [B]; None where one process has all of it."""
    if count() == 1:
        return None
    rows = parts(len(items))[rank()]
    mine = items[rows]
    return Share(rows, len(mine) / max(len(items), 1), float(mine.sum()) / max(float(items.sum()), 1.0))


def completed(array: np.ndarray, together: int = 1) -> np.ndarray:
    """The array with the rows of all ranks, which have each filled their `parts` of it; in place."""
    if count() > 1:
        whole = torch.from_numpy(array)
        with _all_needed():
            for number, rows in enumerate(parts(len(array), together)):
                if rows.stop > rows.start:
                    dist.broadcast(whole[rows], number)
    return array


def summed(tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors, the same bits on each; in place."""
    if count() > 1:
        with _all_needed():
            dist.all_reduce(tensor)
    return tensor


def of_writer(value: Any) -> Any:
    """The writer's value, of what JSON can hold, on every rank; who comes here waits for all."""
    return value if count() == 1 else _of_each(value)[0]


def by_writer(call: Callable[[], T]) -> T:
    """What a call gives the writer, of what JSON can hold, on every rank; who comes here waits for it.

    Raises: on every rank what the call raises, a `ValueError` with its words where another rank called it.
    """
    if count() == 1:
        return call()
    found, refusal = None, None
    if is_writer():
        try:
            found = call()
        except (ValueError, OSError) as error:
            refusal = error
    found, words = of_writer([found, None if refusal is None else str(refusal)])
    if words is not None:
        raise refusal or ValueError(words)
    return found


def expect_same(what: str, values: Mapping[str, Any]) -> None:
    """Refuse to go on where the ranks have different values, of what JSON can hold; who comes here waits for all.

    Raises:
        ValueError: on every rank, with the first name whose value differs from that of rank 0.
    """
    if count() == 1:
        return
    first, *others = _of_each(values)
    for number, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"{what}: expected the same {name} on every rank, got {value!r:.120} on rank 0 and "
                    f"{other[name]!r:.120} on rank {number}"
                )


def expect_same_weights(what: str, model: nn.Module) -> None:
    """Refuse to go on where the ranks' models have other bits, but for a chance of about 2^-32 a tensor.

    Raises:
        ValueError: on every rank, with the first tensor that differs.
    """
    if count() > 1:
        expect_same(what, {name: _bits(tensor) for name, tensor in model.state_dict().items()})


def _bits(tensor: Tensor) -> int:
    """The sum of a tensor's bits, as whole numbers."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().reshape(-1).view(width).sum(dtype=torch.int64))


def _of_each(value: Any) -> list[Any]:
    """Each rank's value, sent as JSON."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(one.numpy())) for (one,) in gathered(text)]


def gathered(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each rank's tensors, which have a number of rows in common; ranks may have different numbers."""
    rows = len(tensors[0])
    counts = [torch.zeros(1, dtype=torch.int64, device=tensors[0].device) for _ in range(count())]
    with _all_needed():
        dist.all_gather(counts, counts[0].new_tensor([rows]))
        sizes = [int(size) for size in counts]
        every = []
        for tensor in tensors:
            padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
            padded[:rows] = tensor
            found = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(found, padded)
            every.append([one[:size] for one, size in zip(found, sizes, strict=True)])
    return list(zip(*every, strict=True))


@contextmanager
def _all_needed() -> Iterator[None]:
    """What the ranks do together: one that is lost ends it on all others, with a sentence."""
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, whose errors are of this kind
        raise ConnectionError(
            f"ranks: expected all {os.environ.get('WORLD_SIZE')} processes to go on, lost one, as rank "
            f"{os.environ.get('RANK')} found; the run's checkpoints are whole, and --resume, or torchrun's "
            f"--max-restarts, goes on from them ({str(error).splitlines()[0]:.120})"
        ) from error
