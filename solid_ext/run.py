"""A run: one folder with the configuration, both stages, the model, its metrics and a picture of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solid_ext._native import build_info
from solid_ext.config import Config
from solid_ext.data import Dataset
from solid_ext.evaluate import draw_report
from solid_ext.files import LOCK, owned, read_json, write_json, write_text
from solid_ext.scorers import Popularity
from solid_ext.serve.recommend import Recommendation
from solid_ext.solid import SOLID, check_fit
from solid_ext.train import Reporter, Silent, TensorBoard
from solid_ext.train.algorithm import is_static, stage1_config
from solid_ext.train.stage import check_resumed

DESCRIPTION = "run.json"
STAGES = ("static", "stage1", "stage2")
BEGUN = {LOCK, "config.yaml", DESCRIPTION}  # what a run has before its first epoch
WRITTEN = {*BEGUN, *STAGES, "model", "semantics.safetensors", "metrics.json", "report.png", "tensorboard"}
REPLACED = ".replaced"  # the run that is overwritten, until the new one has an epoch

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """What a finished run holds; `metrics` is what `metrics.json` says."""

    folder: Path
    solid: SOLID
    metrics: dict[str, Any]


def holds_run(folder: Path) -> bool:
    """Whether the folder's run can be resumed: its description is there and whole."""
    try:
        read_json(folder / DESCRIPTION, "resume")
    except ValueError:
        return False
    return True


def open_run(
    folder: Path, config: Config, dataset: Dataset, *, resume: bool, overwrite: bool, method: str = "solid"
) -> None:
    """Make the run's folder and write down what it is about to do; a resumed one may have more epochs or patience.

    `run.json` says it all, with its checksum; `config.yaml` is its configuration for people and for `--config`. A
    folder in which a run was stopped before it had said so is begun again. What is overwritten lies in `.replaced`.

    Raises:
        ValueError: the folder exists and neither `resume` nor `overwrite` is set; nothing to resume; the folder
            is no run, or holds other things too; a resumed run with another configuration or dataset.
    """
    check_out(folder, resume=resume, overwrite=overwrite)
    facts = {"method": method, "dataset": dataset.name, "fingerprint": dataset.fingerprint, "report": dataset.report}
    described = {**facts, "config": config.flat(), "build": build_info()}
    if resume:
        _check_same(folder, described)
    elif overwrite and folder.exists():
        _set_aside(folder)
    write_json(folder / DESCRIPTION, described)
    write_text(folder / "config.yaml", config.to_yaml())


def check_out(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run may not use; nothing is made, changed or deleted.

    Raises:
        ValueError: see `open_run`.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"out: expected a folder, got {folder}, which is none")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if resume and DESCRIPTION not in found:
        begun = LOCK in found
        raise ValueError(
            f"resume: expected a run in {folder}, got "
            + ("one that was stopped before its first epoch: start it again without --resume" if begun else "none")
        )
    if resume or not found - {LOCK, REPLACED}:  # a run that was killed before it had described itself has no more
        return
    if not overwrite:
        raise ValueError(
            f"out: expected a folder that does not exist yet, got {folder} (--resume goes on with it, "
            "--overwrite replaces it)"
        )
    if not found & {DESCRIPTION, LOCK}:
        raise ValueError(f"overwrite: expected the folder of a run, got {folder}, which has no run.json")
    others = found - WRITTEN - {REPLACED}
    if others:
        raise ValueError(f"overwrite: expected nothing but a run in {folder}, got {min(others)}, which no run wrote")


def _check_same(folder: Path, described: dict[str, Any]) -> None:
    """Refuse to resume a run with another configuration, dataset or method."""
    try:
        saved = read_json(folder / DESCRIPTION, "resume")
    except ValueError as error:
        raise ValueError(f"{error}; --overwrite starts the run anew") from error
    if not isinstance(saved.get("config"), dict) or not isinstance(saved.get("fingerprint"), str):
        raise ValueError(f"resume: expected a run of this version in {folder}, got another one's (train it again)")
    check_resumed(folder, saved["config"], described["config"])
    if saved["fingerprint"] != described["fingerprint"]:
        raise ValueError(
            f"resume: expected the dataset of {folder} ({saved['fingerprint'][:12]}), "
            f"got {described['fingerprint'][:12]}"
        )


def _set_aside(folder: Path) -> None:
    """Move the run in the folder into `.replaced`, from which one that fails before its first epoch is put back.

    What lies there already, of a run that was killed, is of the run before: it stays, and what has its name goes.
    """
    aside = folder / REPLACED
    if not aside.is_dir() and os.path.lexists(aside):
        aside.unlink()
    aside.mkdir(exist_ok=True)
    for path in [path for path in folder.iterdir() if path.name in WRITTEN - {LOCK}]:
        if os.path.lexists(aside / path.name):
            _delete(path)
        else:
            path.rename(aside / path.name)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _under_way(folder: Path, *, made: bool) -> Iterator[None]:
    """The run inside; one that fails before its first epoch leaves the folder as if it had not been tried.

    Args:
        made: the folder was made for the run.
    """
    aside = folder / REPLACED
    try:
        yield
    except BaseException:
        if not any((folder / stage / "last.safetensors").exists() for stage in STAGES):
            for path in [path for path in folder.iterdir() if path.name in WRITTEN - {LOCK}]:
                _delete(path)
            for path in list(aside.iterdir()) if aside.exists() else ():
                path.rename(folder / path.name)
            if made:
                shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def train_run(
    folder: Path,
    config: Config,
    dataset: Dataset,
    *,
    method: str = "solid",
    baseline: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    begun: Callable[[], None] | None = None,
) -> Run:
    """Train, evaluate beside the static backbone and popularity, and write everything down.

    Args:
        method: what the configuration is, for the names in metrics and picture.
        baseline: also train the static backbone for the comparison, unless the configuration is the static method's.
        begun: called once everything has been checked and the folder is there.

    Returns:
        The run; its folder holds `config.yaml`, `run.json`, a folder a stage, `model/`,
        `semantics.safetensors`, `metrics.json`, `report.png`.

    Raises:
        ValueError: what cannot be trained, said before the folder is made or anything in it replaced; a folder in
            which another process works.
    """
    config = config.resolved(dataset.num_users, dataset.num_items)
    if config.train.tensorboard:
        reporter = TensorBoard(folder / "tensorboard", reporter or Silent())
    check_fit(config, dataset)
    check_out(folder, resume=resume, overwrite=overwrite)
    made = not folder.exists()
    with owned(folder, "out"):
        open_run(folder, config, dataset, resume=resume, overwrite=overwrite, method=method)
        with _under_way(folder, made=made):
            if begun is not None:
                begun()
            start = time.perf_counter()
            baseline = baseline and not is_static(config)
            solid = SOLID(config).fit(dataset, baseline=baseline, folder=folder, reporter=reporter)
            seconds = {"train": time.perf_counter() - start}
        return _measured(folder, solid, method, seconds)


def _measured(folder: Path, solid: SOLID, method: str, seconds: dict[str, float]) -> Run:
    """The run of a model that has been trained in the folder: measured, and written down, the numbers first."""
    config, training, start = solid.config, solid.training, time.perf_counter()
    dataset = training.dataset
    popularity = Popularity.of_split(dataset, training.split)
    models: dict[str, Metrics] = {"popularity": solid.evaluate_scorer(popularity)}
    if training.static is not None and not is_static(config):
        models["static"] = solid.evaluate_scorer(training.static)
    models["SOLID" if method == "solid" else method] = solid.evaluate()
    seconds["evaluate"] = time.perf_counter() - start
    usage = solid.code_usage()
    metrics = {
        "dataset": {
            "name": dataset.name,
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.num_interactions,
        },
        "method": method,
        "split": {"name": training.split.name, **training.split.report},
        "semantics": {
            "source": training.semantics.source,
            "count": training.semantics.count,
            **training.semantics.report,
        },
        "models": models,
        "stages": [
            {
                "stage": stage.name,
                "epochs": len(stage.history),
                "best_epoch": stage.best.epoch,
                f"valid_{config.train.validation_metric}": stage.best.valid,
                "seconds": sum(epoch.seconds for epoch in stage.history),
            }
            for stage in training.stages
        ],
        "codes_used": None if usage is None else int((usage > 0).sum()),
        "seconds": seconds,
    }
    write_json(folder / "metrics.json", metrics)
    solid.save(folder / "model", overwrite=True)
    training.semantics.save(folder / "semantics.safetensors")
    history = [epoch.row() for stage in training.stages for epoch in stage.history]
    monitor = f"{config.train.validation_protocol} {config.train.validation_metric}"
    if config.train.validation_protocol == "full" and stage1_config(config) is not None:
        monitor += " (stage 1: sampled)"
    draw_report(folder / "report.png", history, usage, models, monitor=monitor)
    return Run(folder, solid, metrics)


@dataclass(frozen=True)
class Example:
    """A user's recent titles, what came next in truth, and what the model recommends."""

    user: Any
    watched: list[str]
    actual: str
    recommended: list[Recommendation]


def example_users(solid: SOLID, dataset: Dataset, *, count: int, k: int, seed: int = 0) -> list[Example]:
    """Recommendations for a few random test users, from what they did before their test item."""
    rows = solid.training.split.test
    chosen = np.random.default_rng(seed).choice(len(rows.users), min(count, len(rows.users)), replace=False)
    examples = []
    for row in np.sort(chosen):
        user, position = rows.users[row], rows.positions[row]
        history = dataset.items[dataset.offsets[user] : position]
        raw = dataset.catalogue.raw_items(history)
        examples.append(
            Example(
                dataset.user_ids[int(user)],
                dataset.titles(history[-5:]),
                dataset.titles(dataset.items[position : position + 1])[0],
                solid.recommend([raw], k)[0],
            )
        )
    return examples
