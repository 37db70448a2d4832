"""A run from its configuration to its numbers: trained, measured beside its rivals, written down."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from solid_ext import distributed
from solid_ext.config import Config
from solid_ext.data import Dataset
from solid_ext.evaluate import Metrics, Scorer, both_protocols, row_table
from solid_ext.files import owned, write_json, written
from solid_ext.methods import method_config
from solid_ext.run.differences import differences
from solid_ext.run.folder import MEASURED, MODEL, RIVAL, Also, check_out, open_run, under_way
from solid_ext.run.picture import draw_report
from solid_ext.scorers import ItemKNN, Popularity
from solid_ext.serve import evaluate_beyond
from solid_ext.solid import SOLID
from solid_ext.train import Epoch, Prefixed, Renamed, Reporter, Silent, Stage, TensorBoard, check_training
from solid_ext.train.algorithm import stage1_config
from solid_ext.train.callbacks import Calling, check_callbacks
from solid_ext.train.progress import check_reporter

MEASURED_WORDS = "the model that these metrics are of, trained on the split's training rows"
USERS = "users.parquet"
ITEMKNN_ITEMS = 65_536  # items up to which ItemKNN is measured too: its neighbours are counted in seconds


@dataclass(frozen=True)
class Run:
    """What a finished run holds.

    Attributes:
        solid: the model for use, that of the folder `model`.
        measured: the model that the metrics are of; the same but for a refitted run.
        metrics: what `metrics.json` says; empty on a rank that does not write.
    """

    folder: Path
    solid: SOLID
    measured: SOLID
    metrics: dict[str, Any]


def train_run(
    folder: Path,
    config: Config,
    dataset: Dataset,
    *,
    method: str = "solid",
    baseline: bool = False,
    refit: bool = False,
    source: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    callbacks: Sequence[Any] = (),
    begun: Callable[[], None] | None = None,
) -> Run:
    """Train, evaluate beside popularity, ItemKNN and, if asked for, the static method, and write everything down.

    Args:
        method: what the configuration is, for the names in metrics and picture.
        baseline: also train the static method for the comparison, unless the configuration is that one; a run that
            is resumed has it where it was begun with it, or is asked for it now.
        refit: also train the model again on all interactions, for use; as with `baseline` for a run that is resumed.
        source: where the dataset is found again, for who resumes the run by its folder alone.
        callbacks: told of every stage, the static method's and the refit's too, see `solid_ext.train.Callback`.
        begun: called once everything has been checked and the folder is there.

    Returns:
        The run; its folder holds `config.yaml`, `run.json`, a folder a stage, `static/` with those of the static
        method if there is one, `model/`, `semantics.safetensors`, `metrics.json`, `users.parquet`, `report.png`. Of a
        refitted run `model/` is the one for use, `measured/` the one that was measured, and `refit/` has the stages of
        the former.

    Raises:
        ValueError: what cannot be trained, said before the folder is made or anything in it replaced; a folder in
            which another process works.
    """
    check_reporter("train_run", reporter)
    check_callbacks("train_run", callbacks)
    config = config.resolved(dataset.num_users, dataset.num_items)
    if config.train.tensorboard and distributed.is_writer():
        reporter = TensorBoard(folder / "tensorboard", reporter or Silent())
    calling = Calling(callbacks, reporter)
    if callbacks:
        reporter = calling
    check_training(config, dataset)
    made = False
    with ExitStack() as held:

        def claim() -> Also:
            nonlocal made
            check_out(folder, resume=resume, overwrite=overwrite)
            made = not folder.exists()
            held.enter_context(owned(folder, "out"))
            return open_run(
                folder,
                config,
                dataset,
                resume=resume,
                overwrite=overwrite,
                method=method,
                baseline=baseline,
                refit=refit,
                source=source,
            )

        also = Also(*distributed.by_writer(claim))  # who does not write waits for the folder
        with under_way(folder, made=made) if distributed.is_writer() else nullcontext():
            if begun is not None:
                begun()
            start = time.perf_counter()
            solid = SOLID(config).fit(dataset, folder=folder, reporter=reporter)
            rival, plain = None, method_config(config, "static")
            if also.baseline and plain != config:
                rival = SOLID(plain).fit(
                    dataset,
                    semantics=solid.training.semantics,
                    folder=folder / RIVAL,
                    reporter=None if reporter is None else Renamed(RIVAL, reporter),
                )
            seconds = {"train": time.perf_counter() - start}
        run = _measured(folder, solid, rival, method, seconds, also.refit)
        run = _refitted(run, reporter) if also.refit else run
        again = run.solid.training.stages if also.refit else []
        calling.finish(
            [*solid.training.stages, *([] if rival is None else map(_of_rival, rival.training.stages)), *again]
        )
        return run


def _measured(
    folder: Path, solid: SOLID, rival: SOLID | None, method: str, seconds: dict[str, float], refit: bool
) -> Run:
    """The run of models that have been trained in the folder: measured, and written down, the numbers first."""
    config, training, start = solid.config, solid.training, time.perf_counter()
    dataset, split = training.dataset, training.split
    name = "SOLID" if method == "solid" else method
    scorers: dict[str, Scorer] = {"popularity": Popularity.of_split(dataset, split)}
    if dataset.num_items <= ITEMKNN_ITEMS:
        scorers["itemknn"] = ItemKNN(dataset, split.train_end)
    if rival is not None:
        scorers[RIVAL] = rival.scorer
    scorers[name] = solid.scorer
    found = {model: both_protocols(config, scorer, dataset, split.test) for model, scorer in scorers.items()}
    models = {
        model: {protocol: metrics.values for protocol, metrics in protocols.items()}
        for model, protocols in found.items()
    }
    if not distributed.is_writer():
        return Run(folder, solid, solid, {})
    beyond = {model: evaluate_beyond(scorer, dataset, split) for model, scorer in scorers.items()}
    seconds["evaluate"] = time.perf_counter() - start
    parts = {**training.seconds, "evaluation": seconds["evaluate"]}
    if rival is not None:
        parts[RIVAL] = rival.training.seconds["stage2"]
    usage = solid.code_usage()
    stages = [*([] if rival is None else map(_of_rival, rival.training.stages)), *training.stages]
    metrics = {
        "dataset": {
            "name": dataset.name,
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.num_interactions,
        },
        "method": method,
        "split": {"name": split.name, **split.report},
        "semantics": {
            "source": training.semantics.source,
            "count": training.semantics.count,
            **training.semantics.report,
        },
        "models": {model: {**metrics, "beyond": beyond[model]} for model, metrics in models.items()},
        "differences": differences(found, name),
        "stages": [
            {
                "stage": stage.name,
                "epochs": len(stage.history),
                "best_epoch": stage.best.epoch,
                f"valid_{config.train.validation_metric}": stage.best.valid,
                "seconds": sum(epoch.seconds for epoch in stage.history),
                "waited": sum(epoch.waited for epoch in stage.history),
            }
            for stage in stages
        ],
        "device": None if config.model.finetune_steps else solid.on_device().sizes()._asdict(),
        "entries_used": None if usage is None else int((usage > 0).sum()),
        "seconds": {**seconds, "parts": parts},
        "folders": {MEASURED: MEASURED_WORDS} if refit else {MODEL: f"{MEASURED_WORDS}, and for use"},
    }
    write_json(folder / "metrics.json", metrics)
    with written(folder / USERS) as partial:
        _users(found).write_parquet(partial)
    solid.save(folder / (MEASURED if refit else MODEL), overwrite=True)
    if not refit:  # of a refitted run that this one replaces
        shutil.rmtree(folder / MEASURED, ignore_errors=True)
    training.semantics.save(folder / "semantics.safetensors")
    history = [epoch.row() for stage in stages for epoch in stage.history]
    draw_report(folder / "report.png", history, usage, models, validation=_validation_axis(config))
    return Run(folder, solid, solid, metrics)


def _users(found: Mapping[str, Mapping[str, Metrics]]) -> pl.DataFrame:
    """A row a model and test row: its user and ranks, so that whoever has the run can repeat a test."""
    return pl.concat(
        row_table(protocols["sampled"], full=protocols["full"]).select(pl.lit(model).alias("model"), pl.all())
        for model, protocols in found.items()
    )


def _refitted(run: Run, reporter: Reporter | None) -> Run:
    """The run with a model for use beside the one that was measured."""
    start = time.perf_counter()
    stages = None if reporter is None else Prefixed("refit ", reporter)
    used = run.measured.refit(folder=run.folder, reporter=stages)
    if not distributed.is_writer():
        return replace(run, solid=used)
    epochs = {stage.name: len(stage.history) for stage in used.training.stages}
    used.save(run.folder / MODEL, overwrite=True)
    seconds = {**run.metrics["seconds"], "refit": time.perf_counter() - start}
    seconds["parts"] = {**seconds["parts"], "refit": seconds["refit"]}
    folders = {MODEL: "trained on all interactions, for use: these metrics are not its own", **run.metrics["folders"]}
    metrics = {**run.metrics, "seconds": seconds, "folders": folders, "refit_epochs": epochs}
    write_json(run.folder / "metrics.json", metrics)
    return replace(run, solid=used, metrics=metrics)


def planned_stages(config: Config, *, baseline: bool, refit: bool) -> list[str]:
    """The names of what a run trains, in the order in which it is reported."""
    own = ["stage2"] if stage1_config(config) is None else ["stage1", "stage2"]
    rival = [RIVAL] if baseline and method_config(config, RIVAL) != config else []
    return [*own, *rival, *(f"refit {name}" for name in own if refit)]


def slowest_part(parts: Mapping[str, float]) -> str:
    """A sentence about where a run's time went, the slowest part first."""
    total = sum(parts.values())
    first, *others = sorted(parts.items(), key=lambda part: -part[1])
    rest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in others)
    share = first[1] / (total or 1)
    return f"{total:.0f} s in all, the slowest part {first[0]} with {first[1]:.0f} s ({share:.0%}); {rest}"


def _of_rival(stage: Stage) -> Stage:
    """The rival's one stage under the rival's name."""
    epochs: list[Epoch] = [replace(epoch, stage=RIVAL) for epoch in stage.history]
    return Stage(RIVAL, epochs)


def _validation_axis(config: Config) -> str:
    """What the picture's curves show."""
    label = f"{config.train.validation_protocol} {config.train.validation_metric}"
    staged = config.train.validation_protocol == "full" and stage1_config(config) is not None
    return label + (" (stage 1: sampled)" if staged else "")
