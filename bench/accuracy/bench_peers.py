"""The peers on amazon_scientific beside the same methods as measured elsewhere, on the same split.

python -m bench.accuracy.bench_peers --data FOLDER/amazon_scientific --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.harness import RESULTS, machine
from solid_ext import Config, load_dataset
from solid_ext.compare import PEERS
from solid_ext.compare.peers import PeerTask, peer_config
from solid_ext.data import make_split
from solid_ext.evaluate import evaluate_full, evaluate_sampled
from solid_ext.train import Silent

# Of other programs: own scripts for the first three, RecBole 1.2.1 (d = 64, 2 layers, dropout .5, L = 10) for SASRec.
ELSEWHERE = {
    "popularity": (0.628, 0.174, 0.300, 0.0171, 0.0309, 0.0180, 0.0316),
    "markov": (0.641, 0.213, 0.328, 0.0561, 0.0827, 0.0605, 0.0837),
    "itemknn": (0.674, 0.253, 0.374, 0.0650, 0.0976, 0.0822, 0.1111),
    "sasrec-softmax": (0.747, 0.296, 0.454, 0.0578, 0.1039, 0.0761, 0.1095),
}
COLUMNS = (
    ("sampled", "user_auc"),
    ("sampled", "ndcg@10"),
    ("sampled", "hr@10"),
    ("full", "ndcg@10"),
    ("full", "hr@10"),
    ("full, history excluded", "ndcg@10"),
    ("full, history excluded", "hr@10"),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with interactions")
    arguments.add_argument("--seeds", type=int, default=2, help="of the peer that is trained")
    arguments.add_argument("--json", action="store_true", help="write bench/results/peers_scientific.json")
    options = arguments.parse_args()
    dataset = load_dataset(options.data)
    results: dict[str, object] = {
        "machine": machine(),
        "columns": [f"{protocol}: {metric}" for protocol, metric in COLUMNS],
        "convention": "counted and trained on the training part alone, without validation items; itemknn: each item of "
        "a history counts once, all of the history before the test item is read, 1000 neighbours, no shrinkage",
    }
    for name, build in PEERS.items():
        rows = []
        for seed in range(options.seeds if name == "sasrec-softmax" else 1):
            config = peer_config(Config().replace(seed=seed, threads=1, patience=20))
            split = make_split(config.evaluate.split, dataset)
            with tempfile.TemporaryDirectory() as folder:
                scorer, _ = build(PeerTask(config, dataset, split, Path(folder), Silent()))
            found = [
                evaluate_sampled(scorer, dataset, split.test, seed=seed),
                evaluate_full(scorer, dataset, split.test),
                evaluate_full(scorer, dataset, split.test, exclude_history=True),
            ]
            values = {metrics.protocol: metrics.to_dict() for metrics in found}
            rows.append([values[protocol][metric] for protocol, metric in COLUMNS])
            sys.stdout.write(f"{name} seed {seed}: {rows[-1]}\n")
            sys.stdout.flush()
        results[name] = {"ours, a seed each": rows, "elsewhere": ELSEWHERE[name]}
    if options.json:
        (RESULTS / "peers_scientific.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
