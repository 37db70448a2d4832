"""solid-ext train: a run, from a dataset to a model and what is known of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
import yaml
from rich.table import Table
from rich.text import Text

from solid_ext.cli.evaluate import show_metrics
from solid_ext.cli.prepare import describe
from solid_ext.cli.sources import NAMED_DATASETS, Dataset, open_dataset
from solid_ext.cli.terminal import console, harmless, one_line, short
from solid_ext.config import OLD_NAMES, Config
from solid_ext.methods import method_config

if TYPE_CHECKING:
    from solid_ext.run import Example

Settings = tyro.conf.OmitArgPrefixes[Config]


@dataclass(frozen=True)
class Train:
    """Run Algorithm 1 on a dataset, evaluate it beside popularity and ItemKNN, keep everything.

    Example: solid-ext train --dataset data/ratings --out runs/first --loss full_softmax --dim 64

    `torchrun --nproc-per-node 2 -m solid_ext train ..` trains in two processes that divide each batch.

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
    preset: Literal["paper", "best", "device"] = "best"
    """Where the fields start from: best, the defaults; paper, Table 2 of the paper; or device, a narrow model whose
    layers a wide generator makes. File and flags win over it."""
    method: str = "solid"
    """What to train: solid, or one of what it is compared with (static, finetune, duet, apg, solid-no-codebook, ..);
    its fields win over the flags below."""
    resume: bool = False
    """Go on with the run in --out where it stopped, as it was started but for the flags given."""
    overwrite: bool = False
    """Replace the run in --out."""
    baseline: bool = False
    """Also train the static method, to compare with; with --resume also after a run without it has ended."""
    refit: bool = False
    """When all has been measured, train again on all interactions for the epochs that were best: the folder model has
    that one, for use, and measured the one that was measured. With --resume also after a run without it has ended."""
    profile: bool = False
    """Also profile some steps of each stage: the folder profile gets a trace and a table of the slowest operations."""
    settings: Settings = field(default_factory=Config)

    def run(self) -> None:
        from solid_ext import distributed

        settings = method_config(self.settings, self.method).checked()
        with distributed.joined(settings.train.device):
            console.quiet = not distributed.is_writer()
            self._run(settings)

    def _run(self, settings: Config) -> None:
        from solid_ext import distributed
        from solid_ext.cli.stopping import stoppable
        from solid_ext.run import begun_by, example_users, planned_stages, slowest_part, train_run
        from solid_ext.run.folder import PROFILE
        from solid_ext.threads import use_threads
        from solid_ext.train import ProgressBar
        from solid_ext.train.profiled import Profiled
        from solid_ext.train.time_left import TimeLeft

        resume = self.resume or distributed.of_writer(begun_by(self.out, distributed.restarted_job()))
        console.print(f"threads: {use_threads(settings.train.threads, self.out if resume else None)}")
        if distributed.count() > 1:
            console.print(f"processes: {distributed.count()}, which divide each batch")
        dataset = open_dataset(self.dataset)
        settings = settings.resolved(dataset.num_users, dataset.num_items)
        describe(dataset)

        def begun() -> None:
            changes = yaml.safe_dump(settings.changes(), sort_keys=False) if settings.changes() else "the defaults"
            where = harmless(str(self.out / "config.yaml"))
            console.print(Text.assemble(("\nconfiguration", "bold"), f", all of it in {where}; not the default:"))
            console.print(changes.rstrip() + "\n", style="dim")

        train = settings.train
        stages = planned_stages(settings, baseline=self.baseline, refit=self.refit)
        bar = ProgressBar(console, train.validation_metric, TimeLeft(stages, train.epochs, train.patience))
        profiled = Profiled(self.out / PROFILE, bar) if self.profile and distributed.is_writer() else None
        with bar, stoppable(profiled or bar) as reporter:
            run = train_run(
                self.out,
                settings,
                dataset,
                method=self.method,
                baseline=self.baseline,
                refit=self.refit,
                source=self.dataset if self.dataset in NAMED_DATASETS else os.path.abspath(self.dataset),
                resume=resume,
                overwrite=self.overwrite,
                reporter=reporter,
                begun=begun,
            )
        if not distributed.is_writer():
            return
        show_semantics(run.metrics["semantics"])
        show_examples(example_users(run.measured, dataset, count=5, k=5))
        show_metrics(run.metrics["models"], run.metrics["split"]["test_rows"])
        if "static" not in run.metrics["models"] and self.method != "static":
            console.print("not trained: the static method, SOLID without dynamic layers (--resume --baseline adds it)")
        console.print("\nndcg@10 user by user, the rows of each averaged", style="bold")
        for difference in run.metrics["differences"]:
            console.print(f"  {difference['in_words']}")
        show_device(run.metrics)
        console.print(f"\n{slowest_part(run.metrics['seconds']['parts'])}")
        for stage, table in ({} if profiled is None else profiled.tables).items():
            console.print(f"\nsteps of {stage}, by the time of each operation without those inside it:")
            console.print(table, soft_wrap=True)
        for name in ("metrics.json", "report.png"):
            console.print(f"  {self.out / name}")
        for name, words in run.metrics["folders"].items():
            console.print(f"  {self.out / name}: {words}")


def as_begun(out: Path) -> Train:
    """The command that the run in `out` was begun with."""
    from solid_ext.run import begun_run

    begun = begun_run(out)
    return Train(
        tyro.MISSING if begun.source is None else begun.source,
        tyro.MISSING,
        method=begun.method,
        baseline=begun.baseline,
        refit=begun.refit,
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
    if "probed" in found:
        values = ", ".join(f"{source} {value:.4f}" for source, value in found["probed"].items())
        console.print(f"  {found['source']} chosen on validation rows by a probe without training: {values}")
    if "inertia" in found:
        console.print(f"  k-means: inertia {found['inertia']:.1f}, {found['explained']:.1%} of the spread explained")
    if "purity" in found:
        console.print(
            f"  against {found['categories']:,} categories: purity {found['purity']:.3f} (by chance "
            f"{found['purity_by_chance']:.3f}), NMI {found['nmi']:.3f} (by chance {found['nmi_by_chance']:.3f})"
        )


def show_device(metrics: dict[str, Any]) -> None:
    """Print the accuracy beside what a device holds of it."""
    device, (name, own) = metrics["device"], list(metrics["models"].items())[-1]
    if device is not None:
        console.print("\non a device", style="bold")
        console.print(
            f"  {name}: full ndcg@10 {own['full']['ndcg@10']:.4f}, {device['static']:,} bytes on the device, "
            f"{device['person']:,} bytes a person"
        )


def show_examples(examples: list[Example]) -> None:
    """Print what some users did last, what they did next and what is recommended."""
    table = Table("user", "watched, latest last", "recommended, best first", title="five users", show_lines=True)
    for example in examples:
        hit = any(entry.title == example.actual for entry in example.recommended)
        watched = "".join(short(title) + "\n" for title in example.watched)
        came = f"came next: {short(example.actual)}{' (recommended)' if hit else ''}"
        recommended = "\n".join(short(entry.title) for entry in example.recommended)
        table.add_row(one_line(str(example.user)), Text.assemble(watched, (came, "bold")), recommended)
    console.print(table)
