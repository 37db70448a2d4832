"""A run: one folder with the configuration, both stages, the model, its metrics and a picture of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solid_ext._native import build_info
from solid_ext.config import Config
from solid_ext.data import Dataset
from solid_ext.evaluate import draw_report
from solid_ext.scorers import Popularity
from solid_ext.serve.recommend import Recommendation
from solid_ext.solid import SOLID
from solid_ext.train import Reporter, Silent, TensorBoard
from solid_ext.train.algorithm import stage1_config

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """What a finished run holds; `metrics` is what `metrics.json` says."""

    folder: Path
    solid: SOLID
    metrics: dict[str, Any]


def open_run(folder: Path, config: Config, dataset: Dataset, *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder and write down what it is about to do.

    Raises:
        ValueError: the folder exists and neither `resume` nor `overwrite` is set; nothing to resume; the folder
            is no run; a resumed run with another configuration or dataset.
    """
    description = folder / "run.json"
    if resume:
        if not description.is_file():
            raise ValueError(f"resume: expected a run in {folder}, got none")
        saved = Config.from_yaml(folder / "config.yaml").flat()
        for name, value in config.flat().items():
            if saved[name] != value:
                raise ValueError(f"resume: expected {name}={saved[name]} as in {folder}, got {value}")
        fingerprint = json.loads(description.read_text(encoding="utf-8"))["fingerprint"]
        if fingerprint != dataset.fingerprint:
            raise ValueError(
                f"resume: expected the dataset of {folder} ({fingerprint[:12]}), got {dataset.fingerprint[:12]}"
            )
        return
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        if not overwrite:
            raise ValueError(
                f"out: expected a folder that does not exist yet, got {folder} (--resume goes on with it, "
                "--overwrite replaces it)"
            )
        if not description.is_file():
            raise ValueError(f"overwrite: expected the folder of a run, got {folder}, which has no run.json")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    facts = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "report": dataset.report}
    description.write_text(json.dumps({**facts, "build": build_info()}, indent=2) + "\n", encoding="utf-8")


def train_run(
    folder: Path,
    config: Config,
    dataset: Dataset,
    *,
    baseline: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train, evaluate beside the static backbone and popularity, and write everything down.

    Args:
        baseline: also train the static backbone for the comparison.

    Returns:
        The run; its folder holds `config.yaml`, `run.json`, a folder a stage, `model/`,
        `semantics.safetensors`, `metrics.json`, `report.png`.
    """
    config = config.resolved(dataset.num_users, dataset.num_items)
    if config.train.tensorboard:
        reporter = TensorBoard(folder / "tensorboard", reporter or Silent())
    open_run(folder, config, dataset, resume=resume, overwrite=overwrite)
    start = time.perf_counter()
    solid = SOLID(config).fit(dataset, baseline=baseline, folder=folder, reporter=reporter)
    seconds = {"train": time.perf_counter() - start}
    start = time.perf_counter()
    training = solid.training
    popularity = Popularity.of_split(dataset, training.split)
    models: dict[str, Metrics] = {"popularity": solid.evaluate_scorer(popularity)}
    if training.static is not None:
        models["static"] = solid.evaluate_scorer(training.static)
    models["SOLID"] = solid.evaluate()
    seconds["evaluate"] = time.perf_counter() - start
    usage = solid.code_usage()
    metrics = {
        "dataset": {
            "name": dataset.name,
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.num_interactions,
        },
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
                f"valid_{config.train.monitor}": stage.best.valid,
                "seconds": sum(epoch.seconds for epoch in stage.history),
            }
            for stage in training.stages
        ],
        "codes_used": None if usage is None else int((usage > 0).sum()),
        "seconds": seconds,
    }
    solid.save(folder / "model", overwrite=True)
    training.semantics.save(folder / "semantics.safetensors")
    history = [epoch.row() for stage in training.stages for epoch in stage.history]
    monitor = f"{config.train.validation} {config.train.monitor}"
    if config.train.validation == "full" and stage1_config(config) is not None:
        monitor += " (stage 1: sampled)"
    draw_report(folder / "report.png", history, usage, models, monitor=monitor)
    write_json(folder / "metrics.json", metrics)
    return Run(folder, solid, metrics)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


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
