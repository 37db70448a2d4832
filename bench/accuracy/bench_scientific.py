"""SOLID on amazon_scientific at Table 2's settings, once a back end, from the same seed: metrics and how they differ.

python -m bench.accuracy.bench_scientific --data FOLDER/amazon_scientific --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, machine
from solid_ext import Config, load_dataset
from solid_ext.config import PAPER
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
    arguments.add_argument("--json", action="store_true", help="write bench/results/scientific_DTYPE.json")
    arguments.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of both runs")
    arguments.add_argument(
        "--control",
        action="store_true",
        help="only the static model given stage 1",
    )
    options = arguments.parse_args()
    dataset = load_dataset(options.data)
    paper = Config().replace(**PAPER, dtype=options.dtype)
    if options.control:
        static = paper.replace(semantic_trunk=False, item_branch=False, semantic_start=True)
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(Path(folder) / "run", static, dataset, baseline=False)
        metrics = {**run.metrics, "models": {"static, semantic start": run.metrics["models"]["SOLID"]}}
        finish("scientific_control", {"machine": machine(), **metrics}, options.json)
        return
    results: dict[str, Any] = {"machine": machine(), "dtype": options.dtype}
    for backend in ("native", "reference"):
        config = paper.replace(backend=backend)
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(Path(folder) / "run", config, dataset, baseline=backend == "native")
        results[backend] = run.metrics
    metric, gap = largest_difference(*(results[backend]["models"]["SOLID"] for backend in ("native", "reference")))
    results["largest_difference"] = {"metric": metric, "value": gap}
    finish(f"scientific_{options.dtype}", results, options.json)


if __name__ == "__main__":
    main()
