"""Pictures of the kernels' ratios to their peers over N, K, D and B, from the result files.

python -m bench.speed.plot_kernels        reads bench/results/*.json, writes bench/results/*.png
"""

from __future__ import annotations

import json
import re
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bench.harness import RESULTS

Points = dict[str, list[tuple[float, float]]]


def rows_of(name: str, key: str = "rows") -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()).get(key, []) if path.is_file() else []


def draw(name: str, title: str, panels: dict[str, tuple[str, Points]]) -> None:
    """One picture: a panel an axis, a line a peer, the ratio of its time to ours."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), sharey=True, layout="constrained")
    for axis, (over, (fixed, lines)) in zip(axes, panels.items(), strict=True):
        for peer, points in lines.items():
            points = sorted(points)
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, label=peer)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        places = sorted({x for points in lines.values() for x, _ in points})
        ticks = [x for x, after in zip(places, [*places[1:], np.inf], strict=True) if after > 1.1 * x]  # 31 beside 32
        axis.set_xticks(ticks, [f"{x:,.0f}" for x in ticks], rotation=45)
        axis.set_xlabel(over)
        axis.set_title(fixed, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("time of the other / ours")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)


def along(rows: list[dict[str, Any]], axis: str, fixed: dict[str, int], peers: dict[str, str]) -> Points:
    """A line for each peer: (row[axis], row[peer's ratio]) of the rows where all else is as fixed."""
    chosen = [row for row in rows if all(row[name] == value for name, value in fixed.items())]
    lines = {
        label: [(row[axis], row[ratio]) for row in chosen if row.get(ratio) is not None]
        for label, ratio in peers.items()
    }
    return {label: points for label, points in lines.items() if points}


def nearest_code() -> None:
    rows = [row for row in rows_of("nearest_code_grid") if row["threads"] == 1]
    if not rows:
        return
    peers = {"addmm + argmin": "ratio_addmm", "cdist + argmin": "ratio_cdist", "FAISS IndexFlatL2": "ratio_faiss"}
    panels = {}
    for axis in ("N", "K", "D"):
        others = [name for name in ("N", "K", "D") if name != axis]
        # The line along which most was measured.
        fixed = max(
            ({name: row[name] for name in others} for row in rows),
            key=lambda at: sum(all(row[name] == value for name, value in at.items()) for row in rows),
        )
        panels[axis] = (
            ", ".join(f"{name} = {value:,}" for name, value in fixed.items()),
            along(rows, axis, fixed, peers),
        )
    draw("nearest_code", "nearest_code, one thread", panels)


def dynamic_mlp() -> None:
    pattern = re.compile(r"(forward|forward \+ backward), B = (\d+), D = O = k = (\d+), P = 2")
    rows = []
    for row in rows_of("dynamic_mlp"):
        found = pattern.fullmatch(row["case"])
        if found and row["threads"] == 1 and row["name"] in ("eager", "compile"):
            rows.append({"pass": found[1], "B": int(found[2]), "D": int(found[3]), row["name"]: row["ratio"]})
    if not rows:
        return
    panels = {}
    for kind in ("forward", "forward + backward"):
        chosen = [row for row in rows if row["pass"] == kind]
        peers = {"eager": "eager", "torch.compile": "compile"}
        panels[f"B ({kind})"] = "D = O = k = 32", along(chosen, "B", {"D": 32}, peers)
        panels[f"D = O = k ({kind})"] = "B = 1,024", along(chosen, "D", {"B": 1024}, peers)
    panels = {over: panel for over, panel in panels.items() if all(len(points) > 1 for points in panel[1].values())}
    draw("dynamic_mlp", "dynamic_mlp, two layers, one thread", panels)


if __name__ == "__main__":
    nearest_code()
    dynamic_mlp()
