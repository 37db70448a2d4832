"""What one, two and three processes make of the same trainings.

The processes are forked from one that has imported everything, as an import takes longer than all that they do.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.cluster  # noqa: F401 (as a training would, in each process anew)
import torch
import torch._dynamo

from solid_ext import SOLID, distributed
from solid_ext.config import PAPER, Config
from solid_ext.data import Dataset, SyntheticTruth, leave_one_out, synthetic_dataset
from solid_ext.evaluate import evaluate_full, evaluate_sampled
from solid_ext.train import build_model, step

SMALL = {"length": 5, "dim": 8, "heads": 2, "codebook_hidden": 8, "learning_rate": 0.01, "epochs": 1, "threads": 1}
TRAININGS: dict[str, dict[str, Any]] = {
    "paper": {**PAPER, **SMALL, "epochs": 2, "dropout": 0.2, "dtype": "float64", "batch_size": 200},
    "catalogue": {
        **SMALL,
        "generator_length": 9,
        "loss": "full_softmax",
        "dropout": 0.2,
        "dtype": "float64",
        "batch_size": 200,
    },
    # Without a codebook, whose rows between two entries take the other one by a rounding of float32.
    "single": {**SMALL, "loss": "full_softmax", "batch_size": 200, "use_codebook": False},
    "shared negatives, by rows": {
        **SMALL,
        "loss": "sampled_softmax_log_q",
        "shared_negatives": 16,
        "weight_decay": 0.1,
        "dtype": "float64",
        "batch_size": 200,
    },
    "own negatives, by rows": {
        **SMALL,
        "loss": "sampled_softmax",
        "negatives": 1,
        "dtype": "float64",
        "batch_size": 200,
    },
}
"""Of 401 rows a batch of 200 leaves one for the last step, so that one rank has it and the others have none."""


def small_world() -> tuple[Dataset, SyntheticTruth]:
    return synthetic_dataset(40, 30, 4, predictability=1.0, drift=0.0, seed=3)


def trained(name: str) -> dict[str, Any]:
    """Curves, metrics and a few of the weights of a training."""
    dataset, _ = small_world()
    rows, step.LARGE_TABLE = step.LARGE_TABLE, 20 if "by rows" in name else 10**9
    try:
        solid = SOLID(**TRAININGS[name]).fit(dataset)
    finally:
        step.LARGE_TABLE = rows
    assert solid.model is not None
    codebook = solid.model.item.codebook if solid.model.config.item.item_branch else None
    usage = torch.zeros(1) if codebook is None else codebook.usage
    table = solid.model.item_embedding.weight.detach()
    return {
        "rows": len(solid.training.split.train),
        "curve": [[epoch.loss, epoch.alignment] for stage in solid.training.stages for epoch in stage.history],
        "valid": [epoch.valid for stage in solid.training.stages for epoch in stage.history],
        "table": table.flatten()[:64].tolist(),
        "usage": usage.tolist(),
    }


def evaluated() -> dict[str, Any]:
    """Every rank and score of a model that is the same everywhere, in batches of which the last is short."""
    dataset, truth = small_world()
    config = Config().replace(**SMALL)
    model = build_model(config, config.model, dataset.num_items, truth.semantics).eval()
    rows = leave_one_out(dataset).test
    found: dict[str, Any] = {}
    for size in (7, 1000):
        full = evaluate_full(model, dataset, rows, batch_size=size)
        sampled = evaluate_sampled(model, dataset, rows, negatives=9, batch_size=size)
        found[str(size)] = [full.values, full.ranks.tolist(), sampled.values, sampled.ranks.tolist()]
    return found


def refusal() -> None:
    raise ValueError(f"out: expected a folder that does not exist yet, as rank {distributed.rank()} finds")


def refused() -> dict[str, str]:
    """What the ranks say of values that are not the same on all of them."""
    found = {}
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(0.5), model.bias.zero_()
        model.bias[1] += distributed.rank() * 2.0**-149
    for name, check in {
        "values": lambda: distributed.expect_same("run", {"a": 1, "b": distributed.rank()}),
        "weights": lambda: distributed.expect_same_weights("epoch 1", model),
        "writer": lambda: distributed.by_writer(refusal),
    }.items():
        try:
            check()
            found[name] = "nothing"
        except ValueError as error:
            found[name] = str(error)
    return found


def sums() -> list[Any]:
    """Sums, and what the writer says."""
    whole = np.full((10, 2), -1.0)
    mine = distributed.parts(10, 3)[distributed.rank()]
    whole[mine] = np.arange(20.0).reshape(10, 2)[mine]
    return [
        distributed.summed(torch.tensor([1.0, distributed.rank()])).tolist(),
        distributed.of_writer({"rank": distributed.rank()}),
        distributed.completed(whole, 3).tolist(),
    ]


def in_world(count: int, work: Callable[[], Any]) -> list[Any]:
    """What each of `count` processes makes of the work, in the order of their ranks."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(count):
            child = os.fork()
            if child == 0:
                _as_rank(rank, count, port, work, Path(folder))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(codes), f"ranks ended with {codes}"
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(count)]


def _as_rank(rank: int, count: int, port: int, work: Callable[[], Any], folder: Path) -> None:
    """Do the work as that rank, write down what came of it, and end."""
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with distributed.joined():
            found = work()
        (folder / str(rank)).write_text(json.dumps(found))
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def everything() -> dict[str, Any]:
    return {
        "trained": {name: trained(name) for name in TRAININGS},
        "evaluated": evaluated(),
        "refused": refused(),
        "sums": sums(),
    }


def of_each_count() -> dict[int, list[dict[str, Any]]]:
    """By how many processes there are, what each found."""
    return {count: in_world(count, everything) for count in (1, 2, 3)}
