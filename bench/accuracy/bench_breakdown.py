"""Where the gain of a comparison's runs comes from: each network alone, and with its neighbours, on the test rows.

python -m bench.accuracy.bench_breakdown --runs runs/best --json bench/results/breakdown.json

Reads the best epoch of every finished run and trains nothing. The neighbours' weight and floor are chosen anew on the
validation rows, for the peer sasrec-softmax as well, which has none in the comparison. Prints and writes, for every
dataset and method, mean and standard deviation over seeds of the test metrics without and with neighbours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from bench.accuracy.bench_robustness import best_model
from bench.harness import machine
from solid_ext.compare.grid import NO_BACKBONE, Grid, PlannedRun
from solid_ext.compare.peers import PEERS
from solid_ext.compare.process import DATA, GRID, METRICS, RUNS
from solid_ext.data import Dataset, make_split
from solid_ext.evaluate import Scorer, Validation, evaluate_full, evaluate_sampled
from solid_ext.models import DynamicRecommender, SASRecSoftmax
from solid_ext.scorers import ItemKNN, choose_neighbours, content_similarity
from solid_ext.train import load_checkpoint, load_model
from solid_ext.train.neighbourhood import NEIGHBOUR_ROWS

COLUMNS = ("sampled: user_auc", "sampled: ndcg@10", "full: ndcg@10", "full, history excluded: ndcg@10")


def best_network(folder: Path, planned: PlannedRun) -> Scorer | None:
    """A finished run's network at its best epoch; None for a peer without one."""
    if planned.method == "sasrec-softmax":
        path = folder / "sasrec" / "best.safetensors"
        tensors, _ = load_checkpoint(path)
        model = SASRecSoftmax(len(tensors["item_embedding.weight"]) - 1, planned.config.model.length)
        load_model(model, tensors, path)
        return model.eval()
    return None if planned.method in PEERS else best_model(folder, planned)


def measured(scorer: Scorer, planned: PlannedRun, dataset: Dataset) -> list[float]:
    """The test metrics in the order of COLUMNS."""
    rows = make_split(planned.config.evaluate.split, dataset).test
    negatives, seed = planned.config.evaluate.eval_negatives, planned.config.train.seed
    metrics = [
        evaluate_sampled(scorer, dataset, rows, negatives=negatives, seed=seed),
        evaluate_full(scorer, dataset, rows),
        evaluate_full(scorer, dataset, rows, exclude_history=True),
    ]
    values = {f"{found.protocol}: {name}": value for found in metrics for name, value in found.values.items()}
    return [values[column] for column in COLUMNS]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of solid-ext compare")
    arguments.add_argument("--methods", default="sasrec-softmax,static,static-semantic-start,solid")
    arguments.add_argument("--json", type=Path, help="the file to write")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    results: dict[str, dict[str, list[list[float]]]] = {}
    for out in options.runs:
        # By dataset, of the features that its networks hold; the peer, which has none, comes last.
        contents: dict[str, sparse.csr_array] = {}
        for planned in sorted(Grid.load(out / GRID).plan(), key=lambda planned: planned.method in PEERS):
            folder = out / RUNS / planned.name
            wanted = planned.method in options.methods.split(",") and (folder / METRICS).exists()
            network = best_network(folder, planned) if wanted else None
            if network is None:
                continue
            dataset = Dataset.load(out / DATA / planned.dataset)
            split = make_split(planned.config.evaluate.split, dataset)

            config = planned.config.resolved(dataset.num_users, dataset.num_items)
            validate = Validation(config, dataset, split, most=NEIGHBOUR_ROWS)
            known = network.item_embedding.features if isinstance(network, DynamicRecommender) else None
            if known is not None and planned.dataset not in contents:
                contents[planned.dataset] = content_similarity(known.numpy())
            knn = ItemKNN(dataset, split.train_end, network.length)
            both = choose_neighbours(network, knn, validate.of_each, contents.get(planned.dataset))
            name = planned.method if planned.backbone == NO_BACKBONE else f"{planned.backbone} {planned.method}"
            into = results.setdefault(planned.dataset, {})
            for label, scorer in ((name, network), (f"{name} + neighbours", both)):
                into.setdefault(label, []).append(measured(scorer, planned, dataset))
                sys.stdout.write(f"{planned.dataset} {label} seed {planned.seed}: {np.round(into[label][-1], 4)}\n")
                sys.stdout.flush()
    described = {"machine": machine(), "columns": COLUMNS, "seconds": round(time.perf_counter() - start)}
    summary = {
        dataset: {
            label: {
                "seeds": len(values),
                "mean": np.mean(values, 0).tolist(),
                "std": np.std(values, 0, ddof=1).tolist() if len(values) > 1 else None,
            }
            for label, values in methods.items()
        }
        for dataset, methods in results.items()
    }
    if options.json:
        options.json.write_text(json.dumps({**described, "results": summary}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
