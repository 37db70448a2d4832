"""Tables of measured numbers, written into the pages from the files of `bench/results/` and the tests' limits.

A page holds `<!-- table: KIND ARGUMENTS -->`, the table, `<!-- /table -->`. This program writes the tables again;
a test fails where a page says something else than its file:

    python docs/_ext/tables.py          # rewrites what is stale
    python docs/_ext/tables.py --check  # names it instead
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
TABLE = re.compile(r"<!-- table: (.*?) -->\n.*?<!-- /table -->", flags=re.DOTALL)

# What a table calls a metric, where `runs.csv` has it, and how many digits mean something.
METRICS = {
    "user-AUC": ("sampled", "user_auc", 3),
    "NDCG@10": ("sampled", "ndcg@10", 3),
    "full-NDCG@10": ("full", "ndcg@10", 4),
    "excluded-NDCG@10": ("full, history excluded", "ndcg@10", 4),
}
HEADINGS = {"full-NDCG@10": "full NDCG@10", "excluded-NDCG@10": "full, history excluded"}
METHODS = {
    "itemknn": "ItemKNN, cosine",
    "neighbours": "neighbours alone, tuned",
    "markov": "Markov chain",
    "popularity": "popularity",
    "sasrec-softmax": "SASRec, full softmax, two layers",
    "static-semantic-start": "static, given stage 1",
    "duet": "DUET",
    "apg": "APG",
    "solid": "**SOLID**",
    "solid-no-codebook": "SOLID without its codebook",
    "solid-trunk-only": "SOLID, the semantic trunk alone",
    "solid-item-only": "SOLID, the item branch alone",
    "solid-autoencoder": "SOLID, codebook as an autoencoder",
    "solid-no-alignment": "SOLID without alignment",
    "solid-cold": "SOLID, stage 2 started cold",
    "solid-apg": "SOLID, low-rank layers",
    "solid-id": "SOLID on ids alone",
    "finetune": "static, fine-tuned per user",
}
BACKBONES = {"gru4rec": "GRU4Rec", "sasrec": "SASRec", "bert4rec": "BERT4Rec", "din": "DIN", "-": ""}

Run = tuple[str, str, str]  # dataset, backbone, method


def read_runs(folder: str) -> dict[Run, dict[str, list[float]]]:
    """Every run's metrics, a value a seed, in the order of the file.

    Of `a+b` those of `a`, and of its datasets and backbones those methods of `b` that it lacks; peers come first.
    """
    first, *more = map(_read, folder.split("+"))
    datasets = list(dict.fromkeys(dataset for dataset, _, _ in first))
    known = {(dataset, backbone) for dataset, backbone, _ in first} | {(dataset, "-") for dataset in datasets}
    for other in more:
        first |= {run: values for run, values in other.items() if run[:2] in known and run not in first}
    return dict(sorted(first.items(), key=lambda entry: (datasets.index(entry[0][0]), entry[0][1] != "-")))


def _read(folder: str) -> dict[Run, dict[str, list[float]]]:
    found: dict[Run, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    named = {(protocol, metric): name for name, (protocol, metric, _) in METRICS.items()}
    with open(RESULTS / folder / "runs.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = named.get((row["protocol"], row["metric"]))
            if name:
                found[row["dataset"], row["backbone"], row["method"]][name].append(float(row["value"]))
    return found


def read_result(file: str) -> Any:
    """What a JSON file of `bench/results/` holds."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def number(value: float, digits: int) -> str:
    """A value as tables print it, without the zero before its point."""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds, or the value of a single seed."""
    shown = number(mean(values), digits)
    return shown if len(values) == 1 else f"{shown} ± {number(stdev(values), digits)}"


def runs(folder: str, *metrics: str) -> list[list[str]]:
    """A row a run of one comparison: mean ± standard deviation over seeds."""
    found = read_runs(folder)
    several = len({backbone for _, backbone, _ in found} - {"-"}) > 1
    datasets = len({dataset for dataset, _, _ in found}) > 1
    rows = [["", *(HEADINGS.get(metric, metric) for metric in metrics)]]
    for (dataset, backbone, method), values in found.items():
        parts = dataset if datasets else "", BACKBONES[backbone] if several else "", METHODS.get(method, method)
        cells = (spread(values[metric], METRICS[metric][2]) for metric in metrics)
        rows.append([", ".join(part for part in parts if part), *cells])
    return rows


def across(metric: str, *arguments: str) -> list[list[str]]:
    """One metric of several comparisons: a row a dataset and backbone, and the columns `methods=a,b,..`."""
    folders = [argument for argument in arguments if "=" not in argument]
    (columns,) = (argument.removeprefix("methods=").split(",") for argument in arguments if "=" in argument)
    several = any("gru4rec" in folder for folder in folders)
    rows = [["", *(METHODS.get(method, method) for method in columns)]]
    for folder in folders:
        found = read_runs(folder)
        for dataset, backbone in dict.fromkeys((d, b) for d, b, _ in found if b != "-"):
            cells = {m: v[metric] for (d, b, m), v in found.items() if d == dataset and b in (backbone, "-")}
            name = f"{BACKBONES[backbone]}, {dataset}" if several else dataset
            seeds = len(cells["solid"])
            name += "" if seeds == 3 else f" ({'one seed' if seeds == 1 else f'{seeds} seeds'})"
            shown = (spread(cells[method], METRICS[metric][2]) if method in cells else "" for method in columns)
            rows.append([name, *shown])
    return rows


def breakdown(file: str, dataset: str) -> list[list[str]]:
    """Means over seeds of models measured with and without a part."""
    found = read_result(file)
    shown = {
        f"{protocol}: {metric}": (HEADINGS.get(name, name), digits)
        for name, (protocol, metric, digits) in METRICS.items()
    }
    columns = [shown[column] for column in found["columns"]]
    rows = [["", *(heading for heading, _ in columns)]]
    for name, entry in found["results"][dataset].items():
        method, plus, part = name.removeprefix("sasrec ").partition(" + ")
        cells = (number(value, digits) for (_, digits), value in zip(columns, entry["mean"], strict=True))
        rows.append([METHODS.get(method, method).strip("*") + plus + part, *cells])
    return rows


def differences(folder: str) -> list[list[str]]:
    """SOLID less each other method, with its 95 % interval and the corrected p over users, as the report has it."""
    datasets = sorted({dataset for dataset, _, _ in read_runs(folder)})
    several = len(datasets) > 1
    heading = "SOLID less" if several else f"{datasets[0]}: SOLID less"
    rows = [[heading, "user-AUC", "NDCG@10", "full NDCG@10"]]
    dataset, inside = "", False
    for line in (RESULTS / folder / "report.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            dataset = line.removeprefix("## ")
        _, less, *values = [cell.strip() for cell in line.split("|")[1:-1]] or ["", ""]
        inside = less != "" and (inside or less == "less")
        if inside and less not in ("less", "---"):
            method = METHODS.get(less, less)
            cells = (re.sub(r"([+-]|p |< )0\.", r"\1.", value) for value in values)
            rows.append([f"{method}, {dataset}" if several else method, *cells])
    return rows


def seeds(metric: str, *arguments: str) -> list[list[str]]:
    """SOLID less `method=`, seed by seed, and the p of a t-test to which the seeds alone are random."""
    from scipy import stats

    (method,) = (argument.removeprefix("method=") for argument in arguments if "=" in argument)
    digits = 4
    rows = [[f"SOLID less {METHODS.get(method, method)}", "seed by seed", "mean", "p over seeds"]]
    for folder in (argument for argument in arguments if "=" not in argument):
        found = read_runs(folder)
        for dataset, backbone, name in found:
            other = found.get((dataset, backbone, method))
            if name != "solid" or other is None:
                continue
            pairs = zip(found[dataset, backbone, "solid"][metric], other[metric], strict=True)
            gaps = [ours - theirs for ours, theirs in pairs]
            p = stats.ttest_1samp(gaps, 0).pvalue if len(gaps) > 1 else None
            shown = ", ".join(signed(gap, digits) for gap in gaps)
            p_shown = "" if p is None else "< .001" if p < 0.001 else number(p, 3)
            rows.append([f"{dataset}, `{folder}/`", shown, signed(mean(gaps), digits), p_shown])
    return rows


def signed(value: float, digits: int) -> str:
    """A difference as tables print it."""
    return f"{value:+.{digits}f}".replace("0.", ".", 1)


def ratios(file: str) -> list[list[str]]:
    """The time of each other contestant over ours, one thread / two threads."""
    entries = read_result(file)["rows"]
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        if entry["name"] != "sgemm" and entry["ratio"] != 1.0:
            found[entry["case"]][entry["name"]][entry["threads"]] = entry["ratio"]
    names = list(dict.fromkeys(name for case in found.values() for name in case))
    rows = [["", *names]]
    for case, others in found.items():
        cells = [" / ".join(f"{others[name][threads]:.1f}" for threads in sorted(others[name])) for name in names]
        rows.append([case, *cells])
    return rows


def memory(file: str) -> list[list[str]]:
    """Peak of the tensors of a call in MB, one thread, where it was measured."""
    entries = read_result(file)["rows"]
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        if entry["threads"] == 1 and entry.get("peak_bytes"):
            found[entry["case"]][entry["name"]] = f"{entry['peak_bytes'] / 1e6:,.1f}"
    names = list(dict.fromkeys(name for case in found.values() for name in case))
    return [["", *names], *([case, *(cells.get(name, "") for name in names)] for case, cells in found.items())]


def throughput(file: str) -> list[list[str]]:
    """Rows a second of a training step, a row a method and a column a backbone."""
    notes = read_result(file)["notes"]
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for note, value in notes.items():
        if note.startswith("rows/s, ") and note.count(",") == 2:
            _, backbone, method = (part.strip() for part in note.split(","))
            found[method][backbone] = int(value)
    backbones = list(dict.fromkeys(name for cells in found.values() for name in cells))
    rows = [["rows a second", *(BACKBONES[name] for name in backbones)]]
    for method, cells in found.items():
        rows.append([METHODS.get(method, method), *(f"{cells[name]:,}" for name in backbones)])
    return rows


def updates(file: str) -> list[list[str]]:
    """A dataset's next period by who was trained until it: means over the periods, and seconds of one of them."""
    shown = {"never": "trained once", "update": "updated", "scratch": "trained again"}
    rows = [["", "NDCG@10", "HR@10", "seconds an update", "NDCG@10, period by period"]]
    for run in read_result(file)["runs"]:
        periods = run["periods"]
        rows.append([f"**{run['dataset']}**, {run['users']:,} users", *[""] * 4])
        for name, words in shown.items():
            cells = [period["next"][name] for period in periods]
            seconds = [period["seconds"].get(name) for period in periods]
            means = [number(mean(cell[metric] for cell in cells), 4) for metric in ("ndcg@10", "hr@10")]
            taken = "" if None in seconds else f"{mean(seconds):.1f}"
            rows.append([words, *means, taken, ", ".join(number(cell["ndcg@10"], 4) for cell in cells)])
    return rows


def cold(file: str) -> list[list[str]]:
    """Test rows that ask for an item which was added without training, and those that ask for another."""
    rows = [["", "HR@10", "NDCG@10", "HR@10 among the added", "HR@10, other rows"]]
    for run in read_result(file)["runs"]:
        first = next(iter(run["found"].values()))
        words = f"**{run['dataset']}**, {run['hidden_items']} items added, {first['cold_rows']} rows"
        rows.append([words, *[""] * 4])
        for name, values in run["found"].items():
            metrics = ("cold_hr@10", "cold_ndcg@10", "among_cold_hr@10", "warm_hr@10")
            rows.append([name, *(number(values[metric], 4) if metric in values else "" for metric in metrics)])
    return rows


def sizing(file: str) -> list[list[str]]:
    """Memory and step time by the number of items; what is not measured says so."""
    found = read_result(file)
    rows = [["items", "GB a process", "if 8 divided the tables", "if 64 did", "ms a step", ""]]
    for row in found["rows"]:
        sizes = [f"{row[name]:,}" for name in ("items", "gb", "gb_if_divided_by_8", "gb_if_divided_by_64", "step_ms")]
        rows.append([*sizes, "measured there" if row["measured"] else "extrapolated"])
    return rows


def large_data(file: str) -> list[list[str]]:
    """A small dataset and a large one: what preparing each took, and training on it."""
    measured = read_result(file)
    prepare, train = measured["prepare"], measured["train"]
    columns = ("small before", "large", "small after")
    parts = [prepare[name.split()[0]] for name in columns]
    runs = [train[name] for name in columns]
    shown = {
        "interactions": [f"{part['interactions']:,}" for part in parts],
        "prepare, peak GB": [f"{part['peak_gb']:.1f}" for part in parts],
        "prepare, processor seconds": [f"{part['processor_seconds']:.0f}" for part in parts],
        "training, steps": [f"{run['steps']:,}" for run in runs],
        "training, peak GB": [f"{run['peak_gb']:.1f}" for run in runs],
        "seconds before the first step": [
            f"{run['load_seconds'] + run['seconds_before_the_first_step']:.0f}" for run in runs
        ],
        "rows a second": [f"{run['rows_per_second']:,}" for run in runs],
        "share of waiting for batches": [f"{run['waiting']:.2%}" for run in runs],
    }
    return [["", "small", "large", "small, again"], *([name, *cells] for name, cells in shown.items())]


def trials(file: str) -> list[list[str]]:
    """What was done to runs, how often, and what came of it."""
    rows = read_result(file)["rows"]
    names = ("trials", "survived", "lost")
    total = [f"**{sum(row[name] for row in rows)}**" for name in names]
    shown = [[row["disturbance"], *(str(row[name]) for name in names)] for row in rows]
    return [["disturbance", *names], *shown, ["**all**", *total]]


def ranks(file: str) -> list[list[str]]:
    """Curves, test metrics and rates of trainings by one, two and three processes, and of one that lost a process."""
    measured = read_result(file)
    runs = [*measured["runs"].values(), measured["killed"]]
    rows = [["", *measured["runs"], "2, one killed"]]
    for stage in ("stage1", "stage2"):
        for what, name, digits in (("losses", "loss", 5), ("valid", "validation", 4)):
            for number in range(len(runs[0][what][stage])):
                cells = [f"{run[what][stage][number]:.{digits}f}" for run in runs]
                rows.append([f"stage {stage[-1]}, epoch {number + 1}, {name}", *cells])
    for protocol in ("sampled", "full"):
        rows.append([f"test, {protocol} NDCG@10", *(f"{run['ndcg@10'][protocol]:.4f}" for run in runs)])
    return [*rows, ["rows a second in stage 2", *(f"{run['stage2_rows_per_second']:,}" for run in runs)]]


def row_adam(file: str) -> list[list[str]]:
    """Adam by rows and lazy Adam beside dense Adam of the same seeds."""
    means = read_result(file)["means"]
    rows = [["dataset", "Adam", "full NDCG@10", "largest difference from dense, of a seed", "item table apart"]]
    for row in means:
        quality = f"{row['ndcg@10']:.4f} ± {row['deviation']:.4f}"
        apart = (
            ["", ""] if row["adam"] == "dense" else [f"{row['largest_difference']:.5f}", f"{row['table_apart']:.1e}"]
        )
        rows.append([row["dataset"], row["adam"], quality, *apart])
    return rows


def larger(file: str) -> list[list[str]]:
    """Rows a second of a larger model by one process and by two, and over the rate of one."""
    rates = read_result(file)["larger"]["rows_per_second"]
    shown = [f"{rate:,} ({rate / rates['1']:.2f})" for rate in rates.values()]
    return [["", *rates], ["rows a second in stage 2", *shown]]


def sharded(file: str) -> list[list[str]]:
    """A table held whole or in parts: a step's time, a process's peak of memory above what it began with."""
    rows = [["the table is held", "processes", "ms a step", "peak a process, MB", "largest difference of losses"]]
    names = {"whole": "whole", "dtensor": "in parts, torch's DTensor alone", "exchange": "in parts, rows exchanged"}
    for row in read_result(file)["rows"]:
        peak, apart = row["peak_mb"] - row["before_mb"], row["largest_relative_difference_of_losses"]
        rows.append([names[row["way"]], str(row["processes"]), f"{row['ms_a_step']:,.0f}", f"{peak:,}", f"{apart:.0e}"])
    return rows


def fuzzed(file: str) -> list[list[str]]:
    """How many inputs each reader of a file was given, and how many it did not answer as it should."""
    rows = read_result(file)["rows"]
    return [["reader", "inputs", "found"], *([row["target"], f"{row['inputs']:,}", str(row["found"])] for row in rows)]


def example(name: str, *columns: str) -> list[list[str]]:
    """A program of docs/examples: means over seeds of `COLUMN:DIGITS`, whole numbers without their deviation."""
    measured = read_result("examples.json")[name]
    wanted = [(column.replace("_", " "), int(digits)) for column, digits in (each.split(":") for each in columns)]
    rows = [["", *(column for column, _ in wanted)]]
    for who, seeds in measured.items():
        cells = [([seed[column] for seed in seeds], digits) for column, digits in wanted]
        rows.append(
            [who, *(f"{mean(values):,.0f}" if digits == 0 else spread(values, digits) for values, digits in cells)]
        )
    return rows


def device(file: str) -> list[list[str]]:
    """What a device model reaches by its width and method: full NDCG@10 over seeds, beside its bytes."""
    rows = [["", "d", "full NDCG@10", "least to largest, seeds", "bytes on the device", "bytes a person"]]
    for run in read_result(file)["means"]:
        name = "SOLID, a personal bias alone" if run["method"] == "solid-bias" else METHODS[run["method"]]
        spread = f"{number(run['least'], 4)} to {number(run['largest'], 4)}, {run['seeds']}"
        sizes = [f"{run[size]:,}" for size in ("device_bytes", "bytes_a_person")]
        rows.append([f"{run['dataset']}, {name}", str(run["dim"]), number(run["ndcg@10"], 4), spread, *sizes])
    return rows


def generator_length(file: str) -> list[list[str]]:
    """Models by how far back backbone and generators read: a row a run, beside its cost on the device."""
    metrics = [
        ("on validation", "validation_ndcg@10", 4),
        ("full NDCG@10", "ndcg@10", 4),
        ("HR@10", "hr@10", 3),
        ("user-AUC", "user_auc", 3),
    ]
    costs = ["bytes on the device", "ms on the device", "seconds of training"]
    rows = [["", "seed", "patience", "L", "generators read", *(heading for heading, _, _ in metrics), *costs]]
    runs = read_result(file)["runs"]
    for run in sorted(runs, key=lambda run: [run[name] for name in ("dataset", "seed", "patience")]):
        name, length, longer = _contestant(run["contestant"])
        reached = [number(run[metric], digits) for _, metric, digits in metrics]
        cost = [f"{run['device_bytes']:,}", f"{run['device_ms']:.2f}", str(run["training_seconds"])]
        setting = [str(run["seed"]), str(run["patience"]), length, longer]
        rows.append([f"{run['dataset']}, {name}", *setting, *reached, *cost])
    return rows


def long_histories(file: str) -> list[list[str]]:
    """What SOLID with a long history for its generators gains over every other contestant in full NDCG@10."""
    rows = [["", "seed", "L", "generators read", "over", "L", "generators read", "full NDCG@10", "95 % interval", "p"]]
    for gap in read_result(file)["differences"]:
        (name, *one), other = (_contestant(gap[who]) for who in ("one", "other"))
        interval = f"{signed(gap['low'], 4)} to {signed(gap['high'], 4)}"
        p = "< .001" if gap["p"] < 0.001 else number(gap["p"], 3)
        gain = [signed(gap["mean"], 4), interval, p]
        rows.append([f"{gap['dataset']}, {name}", str(gap["seed"]), *one, *other, *gain])
    return rows


def _contestant(named: str) -> tuple[str, str, str]:
    """METHOD:L or METHOD:L:GENERATOR_LENGTH as a table has it: its name, L, and what generators read, if there are."""
    method, length, *longer = named.split(":")
    name = "SOLID, a personal bias alone" if method == "solid-bias" else METHODS.get(method, method)
    return name, length, "" if method.startswith("static") else (longer or [length])[0]


def device_equality(file: str) -> list[list[str]]:
    """Lists and scores of a device beside those of the server."""
    rows = [["", "equal lists", "equal but for ties", "largest difference of a score", "bytes", "bytes a person"]]
    for run in read_result(file)["rows"]:
        lists = [f"{run[name]} of {run['users']}" for name in ("lists_equal", "lists_equal_but_for_ties")]
        sizes = [f"{run[size]:,}" for size in ("bytes", "median_bytes_a_person")]
        name = f"{run['dataset']}, {BACKBONES[run['backbone']]}"
        rows.append([name, *lists, f"{run['largest_difference']:.1e}", *sizes])
    return rows


def staleness(file: str) -> list[list[str]]:
    """Full NDCG@10 by how many events ago the layers were made, and what it costs never to be older."""
    found = read_result(file)["rows"]
    ages = list(found[0]["ndcg@10"])
    rows = [["layers of n events ago", *(f"n = {age}" for age in ages[:-1]), "nobody's"]]
    for run in found:
        rows.append([f"{run['dataset']}, full NDCG@10", *(number(run["ndcg@10"][age], 4) for age in ages)])
        sent = [run["blob_bytes"] / (int(age) + 1) for age in ages[:-1]]
        rows.append(["bytes an event", *(f"{each:,.0f}" for each in sent), "0"])
        if run["events_a_day"] is not None:
            each_day = [f"{each * run['events_a_day']:,.0f}" for each in sent]
            rows.append([f"bytes a day with events, of which there are {run['events_a_day']:g}", *each_day, "0"])
    return rows


def drift(file: str) -> list[list[str]]:
    """The threshold that validation kept: what it asks for, and what random requests reach at that rate."""
    rows = [
        ["", "threshold", "requests an event", "bytes an event", "full NDCG@10 by drift", "at random", "always fresh"]
    ]
    for run in read_result(file)["rows"]:
        kept = run["kept"]
        threshold = "never asks" if kept["threshold"] is None else f"{kept['threshold']:g}"
        cells = [threshold, number(kept["requests_an_event"], 3), f"{kept['bytes_an_event']:,}"]
        reached = [number(value, 4) for value in (kept["drift"], kept["random"], run["ndcg@10"]["0"])]
        rows.append([run["dataset"], *cells, *reached])
    return rows


def programs(file: str) -> list[list[str]]:
    """Scores of exported networks beside the networks' own."""
    rows = [["", "largest difference", "largest score", "bytes"]]
    for run in read_result(file)["rows"]:
        scores = f"{run['largest difference']:.1e}", f"{run['largest score']:.1f}"
        rows.append([f"{BACKBONES[run['backbone']]}, {run['preset']} configuration", *scores, f"{run['bytes']:,}"])
    return rows


def registers(*names: str) -> list[list[str]]:
    """The registers that tests allow a CUDA kernel, most over the architectures."""
    limits = json.loads((ROOT / "python_tests" / "cuda_limits.json").read_text(encoding="utf-8"))["registers"]
    return [["kernel", "registers"], *([f"`{name}`", str(limits[name])] for name in names)]


KINDS: dict[str, Callable[..., list[list[str]]]] = {
    "runs": runs,
    "across": across,
    "breakdown": breakdown,
    "differences": differences,
    "seeds": seeds,
    "ratios": ratios,
    "memory": memory,
    "throughput": throughput,
    "registers": registers,
    "updates": updates,
    "cold": cold,
    "sizing": sizing,
    "large_data": large_data,
    "trials": trials,
    "ranks": ranks,
    "sharded": sharded,
    "larger": larger,
    "row_adam": row_adam,
    "fuzzed": fuzzed,
    "example": example,
    "programs": programs,
    "device": device,
    "generator_length": generator_length,
    "long_histories": long_histories,
    "device_equality": device_equality,
    "staleness": staleness,
    "drift": drift,
}


def table(directive: str) -> str:
    """The Markdown table that a directive asks for."""
    kind, *arguments = directive.split()
    rows = KINDS[kind](*arguments)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def rewritten(text: str) -> str:
    """A page with its tables as the files have them."""
    return TABLE.sub(lambda found: f"<!-- table: {found[1]} -->\n{table(found[1])}\n<!-- /table -->", text)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def main(arguments: list[str]) -> int:
    """Rewrite the stale tables, or with --check name them."""
    stale = False
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if rewritten(text) != text:
            stale = True
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")
            if "--check" not in arguments:
                page.write_text(rewritten(text), encoding="utf-8")
    return int("--check" in arguments and stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
