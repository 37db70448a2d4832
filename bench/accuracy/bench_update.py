"""What a model that keeps up reaches: updates against training again and against never, and items that nobody has had.

python -m bench.accuracy.bench_update updates --data DATA --out bench/results/update.json
python -m bench.accuracy.bench_update cold --data DATA --out bench/results/cold_items.json

`updates`: the first 70 % of a dated dataset are trained on, and five updates follow, each with 5 % more; whoever has
been trained until then ranks the whole catalogue for every interaction of the next 5 % that has one before it in the
user's history. What a model does not know yet counts as missed. `cold`: a tenth of the items is taken out of the data
before training and added by title and categories alone; the rows that are ranked are the test rows that ask for one of
them, among all items and among the added ones.

DATA has a folder a dataset with interactions.tsv.gz and, for `cold`, items.tsv.gz. Seconds are CPU time of the process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from bench.harness import machine
from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.data import Rows, gather_sequences, in_order_of, leave_one_out
from solid_ext.data.append import as_rows
from solid_ext.evaluate import Scorer, full_ranks, hr, ndcg, ranks_of_known
from solid_ext.scorers import Popularity
from solid_ext.train import Silent

QUICK = {"dim": 32, "epochs": 10, "patience": 2, "split": "global_time"}
DATED = ("amazon_pantry_dates", "movielens_100k")
DESCRIBED = ("movielens_100k", "amazon_scientific")
FIRST, UPDATES = 0.7, 5
COLD = 0.1


def part(dataset: Dataset, kept: np.ndarray) -> Dataset:
    """The dataset of these interactions `[N] bool` alone, with the items and users that they are of."""
    return load_dataset(as_rows(dataset).filter(pl.Series(kept)), items=dataset.item_table, name=dataset.name)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def next_period(model: SOLID, dataset: Dataset, since: int, until: int) -> dict[str, float]:
    """Full ranking of the interactions in since <= t < until that have one before them, unknown items being missed."""
    assert model.catalogue is not None
    assert dataset.timestamps is not None
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    asked = (dataset.timestamps >= since) & (dataset.timestamps < until)
    positions = np.flatnonzero(asked & (np.arange(users.size) > dataset.offsets[users]))
    ranks = ranks_of_known(model.scorer, model.catalogue, dataset, Rows(users[positions], positions))
    return {"ndcg@10": float(ndcg(ranks, 10)), "hr@10": float(hr(ranks, 10)), "rows": ranks.size}


def some_users(dataset: Dataset, most: int) -> Dataset:
    """The dataset of so many of its users, drawn at random; of all of them with 0."""
    if not most or most >= dataset.num_users:
        return dataset
    chosen = np.zeros(dataset.num_users, dtype=bool)
    chosen[np.random.default_rng(0).choice(dataset.num_users, most, replace=False)] = True
    return part(dataset, np.repeat(chosen, np.diff(dataset.offsets)))


def updates(folder: Path, fields: dict[str, Any], seed: int, most: int, users: int) -> dict[str, Any]:
    """One dataset: never, updated and from scratch, over five updates."""
    dataset = some_users(load_dataset(folder), users)
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
    for since, until in pairwise(cuts[1:]):
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
    return {"dataset": folder.name, "seed": seed, **size_of(dataset), "first": first, "periods": periods}


def size_of(data: Dataset) -> dict[str, int]:
    return {"users": data.num_users, "items": data.num_items, "interactions": data.num_interactions}


def cold(folder: Path, fields: dict[str, Any], seed: int, users: int) -> dict[str, Any]:
    """One dataset: the rows whose next item nobody has had in training, among all items, by whoever ranks them."""
    dataset = some_users(load_dataset(folder), users)
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
    sizes = {**size_of(warm), "hidden_items": int(hidden.sum())}
    return {"dataset": folder.name, "seed": seed, **sizes, "found": found}


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
    ranks = ranks_among(scorer, own, rows.take(is_cold), model.catalogue.num_items - int(hidden.sum()))
    return {**values, "among_cold_hr@10": float(hr(ranks, 10)), "among_cold_ndcg@10": float(ndcg(ranks, 10))}


def ranks_among(scorer: Scorer, dataset: Dataset, rows: Rows, warm: int) -> np.ndarray:
    """The rank of each row's target among the items after `warm` alone, ties against it."""
    candidates = torch.arange(warm + 1, dataset.num_items + 1)
    with torch.no_grad():
        state = scorer.encode(torch.from_numpy(gather_sequences(dataset, rows, scorer.length)))
        scores = scorer.score(state, candidates).numpy()
    target = dataset.items[rows.positions] - warm - 1
    return (scores >= np.take_along_axis(scores, target[:, None], axis=1)).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["updates", "cold"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--datasets", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5, help="of an update at most")
    parser.add_argument(
        "--users", type=int, default=0, help="of `updates`: so many of each dataset's at most; 0 for all"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = [name for name in given.datasets.split(",") if name] or (DATED if given.what == "updates" else DESCRIBED)
    torch.set_num_threads(1)
    runs = [
        updates(given.data / name, QUICK, seed, given.epochs, given.users)
        if given.what == "updates"
        else cold(given.data / name, QUICK, seed, given.users)
        for name in names
        for seed in range(given.seeds)
    ]
    if given.out:
        described = {
            "machine": machine(),
            "fields": QUICK,
            "threads": 1,
            "update_epochs": given.epochs,
            "users": given.users,
            "runs": runs,
        }
        given.out.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
