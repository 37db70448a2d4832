"""What a catalogue needs: memory, step time and network, by straight lines through the measured sizes.

    python -m bench.speed.bench_sizing [--json]

Nothing is measured here. Memory and step time are least squares `a + b V` through `catalogue.json` (the default model
by rows with 1,024 shared negatives, one thread, V of 100,000 to 1,000,000 items), the network is counted: in a step
each of N processes sends 2 (N - 1) / N x 4 bytes for each dense parameter, and (N - 1) x (8 + 4 d) bytes for each row
of a table that its part of the batch reads, here as many as one of 1,024 rows of ten items can read at most.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from rich.console import Console

from bench.harness import RESULTS

WAY = "shared"
SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
DIM, TABLES, BATCH, HISTORY, NEGATIVES = 64, 2, 1024, 10, 1024
DENSE = 341_313  # parameters of the default model beside its item tables, of 1,024 semantics
RANKS = (1, 8, 64)


def fitted(items: list[int], values: list[float]) -> dict[str, float]:
    """`a + b V`, and the largest relative error at a measured size."""
    design = np.stack([np.ones(len(items)), np.array(items, float)], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    error = float(np.max(np.abs(design @ np.array([a, b]) / np.array(values) - 1)))
    return {"a": float(a), "b": float(b), "largest_error": round(error, 3)}


def megabytes_sent(ranks: int) -> float:
    """What each process sends in a step."""
    own = (BATCH * (HISTORY + 1)) // ranks + NEGATIVES  # rows of the item table; the other table reads no negatives
    rows = own + BATCH * HISTORY // ranks
    return (2 * (ranks - 1) / ranks * 4 * DENSE + (ranks - 1) * (8 + 4 * DIM) * rows) / 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="write bench/results/sizing.json")
    options = arguments.parse_args()
    points = [row for row in json.loads((RESULTS / "catalogue.json").read_text())["rows"] if row["way"] == WAY]
    items = [row["items"] for row in points]
    memory = fitted(items, [row["peak_gb"] for row in points])
    time = fitted(items, [row["step_ms"] for row in points])
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        measured = next((row for row in points if row["items"] == size), None)
        rows.append(
            {
                "items": size,
                "measured": measured is not None,
                "gb": round(memory["a"] + memory["b"] * size, 1),
                "gb_if_divided_by_8": round(memory["a"] + memory["b"] * size / 8, 1),
                "gb_if_divided_by_64": round(memory["a"] + memory["b"] * size / 64, 1),
                "step_ms": round(time["a"] + time["b"] * size),
            }
        )
    content = {
        "from": "catalogue.json",
        "memory_gb": memory,
        "bytes_an_item": round(memory["b"] * 1e9),
        "bytes_an_item_counted": 3 * 4 * DIM * TABLES,
        "step_ms": time,
        "megabytes_sent_a_step": {str(ranks): round(megabytes_sent(ranks), 2) for ranks in RANKS},
        "rows": rows,
    }
    Console().print_json(json.dumps(content))
    if options.json:
        (RESULTS / "sizing.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
