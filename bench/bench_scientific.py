"""SOLID on amazon_scientific at Table 2's settings, once a back end, from the same seed: metrics and how they differ.

python bench/bench_scientific.py --data FOLDER/amazon_scientific --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import RESULTS, machine

from solid_ext import Config, load_dataset
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with interactions and items")
    arguments.add_argument("--json", action="store_true", help="write bench/results/scientific_DTYPE.json")
    arguments.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of both runs")
    options = arguments.parse_args()
    dataset = load_dataset(options.data)
    results: dict[str, Any] = {"machine": machine(), "dtype": options.dtype}
    for backend in ("native", "reference"):
        config = Config().replace(backend=backend, dtype=options.dtype)
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(Path(folder) / "run", config, dataset, baseline=backend == "native")
        results[backend] = run.metrics
    metric, gap = largest_difference(*(results[backend]["models"]["SOLID"] for backend in ("native", "reference")))
    results["largest_difference"] = {"metric": metric, "value": gap}
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    if options.json:
        path = RESULTS / f"scientific_{options.dtype}.json"
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
