"""The tables of a comparison: runs.csv, costs.csv, report.md and report.png, from the folders of its runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from solid_ext.compare.grid import NO_BACKBONE, Grid, PlannedRun
from solid_ext.compare.picture import draw_comparison
from solid_ext.compare.process import METRICS, RUNS, USERS, finished
from solid_ext.evaluate import hr_per_row, mean_per_user, mrr_per_row, ndcg_per_row
from solid_ext.evaluate.significance import Difference, paired_differences, seed_differences
from solid_ext.files import read_json, write_text

FloatArray = NDArray[np.float64]
OURS = "solid"

SHOWN: dict[tuple[str, str], Callable[[pl.DataFrame], FloatArray]] = {
    ("sampled", "user_auc"): lambda rows: rows["area"].to_numpy(),
    ("sampled", "ndcg@10"): lambda rows: ndcg_per_row(rows["sampled_rank"].to_numpy(), 10),
    ("sampled", "hr@10"): lambda rows: hr_per_row(rows["sampled_rank"].to_numpy(), 10),
    ("full", "ndcg@10"): lambda rows: ndcg_per_row(rows["full_rank"].to_numpy(), 10),
    ("full", "hr@10"): lambda rows: hr_per_row(rows["full_rank"].to_numpy(), 10),
    ("full, history excluded", "ndcg@10"): lambda rows: ndcg_per_row(rows["new_rank"].to_numpy(), 10),
    ("full", "mrr"): lambda rows: mrr_per_row(rows["full_rank"].to_numpy()),
}
"""The metrics of the report, each with its value for every test row; runs.csv has all metrics."""
TESTED = (("sampled", "user_auc"), ("sampled", "ndcg@10"), ("full", "ndcg@10"))


class MethodResult(NamedTuple):
    """All seeds of one backbone and method on one dataset."""

    backbone: str
    method: str
    numbers: tuple[int, ...]  # the seeds that have finished
    seeds: dict[tuple[str, str], list[float]]  # protocol and metric -> a value a seed
    users: dict[tuple[str, str], FloatArray]  # of SHOWN: [S, U], mean over the user's rows

    @property
    def name(self) -> str:
        return self.method if self.backbone == NO_BACKBONE else f"{self.backbone} {self.method}"


def write_report(out: Path, grid: Grid) -> None:
    """Read the finished runs of `grid` in `out` and write the four files, each whole or not at all."""
    plan = [planned for planned in grid.plan() if finished(out / RUNS / planned.name)]
    runs = [read_json(out / RUNS / planned.name / METRICS, "compare") for planned in plan]
    write_text(out / "runs.csv", _runs_table(runs).write_csv())
    write_text(out / "costs.csv", _costs_table(runs).write_csv())
    results = {
        dataset: read_results(out, [planned for planned in plan if planned.dataset == dataset])
        for dataset in grid.datasets
    }
    results = {dataset: found for dataset, found in results.items() if found}
    missing = [planned.name for planned in grid.plan() if planned not in plan]
    write_text(out / "report.md", _markdown(grid, results, _costs_table(runs), missing))
    draw_comparison(out / "report.png", results, TESTED, NO_BACKBONE)


def _runs_table(runs: list[dict[str, Any]]) -> pl.DataFrame:
    """A row for each dataset, backbone, method, seed, protocol and metric."""
    return pl.DataFrame(
        [
            {**_who(run), "protocol": protocol, "metric": metric, "value": value}
            for run in runs
            for protocol, metrics in run["metrics"].items()
            for metric, value in metrics.items()
        ]
    )


def _costs_table(runs: list[dict[str, Any]]) -> pl.DataFrame:
    """A row for each run: what it cost."""
    rows = [
        {
            **_who(run),
            "train_seconds": run["seconds"]["train"],
            "evaluate_seconds": run["seconds"]["evaluate"],
            "epochs": sum(stage["epochs"] for stage in run["stages"]),
            "rows_per_second": run["rows_per_second"],
            "peak_mb": run["peak_bytes"] / 1e6,
        }
        for run in runs
    ]
    return pl.DataFrame(rows, schema_overrides={"rows_per_second": pl.Float64})


def _who(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("dataset", "backbone", "method", "seed")}


def read_results(out: Path, plan: list[PlannedRun]) -> list[MethodResult]:
    """The finished runs of one dataset, seeds brought together, in the grid's order."""
    grouped: dict[tuple[str, str], dict[int, Path]] = {}
    for planned in plan:
        grouped.setdefault((planned.backbone, planned.method), {})[planned.seed] = out / RUNS / planned.name
    results = []
    for (backbone, method), of_seed in grouped.items():
        folders = of_seed.values()
        metrics = [read_json(folder / METRICS, "compare")["metrics"] for folder in folders]
        tables = [pl.read_parquet(folder / USERS, glob=False) for folder in folders]
        seeds = {(protocol, metric): [run[protocol][metric] for run in metrics] for protocol, metric in SHOWN}
        users = {
            name: np.stack([mean_per_user(of_row(table), table["user"].to_numpy())[1] for table in tables])
            for name, of_row in SHOWN.items()
        }
        results.append(MethodResult(backbone, method, tuple(of_seed), seeds, users))
    return results


class Tested(NamedTuple):
    """One difference by both tests."""

    over_users: Difference
    over_seeds: Difference | None  # of users and seeds; None of fewer than two seeds that both methods have


def compare_results(results: list[MethodResult]) -> dict[tuple[str, str], dict[tuple[str, str], Tested]]:
    """SOLID on each backbone against every other method there and every peer.

    Returns:
        (backbone, other method) -> metric -> both tests. The p-values of a backbone, metric and test are corrected
        together.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], Tested]] = {}
    for ours in results:
        if ours.method != OURS:
            continue
        others = [
            result for result in results if result is not ours and result.backbone in (ours.backbone, NO_BACKBONE)
        ]
        for metric in TESTED:
            means = {result.method: result.users[metric].mean(0) for result in others}
            by_seed = _by_seed(ours, others, metric)
            for other, difference in paired_differences(ours.users[metric].mean(0), means).items():
                found.setdefault((ours.backbone, other), {})[metric] = Tested(difference, by_seed.get(other))
    return found


def _by_seed(ours: MethodResult, others: list[MethodResult], metric: tuple[str, str]) -> dict[str, Difference]:
    """The tests with seeds as random, against the methods that have the same two or more seeds."""
    same = {result.method: result.users[metric] for result in others if result.numbers == ours.numbers}
    return seed_differences(ours.users[metric], same) if len(ours.numbers) > 1 else {}


def _markdown(grid: Grid, results: dict[str, list[MethodResult]], costs: pl.DataFrame, missing: list[str]) -> str:
    fields = ", ".join(f"{name} {value}" for name, value in grid.fields.items())
    text = [
        "# Comparison",
        "",
        f"Preset `{grid.preset}`{' with ' + fields if fields else ''}; seeds {', '.join(map(str, grid.seeds))}. "
        "The epoch is chosen on validation rows; test rows are read once. Sampled: the positive against negatives "
        "that the user never had; full: against the whole catalogue, with the items that the user had before or "
        "without them (history excluded). A tie counts against the model in a rank and one half in an AUC. No model is "
        "trained on validation or test items.",
        "",
        "![the same in a picture](report.png)",
    ]
    if missing:
        text += ["", f"**Not finished: {', '.join(missing)}.**"]
    for dataset, found in results.items():
        text += ["", f"## {dataset}", "", *_metrics_table(found, len(grid.seeds) > 1)]
        differences = compare_results(found)
        if differences:
            text += ["", f"### {OURS} against the others", "", *_differences_table(differences)]
        text += ["", "### Cost", "", *_cost_lines(costs.filter(pl.col("dataset") == dataset))]
    return "\n".join(text) + "\n"


def _metrics_table(results: list[MethodResult], several: bool) -> list[str]:
    best = {metric: max(np.mean(result.seeds[metric]) for result in results) for metric in SHOWN}
    text = [_row("backbone", "method", *(f"{protocol} {metric}" for protocol, metric in SHOWN)), _rule(2, len(SHOWN))]
    for result in results:
        shown = []
        for metric, values in result.seeds.items():
            mean = np.mean(values)
            number = f"**{mean:.4f}**" if mean == best[metric] else f"{mean:.4f}"
            shown.append(number + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""))
        text.append(_row(result.backbone, result.method, *shown))
    spread = "; ± is the standard deviation over seeds" if several else "; one seed, so its spread is not known"
    return [*text, "", f"Mean over seeds{spread}. The best of a column is bold."]


def _differences_table(differences: dict[tuple[str, str], dict[tuple[str, str], Tested]]) -> list[str]:
    text = [_row("backbone", "less", *(f"{protocol} {metric}" for protocol, metric in TESTED)), _rule(2, len(TESTED))]
    for (backbone, other), by_metric in differences.items():
        shown = [
            f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] p {_p(gap.p)}{_with_seeds(by_seed)}"
            for gap, by_seed in (by_metric[metric] for metric in TESTED)
        ]
        text.append(_row(backbone, other, *shown))
    return [
        *text,
        "",
        f"{OURS} less the other, mean over users of each user's mean over seeds, and its 95 % interval. Two-sided "
        "paired t-test over users; p corrected after Holm over the rows of a backbone, for each metric. It tells how "
        "a difference holds over users, not over further seeds; the p after it, with seeds, is that of a test to which "
        "seeds are as random as users, corrected alike.",
    ]


def _with_seeds(difference: Difference | None) -> str:
    return "" if difference is None else f", with seeds {_p(difference.p)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cost_lines(costs: pl.DataFrame) -> list[str]:
    mean = costs.drop("dataset").group_by("backbone", "method", maintain_order=True).mean()
    text = [_row("backbone", "method", "training s", "epochs", "rows/s", "evaluation s", "peak MB"), _rule(2, 5)]
    for line in mean.iter_rows(named=True):
        speed = "" if line["rows_per_second"] is None else f"{line['rows_per_second']:,.0f}"
        shown = (f"{line['train_seconds']:.1f}", f"{line['epochs']:.0f}", speed)
        text.append(
            _row(line["backbone"], line["method"], *shown, f"{line['evaluate_seconds']:.1f}", f"{line['peak_mb']:,.0f}")
        )
    return [
        *text,
        "",
        "A process and a thread a run, mean over seeds. Seconds of training contain validation and not the choice of "
        "neighbours, rows/s neither; a stage 1 that runs share is counted in each; the peak is the whole process's.",
    ]


def _row(*columns: str) -> str:
    return f"| {' | '.join(columns)} |"


def _rule(names: int, numbers: int) -> str:
    return _row(*["---"] * names, *["--:"] * numbers)
