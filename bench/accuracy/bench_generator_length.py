"""What generators gain that read a longer history than the backbone whose layers they make, beside static models.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_generator_length --data FOLDER
        [--datasets lastfm,movielens_100k] [--contestants solid:10:50,solid:10,static:10,...] [--seeds 0]
        [--last 60] [--epochs 12] [--patience 3] [--json]

A contestant is METHOD:L or METHOD:L:GENERATOR_LENGTH. All have the preset `device` without neighbours, with d = 16,
generators 32 wide, and batches of 256 rows, so that few epochs are many steps: leave-one-out, the epoch chosen by full
ranking of the validation rows, the test rows ranked once. With --last each user's history is cut to so many events
before anything is trained. `device_ms` is the processor time that numpy takes for all scores on the device, the least
of a hundred.

With --json each run is a row of `bench/results/generator_length.json` as soon as it has ended, beside the paired
differences over users of SOLID with long histories from every other contestant. `generator_length.parquet`, which is no
part of the repository, has the rank of every user's test item; where it is the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from bench.accuracy.bench_staleness import newest_of
from bench.harness import RESULTS, machine
from solid_ext import SOLID, Config, load_dataset
from solid_ext.config import DEVICE
from solid_ext.data import Dataset, Semantics, make_split
from solid_ext.device import DeviceModel
from solid_ext.evaluate import both_protocols, ndcg_per_row, paired_differences
from solid_ext.methods import method_config
from solid_ext.train.semantics import chosen_semantics

DATASETS = "lastfm,movielens_100k"
CONTESTANTS = "solid:10:50,static-semantic-start:10,static:50,solid:10,static:10"
FIELDS = {**DEVICE, "dim": 16, "generator_dim": 32, "neighbours": False, "threads": 1, "batch_size": 256}
KEY = ("dataset", "seed", "patience", "contestant")
CALLS = 100  # of the device's scores, of which the fastest counts


def run(dataset: Dataset, semantics: Semantics, config: Config) -> tuple[dict[str, Any], np.ndarray]:
    """A contestant trained and measured, and the rank of each test row."""
    start = time.process_time()
    solid = SOLID(config).fit(dataset, semantics=semantics)
    trained = time.process_time()
    assert solid.training is not None
    found = both_protocols(solid.config, solid.scorer, dataset, solid.training.split.test)
    sizes, last = solid.on_device().sizes(), solid.training.stages[-1]
    row = {
        "ndcg@10": round(found["full"]["ndcg@10"], 5),
        "hr@10": round(found["full"]["hr@10"], 5),
        "user_auc": round(found["sampled"]["user_auc"], 4),
        "validation_ndcg@10": round(float(last.best.valid or 0), 5),
        "device_bytes": sizes.static,
        "bytes_a_person": sizes.person,
        "device_ms": device_ms(solid, dataset),
        "epochs": [len(stage.history) for stage in solid.training.stages],
        "best_epochs": [stage.best.epoch for stage in solid.training.stages],
        "training_seconds": round(trained - start),
        "processor_seconds": round(time.process_time() - start),
    }
    return row, found["full"].ranks


def device_ms(solid: SOLID, dataset: Dataset) -> float:
    """Milliseconds of processor time for the scores of all items on a device, after a history of 200 items."""
    history = dataset.item_ids.gather(dataset.items[:200] - 1).to_list()
    with TemporaryDirectory() as folder:
        solid.export_device(f"{folder}/device")
        device = DeviceModel(f"{folder}/device").load(solid.personalize(history))
    taken = []
    for _ in range(CALLS):
        start = time.process_time()
        device.scores()
        taken.append(time.process_time() - start)
    return round(1000 * min(taken), 3)


def differences(runs: list[dict[str, Any]], ranks: pl.DataFrame) -> list[dict[str, Any]]:
    """NDCG@10 of each SOLID with a long history less every other contestant's, over users.

    Compared are contestants of one dataset, seed and patience.
    """
    found = []
    for values in dict.fromkeys(tuple(run[name] for name in KEY[:-1]) for run in runs):
        together = dict(zip(KEY, values, strict=False))
        own = ranks.filter(*(pl.col(name) == value for name, value in together.items()))
        ndcg = {
            str(name): ndcg_per_row(part["rank"].to_numpy(), 10)
            for (name,), part in own.group_by("contestant", maintain_order=True)
        }
        for one in (name for name in ndcg if name.startswith("solid:") and name.count(":") == 2):
            others = {name: values for name, values in ndcg.items() if name != one}
            for other, gap in (paired_differences(ndcg[one], others) if others else {}).items():
                told = {name: round(value, 5) for name, value in gap._asdict().items()}
                found.append(together | {"one": one, "other": other} | told)
    return found


def configured(base: Config, contestant: str) -> Config:
    """The configuration of METHOD:L or METHOD:L:GENERATOR_LENGTH."""
    method, *lengths = contestant.split(":")
    fields = dict(zip(("length", "generator_length"), map(int, lengths), strict=False))
    return method_config(base.replace(**fields), method)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder with a folder for each dataset")
    arguments.add_argument("--datasets", default=DATASETS)
    arguments.add_argument("--contestants", default=CONTESTANTS)
    arguments.add_argument("--seeds", default="0")
    arguments.add_argument("--last", type=int, default=0, help="events of a user that are kept; 0 for all")
    arguments.add_argument("--epochs", type=int, default=12)
    arguments.add_argument("--patience", type=int, default=3)
    arguments.add_argument("--json", action="store_true", help="write the files of bench/results after each run")
    options = arguments.parse_args()
    path, of_users = RESULTS / "generator_length.json", RESULTS / "generator_length.parquet"
    goes_on = options.json and path.exists() and of_users.exists()
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if goes_on else []
    ranks = [pl.read_parquet(of_users)] if goes_on else []
    done = {tuple(run[name] for name in KEY) for run in runs}
    for seed in map(int, options.seeds.split(",")):
        for name in options.datasets.split(","):
            dataset = newest_of(load_dataset(options.data / name), options.last)
            limits = {"epochs": options.epochs, "patience": options.patience}
            base = Config().replace(**FIELDS, **limits, seed=seed)
            semantics = chosen_semantics(base, dataset, make_split(base.evaluate.split, dataset))
            for contestant in options.contestants.split(","):
                key = (name, seed, options.patience, contestant)
                if key in done:
                    continue
                row, rank = run(dataset, semantics, configured(base, contestant))
                runs.append(
                    dict(zip(KEY, key, strict=True))
                    | {"last_events": options.last, "most_epochs": options.epochs}
                    | row
                )
                named = [pl.lit(value).alias(column) for column, value in zip(KEY, key, strict=True)]
                ranks.append(pl.DataFrame({"rank": rank.astype(np.int64)}).select(*named, "rank"))
                Console().print_json(json.dumps(runs[-1]))
                if options.json:
                    together = pl.concat(ranks, how="vertical_relaxed")
                    content = {"machine": machine(), "fields": FIELDS, "differences": differences(runs, together)}
                    together.write_parquet(of_users)
                    path.write_text(json.dumps(content | {"runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
