"""What a device model reaches for its bytes: static with stage 1's start, a personal bias, DUET and SOLID, by width d.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_device --data FOLDER [--datasets amazon_scientific,lastfm]
        [--dims 4,8,16,32,64] [--methods static-semantic-start,solid,solid-bias,duet] [--seeds 0,1,2] [--json]

The preset `device` without neighbours, its generators 64 wide whatever d is: leave-one-out, full ranking of the test
rows. The bytes are those of the static part in float32 and of one person's blob. With --json each run is a row of
`bench/results/device.json` as soon as it has ended, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Config, load_dataset
from solid_ext.config import DEVICE
from solid_ext.data import make_semantics, make_split
from solid_ext.methods import method_config

DATASETS = "amazon_scientific,lastfm,amazon_food_kitchen"
METHODS = "static-semantic-start,solid,solid-bias,duet"
FIELDS = {**DEVICE, "neighbours": False, "threads": 1}
KEY = ("dataset", "seed", "dim", "method")


def run(dataset: Any, semantics: Any, config: Config, method: str) -> dict[str, Any]:
    """One method trained and measured."""
    start = time.process_time()
    solid = SOLID(method_config(config, method)).fit(dataset, semantics=semantics)
    found, device = solid.evaluate(), solid.on_device().sizes()
    return {
        "ndcg@10": round(found["full"]["ndcg@10"], 5),
        "hr@10": round(found["full"]["hr@10"], 5),
        "user_auc": round(found["sampled"]["user_auc"], 4),
        "device_bytes": device.static,
        "bytes_a_person": device.person,
        "epochs": [len(stage.history) for stage in solid.training.stages],
        "processor_seconds": round(time.process_time() - start),
    }


def means(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, least and largest over the seeds of each dataset, width and method."""
    rows = []
    for dataset, dim, method in dict.fromkeys((run["dataset"], run["dim"], run["method"]) for run in runs):
        own = [r for r in runs if (r["dataset"], r["dim"], r["method"]) == (dataset, dim, method)]
        values = [r["ndcg@10"] for r in own]
        row = {"dataset": dataset, "dim": dim, "method": method, "seeds": len(own)}
        row |= {"ndcg@10": round(float(np.mean(values)), 5), "least": min(values), "largest": max(values)}
        rows.append(row | {name: own[0][name] for name in ("device_bytes", "bytes_a_person")})
    return sorted(rows, key=lambda row: (row["dataset"], row["dim"]))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder with a folder for each dataset")
    arguments.add_argument("--datasets", default=DATASETS)
    arguments.add_argument("--dims", default="4,8,16,32,64")
    arguments.add_argument("--methods", default=METHODS)
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--json", action="store_true", help="write bench/results/device.json after each run")
    options = arguments.parse_args()
    path = RESULTS / "device.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if options.json and path.exists() else []
    done = {tuple(run[name] for name in KEY) for run in runs}
    for name in options.datasets.split(","):
        dataset = load_dataset(options.data / name)
        for seed in map(int, options.seeds.split(",")):
            base = Config().replace(**FIELDS, seed=seed)
            split = make_split(base.evaluate.split, dataset)
            semantics = make_semantics(base.semantics, dataset, seed=seed, train_end=split.train_end)
            for dim in map(int, options.dims.split(",")):
                for method in options.methods.split(","):
                    key = (name, seed, dim, method)
                    if key in done:
                        continue
                    found = run(dataset, semantics, base.replace(dim=dim), method)
                    runs.append(dict(zip(KEY, key, strict=True)) | found)
                    Console().print_json(json.dumps(runs[-1]))
                    if options.json:
                        content = {"machine": machine(), "fields": FIELDS, "means": means(runs), "runs": runs}
                        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
