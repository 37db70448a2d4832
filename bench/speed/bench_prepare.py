"""`solid-ext prepare interactions` of ten million rows: processor seconds and peak memory.

    python -m bench.speed.bench_prepare [--quick] [--json]

Two CSV files with the columns user_id, item_id, timestamp are written to a temporary folder, one with whole ids and one
with ids of 14 and 10 characters: a million users at random, 100,000 items as popular as their rank to the power -0.8,
times within ten years, one row in a hundred an exact duplicate. Each is prepared in a process of its own, whose
processor time and peak memory the system tells; the counts must be those that were generated. Beside it stands the time
that polars takes to read the same file alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from bench.harness import RESULTS, machine
from bench.speed.bench_scale import measured

ROWS, QUICK = 10_000_000, 200_000
AIMS = {"processor_seconds": (12.0, "s"), "peak_gb": (1.2, "GB")}


def generate(folder: Path, rows: int) -> dict[str, int]:
    """Write `whole.csv` and `text.csv`; what a dataset made of either must count."""
    rng = np.random.default_rng(0)
    weight = np.arange(1, rows // 100 + 1) ** -0.8
    item = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(rows)).clip(max=weight.size - 1)
    user, time = rng.integers(0, rows // 10, rows), 1_300_000_000 + rng.integers(0, 300_000_000, rows)
    again = rng.integers(1, rows, rows // 100)
    user[again], item[again], time[again] = user[again - 1], item[again - 1], time[again - 1]
    frame = pl.DataFrame({"user_id": user * 7 + 3, "item_id": item * 13 + 5, "timestamp": time})
    frame.write_csv(folder / "whole.csv")
    text = [
        (letter + pl.col(name).cast(pl.String).str.zfill(digits)).alias(name)
        for name, letter, digits in (("user_id", "A", 13), ("item_id", "B", 9))
    ]
    frame.with_columns(text).write_csv(folder / "text.csv")
    return {
        "users": frame["user_id"].n_unique(),
        "items": frame["item_id"].n_unique(),
        "interactions": frame.unique().height,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows, only to see that it runs")
    arguments.add_argument("--json", action="store_true", help="write bench/results/prepare.json")
    arguments.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    rows = QUICK if options.quick else ROWS
    if options.generate:  # in a process of its own, whose memory would count as that of the ones that it starts
        sys.stdout.write(json.dumps(generate(options.generate, rows)) + "\n")
        return
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        itself = [sys.executable, "-m", "bench.speed.bench_prepare", *(["--quick"] if options.quick else [])]
        expected = json.loads(measured([*itself, "--generate", folder])[1])
        for ids in ("whole", "text"):
            source, out = folder / f"{ids}.csv", folder / ids
            alone, _ = measured([sys.executable, "-c", f"import polars; polars.read_csv({str(source)!r})"])
            command: list[str | Path] = [sys.executable, "-m", "solid_ext.cli", "prepare", "interactions"]
            figures, _ = measured([*command, "--raw", source, "--out", out])
            metadata = json.loads((out / "metadata.json").read_text())
            if (counts := {name: metadata[name] for name in expected}) != expected:
                raise SystemExit(f"bench_prepare: expected {expected}, got {counts}")
            found[ids] = figures | {"polars_read_processor_seconds": alone["processor_seconds"]}
    aims = [
        {
            "row": f"prepare, {rows // 1_000_000} M rows, {ids} ids: {name.replace('_', ' ')}",
            "reached": found[ids][name],
            "aim": aim,
            "better": "lower",
            "unit": unit,
        }
        for ids in found
        for name, (aim, unit) in AIMS.items()
    ]
    Console().print_json(json.dumps(found))
    if options.json and not options.quick:
        content = {"machine": machine(), "rows": rows, "files": found, "aims": aims}
        (RESULTS / "prepare.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
