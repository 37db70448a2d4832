"""One stage of training: minimise a loss until the validation metric stops improving."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solid_ext import distributed
from solid_ext._native import arithmetic
from solid_ext.config import TrainConfig
from solid_ext.data import Dataset, NegativeSampler, Rows, Split, gather_sequences
from solid_ext.distributed import Share
from solid_ext.models import DynamicRecommender, SASRecSoftmax, SemanticRecommender
from solid_ext.nn import Codebook
from solid_ext.train.ahead import one_ahead
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
from solid_ext.train.isolation import isolated, seed_generators
from solid_ext.train.progress import Epoch, Reporter, Silent, check_reporter, write_log
from solid_ext.train.step import Step, make_optimizer

Trainable = DynamicRecommender | SemanticRecommender | SASRecSoftmax
Validate = Callable[[Trainable], float]

GUESSES = 10  # times the loss of guessing at which a training has diverged: an untrained model is at about 1
LARGE_ALIGNMENT = 1000.0  # both losses are of the size of one: the prediction then counts for next to nothing
MAY_GROW = ("epochs", "patience")
MAY_DIFFER = ("threads", "tensorboard")
"""Fields that a resumed stage may set otherwise: to more, or to anything."""


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


@isolated()
def train_stage(
    name: str,
    model: Trainable,
    dataset: Dataset,
    split: Split,
    config: TrainConfig,
    validate: Validate | None,
    *,
    fields: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    followed_by: Sequence[Path] = (),
    reporter: Reporter | None = None,
) -> Stage:
    """Train to convergence and leave the model at its best epoch, in eval mode.

    `loss = prediction + lambda * L_align` by Adam over shuffled training rows; each epoch redraws the order and the
    negatives from (seed, stage, epoch) alone, so that a stage resumed after epoch n goes on exactly as if it had
    never stopped. Stages of several threads follow one another, for they share torch's generators. Several processes
    (`solid_ext.distributed`) divide each batch, and have the same model at every step; one of them writes.

    Args:
        validate: the monitored metric of a model, larger is better; None trains for `config.epochs` epochs and leaves
            the model at the last one.
        fields: of the configuration, by name: all that the stage depends on; those of `config` where none are given.
        folder: where `best.safetensors`, `last.safetensors` and `log.csv` go; a folder that holds them is resumed.
        followed_by: folders of stages that start from this one's best epoch, deleted when there is a better one.

    Raises:
        ValueError: a folder of another stage, dataset or configuration (epochs and patience may have grown).
        FloatingPointError: a loss or weights that are not finite, or a loss ten times that of guessing.

    Source: paper, Algorithm 1, Eq. 12 and 13.
    """
    check_reporter("train_stage", reporter)
    reporter = (reporter if distributed.is_writer() else None) or Silent()
    stage = Stage(name)
    optimizer = make_optimizer(model, config)
    best = _copy(model)
    origin = {
        "stage": name,
        "dataset": dataset.fingerprint,
        "config": dict(fields or asdict(config)),
        "inputs": _inputs(model),
        "arithmetic": arithmetic(),
    }
    if folder is not None and (folder / "last.safetensors").exists():
        stage, best = _resume(folder, origin, config, model, optimizer)
    distributed.expect_same(name, {**origin, "epochs": [[epoch.loss, epoch.valid] for epoch in stage.history]})
    step = Step(model, optimizer, config)
    own = config.loss != "full_softmax" and not config.shared_negatives
    sampler = NegativeSampler(dataset, split.train_end) if own else None
    steps = -(-len(split.train.positions) // config.batch_size)
    reporter.begin(name, steps, config.epochs)
    while not stage.converged(config):
        number = len(stage.history) + 1
        start = time.perf_counter()
        loss, alignment = _train_epoch(model, step, dataset, split.train, sampler, config, name, number, reporter)
        optimizer.flush()
        _check_progress(name, number, loss, alignment, model, config)
        loss += config.stage2.alignment * alignment
        valid = None if validate is None else validate(model)
        stage.history.append(Epoch(name, number, loss, alignment, valid, time.perf_counter() - start))
        improved = stage.best.epoch == number
        if improved:
            best = _copy(model)
        if folder is not None and distributed.is_writer():
            for later in followed_by if improved else ():
                shutil.rmtree(later, ignore_errors=True)
            _save(folder, stage, origin, model, optimizer, best if improved else None)
        distributed.expect_same_weights(f"{name}, after epoch {number}", model)
        reporter.epoch(stage.history[-1], stage.best)
    optimizer.close()
    model.load_state_dict(best)
    model.eval()
    reporter.end(name, stage.best)
    return stage


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


def _check_progress(
    name: str, epoch: int, prediction: float, alignment: float, model: Trainable, config: TrainConfig
) -> None:
    """Refuse to go on from what no training ends at: NaN, infinity, and ten times the loss of guessing."""
    advice = f"in epoch {epoch}; {_advice(config)} may help"
    for loss in (prediction, config.stage2.alignment * alignment):
        if not np.isfinite(loss):
            raise FloatingPointError(f"{name}: expected a finite loss, got {loss} {advice}")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise FloatingPointError(f"{name}: expected finite weights, got NaN or infinity {advice}")
    if config.loss == "bce":
        guess = math.log(2)
    else:
        whole = config.loss in ("full_softmax", "sampled_softmax_log_q")
        guess = math.log(max(model.num_items if whole else 1 + config.negatives, 2))
    if prediction > GUESSES * guess:
        raise FloatingPointError(
            f"{name}: expected a loss of at most {GUESSES} times that of guessing, {guess:.3g}, got {prediction:.3g} "
            f"{advice}"
        )


def _advice(config: TrainConfig) -> str:
    """What of the configuration is larger than any training wants it, else the learning rate."""
    large = []
    if config.learning_rate * config.weight_decay >= 1:  # a step takes this share of every weight
        large.append(f"a weight_decay below {1 / config.learning_rate:g} (it is {config.weight_decay:g})")
    if config.stage2.alignment > LARGE_ALIGNMENT:
        large.append(f"an alignment below {LARGE_ALIGNMENT:g} (it is {config.stage2.alignment:g})")
    return " and ".join(large or [f"a learning_rate below {config.learning_rate:g}"])


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
    """One pass over the rows in a fresh order; the mean prediction loss and the mean alignment."""
    rng = np.random.default_rng([config.seed, epoch, *stage.encode()])
    seed_generators(int(rng.integers(2**62)), model.device)
    order = rng.permutation(len(rows.positions))
    model.train()
    # Sums stay on the model's device: reading a loss in every step would wait for it.
    losses = torch.zeros((), dtype=torch.float64, device=model.device)
    alignments = torch.zeros((), dtype=torch.float64, device=model.device)
    uses = _uses_of_codes(model)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, int, Share | None]]:
        for first in range(0, len(order), config.batch_size):
            batch = rows.take(order[first : first + config.batch_size])
            size = len(batch)
            candidates = dataset.items[batch.positions].astype(np.int64)
            if sampler is not None:
                negatives = sampler.sample(batch.users, config.negatives, rng)
                candidates = np.concatenate([candidates[:, None], negatives], axis=1)
            elif shared := config.shared_negatives:
                candidates = np.concatenate([candidates, rng.integers(1, dataset.num_items + 1, shared)])
            share = distributed.share_of(np.minimum(batch.positions - dataset.offsets[batch.users], model.length))
            if share is not None:  # all of them draw all negatives, each keeps those of its own rows
                batch, common = batch.take(share.rows), candidates[size:]
                candidates = candidates[:size][share.rows]
                candidates = np.concatenate([candidates, common]) if len(common) else candidates
            yield gather_sequences(dataset, batch, model.length), candidates, size, share

    # On the CPU a second thread would only take its time from the step.
    given = batches() if model.device.type == "cpu" else one_ahead(batches())
    for sequences, candidates, size, share in given:
        loss, alignment = step(_on(model.device, sequences), _on(model.device, candidates), share)
        losses += loss * size
        alignments += alignment * size
        reporter.step()
    for counts, before in uses:
        counts.copy_(before + distributed.summed(counts - before))
    sums = distributed.summed(torch.stack([losses, alignments]))
    return float(sums[0]) / len(order), float(sums[1]) / len(order)


def _uses_of_codes(model: Trainable) -> list[tuple[Tensor, Tensor]]:
    """How often each entry of the model's codebooks was chosen: the counts as they grow, and as they are now."""
    if distributed.count() == 1:
        return []
    counts = [module.usage for module in model.modules() if isinstance(module, Codebook)]
    return [(of_codes, of_codes.clone()) for of_codes in counts]


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """The array on the device; to CUDA from pinned memory, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _copy(model: Trainable) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _inputs(model: Trainable) -> dict[str, str]:
    """A checksum of what a stage is given besides interactions and configuration: semantics, features."""
    return {
        name: hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        for name, tensor in model.state_dict().items()
        if name.split(".")[-1] in ("semantics", "features")
    }


def _save(
    folder: Path,
    stage: Stage,
    origin: Mapping[str, Any],
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor] | None,
) -> None:
    """The best model first, then the last: a run that ends between the two repeats one epoch, to the same end."""
    state = {**origin, "history": [epoch.row() for epoch in stage.history]}
    if best is not None:
        save_checkpoint(folder / "best.safetensors", best, state)
    last = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(folder / "last.safetensors", {**last, **optimizer_tensors(optimizer)}, state)
    write_log(folder / "log.csv", stage.history)


def _resume(
    folder: Path, origin: Mapping[str, Any], config: TrainConfig, model: Trainable, optimizer: torch.optim.Optimizer
) -> tuple[Stage, dict[str, Tensor]]:
    """The stage that a folder holds, the model and the optimizer as they were, and the best model's tensors."""
    try:
        tensors, state = load_checkpoint(folder / "last.safetensors")
        best, of_best = load_checkpoint(folder / "best.safetensors")
    except ValueError as error:
        raise ValueError(f"resume: {error}; delete {folder}, and this stage is trained again") from error
    for saved in (state, of_best):
        _check_origin(folder, saved, origin)
    prefix = "model."
    own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    load_model(model, own, folder / "last.safetensors")
    check_fit(model.state_dict(), best, folder / "best.safetensors")
    try:
        load_optimizer(optimizer, tensors)
        check_moments(optimizer)
        stage = Stage(origin["stage"], [Epoch(**row) for row in state["history"]])
        found = Stage(origin["stage"], [Epoch(**row) for row in of_best["history"]])
        # A kill between the two leaves a best model that is one epoch ahead, which is trained again.
        ahead = len(found.history) == len(stage.history) + 1
        fits = stage.best == found.best or (ahead and found.history[:-1] == stage.history)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"resume: expected the state of a training in {folder}, got {error}") from error
    if not fits:
        raise ValueError(f"resume: expected best.safetensors of the same training in {folder}, got another one's")
    before, now = state["arithmetic"], origin["arithmetic"]
    if before != now and not stage.converged(config):
        warnings.warn(
            f"resume: {folder} was trained with {_words(before)} and goes on with {_words(now)}: the last bits will "
            "differ from those of a training without a stop",
            stacklevel=3,
        )
    return stage, best


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
