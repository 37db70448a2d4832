"""The command line: prepare, train, evaluate, recommend, compare, tune, doctor."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
import unicodedata
import warnings
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solid_ext.config import OLD_NAMES, PRESETS, Config, read_yaml
from solid_ext.methods import method_config

if TYPE_CHECKING:
    from solid_ext import SOLID
    from solid_ext import Dataset as Interactions
    from solid_ext.run import Example


class Terminal(Console):
    """Where everything is printed: text is text, whatever it holds.

    Titles, ids, names and paths come from data: no markup or emoji codes are read in them, and what a terminal would
    obey (escapes, control characters, changed directions of writing) is shown, not sent. Colours are `style`.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self.shown(text), **options)

    def shown(self, text: str) -> str:
        """The text as it can be printed here: harmless, and what the encoding lacks as an escape."""
        return harmless(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def harmless(text: str, keep: str = "\n\t") -> str:
    """The text with every control character, lone surrogate and bidirectional control as its escape: `\\x1b`."""
    return "".join(char if char in keep or not _obeyed(char) else ascii(char)[1:-1] for char in text)


def _obeyed(char: str) -> bool:
    return (
        unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or char in "\u061c\u200e\u200f"
        or ("\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069")
    )


def one_line(text: str) -> str:
    """The text with line breaks and other runs of white space as one space."""
    return " ".join(text.split())


console = Terminal()

NAMED_DATASETS = ("movielens-100k", "synthetic")
Dataset = Annotated[str, tyro.conf.arg(metavar="NAME|PATH")]
Settings = tyro.conf.OmitArgPrefixes[Config]


@dataclass(frozen=True)
class Prepare:
    """Make a dataset folder: Parquet interactions, items and id maps, and a report of what was read.

    Example: solid-ext prepare interactions --raw ratings.csv --user userId --item movieId --out data/ratings
    Example: solid-ext prepare office --raw Office_Products_5.json.gz --items meta_Office_Products.json.gz --out office

    The paper's datasets are made of the public raw files, each by its filtering, and held against Table 1:
    arts, office, instruments, scientific (Amazon 2018 5-core reviews, JSON lines; with the metadata as --items),
    cds, electronic (Amazon 2014 ratings, CSV), book, music (Douban ratings, TSV). Files may be gzipped.
    """

    kind: Annotated[
        Literal[
            "interactions",
            "arts",
            "office",
            "instruments",
            "scientific",
            "cds",
            "electronic",
            "book",
            "music",
            "movielens-100k",
            "synthetic",
        ],
        tyro.conf.Positional,
    ]
    """What to prepare: a file of interactions, a dataset of the paper from its raw file, or a named dataset."""
    out: Path
    """The folder to make."""
    raw: Path | None = None
    """The file of interactions (TSV, CSV, JSON lines, Parquet or Feather), or the raw file of one of the paper's
    datasets."""
    items: Path | None = None
    """A file with one row an item: item_id, title, categories joined by "|"; for the paper's datasets also Amazon's
    metadata as published."""
    user: str = "user_id"
    """interactions: name of the column of users."""
    item: str = "item_id"
    """interactions: name of the column of items."""
    timestamp: str = "timestamp"
    """interactions: name of the column of times; without one the order of the file counts."""
    rating: str | None = None
    """interactions: name of the column of ratings that --min-rating looks at; by default "rating"."""
    min_rating: float | None = None
    """interactions: leave out the rows that are rated lower, or not at all."""
    title: str | None = None
    """interactions: name of the column of titles in --items; by default "title"."""
    categories: str | None = None
    """interactions: name of the column of categories (a|b|c) in --items; by default "categories"."""
    max_malformed: int = 100
    """How many malformed lines of the raw file are skipped, counted and named before it is refused."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def run(self) -> None:
        from solid_ext.data import RECIPES, load_dataset, prepare_raw

        if self.kind in ("interactions", *RECIPES) and self.raw is None:
            raise ValueError(f"prepare: expected --raw FILE with the {self.kind} data, got none")
        self._check_flags()
        if self.kind in RECIPES and self.raw is not None:
            dataset = prepare_raw(self.kind, self.raw, items=self.items, max_malformed=self.max_malformed)
        elif self.kind == "interactions":
            dataset = load_dataset(
                self.raw,
                items=self.items,
                user=self.user,
                item=self.item,
                timestamp=self.timestamp,
                rating=self.rating,
                min_rating=self.min_rating,
                title=self.title,
                categories=self.categories,
                max_malformed=self.max_malformed,
            )
        else:
            dataset = open_dataset(self.kind)
        if self.kind == "interactions":
            dataset = replace(dataset, name=self.out.name)
        dataset.save(self.out, overwrite=self.overwrite)
        describe(dataset)
        if self.kind in RECIPES:
            show_table1(dataset)
        console.print(f"wrote {self.out}")

    def _check_flags(self) -> None:
        """Refuse what would be ignored."""
        columns = ("user", "item", "timestamp", "rating", "min_rating", "title", "categories")
        asked = [] if self.kind == "interactions" else list(columns)
        if self.kind in NAMED_DATASETS:
            asked += ["raw", "items"]
        defaults = Prepare(self.kind, self.out)
        given = [f"--{name.replace('_', '-')}" for name in asked if getattr(self, name) != getattr(defaults, name)]
        if given:
            raise ValueError(f"prepare: expected no {', '.join(given)} with {self.kind}, whose form is known, got some")


@dataclass(frozen=True)
class Train:
    """Run Algorithm 1 on a dataset, evaluate it beside popularity and ItemKNN, keep everything.

    Example: solid-ext train --dataset data/ratings --out runs/first --loss full_softmax --dim 64

    Every flag below --out is a field of the configuration. A YAML file of `name: value` lines sets them too
    (--config FILE); flags win over the file. With --resume all of them start from what the run has: `solid-ext train
    --resume --out runs/first` goes on where it stopped, and with --epochs 8 further.
    """

    dataset: Dataset
    """movielens-100k (the package recbole 1.2.1 carries it), synthetic, a dataset folder, or an interactions file; a
    resumed run has its own."""
    out: Path
    """The run's folder."""
    config: Path | None = None
    """A YAML file with any of the fields below."""
    preset: Literal["paper", "best"] = "best"
    """Where the fields start from: best, the defaults, or paper, Table 2 of the paper; file and flags win over it."""
    method: str = "solid"
    """What to train: solid, or one of what it is compared with (static, finetune, duet, apg, solid-no-codebook, ..);
    its fields win over the flags below."""
    resume: bool = False
    """Go on with the run in --out where it stopped, as it was started but for the flags given."""
    overwrite: bool = False
    """Replace the run in --out."""
    baseline: bool = False
    """Also train the static method, to compare with; with --resume also after a run without it has ended."""
    settings: Settings = field(default_factory=Config)

    def run(self) -> None:
        from solid_ext.run import example_users, train_run
        from solid_ext.threads import use_threads
        from solid_ext.train import ProgressBar

        settings = method_config(self.settings, self.method).checked()
        console.print(f"threads: {use_threads(settings.train.threads, self.out if self.resume else None)}")
        dataset = open_dataset(self.dataset)
        settings = settings.resolved(dataset.num_users, dataset.num_items)
        describe(dataset)

        def begun() -> None:
            changes = yaml.safe_dump(settings.changes(), sort_keys=False) if settings.changes() else "the defaults"
            where = harmless(str(self.out / "config.yaml"))
            console.print(Text.assemble(("\nconfiguration", "bold"), f", all of it in {where}; not the default:"))
            console.print(changes.rstrip() + "\n", style="dim")

        with ProgressBar(console, settings.train.validation_metric) as progress:
            run = train_run(
                self.out,
                settings,
                dataset,
                method=self.method,
                baseline=self.baseline,
                source=self.dataset if self.dataset in NAMED_DATASETS else os.path.abspath(self.dataset),
                resume=self.resume,
                overwrite=self.overwrite,
                reporter=progress,
                begun=begun,
            )
        show_semantics(run.metrics["semantics"])
        show_examples(example_users(run.solid, dataset, count=5, k=5))
        show_metrics(run.metrics["models"], run.metrics["split"]["test_rows"])
        if "static" not in run.metrics["models"] and self.method != "static":
            console.print("not trained: the static method, SOLID without dynamic layers (--resume --baseline adds it)")
        console.print("\nndcg@10 user by user, the rows of each averaged", style="bold")
        for difference in run.metrics["differences"]:
            console.print(f"  {difference['in_words']}")
        times = ", ".join(f"{stage['stage']} {stage['seconds']:.0f} s" for stage in run.metrics["stages"])
        console.print(f"\ntrained in {run.metrics['seconds']['train']:.0f} s ({times})")
        for name in ("metrics.json", "report.png", "model"):
            console.print(f"  {self.out / name}")


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on the test rows of its dataset, by both protocols.

    Example: solid-ext evaluate --run runs/first --dataset data/ratings
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    dataset: Dataset
    """The dataset that the run was trained on."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        solid = load_run(self.run_folder)
        metrics = solid.evaluate(open_dataset(self.dataset))
        if self.json:
            write_json(metrics)
        else:
            show_metrics({"the model": metrics}, None)


@dataclass(frozen=True)
class Recommend:
    """The best items for a history of raw item ids, oldest first.

    Example: solid-ext recommend --run runs/first --history 50 172 181 --k 5
    Example: solid-ext recommend --run runs/first --k 5 --history -- -a5 --b6

    Everything after "--" belongs to the history, ids that begin with "-" too.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    history: tuple[str, ...]
    """Item ids as the interactions had them, oldest first; none for a newcomer. Those that begin with "-" follow
    "--"."""
    k: int = 10
    """How many items."""
    keep_history: bool = False
    """Also recommend what is in the history."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id that the model has never seen."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        solid = load_run(self.run_folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = solid.recommend(
                [self.history], self.k, exclude_history=not self.keep_history, unknown=self.unknown
            )[0]
        for warning in caught:
            complain(f"note: {warning.message}")
        if self.json:
            write_json([entry._asdict() for entry in found], indent=None)
            return
        table = Table("item", "title", "score")
        for entry in found:
            table.add_row(one_line(str(entry.item)), one_line(entry.title), f"{entry.score:.3f}")
        console.print(table)
        if len(found) < self.k:
            console.print(f"{len(found)} of the {self.k} asked for: the catalogue has no more", style="dim")


@dataclass(frozen=True)
class Compare:
    """Run a grid, datasets x backbones x methods x seeds, and report means, spreads and tests over users.

    Example: solid-ext compare --datasets data/ratings --methods popularity,static,solid --seeds 0,1 --out runs/table

    The same command again goes on where it stopped; with more datasets, backbones, methods or seeds it adds their runs.
    The methods popularity, markov, itemknn and sasrec-softmax have no backbone and run once a seed.
    """

    datasets: str
    """Named datasets, dataset folders or interactions files, separated by commas."""
    out: Path
    """The folder for the runs, runs.csv, costs.csv, report.md and report.png."""
    backbones: str = "sasrec"
    """Backbones, separated by commas."""
    methods: str = "popularity,itemknn,sasrec-softmax,static,solid"
    """Methods and peers, separated by commas."""
    seeds: str = "0"
    """Seeds, separated by commas."""
    preset: str = "paper"
    """paper: Table 2 of the paper; best: tuned."""
    config: Path | None = None
    """A YAML file of fields over the preset's; backbone, method, seed and threads are the grid's all the same."""
    jobs: int = 0
    """Processes at a time, one thread each; 0 for one a processor."""

    def run(self) -> None:
        from solid_ext.compare import PlannedRun, compare, make_grid

        seeds = separated(self.seeds)
        if not all(seed.isdecimal() for seed in seeds):
            raise ValueError(f"seeds: expected numbers of 0 or more, got {self.seeds!r}")
        datasets = [open_dataset(name) for name in separated(self.datasets)]
        grid = make_grid(
            datasets,
            separated(self.backbones),
            separated(self.methods),
            [int(seed) for seed in seeds],
            self.preset,
            read_fields(self.config),
        )

        def finished(place: int, count: int, planned: PlannedRun, problem: str | None) -> None:
            console.print(f"{place}/{count} {planned.name}" + ("" if problem is None else f" failed: {problem}"))

        compare(self.out, grid, datasets, jobs=self.jobs, on_finished=finished)
        show_comparison(self.out / "runs.csv")
        for file in ("report.md", "report.png", "runs.csv", "costs.csv"):
            console.print(f"  {self.out / file}")


@dataclass(frozen=True)
class Tune:
    """Search fields of the configuration for the best validation metric; the test rows are never looked at.

    Example: solid-ext tune --dataset data/ratings --fields learning_rate,dropout,delta --trials 30 --out runs/search

    The same command again goes on where it stopped, with more --trials further. Needs the extra `tune` (Optuna).
    """

    dataset: Dataset
    """A named dataset, a dataset folder, or an interactions file."""
    out: Path
    """The folder for the trials, journal.log and best.yaml, which `train` and `compare` take as --config."""
    fields: str = "learning_rate,dropout,weight_decay"
    """The fields to search, separated by commas."""
    trials: int = 20
    """Trials altogether."""
    backbone: str = "sasrec"
    """The backbone."""
    method: str = "solid"
    """The method."""
    preset: str = "best"
    """Where the other fields come from, as in `compare`."""
    config: Path | None = None
    """A YAML file of fields over the preset's."""
    seed: int = 0
    """Of the search and of every trial."""

    def run(self) -> None:
        from solid_ext.tune import Trial, make_search, tune

        search = make_search(
            separated(self.fields), self.method, self.backbone, self.preset, read_fields(self.config), self.seed
        )

        def finished(trial: Trial) -> None:
            values = ", ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
            metric = "diverged" if trial.metric is None else f"{trial.metric:.4f}"
            console.print(f"{trial.number + 1}/{self.trials} {metric}  {values}")

        best = tune(self.out, search, open_dataset(self.dataset), trials=self.trials, on_finished=finished)
        console.print(f"best: {best.metric:.4f}, trial {best.number + 1}\n  {self.out / 'best.yaml'}")


@dataclass(frozen=True)
class Doctor:
    """Versions, how the kernels were built, what they run on."""

    def run(self) -> None:
        import torch

        from solid_ext import build_info
        from solid_ext.threads import usable_processors, use_threads

        info = build_info()
        table = Table(show_header=False)
        table.add_row("solid_ext", info["version"])
        table.add_row("python", platform.python_version())
        for package in ("torch", "numpy", "polars", "scikit-learn", "safetensors"):
            table.add_row(package, version(package))
        table.add_row("compiler", info["compiler"])
        table.add_row("instruction sets", ", ".join(info["isa_built"]) + " built")
        table.add_row("in use", f"{info['isa']} (SOLID_EXT_ISA forces another)")
        table.add_row("threads", f"{use_threads(0)}; {usable_processors()} of {os.cpu_count()} processors may be used")
        built = (
            f" for {', '.join(info['cuda']['architectures'])}, CUDA {info['cuda']['version']}" if info["cuda"] else ""
        )
        change = "pip install . with SOLID_EXT_CUDA=ON, AUTO or OFF builds for all architectures, the GPUs here, none"
        table.add_row("CUDA kernels", f"{info['cuda_build']}{built} ({change})")
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        table.add_row("GPU", gpu)
        console.print(table)


@dataclass(frozen=True)
class Version:
    """What `solid-ext --version` prints: of the compiled module alone, which is there in a second less than torch."""

    def run(self) -> None:
        import _solid_ext

        console.print(f"solid_ext {_solid_ext.build_info()['version']} (solid-ext doctor says what it runs on)")


def open_dataset(name: str) -> Interactions:
    """A named dataset, or the dataset at a path."""
    from solid_ext.data import MOVIELENS_100K_LICENCE, load_dataset, movielens_100k, synthetic_dataset

    if name == "movielens-100k":
        dataset = movielens_100k()
        console.print(MOVIELENS_100K_LICENCE, style="dim")
        return dataset
    if name == "synthetic":
        return synthetic_dataset(2000, 500, 20, predictability=0.8, seed=0)[0]
    from solid_ext.files import expect_local

    expect_local(name, "dataset")
    if not Path(name).exists():
        from solid_ext.data.files import nearest_file

        hint = nearest_file(Path(name))
        raise ValueError(f"dataset: expected {', '.join(NAMED_DATASETS)} or a path that exists, got {name}{hint}")
    return load_dataset(Path(name))


def separated(names: str) -> list[str]:
    """The words of a list with commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def read_fields(path: Path | None) -> dict[str, Any]:
    """The fields that a YAML file sets, checked; none without a file."""
    if path is None:
        return {}
    Config.from_yaml(path)
    return read_yaml(path)


def load_run(folder: Path) -> SOLID:
    """The model of a run's folder, or of one that `save` wrote."""
    from solid_ext.solid import SOLID

    return SOLID.load(folder)


def write_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON as it is, for other programs."""
    sys.stdout.write(json.dumps(value, indent=indent) + "\n")


def complain(sentence: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(f"solid-ext: {harmless(one_line(sentence))}\n")


def describe(dataset: Interactions) -> None:
    """Print a dataset's size and what reading it met with."""
    console.print(
        Text.assemble(
            (console.shown(one_line(dataset.name)), "bold"),
            f": {dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_interactions:,} interactions",
        )
    )
    for note in dataset.notes:
        console.print(f"  note: {note}", markup=False)
    for name, value in dataset.report.items():
        if not name.startswith("note_"):
            console.print(f"  {name}: {value}", style="dim", markup=False)


def show_semantics(found: dict[str, Any]) -> None:
    """Print how many semantics there are, how large, and how well they agree with categories."""
    console.print(
        Text.assemble(
            ("\nsemantics", "bold"),
            f" from {found['source']}: {found['clusters']:,} of {found['smallest']:,} to {found['largest']:,} items "
            f"(median {found['median']:g}, largest {found['largest_share']:.1%}), {found['empty']:,} empty, "
            f"{found['fallback_items']:,} items in the fallback",
        )
    )
    if "inertia" in found:
        console.print(f"  k-means: inertia {found['inertia']:.1f}, {found['explained']:.1%} of the spread explained")
    if "purity" in found:
        console.print(
            f"  against {found['categories']:,} categories: purity {found['purity']:.3f} (by chance "
            f"{found['purity_by_chance']:.3f}), NMI {found['nmi']:.3f} (by chance {found['nmi_by_chance']:.3f})"
        )


def show_table1(dataset: Interactions) -> None:
    """Print a dataset's size beside what the paper's Table 1 says of it."""
    from solid_ext.data import RECIPES, Statistics, compare_with_table1

    found, printed = Statistics.of(dataset), RECIPES[dataset.name].table1
    table = Table("", "here", "Table 1", "difference")
    for name in ("users", "items", "interactions"):
        here, there = getattr(found, name), getattr(printed, name)
        table.add_row(name, f"{here:,}", f"{there:,}", f"{here - there:+,}" if here != there else "none")
    table.add_row("density", f"{found.density:.7f}", f"{printed.density:.7f}", "")
    console.print(table)
    console.print(f"Table 1: {compare_with_table1(dataset.name, found)}")


def show_examples(examples: list[Example]) -> None:
    """Print what some users did last, what they did next and what is recommended."""
    table = Table("user", "watched, latest last", "recommended, best first", title="five users", show_lines=True)
    for example in examples:
        hit = any(entry.title == example.actual for entry in example.recommended)
        watched = "".join(_short(title) + "\n" for title in example.watched)
        came = f"came next: {_short(example.actual)}{' (recommended)' if hit else ''}"
        recommended = "\n".join(_short(entry.title) for entry in example.recommended)
        table.add_row(one_line(str(example.user)), Text.assemble(watched, (came, "bold")), recommended)
    console.print(table)


def _short(title: str, width: int = 34) -> str:
    title = console.shown(one_line(title))
    return title if len(title) <= width else title[: width - 3] + "..."


def show_metrics(models: dict[str, dict[str, dict[str, float]]], rows: int | None) -> None:
    """Print one table a protocol: a line a metric, the models side by side."""
    titles = {"sampled": "one positive against sampled negatives", "full": "full ranking, ties against the model"}
    for protocol, title in titles.items():
        table = Table("", *models, title=title + (f", {rows:,} test rows" if rows else ""))
        for metric in next(iter(models.values()))[protocol]:
            table.add_row(metric, *(f"{metrics[protocol][metric]:.4f}" for metrics in models.values()))
        console.print(table)


def show_comparison(runs: Path) -> None:
    """Print one table a dataset: a line a backbone and method, the mean over seeds of the metrics in `runs.csv`."""
    import polars as pl

    shown = {
        "user-AUC": ("sampled", "user_auc"),
        "NDCG@10": ("sampled", "ndcg@10"),
        "full NDCG@10": ("full", "ndcg@10"),
        "full, history excluded": ("full, history excluded", "ndcg@10"),
    }
    of_line = ["dataset", "backbone", "method", "protocol", "metric"]
    found = pl.read_csv(runs, glob=False, schema_overrides={"dataset": pl.String}).group_by(
        of_line, maintain_order=True
    )
    lines: dict[str, dict[tuple[str, str], dict[tuple[str, str], str]]] = {}
    for dataset, backbone, method, protocol, metric, mean, spread in found.agg(
        pl.col("value").mean().alias("mean"), pl.col("value").std().alias("spread")
    ).iter_rows():
        number = f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
        lines.setdefault(dataset, {}).setdefault((backbone, method), {})[protocol, metric] = number
    for dataset, methods in lines.items():
        table = Table("backbone", "method", *shown, title=one_line(dataset))
        for names, numbers in methods.items():
            table.add_row(*names, *(numbers.get(metric, "") for metric in shown.values()))
        console.print(table)


def parse(arguments: list[str]) -> Prepare | Train | Evaluate | Recommend | Compare | Tune | Doctor | Version:
    """Read the command line.

    The defaults of train's flags are those of the run that is resumed or the package's, over them `--preset`'s, and
    over those the fields of `--config FILE`.
    """
    if arguments == ["--version"]:
        return Version()
    scan = ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--config")
    scan.add_argument("--preset")
    scan.add_argument("--out")
    scan.add_argument("--resume", action="store_true")
    given = scan.parse_known_args(arguments)[0]
    training = Train(tyro.MISSING, tyro.MISSING)
    if arguments[:1] == ["train"]:
        refuse_old_flags(arguments[1:])
        if given.resume and given.out and not {"-h", "--help"} & {*arguments}:
            training = as_begun(Path(given.out))
    settings = training.settings.replace(**PRESETS.get(given.preset, {}))
    training = replace(training, settings=Config.from_yaml(given.config, settings) if given.config else settings)
    commands = (
        Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[Train, tyro.conf.subcommand("train", default=training)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Recommend, tyro.conf.subcommand("recommend")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )
    arguments, after = before_dashes(arguments)
    command = tyro.cli(commands, prog="solid-ext", description=__doc__, args=arguments)
    return replace(command, history=(*command.history, *after)) if isinstance(command, Recommend) else command


def before_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What the parser reads of recommend's arguments, and the ids after `--`, which it would take for flags."""
    if arguments[:1] != ["recommend"] or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    before, after = arguments[:place], arguments[place + 1 :]
    named = any(argument.partition("=")[0] == "--history" for argument in before)
    return before if named else [*before, "--history"], after


def as_begun(out: Path) -> Train:
    """The command that the run in `out` was begun with."""
    from solid_ext.run import begun_run

    begun = begun_run(out)
    return Train(
        tyro.MISSING if begun.source is None else begun.source,
        tyro.MISSING,
        method=begun.method,
        baseline=begun.baseline,
        settings=begun.config,
    )


def refuse_old_flags(arguments: list[str]) -> None:
    """Refuse a flag whose field has another name now.

    Raises:
        ValueError: with what became of it.
    """
    for argument in arguments:
        name = argument.partition("=")[0].replace("-", "_").removeprefix("__").removeprefix("no_")
        if argument.startswith("--") and name in OLD_NAMES:
            raise ValueError(f"train: expected a flag of this version, got {argument}, which is {OLD_NAMES[name]}")


def in_flags(sentence: str, command: object) -> str:
    """An error's sentence with the arguments of Python as the command has them: `--overwrite`, `--unknown ignore`."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2].strip("'\"")
        return f"--{'no-' if value == 'False' else ''}{name}" + (
            f" {value}" if value not in ("True", "False", "") else ""
        )

    known = "|".join(field.name for field in fields(command)) if is_dataclass(command) else ""
    if not known or "--" in sentence:  # it speaks of flags already
        return sentence
    return re.sub(rf"(?<![\w.-])({known})=(True|False|'[^']*'|\"[^\"]*\"|[\d.]*)(?![\w(\[])", flag, sentence)


def kept_of(command: object) -> str:
    """What a stopped command leaves, for the sentence that says that it was stopped."""
    if isinstance(command, Train):
        begun = any(command.out.glob("stage*/last.safetensors"))
        return "; what a stage finished is kept, --resume goes on" if begun else " before the first epoch"
    if isinstance(command, (Compare, Tune)):
        return "; what finished is kept, the same command goes on"
    return "; nothing was written" if isinstance(command, Prepare) else ""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `solid-ext`: bad input ends in one sentence and exit code 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this (`>&-`): what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # whatever the locale, no character of a title ends a command
            stream.reconfigure(errors="backslashreplace")
    command = None
    try:
        try:
            command = parse(sys.argv[1:] if arguments is None else arguments)
            command.run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has gone (`| head`). What is left in the buffer goes nowhere, or the interpreter's own
        # flush at the end would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))
        if os.environ.get("SOLID_EXT_TRACEBACK") or (isinstance(error, RuntimeError) and not short):
            raise
        complain(f"memory: expected enough of it, got too little ({error})" if short else in_flags(str(error), command))
        sys.exit(2)
    except KeyboardInterrupt:
        complain(f"stopped{kept_of(command)}")
        sys.exit(130)


if __name__ == "__main__":
    main()
