"""What a stage keeps on the disk, so that it goes on where it stopped: two checkpoints, its best model and its log."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from solid_ext._native import arithmetic
from solid_ext.config import TrainConfig
from solid_ext.models import DynamicRecommender, SASRecSoftmax, SemanticRecommender
from solid_ext.train.checkpoint import (
    check_fit,
    check_moments,
    load_checkpoint,
    load_model,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
    tensor_bytes,
)
from solid_ext.train.progress import Epoch, write_log
from solid_ext.train.row_adam import RowAdam

MAY_GROW = ("epochs", "patience")
MAY_DIFFER = ("threads", "tensorboard")
"""Fields that a resumed stage may set otherwise: to more, or to anything."""


LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
FAULT = "fault.safetensors"  # a step that was not finite
Trainable = DynamicRecommender | SemanticRecommender | SASRecSoftmax


class Within(NamedTuple):
    """How far an epoch has come that was stopped inside.

    Attributes:
        steps: that are done.
        loss: sum over their rows, as `alignment`.
        generators: torch's, after them: `cpu`, and `device` on another device.
    """

    steps: int
    loss: float
    alignment: float
    generators: dict[str, Tensor]


@dataclass
class Stage:
    """A stage's name, its log, and whether it has ended."""

    name: str
    history: list[Epoch] = field(default_factory=list)

    @property
    def best(self) -> Epoch:
        """The epoch of the best validation, the first of equal ones; the last epoch where nothing is validated."""
        if not self.history:
            raise ValueError(f"{self.name}: expected an epoch, got none")
        validated = [(epoch.valid, -epoch.epoch, epoch) for epoch in self.history if epoch.valid is not None]
        return max(validated)[2] if validated else self.history[-1]

    def converged(self, config: TrainConfig) -> bool:
        """No better epoch for `patience` epochs, or `epochs` reached."""
        if not self.history:
            return False
        last = self.history[-1].epoch
        return last >= config.epochs or last - self.best.epoch >= config.patience


def check_version(folder: Path, saved: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a configuration that has other fields than this version's.

    Raises:
        ValueError: with the first field that only one of them has.
    """
    if saved.keys() != known.keys():
        name = min(saved.keys() ^ known.keys())
        whose = f"another version's, which has {'a' if name in saved else 'no'} field {name}"
        raise ValueError(f"resume: expected a run of this version in {folder}, got {whose} (train it again)")


def check_resumed(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse fields of the configuration that are not those of what is in the folder.

    Raises:
        ValueError: the first field that differs, or has shrunk where it may grow; fields of another version.
    """
    check_version(folder, saved, asked)
    for name in sorted(saved):
        before, now = saved[name], asked[name]
        if name in MAY_DIFFER or before == now:
            continue
        if name not in MAY_GROW or not isinstance(before, int) or not isinstance(now, int):
            raise ValueError(f"resume: expected {name}={before} as in {folder}, got {now}")
        if now < before:
            raise ValueError(f"resume: expected {name} of at least {before} as in {folder}, got {now}")


def _inputs(model: Trainable) -> dict[str, str]:
    """A checksum of what a stage is given besides interactions and configuration: semantics, features."""
    return {
        name: hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        for name, tensor in model.state_dict().items()
        if name.split(".")[-1] in ("semantics", "features")
    }


def origin_of(stage: str, fingerprint: str, fields: Mapping[str, Any], model: Trainable) -> dict[str, Any]:
    """What a checkpoint says of where it comes from, which whoever resumes it has to share."""
    return {
        "stage": stage,
        "dataset": fingerprint,
        "config": dict(fields),
        "inputs": _inputs(model),
        "arithmetic": arithmetic(),
    }


def is_begun(folder: Path) -> bool:
    """Whether the folder holds a stage that can go on: a checkpoint, or the one before it."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def save_stage(
    folder: Path,
    stage: Stage,
    origin: Mapping[str, Any],
    model: Trainable,
    optimizer: RowAdam,
    best: dict[str, Tensor],
    within: Within | None = None,
) -> None:
    """Write the best model if it is new, the checkpoint, and the log; the checkpoint before is kept.

    The checkpoint needs no other file: it has the best model too, where that is another one. A run that ends between
    the best model and the checkpoint repeats one epoch, to the same end.

    Args:
        within: how far the epoch after the last of the log has come; None between two epochs.

    Raises:
        ValueError: it cannot be written; what was there before is whole.
    """
    state: dict[str, Any] = {**origin, "history": [epoch.row() for epoch in stage.history]}
    newest = within is None and stage.best.epoch == len(stage.history)
    if newest:
        save_checkpoint(folder / BEST, best, state)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= optimizer_tensors(optimizer)
    if stage.history and not newest:
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    if within is not None:
        state["within"] = {"steps": within.steps, "loss": within.loss, "alignment": within.alignment}
        tensors |= {f"within.generator.{name}": tensor for name, tensor in within.generators.items()}
        tensors |= {f"within.rows.{name}": tensor for name, tensor in optimizer.behind().items()}
    save_checkpoint(folder / LAST, tensors, state, keep=folder / PREVIOUS)
    write_log(folder / "log.csv", stage.history)


def resume_stage(
    folder: Path, origin: Mapping[str, Any], config: TrainConfig, model: Trainable, optimizer: RowAdam
) -> tuple[Stage, dict[str, Tensor], Within | None]:
    """The stage that a folder holds, the best model's tensors, and how far an epoch has come that was stopped inside.

    Model and optimizer are filled. Where the newest checkpoint is damaged, the one before it is taken, with a warning;
    a best model that is damaged is written again.

    Raises:
        ValueError: none that is whole; a checkpoint of another stage, dataset or configuration.
    """
    path, tensors, state = _newest(folder)
    _check_origin(folder, state, origin)
    load_model(model, _under("model.", tensors), path)
    try:
        load_optimizer(optimizer, tensors)
        stage = Stage(origin["stage"], [Epoch(**row) for row in state["history"]])
        within = None if "within" not in state else _within(state["within"], tensors)
        if within is not None:
            optimizer.restore(_under("within.rows.", tensors))
        check_moments(optimizer)
        # Not the file's own pages, which whoever damages the file later would change.
        best = {name: tensor.clone() for name, tensor in _under("best.", tensors).items()} or copy_of(model)
        apart = bool(stage.history) and (within is not None or stage.best.epoch != len(stage.history))
        if apart != any(name.startswith("best.") for name in tensors):
            raise ValueError("a best model of another epoch")
        if within is None and not stage.history:
            raise ValueError("none of its epochs")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"resume: expected the state of a training in {folder}, got {error}") from error
    check_fit(model.state_dict(), best, path)
    if stage.history:
        _check_best(folder, stage, origin, best)
    before, now = state["arithmetic"], origin["arithmetic"]
    if before != now and not stage.converged(config):
        warnings.warn(
            f"resume: {folder} was trained with {_words(before)} and goes on with {_words(now)}: the last bits will "
            "differ from those of a training without a stop",
            stacklevel=3,
        )
    return stage, best, within


def save_fault(
    path: Path,
    model: Trainable,
    batch: tuple[Tensor, Tensor],
    generators: Mapping[str, Tensor],
    described: Mapping[str, Any],
) -> None:
    """Write a step's model, batch and generator states, all of before the step, and what is known of it."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"generator.{name}": tensor for name, tensor in generators.items()}
    tensors |= {"sequences": batch[0], "candidates": batch[1]}
    kind = {"kind": type(model).__name__, "num_items": model.num_items}
    save_checkpoint(path, tensors, {**described, **kind})


def copy_of(model: Trainable) -> dict[str, Tensor]:
    """The model's tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _newest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint that is whole; a damaged one goes, lest it be kept as the one before the next."""
    try:
        return (folder / LAST, *load_checkpoint(folder / LAST))
    except ValueError as error:
        damaged = error
    try:
        found = (folder / PREVIOUS, *load_checkpoint(folder / PREVIOUS))
    except ValueError as error:
        other = f"; {error}" if (folder / PREVIOUS).exists() else ""
        raise ValueError(f"resume: {damaged}{other}; delete {folder}, and this stage is trained again") from error
    (folder / LAST).unlink(missing_ok=True)
    warnings.warn(f"resume: {damaged}; the training goes on from the one before it, {found[0]}", stacklevel=4)
    return found


def _check_best(folder: Path, stage: Stage, origin: Mapping[str, Any], best: dict[str, Tensor]) -> None:
    """Refuse a best model of another training; one that is damaged is written again."""
    try:
        _, state = load_checkpoint(folder / BEST)
    except ValueError as error:
        warnings.warn(f"resume: {error}; it is written again from the checkpoint beside it", stacklevel=4)
        until = stage.history[: stage.best.epoch]
        save_checkpoint(folder / BEST, best, {**origin, "history": [epoch.row() for epoch in until]})
        return
    _check_origin(folder, state, origin)
    try:
        found = Stage(stage.name, [Epoch(**row) for row in state["history"]])
        # A kill between the two, or a checkpoint that was damaged, leaves a best model that is ahead.
        ahead = len(found.history) > len(stage.history) and found.history[: len(stage.history)] == stage.history
        fits = ahead or found.best == stage.best
    except (TypeError, ValueError) as error:
        raise ValueError(f"resume: expected the state of a training in {folder}, got {error}") from error
    if not fits:
        raise ValueError(f"resume: expected {BEST} of the same training in {folder}, got another one's")


def _within(saved: Any, tensors: Mapping[str, Tensor]) -> Within:
    steps, loss, alignment = (saved[name] for name in ("steps", "loss", "alignment"))
    if type(steps) is not int or steps < 1 or type(loss) is not float or type(alignment) is not float:
        raise ValueError(f"an epoch that stopped after {steps!r:.80} steps")
    return Within(steps, loss, alignment, _under("within.generator.", tensors))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_origin(folder: Path, saved: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another stage, dataset, configuration or semantics."""
    for name, own in {**origin, "history": []}.items():
        if type(saved.get(name)) is not type(own):
            raise ValueError(f"resume: expected the checkpoint of a stage in {folder}, got one without its {name}")
    if saved["stage"] != origin["stage"]:
        raise ValueError(f"resume: expected stage {origin['stage']} in {folder}, got {saved['stage']}")
    if saved["dataset"] != origin["dataset"]:
        raise ValueError(
            f"resume: expected the dataset of {folder} ({saved['dataset'][:12]}), got {origin['dataset'][:12]}"
        )
    check_resumed(folder, saved["config"], origin["config"])
    same = saved["arithmetic"] == origin["arithmetic"]
    for name, checksum in origin["inputs"].items():
        what = name.split(".")[-1]  # features are sums, whose last bits another arithmetic gives otherwise
        if saved["inputs"].get(name) != checksum and (same or what == "semantics"):
            raise ValueError(
                f"resume: expected the items' {what} of {folder}, got others (another file of features, or made by "
                "other versions, threads or instruction sets)"
            )


def _words(arithmetic: Mapping[str, Any]) -> str:
    return f"{arithmetic['threads']} threads and {arithmetic['isa']}"
