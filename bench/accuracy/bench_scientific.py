"""SOLID on amazon_scientific, trained once a back end from the same seed: metrics of the test rows and how they differ.

    python -m bench.accuracy.bench_scientific --data FOLDER/amazon_scientific [--preset best] [--epochs N] --json

At Table 2's settings, or at the defaults (`best`), which are a run as users have it: both stages, neighbours, both
protocols. The same elements are dropped by both back ends, so what differs is the order of sums alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, machine
from solid_ext import Config, load_dataset
from solid_ext.config import PRESETS
from solid_ext.run import train_run


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, float]:
    """The metric in which two models differ most, and by how much."""
    gaps = {
        f"{protocol}/{metric}": abs(value - other[protocol][metric])
        for protocol, metrics in one.items()
        for metric, value in metrics.items()
    }
    worst = max(gaps, key=lambda name: gaps[name])
    return worst, gaps[worst]


def finish(name: str, results: dict[str, Any], write: bool) -> None:
    """Print results, and write them to `bench/results/` if asked."""
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    if write:
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with interactions and items")
    arguments.add_argument("--preset", choices=sorted(PRESETS), default="paper", help="settings of both runs")
    arguments.add_argument("--epochs", type=int, help="at most so many a stage")
    arguments.add_argument("--json", action="store_true", help="write bench/results/scientific_*.json")
    arguments.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of both runs")
    arguments.add_argument(
        "--control",
        action="store_true",
        help="only the static model given stage 1",
    )
    options = arguments.parse_args()
    dataset = load_dataset(options.data)
    settings = Config().replace(**PRESETS[options.preset], dtype=options.dtype)
    if options.epochs is not None:
        settings = settings.replace(epochs=options.epochs)
    if options.control:
        static = settings.replace(semantic_trunk=False, item_branch=False, semantic_start=True)
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(Path(folder) / "run", static, dataset, baseline=False)
        metrics = {**run.metrics, "models": {"static, semantic start": run.metrics["models"]["SOLID"]}}
        finish("scientific_control", {"machine": machine(), **metrics}, options.json)
        return
    plain = options.preset == "paper"
    results: dict[str, Any] = {"machine": machine(), "dtype": options.dtype, "preset": options.preset}
    for backend in ("native", "reference"):
        config = settings.replace(backend=backend)
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            run = train_run(Path(folder) / "run", config, dataset, baseline=backend == "native" and plain)
            seconds = time.process_time() - start
        results[backend] = run.metrics | {"processor_seconds": round(seconds, 1)}
    native, reference = (results[backend]["models"]["SOLID"] for backend in ("native", "reference"))
    metric, gap = largest_difference(native, reference)
    results["largest_difference"] = {"metric": metric, "value": gap}
    length = "to convergence" if options.epochs is None else f"{options.epochs} epochs a stage"
    results["aims"] = [
        {
            "row": f"native against reference, preset {options.preset}, {length}: {protocol} {metric}",
            "reached": round(abs(native[protocol][metric] - reference[protocol][metric]), 6),
            "aim": 0.001,
            "better": "lower",
            "unit": "",
        }
        for protocol, metric in (("sampled", "user_auc"), ("sampled", "ndcg@10"), ("full", "ndcg@10"))
    ]
    kind = ([] if plain else [options.preset]) + ([] if options.epochs is None else [f"{options.epochs}_epochs"])
    finish("_".join(["scientific", *kind, options.dtype]), results, options.json)


if __name__ == "__main__":
    main()
