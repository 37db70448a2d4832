"""What the codebook's options are worth: SOLID at Table 2's settings with each of them, from the same stage 1.

python -m bench.accuracy.bench_codebook --data FOLDER/amazon_scientific FOLDER/amazon_office_2014 --json

The options are those of the layer `Codebook`; the recommender has none, so that the layer is replaced here. A seed's
first stage does not know the codebook, so that it is trained once and every option goes on from a copy of it. Prints
and writes, for every dataset and option, the test metrics of each seed, the entries that training ever chose, and the
difference to the first option seed by seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Codebook, load_dataset
from solid_ext.config import PAPER, Config
from solid_ext.models import item_branch
from solid_ext.train import Silent

OPTIONS: dict[str, dict[str, Any]] = {
    "straight-through, gradient": {},
    "rotation, gradient": {"gradient": "rotation"},
    "no gradient through, gradient": {"gradient": "none"},
    "straight-through, EMA": {"update": "ema"},
    "straight-through, frozen": {"update": "frozen"},
    "straight-through, gradient, revival after 100": {"revive_after": 100},
    "straight-through, EMA, revival after 100": {"update": "ema", "revive_after": 100},
}
COLUMNS = ("sampled: user_auc", "sampled: ndcg@10", "full: ndcg@10", "full: hr@10")


def measured(model: SOLID) -> list[float]:
    """The test metrics in the order of COLUMNS, and how many entries training ever chose."""
    metrics = model.evaluate()
    values = [metrics[protocol][name] for protocol, name in (column.split(": ") for column in COLUMNS)]
    usage = next(value for name, value in model.model.state_dict().items() if name.endswith("codebook.usage"))
    return [*values, int((usage > 0).sum())]


def with_options(options: dict[str, Any]) -> Callable[..., Codebook]:
    """The layer, with these options in place of those that it is asked for."""
    return lambda *arguments, **named: Codebook(*arguments, **{**named, **options})


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, nargs="+", required=True, help="folders with interactions and items")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--options", nargs="+", choices=OPTIONS, default=list(OPTIONS), help="the first is compared with"
    )
    arguments.add_argument("--json", action="store_true", help="write bench/results/codebook.json")
    options = arguments.parse_args()
    results: dict[str, dict[str, list[list[float]]]] = {}
    start = time.process_time()
    for path in options.data:
        dataset = load_dataset(path)
        into = results.setdefault(path.name, {})
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                for place, name in enumerate(options.options):
                    own = Path(folder) / str(place)
                    if place:
                        shutil.copytree(Path(folder) / "0" / "stage1", own / "stage1")
                    item_branch.Codebook = with_options(OPTIONS[name])
                    solid = SOLID(Config().replace(**PAPER, seed=seed, threads=1))
                    model = solid.fit(dataset, folder=own, reporter=Silent())
                    into.setdefault(name, []).append(measured(model))
                    sys.stdout.write(f"{path.name} seed {seed} {name}: {np.round(into[name][-1], 4).tolist()}\n")
                    sys.stdout.flush()
    summary = {}
    for dataset_name, by_option in results.items():
        first = np.array(by_option[options.options[0]])
        summary[dataset_name] = {
            name: {
                "seeds": np.array(values).tolist(),
                "mean": np.mean(values, 0).tolist(),
                "difference of each seed": (np.array(values) - first).tolist(),
            }
            for name, values in by_option.items()
        }
    content = {
        "machine": machine(),
        "columns": [*COLUMNS, "entries used"],
        "cpu_seconds": round(time.process_time() - start),
        "results": summary,
    }
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
    if options.json:
        (RESULTS / "codebook.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
