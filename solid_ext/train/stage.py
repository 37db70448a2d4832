"""One stage of training: minimise a loss until the validation metric stops improving."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solid_ext.config import TrainConfig
from solid_ext.data import Dataset, NegativeSampler, Rows, Split, gather_sequences
from solid_ext.models import DynamicRecommender, SASRecSoftmax, SemanticRecommender
from solid_ext.train.checkpoint import (
    load_checkpoint,
    load_model,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from solid_ext.train.progress import Epoch, Reporter, Silent, write_log
from solid_ext.train.step import Step, make_optimizer

Trainable = DynamicRecommender | SemanticRecommender | SASRecSoftmax
Validate = Callable[[Trainable], float]


@dataclass
class Stage:
    """A stage's name, its log, and whether it has ended."""

    name: str
    history: list[Epoch] = field(default_factory=list)

    @property
    def best(self) -> Epoch:
        return max(self.history, key=lambda epoch: (epoch.valid, -epoch.epoch))

    def converged(self, config: TrainConfig) -> bool:
        """No better epoch for `patience` epochs, or `epochs` reached."""
        if not self.history:
            return False
        last = self.history[-1].epoch
        return last >= config.epochs or last - self.best.epoch >= config.patience


def train_stage(
    name: str,
    model: Trainable,
    dataset: Dataset,
    split: Split,
    config: TrainConfig,
    validate: Validate,
    *,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> Stage:
    """Train to convergence and leave the model at its best epoch.

    `loss = prediction + lambda * L_align` by Adam over shuffled training rows; each epoch redraws the order and the
    negatives from (seed, stage, epoch) alone, so that a stage resumed after epoch n goes on exactly as if it had
    never stopped.

    Args:
        validate: the monitored metric of a model, larger is better.
        folder: where `best.safetensors`, `last.safetensors` and `log.csv` go; a folder that holds them is resumed.

    Source: paper, Algorithm 1, Eq. 12 and 13.
    """
    reporter = reporter or Silent()
    stage = Stage(name)
    optimizer = make_optimizer(model, config)
    best = _copy(model)
    if folder is not None and (folder / "last.safetensors").exists():
        stage, best = _resume(folder, name, model, optimizer)
    step = Step(model, optimizer, config)
    sampler = NegativeSampler(dataset, split.train_end) if config.loss != "full_softmax" else None
    steps = -(-len(split.train.positions) // config.batch_size)
    reporter.begin(name, steps, config.epochs)
    while not stage.converged(config):
        number = len(stage.history) + 1
        start = time.perf_counter()
        loss, alignment = _train_epoch(model, step, dataset, split.train, sampler, config, name, number, reporter)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"{name}: expected a finite loss, got {loss} in epoch {number}; a lower learning_rate may help"
            )
        valid = validate(model)
        stage.history.append(Epoch(name, number, loss, alignment, valid, time.perf_counter() - start))
        improved = stage.best.epoch == number
        if improved:
            best = _copy(model)
        if folder is not None:
            _save(folder, stage, model, optimizer, best if improved else None)
        reporter.epoch(stage.history[-1], stage.best)
    model.load_state_dict(best)
    reporter.end(name, stage.best)
    return stage


def _train_epoch(
    model: Trainable,
    step: Step,
    dataset: Dataset,
    rows: Rows,
    sampler: NegativeSampler | None,
    config: TrainConfig,
    stage: str,
    epoch: int,
    reporter: Reporter,
) -> tuple[float, float]:
    """One pass over the rows in a fresh order; the mean loss and the mean alignment."""
    rng = np.random.default_rng([config.seed, epoch, *stage.encode()])
    torch.manual_seed(int(rng.integers(2**62)))
    order = rng.permutation(len(rows.positions))
    model.train()
    # Sums stay on the model's device: reading a loss in every step would wait for it.
    losses = torch.zeros((), dtype=torch.float64, device=model.device)
    alignments = torch.zeros((), dtype=torch.float64, device=model.device)
    for first in range(0, len(order), config.batch_size):
        batch = rows.take(order[first : first + config.batch_size])
        sequences = _on(model.device, gather_sequences(dataset, batch, model.length))
        candidates = dataset.items[batch.positions].astype(np.int64)
        if sampler is not None:
            negatives = sampler.sample(batch.users, config.negatives, rng)
            candidates = np.concatenate([candidates[:, None], negatives], axis=1)
        loss, alignment = step(sequences, _on(model.device, candidates))
        losses += loss * len(batch.positions)
        alignments += alignment * len(batch.positions)
        reporter.step()
    return float(losses) / len(order), float(alignments) / len(order)


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """The array on the device; to CUDA from pinned memory, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _copy(model: Trainable) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _save(
    folder: Path,
    stage: Stage,
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor] | None,
) -> None:
    """The best model first, then the last: a run that ends between the two repeats one epoch, to the same end."""
    state: dict[str, Any] = {"stage": stage.name, "history": [epoch.row() for epoch in stage.history]}
    if best is not None:
        save_checkpoint(folder / "best.safetensors", best, state)
    last = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(folder / "last.safetensors", {**last, **optimizer_tensors(optimizer)}, state)
    write_log(folder / "log.csv", stage.history)


def _resume(
    folder: Path, name: str, model: Trainable, optimizer: torch.optim.Optimizer
) -> tuple[Stage, dict[str, Tensor]]:
    tensors, state = load_checkpoint(folder / "last.safetensors")
    if state["stage"] != name:
        raise ValueError(f"resume: expected stage {name} in {folder}, got {state['stage']}")
    prefix = "model."
    own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    load_model(model, own, folder / "last.safetensors")
    load_optimizer(optimizer, tensors)
    best, _ = load_checkpoint(folder / "best.safetensors")
    return Stage(name, [Epoch(**row) for row in state["history"]]), best
