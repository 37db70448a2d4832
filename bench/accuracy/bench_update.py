"""What a model that keeps up reaches: updates against training again and against never, and items that nobody has had.

python -m bench.accuracy.bench_update updates --data DATA --out bench/results/update.json
python -m bench.accuracy.bench_update cold --data DATA --out bench/results/cold_items.json

`updates`: the first 70 % of a dated dataset are trained on, and five updates follow, each with 5 % more; whoever has been
trained until then ranks the whole catalogue for every interaction of the next 5 % that has one before it in the user's
history. What a model does not know yet counts as missed. `cold`: a tenth of the items is taken out of the data before
training and added by title and categories alone; the rows that are ranked are the test rows that ask for one of them.

DATA has a folder a dataset with interactions.tsv.gz and, for `cold`, items.tsv.gz. Seconds are CPU time of the process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from bench.harness import machine
from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.data import Rows, in_order_of, leave_one_out
from solid_ext.evaluate import Scorer, full_ranks, hr, ndcg
from solid_ext.scorers import Popularity
from solid_ext.train import Silent

QUICK = {"dim": 32, "epochs": 15, "patience": 2, "split": "global_time"}
DATED = ("amazon_pantry_dates", "movielens_100k")
DESCRIBED = ("movielens_100k", "amazon_scientific")
FIRST, UPDATES = 0.7, 5
COLD = 0.1


def as_frame(dataset: Dataset) -> pl.DataFrame:
    """The interactions with raw ids, each user's oldest first."""
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    return pl.DataFrame(
        {
            "user_id": dataset.user_ids.gather(users),
            "item_id": dataset.item_ids.gather(dataset.items.astype(np.int64) - 1),
            "timestamp": dataset.timestamps,
        }
    )


def part(dataset: Dataset, kept: np.ndarray) -> Dataset:
    """The dataset of these interactions `[N] bool` alone, with the items and users that they are of."""
    return load_dataset(as_frame(dataset).filter(pl.Series(kept)), items=dataset.item_table, name=dataset.name)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def next_period(model: SOLID, dataset: Dataset, since: int, until: int) -> dict[str, float]:
    """Full ranking of the interactions in since <= t < until that have a history, items unknown to the model missed."""
    assert model.catalogue is not None and dataset.timestamps is not None
    times, starts = dataset.timestamps, dataset.offsets[:-1]
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    asked = (times >= since) & (times < until) & (np.arange(times.size) > starts[users])
    own = in_order_of(model.catalogue, dataset)
    known = own.items <= model.catalogue.num_items
    # The same users with what the model knows of their histories.
    kept = np.bincount(users[known], minlength=dataset.num_users)
    seen = replace(
        own,
        offsets=np.concatenate(([0], np.cumsum(kept))),
        items=own.items[known],
        timestamps=times[known],
        item_ids=model.catalogue.table["item_id"],
        item_table=model.catalogue.table,
    )
    positions = np.flatnonzero(asked[known])
    rows = Rows(users[known][positions], positions)
    ranks = np.full(int(asked.sum()), dataset.num_items + 1)
    ranks[: len(rows)] = full_ranks(model.scorer, seen, rows)
    return {"ndcg@10": float(ndcg(ranks, 10)), "hr@10": float(hr(ranks, 10)), "rows": ranks.size, "known": len(rows)}


def updates(folder: Path, fields: dict[str, Any], seed: int, most: int) -> dict[str, Any]:
    """One dataset: never, updated and from scratch, over five updates."""
    dataset = load_dataset(folder)
    assert dataset.timestamps is not None
    ordered = np.sort(dataset.timestamps)
    step = (1 - FIRST) / (UPDATES + 1)
    cuts = [int(ordered[round(ordered.size * (FIRST + step * i))]) for i in range(UPDATES + 1)]
    cuts.append(int(ordered[-1]) + 1)
    config = Config().replace(**fields, seed=seed)

    def from_scratch(data: Dataset) -> SOLID:
        return SOLID(config).fit(data, reporter=Silent()).refit()

    data = part(dataset, dataset.timestamps < cuts[0])
    never, seconds = timed(lambda: from_scratch(data))
    first = {"seconds": seconds, **size_of(data), "next": next_period(never, dataset, cuts[0], cuts[1])}
    print(folder.name, seed, "first", first, flush=True)
    updated, periods = never, []
    for since, until in zip(cuts[1:-1], cuts[2:], strict=True):
        data = part(dataset, dataset.timestamps < since)
        before = updated
        updated, of_update = timed(lambda before=before, data=data: before.update(data, epochs=most))
        scratch, of_scratch = timed(lambda data=data: from_scratch(data))
        stage = updated.training.stages[0]
        period = {
            **size_of(data),
            "new_items": updated.catalogue.num_items - before.catalogue.num_items,
            "update_epochs": [stage.best.epoch, len(stage.history)],
            "seconds": {"update": of_update, "scratch": of_scratch},
            "next": {
                name: next_period(model, dataset, since, until)
                for name, model in (("never", never), ("update", updated), ("scratch", scratch))
            },
        }
        print(folder.name, seed, json.dumps(period), flush=True)
        periods.append(period)
    return {"dataset": folder.name, "seed": seed, "first": first, "periods": periods}


def size_of(data: Dataset) -> dict[str, int]:
    return {"users": data.num_users, "items": data.num_items, "interactions": data.num_interactions}


def cold(folder: Path, fields: dict[str, Any], seed: int) -> dict[str, Any]:
    """One dataset: the rows whose next item nobody has had in training, among all items, by whoever ranks them."""
    dataset = load_dataset(folder)
    rng = np.random.default_rng(seed)
    hidden = np.zeros(dataset.num_items + 1, dtype=bool)
    hidden[1 + rng.choice(dataset.num_items, round(dataset.num_items * COLD), replace=False)] = True
    warm = part(dataset, ~hidden[dataset.items])
    config = Config().replace(**{**fields, "split": "leave_one_out"}, seed=seed)
    new = dataset.item_table.filter(pl.Series(hidden[1:]))
    found: dict[str, Any] = {}
    for name, changed in (("with features", {}), ("without features", {"item_features": False, "semantics": "id"})):
        model = SOLID(config.replace(**changed)).fit(warm, reporter=Silent())
        grown, seconds = timed(lambda model=model: model.add_items(new))
        found[name] = {**of_cold(grown, grown.scorer, dataset, hidden), "seconds": seconds}
        if not changed:
            at_random = model.add_items(new)
            weight = at_random.model.item_embedding.weight
            with torch.no_grad():
                rows = slice(warm.num_items + 1, None)
                weight[rows] = torch.randn(weight[rows].shape, generator=torch.Generator().manual_seed(seed)) * (
                    config.model.dim**-0.5
                )
            found["with features, rows at random"] = of_cold(at_random, at_random.scorer, dataset, hidden)
            without = model.add_items(new)
            found["with features, the network alone"] = of_cold(without, without.model, dataset, hidden)
            popular = Popularity(in_order_of(grown.catalogue, warm), warm.offsets[1:], config.model.length)
            found["popularity"] = of_cold(grown, popular, dataset, hidden)
    print(folder.name, seed, json.dumps(found), flush=True)
    return {"dataset": folder.name, "seed": seed, "hidden_items": int(hidden.sum()), "found": found}


def of_cold(model: SOLID, scorer: Scorer, dataset: Dataset, hidden: np.ndarray) -> dict[str, float]:
    """HR@10 and NDCG@10 of test rows that ask for a hidden item, and those that ask for another, by full ranking.

    The history is left out of what is ranked, hidden items and all.
    """
    own = in_order_of(model.catalogue, dataset)
    rows = leave_one_out(own).test
    is_cold = own.items[rows.positions] > model.catalogue.num_items - hidden.sum()
    values: dict[str, float] = {}
    for name, chosen in (("cold", is_cold), ("warm", ~is_cold)):
        ranks = full_ranks(scorer, own, rows.take(chosen), exclude_history=True)
        values |= {f"{name}_hr@10": float(hr(ranks, 10)), f"{name}_ndcg@10": float(ndcg(ranks, 10))}
        values[f"{name}_rows"] = int(chosen.sum())
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["updates", "cold"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--datasets", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5, help="of an update at most")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = [name for name in given.datasets.split(",") if name] or (DATED if given.what == "updates" else DESCRIBED)
    torch.set_num_threads(1)
    runs = [
        updates(given.data / name, QUICK, seed, given.epochs)
        if given.what == "updates"
        else cold(given.data / name, QUICK, seed)
        for name in names
        for seed in range(given.seeds)
    ]
    if given.out:
        described = {"machine": machine(), "fields": QUICK, "threads": 1, "update_epochs": given.epochs, "runs": runs}
        given.out.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
