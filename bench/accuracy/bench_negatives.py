"""Negatives that a batch shares against each row's own: what both reach, trained with the corrected sampled softmax.

    python -m bench.accuracy.bench_negatives --data FOLDER [--datasets amazon_scientific,amazon_pantry_dates]
        [--seeds 0,1,2] [--json]

The full softmax would be chosen for catalogues of these sizes; the sampled one is asked for, so that the answer can be
had in minutes. A static model (no generated layers, one stage) without the neighbourhood, d = 32, at most 10 epochs;
leave-one-out, full ranking of the test rows. The last way is the full softmax, which both samples stand for. Runs of
other datasets that are in the file stay there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.harness import RESULTS, machine
from solid_ext import SOLID, load_dataset

SETTINGS = {"dim": 32, "semantic_trunk": False, "item_branch": False, "neighbours": False, "learning_rate": 0.005}
EPOCHS = {"epochs": 10, "patience": 3}
WAYS = {
    "64 of each row's own": {"loss": "sampled_softmax_log_q", "shared_negatives": 0},
    "1,024 shared": {"loss": "sampled_softmax_log_q", "shared_negatives": 1024},
    "full softmax": {"loss": "full_softmax"},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder with a folder for each dataset")
    arguments.add_argument("--datasets", default="amazon_scientific,amazon_pantry_dates")
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--json", action="store_true", help="write bench/results/negatives.json after each run")
    options = arguments.parse_args()
    runs: list[dict[str, object]] = []
    for seed in map(int, options.seeds.split(",")):
        for name in options.datasets.split(","):
            dataset = load_dataset(options.data / name)
            for way, fields in WAYS.items():
                start = time.process_time()
                solid = SOLID(**SETTINGS, **EPOCHS, **fields, seed=seed).fit(dataset)  # type: ignore[arg-type]
                seconds = time.process_time() - start
                found = solid.evaluate()["full"]
                runs.append(
                    {
                        "dataset": name,
                        "negatives": way,
                        "seed": seed,
                        "ndcg@10": found["ndcg@10"],
                        "hr@10": found["hr@10"],
                        "processor_seconds": round(seconds),
                    }
                )
                Console().print_json(json.dumps(runs[-1]))
                if options.json:
                    write(runs)


def write(runs: list[dict[str, object]]) -> None:
    """Write the runs, and those of other datasets that are there already."""
    path = RESULTS / "negatives.json"
    mine = {run["dataset"] for run in runs}
    others = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in others if run["dataset"] not in mine] + runs
    content = {"machine": machine(), "settings": SETTINGS | EPOCHS, "means": means(runs), "runs": runs}
    path.write_text(json.dumps(content, indent=1) + "\n")


def means(runs: list[dict[str, object]]) -> list[dict[str, object]]:
    """Mean and standard deviation over seeds of each dataset and way."""
    rows: list[dict[str, object]] = []
    for dataset, way in dict.fromkeys((run["dataset"], run["negatives"]) for run in runs):
        values = [float(str(r["ndcg@10"])) for r in runs if (r["dataset"], r["negatives"]) == (dataset, way)]
        mean, deviation = float(np.mean(values)), float(np.std(values))
        rows.append(
            {"dataset": dataset, "negatives": way, "seeds": len(values), "ndcg@10": mean, "deviation": deviation}
        )
    return rows


if __name__ == "__main__":
    main()
