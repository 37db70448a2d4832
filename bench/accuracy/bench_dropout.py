"""Whether the counter-based dropout trains as well as torch's: the default SOLID with either, by seed.

    python -m bench.accuracy.bench_dropout --data FOLDER/amazon_scientific [--seeds 9] [--json]

The same seed gives both the same parameters and batches; the elements that are dropped are others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Dataset, load_dataset
from solid_ext.nn import dropout
from solid_ext.train import Silent

COLUMNS = ("sampled: user_auc", "sampled: ndcg@10", "full: ndcg@10")


def of_torch(layer: dropout.Dropout, x: Tensor) -> Tensor:
    """`Dropout.forward` by torch's generator."""
    return F.dropout(x, layer.probability, layer.training)


def measured(dataset: Dataset, seed: int) -> list[float]:
    """The test metrics of the default SOLID, in the order of COLUMNS."""
    metrics = SOLID(seed=seed, threads=1).fit(dataset, reporter=Silent()).evaluate()
    return [metrics[protocol][name] for protocol, name in (column.split(": ") for column in COLUMNS)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="a folder with interactions and items")
    arguments.add_argument("--seeds", type=int, default=9)
    arguments.add_argument("--json", action="store_true", help="write bench/results/dropout.json")
    options = arguments.parse_args()
    dataset = load_dataset(options.data)
    forwards = {"counter-based": dropout.Dropout.forward, "torch's": of_torch}
    seeds: dict[str, list[list[float]]] = {name: [] for name in forwards}
    for seed in range(options.seeds):
        for name, forward in forwards.items():
            dropout.Dropout.forward = forward  # type: ignore[method-assign]
            seeds[name].append(measured(dataset, seed))
            sys.stdout.write(f"seed {seed} {name}: {seeds[name][-1]}\n")
            sys.stdout.flush()
    ours, theirs = (np.array(values) for values in seeds.values())
    content = {
        "machine": machine(),
        "dataset": options.data.name,
        "columns": COLUMNS,
        "seeds": seeds,
        "mean": {name: np.mean(values, 0).tolist() for name, values in seeds.items()},
        "standard deviation": {name: np.std(values, 0, ddof=1).tolist() for name, values in seeds.items()},
        "p of equal means (Welch)": stats.ttest_ind(ours, theirs, equal_var=False).pvalue.round(3).tolist(),
    }
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
    if options.json:
        (RESULTS / "dropout.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
