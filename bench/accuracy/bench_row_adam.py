"""Adam by rows and lazy Adam against Adam over whole tables: what each reaches, and how far the weights are apart.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_row_adam --data FOLDER
        [--datasets amazon_scientific,movielens_latest_small] [--seeds 0,1,2] [--json]

Only tables above 65,536 rows are updated by rows; here all are, so that a small dataset says what a large one would.
Batches are small, so that most rows are not read in most steps. A static model (no generated layers, one stage) without
the neighbourhood, five epochs; leave-one-out, full ranking of the test rows. Lazy Adam leaves a row that is not read as
it is, its moments too, as `torch.optim.SparseAdam` does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Dataset, load_dataset
from solid_ext.train import stage
from solid_ext.train.row_adam import RowAdam

SETTINGS = {
    "dim": 32,
    "semantic_trunk": False,
    "item_branch": False,
    "neighbours": False,
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "loss": "sampled_softmax_log_q",
    "batch_size": 128,
    "shared_negatives": 128,
    "epochs": 5,
    "patience": 5,
    "threads": 1,
}


class Counting(RowAdam):
    """Adam by rows that counts which share of a table's rows its steps read."""

    read, rows = 0, 0

    def _update(self, weight: Tensor, rows: Tensor, total: Tensor) -> None:
        Counting.read, Counting.rows = Counting.read + len(rows), Counting.rows + len(weight)
        super()._update(weight, rows, total)


class Lazy(RowAdam):
    """Lazy Adam: the steps in which a row was not read do not move it, nor its moments."""

    def _advance(self, weight: Tensor, rows: Tensor) -> None:
        self._last[weight].index_fill_(0, rows, self.steps)


WAYS = {"dense": (RowAdam, 10**9), "by rows": (Counting, 1_000), "lazy": (Lazy, 1_000)}


def trained(dataset: Dataset, way: str, seed: int) -> SOLID:
    """A model whose tables were updated so."""
    kind, rows = WAYS[way]
    before = stage.make_optimizer

    def make(model: Any, config: Any) -> RowAdam:
        return kind(model, rows, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)

    stage.make_optimizer = make  # type: ignore[assignment]
    try:
        return SOLID(**SETTINGS, seed=seed).fit(dataset)  # type: ignore[arg-type]
    finally:
        stage.make_optimizer = before


def table(solid: SOLID) -> Tensor:
    assert solid.model is not None
    return solid.model.item_embedding.weight.detach().double()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder with a folder for each dataset")
    arguments.add_argument("--datasets", default="amazon_scientific,movielens_latest_small")
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--json", action="store_true", help="write bench/results/row_adam.json")
    options = arguments.parse_args()
    runs: list[dict[str, Any]] = []
    for name in options.datasets.split(","):
        dataset = load_dataset(options.data / name)
        for seed in map(int, options.seeds.split(",")):
            found = {way: trained(dataset, way, seed) for way in WAYS}
            dense = table(found["dense"])
            for way, solid in found.items():
                full = solid.evaluate()["full"]
                apart = (table(solid) - dense).norm() / dense.norm()
                losses = [epoch.loss for epoch in solid.training.stages[-1].history]
                runs.append(
                    {
                        "dataset": name,
                        "adam": way,
                        "seed": seed,
                        "first_loss": losses[0],
                        "last_loss": losses[-1],
                        "ndcg@10": full["ndcg@10"],
                        "hr@10": full["hr@10"],
                        "table_apart": float(apart),
                    }
                )
                Console().print_json(json.dumps(runs[-1]))
    content = {
        "machine": machine(),
        "settings": SETTINGS,
        "threads": torch.get_num_threads(),
        "rows_read_in_a_step": Counting.read / Counting.rows,
        "means": [mean(runs, *key) for key in dict.fromkeys((run["dataset"], run["adam"]) for run in runs)],
        "runs": runs,
    }
    if options.json:
        (RESULTS / "row_adam.json").write_text(json.dumps(content, indent=1) + "\n")


def mean(runs: list[dict[str, Any]], dataset: str, way: str) -> dict[str, Any]:
    """What the seeds of a dataset and way have in the mean, beside dense Adam of the same seed."""
    mine, dense = ([r for r in runs if (r["dataset"], r["adam"]) == (dataset, one)] for one in (way, "dense"))
    differences = [one["ndcg@10"] - other["ndcg@10"] for one, other in zip(mine, dense, strict=True)]
    return {
        "dataset": dataset,
        "adam": way,
        "seeds": len(mine),
        "ndcg@10": float(np.mean([run["ndcg@10"] for run in mine])),
        "deviation": float(np.std([run["ndcg@10"] for run in mine])),
        "largest_difference": float(np.max(np.abs(differences))),
        "mean_difference": float(np.mean(differences)),
        "table_apart": float(np.mean([run["table_apart"] for run in mine])),
    }


if __name__ == "__main__":
    main()
