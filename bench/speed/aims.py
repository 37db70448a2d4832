"""What people wait for, as it was aimed at and as it was measured: one table over all files of `bench/results/`.

python -m bench.speed.aims

A result file states its aims as a list "aims" of {row, reached, aim, better, unit}; `better` is "higher" or "lower".
"""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from bench.harness import RESULTS


def reached(aim: dict[str, str | float]) -> bool:
    """Whether the measured value is on the right side of its aim."""
    value, target = float(aim["reached"]), float(aim["aim"])
    return value >= target if aim["better"] == "higher" else value <= target


def main() -> None:
    table = Table("row", "reached", "aim", "", "file")
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for aim in content.get("aims", []) if isinstance(content, dict) else []:
            sign = ">=" if aim["better"] == "higher" else "<="
            value, target = f"{aim['reached']:g} {aim['unit']}", f"{sign} {aim['aim']:g} {aim['unit']}"
            table.add_row(aim["row"], value, target, "" if reached(aim) else "missed", path.name)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
