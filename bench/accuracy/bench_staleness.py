"""How old a person's layers may be: the blob of some events ago, while the device's backbone reads what is newest.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_staleness --data FOLDER
        [--datasets lastfm,movielens_100k,movielens_latest_small,foursquare] [--seed 0] [--last 60] [--json]

The preset `device` without neighbours, at most 20 epochs a stage, leave-one-out, full ranking. A test row is ranked
with layers of the history up to n events ago, n = 0 .. 20, and with those of nobody in particular; where the history is
not that long, nothing was known then, and the layers are nobody's too. With --last each user's history is cut to so
many events before anything is trained.

A policy of requests is played over the 20 events before the test row, beginning with layers that are 20 events old: at
each event it asks for a new blob where the drift of the conditions, `||z - z'|| / ||z'||` with z' those that the blob
was made of, is above a threshold, or at random with a fixed chance. The threshold that is kept asks least of those that
lose at most 2 % of the NDCG@10 of fresh layers on the validation rows. With --json a dataset is a row of
`bench/results/staleness.json` as soon as it has been measured, the same command goes on where it stopped, and
`bench/results/staleness.png` shows them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.config import DEVICE
from solid_ext.data import Rows, gather_sequences
from solid_ext.evaluate import ndcg_per_row
from solid_ext.models import DynamicRecommender
from solid_ext.models.recommender import Conditions
from solid_ext.serve.on_device import conditions_of_nobody

DATASETS = "lastfm,movielens_100k,movielens_latest_small,foursquare"
FIELDS = {**DEVICE, "neighbours": False, "threads": 1, "epochs": 20}
SHOWN, OLDEST = (0, 1, 2, 5, 10, 20), 20
THRESHOLDS = np.concatenate([[0.0], np.geomspace(0.01, 3, 40), [np.inf]])
LOSS = 0.02  # of fresh layers' NDCG@10, that the kept threshold may lose
BATCH = 256
NOBODY = OLDEST + 1  # the place of nobody's layers among the ages


class Measured:
    """NDCG@10 [R, 22] of rows by layers of each age and of nobody, and the conditions [R, 21, 2 k] of each age."""

    def __init__(self, solid: SOLID, dataset: Dataset, rows: Rows) -> None:
        model, catalogue = solid.model, solid.catalogue
        assert model is not None
        assert catalogue is not None
        nobody = conditions_of_nobody(model, catalogue)
        ndcg, conditions = [], []
        for batch in np.array_split(np.arange(len(rows)), -(-len(rows) // BATCH)):
            some = rows.take(batch)
            sequences = gather_sequences(dataset, some, model.length + OLDEST)
            targets = torch.from_numpy(dataset.items[some.positions])
            now, by_age = _window(sequences, model.length, 0), []
            for age in range(OLDEST + 1):
                past = _window(sequences, model.length, age)
                known = (past[:, :1] > 0).to(model.item_embedding.weight)
                given = model._conditions(past)
                mixed = [_mixed(given[part], nobody[part], known) for part in (0, 1)]
                by_age.append(Conditions(*mixed, None, None))
            ranks = [_ranks(model, now, targets, given) for given in [*by_age, _expanded(nobody, len(batch))]]
            ndcg.append(np.stack([ndcg_per_row(rank, 10) for rank in ranks], axis=1))
            conditions.append(torch.stack([torch.cat([z for z in g[:2] if z is not None], 1) for g in by_age], 1))
        history = rows.positions - dataset.offsets[rows.users]
        self.events = int(np.minimum(history, OLDEST).sum())  # of the last 20 of each row, those that there were
        self.ndcg, self.conditions = np.concatenate(ndcg), torch.cat(conditions).numpy()

    def ages_by_drift(self, threshold: float) -> tuple[np.ndarray, float]:
        """How old each row's layers are at its end, where they are asked for by drift, and the requests an event."""
        age, requests = np.full(len(self.ndcg), OLDEST), 0
        for now in range(OLDEST - 1, -1, -1):
            old = self.conditions[np.arange(len(age)), age]
            moved = np.linalg.norm(self.conditions[:, now] - old, axis=1) > threshold * np.linalg.norm(old, axis=1)
            age, requests = np.where(moved, now, age), requests + int(moved.sum())
        return age, requests / self.events

    def reached(self, age: np.ndarray) -> float:
        """The mean NDCG@10 by layers of these ages, one a row."""
        return float(self.ndcg[np.arange(len(age)), age].mean())

    def reached_at_random(self, rate: float) -> float:
        """The mean NDCG@10 where a new blob comes at each event with this chance."""
        chance = rate * (1 - rate) ** np.arange(OLDEST + 1)
        chance[OLDEST] = (1 - rate) ** OLDEST
        return float((self.ndcg[:, : OLDEST + 1] @ chance).mean())


def _window(sequences: np.ndarray, length: int, age: int) -> Tensor:
    """The last `length` items of each right-padded history as it was `age` events ago."""
    found = np.zeros((len(sequences), length), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        size = int((sequence > 0).sum()) - age
        kept = sequence[max(size - length, 0) : max(size, 0)]
        found[row, : len(kept)] = kept
    return torch.from_numpy(found)


def _mixed(own: Tensor | None, nobody: Tensor | None, known: Tensor) -> Tensor | None:
    return None if own is None or nobody is None else known * own + (1 - known) * nobody


def _expanded(nobody: Conditions, rows: int) -> Conditions:
    return Conditions(*(None if z is None else z.expand(rows, -1) for z in nobody[:2]), None, None)


def _ranks(model: DynamicRecommender, sequences: Tensor, targets: Tensor, conditions: Conditions) -> np.ndarray:
    """The rank from 1 of each target among all items, ties against it, by layers of these conditions."""
    state = model.user_state(sequences, model._layers(conditions))
    scores = model.score(state, torch.arange(1, model.num_items + 1))
    return (scores >= scores.gather(1, targets.unsqueeze(1) - 1)).sum(1).numpy()


def newest_of(dataset: Dataset, last: int) -> Dataset:
    """The dataset with the last events of each user alone; all of them for 0."""
    sizes = np.diff(dataset.offsets)
    place = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[1:] - last, sizes)
    kept = (place >= 0) | (last == 0)
    ends = np.cumsum(np.minimum(sizes, last or sizes.max()))
    times = None if dataset.timestamps is None else dataset.timestamps[kept]
    return replace(dataset, items=dataset.items[kept], timestamps=times, offsets=np.concatenate(([0], ends)))


def measure(name: str, data: Path, seed: int, last: int = 0) -> dict[str, Any]:
    """A dataset's table and curves."""
    start, dataset = time.process_time(), newest_of(load_dataset(data / name), last)
    solid = SOLID(Config().replace(**FIELDS, seed=seed)).fit(dataset)
    split, blob = solid.training.split, solid.on_device().sizes().person
    with torch.inference_mode():
        valid, test = (Measured(solid, dataset, rows) for rows in (split.valid, split.test))
    fresh = valid.ndcg[:, 0].mean()
    curve, kept = [], None
    for threshold in THRESHOLDS.tolist():
        age, rate = test.ages_by_drift(threshold)
        at_random, by_drift = test.reached_at_random(rate), test.reached(age)
        row = {"threshold": round(threshold, 4) if threshold < np.inf else None, "requests_an_event": round(rate, 4)}
        curve.append(row | {"drift": round(by_drift, 5), "random": round(at_random, 5)})
        if valid.reached(valid.ages_by_drift(threshold)[0]) >= (1 - LOSS) * fresh:
            kept = {**curve[-1], "bytes_an_event": round(rate * blob)}
    ages = {str(age): round(float(test.ndcg[:, age].mean()), 5) for age in SHOWN}
    found = {
        "dataset": name,
        "seed": seed,
        "last_events": last,
        "rows": len(test.ndcg),
        "blob_bytes": blob,
        "events_a_day": events_a_day(dataset),
        "ndcg@10": ages | {"nobody's": round(float(test.ndcg[:, NOBODY].mean()), 5)},
        "kept": kept,
        "curve": curve,
        "epochs": [len(stage.history) for stage in solid.training.stages],
    }
    return found | {"processor_seconds": round(time.process_time() - start)}


def events_a_day(dataset: Dataset) -> float | None:
    """The mean events of a user on a day with any; None where there are no dates."""
    times = dataset.timestamps
    if times is None or int(times.max()) < 10**8:  # the place in the history, which is no time
        return None
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    days = np.unique(np.stack([users, times // 86_400]), axis=1).shape[1]
    return round(len(times) / days, 1)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel a dataset: NDCG@10 against requests an event, by drift and at random, over that of nobody's layers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(rows), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        rate = [point["requests_an_event"] for point in row["curve"]]
        for policy, style, words in (("drift", "-", "by drift"), ("random", "--", "at random")):
            axes.plot(rate, [point[policy] for point in row["curve"]], style, label=f"asked for {words}")
        axes.axhline(row["ndcg@10"]["nobody's"], color="grey", linestyle=":", label="nobody's layers")
        if (kept := row["kept"]) is not None:
            axes.plot(kept["requests_an_event"], kept["drift"], "o", color="black", label="kept threshold")
        axes.set(title=row["dataset"], xlabel="requests an event", ylabel="full NDCG@10")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, format="png", dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder with a folder for each dataset")
    arguments.add_argument("--datasets", default=DATASETS)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--last", type=int, default=0, help="events of each user that are kept; 0 for all")
    arguments.add_argument("--json", action="store_true", help="write bench/results/staleness.json and .png")
    options = arguments.parse_args()
    path = RESULTS / "staleness.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if options.json and path.exists() else []
    done = {(row["dataset"], row["seed"]) for row in rows}
    for name in options.datasets.split(","):
        if (name, options.seed) in done:
            continue
        rows.append(measure(name, options.data, options.seed, options.last))
        Console().print_json(json.dumps({key: value for key, value in rows[-1].items() if key != "curve"}))
        if options.json:
            content = {"machine": machine(), "fields": FIELDS, "rows": rows}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
