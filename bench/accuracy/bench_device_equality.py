"""Whether a device gives what the server gives: lists and scores of `DeviceModel` beside those of `SOLID.recommend`.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_device_equality --data FOLDER
        [--models amazon_scientific:sasrec,lastfm:sasrec,movielens_100k:sasrec,amazon_scientific:gru4rec,..] [--json]

The preset `device` with its neighbours, trained for one epoch a stage: whether numbers agree does not depend on how
good they are. For 500 users spread over the dataset, a blob of all that the user had, and the 20 best items of both.
Where two items are closer than rounding they may change places: a list counts as equal but for ties where each place
holds a score within 1e-5 of the other's. With --json each model is a row of `bench/results/device_equality.json`, and
the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Config, load_dataset
from solid_ext.config import DEVICE
from solid_ext.device import DeviceModel
from solid_ext.serve.users import user_histories

MODELS = (
    "amazon_scientific:sasrec,lastfm:sasrec,movielens_100k:sasrec,amazon_scientific:gru4rec,"
    "amazon_scientific:bert4rec,amazon_scientific:din"
)
FIELDS = {**DEVICE, "epochs": 1, "threads": 1}
USERS, K, CLOSE = 500, 20, 1e-5


def compare(data: Path, name: str, backbone: str) -> dict[str, Any]:
    """Both sides of one model for USERS users."""
    dataset = load_dataset(data / name)
    solid = SOLID(Config().replace(**FIELDS, backbone=backbone)).fit(dataset)
    histories = user_histories(dataset)
    asked = [histories[user] for user in np.linspace(0, len(histories) - 1, USERS).astype(int)]
    with tempfile.TemporaryDirectory() as folder:
        said = solid.export_device(Path(folder) / "device")
        device = DeviceModel(Path(folder) / "device")
    same, close, largest, bytes_sent = 0, 0, 0.0, []
    for history, served in zip(asked, solid.recommend(asked, K), strict=True):
        blob = solid.personalize(history)
        found = device.load(blob).recommend(K)
        differences = np.abs(np.subtract([entry.score for entry in found], [entry.score for entry in served]))
        same += [entry.item for entry in found] == [entry.item for entry in served]
        close += bool((differences <= CLOSE).all())
        largest = max(largest, float(differences.max()))
        bytes_sent.append(len(blob))
    return {
        "dataset": name,
        "backbone": backbone,
        "users": USERS,
        "lists_equal": same,
        "lists_equal_but_for_ties": close,
        "largest_difference": largest,
        "largest_score": round(max(abs(entry.score) for entry in served), 2),
        "bytes": said["bytes"],
        "median_bytes_a_person": int(np.median(bytes_sent)),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder with a folder for each dataset")
    arguments.add_argument("--models", default=MODELS)
    arguments.add_argument("--json", action="store_true", help="write bench/results/device_equality.json")
    options = arguments.parse_args()
    path = RESULTS / "device_equality.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if options.json and path.exists() else []
    done = {(row["dataset"], row["backbone"]) for row in rows}
    for model in options.models.split(","):
        name, _, backbone = model.partition(":")
        if (name, backbone) in done:
            continue
        rows.append(compare(options.data, name, backbone))
        Console().print_json(json.dumps(rows[-1]))
        if options.json:
            path.write_text(json.dumps({"machine": machine(), "fields": FIELDS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
