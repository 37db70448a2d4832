"""One stage of training: minimise a loss until the validation metric stops improving."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solid_ext import distributed
from solid_ext.config import TrainConfig
from solid_ext.data import Dataset, NegativeSampler, Rows, Split, gather_sequences
from solid_ext.distributed import Share
from solid_ext.nn import Codebook
from solid_ext.train.ahead import OneAhead
from solid_ext.train.gradients import NotFinite
from solid_ext.train.isolation import generator_states, isolated, seed_generators, set_generators
from solid_ext.train.progress import (
    Epoch,
    Reporter,
    Silent,
    StopTraining,
    check_reporter,
    tell_loss,
    together,
)
from solid_ext.train.stage_folder import (
    FAULT,
    Stage,
    Trainable,
    Within,
    copy_of,
    is_begun,
    origin_of,
    resume_stage,
    save_fault,
    save_stage,
)
from solid_ext.train.step import Step, make_optimizer

Validate = Callable[[Trainable], float]

GUESSES = 10  # times the loss of guessing at which a training has diverged: an untrained model is at about 1
LARGE_ALIGNMENT = 1000.0  # both losses are of the size of one: the prediction then counts for next to nothing


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
    negatives from (seed, stage, epoch) alone, so that a stage resumed after epoch n, or inside an epoch that its
    reporter stopped, goes on exactly as if it had never stopped. Stages of several threads follow one another, for
    they share torch's generators. Several processes (`solid_ext.distributed`) divide each batch, and have the same
    model at every step; one of them writes.

    Args:
        validate: the monitored metric of a model, larger is better; None trains for `config.epochs` epochs and leaves
            the model at the last one.
        fields: of the configuration, by name: all that the stage depends on; those of `config` where none are given.
        folder: where checkpoints and `log.csv` go (see `stage_folder`); a folder that holds them is resumed.
        followed_by: folders of stages that start from this one's best epoch, deleted when there is a better one.

    Raises:
        ValueError: a folder of another stage, dataset or configuration (epochs and patience may have grown).
        FloatingPointError: a loss or weights that are not finite, or a loss ten times that of guessing.
        StopTraining: as the reporter raised it, after the step that it was told of, which the folder then holds.

    Source: paper, Algorithm 1, Eq. 12 and 13.
    """
    check_reporter("train_stage", reporter)
    reporter = together(reporter or Silent())
    stage = Stage(name)
    optimizer = make_optimizer(model, config)
    best, within = copy_of(model), None
    origin = origin_of(name, dataset.fingerprint, fields or asdict(config), model)
    if folder is not None and is_begun(folder):
        stage, best, within = resume_stage(folder, origin, config, model, optimizer)
    distributed.expect_same(name, {**origin, "epochs": [[epoch.loss, epoch.valid] for epoch in stage.history]})
    if folder is not None and distributed.is_writer():
        (folder / FAULT).unlink(missing_ok=True)  # of a training that was ended there, and goes on
    step = Step(model, optimizer, config)
    own = config.loss != "full_softmax" and not config.shared_negatives
    sampler = NegativeSampler(dataset, split.train_end) if own else None
    steps = -(-len(split.train.positions) // config.batch_size)
    reporter.begin(name, steps, config.epochs)
    while not stage.converged(config):
        number = len(stage.history) + 1
        start = time.perf_counter()
        try:
            loss, alignment, waited = _train_epoch(
                model, step, dataset, split.train, sampler, config, name, number, reporter, within
            )
        except _StoppedWithin as stop:
            if folder is not None and distributed.is_writer():
                save_stage(folder, stage, origin, model, optimizer, best, stop.within)
            raise stop.cause from None
        except _FaultyStep as fault:
            raise _told(fault, folder, name, number, model, config, origin["config"]) from None
        within = None
        optimizer.flush()
        _check_progress(name, number, loss, alignment, model, config)
        loss += config.stage2.alignment * alignment
        valid = None if validate is None else validate(model)
        stage.history.append(Epoch(name, number, loss, alignment, valid, time.perf_counter() - start, waited))
        improved = stage.best.epoch == number
        if improved:
            best = copy_of(model)
        if folder is not None and distributed.is_writer():
            for later in followed_by if improved else ():
                shutil.rmtree(later, ignore_errors=True)
            save_stage(folder, stage, origin, model, optimizer, best)
        distributed.expect_same_weights(f"{name}, after epoch {number}", model)
        reporter.epoch(stage.history[-1], stage.best)
    optimizer.close()
    model.load_state_dict(best)
    model.eval()
    reporter.end(name, stage.best)
    return stage


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


class _StoppedWithin(Exception):
    """An epoch that a reporter has stopped, and how far it had come."""

    def __init__(self, cause: StopTraining, within: Within) -> None:
        super().__init__()
        self.cause, self.within = cause, within


class _FaultyStep(Exception):
    """A step that was not finite, with what it was computed from besides the weights."""

    def __init__(
        self, found: NotFinite, step: int, batch: tuple[Tensor, Tensor], generators: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.found, self.step, self.batch, self.generators = found, step, batch, generators


def _told(
    fault: _FaultyStep,
    folder: Path | None,
    stage: str,
    epoch: int,
    model: Trainable,
    config: TrainConfig,
    fields: Mapping[str, Any],
) -> FloatingPointError:
    """What is said of a step that was not finite, once it is kept where the stage has a folder."""
    sentence = f"{stage}: expected {fault.found} in epoch {epoch}; {_advice(config)} may help"
    if folder is None or not distributed.is_writer():
        return FloatingPointError(f"{sentence} (step {fault.step})")
    described = {"stage": stage, "epoch": epoch, "step": fault.step, "said": str(fault.found), "config": fields}
    save_fault(folder / FAULT, model, fault.batch, fault.generators, described)
    return FloatingPointError(f"{sentence} (step {fault.step}, which `solid-ext replay` computes again, is kept)")


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
    within: Within | None = None,
) -> tuple[float, float, float]:
    """One pass over the rows in a fresh order: mean prediction loss, mean alignment, seconds of waiting for batches.

    Of a pass that was stopped `within`, the batches that are done are drawn again and passed over.
    """
    rng = np.random.default_rng([config.seed, epoch, *stage.encode()])
    seed_generators(int(rng.integers(2**62)), model.device)
    order = rng.permutation(len(rows.positions))
    model.train()
    # Sums stay on the model's device: reading a loss in every step would wait for it.
    done, *summed = (0, 0.0, 0.0) if within is None else within[:3]
    sums = torch.tensor(summed, dtype=torch.float64, device=model.device) * distributed.is_writer()
    uses = _uses_of_codes(model)
    if within is not None:
        set_generators(within.generators, model.device)

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
            if share is not None:  # all processes draw all negatives; each keeps those of its rows, and shared ones
                batch, common = batch.take(share.rows), candidates[size:]
                candidates = np.concatenate([candidates[:size][share.rows], common])
            yield gather_sequences(dataset, batch, model.length), candidates, size, share

    given = OneAhead(batches())
    for number, (sequences, candidates, size, share) in enumerate(given, 1):
        if number <= done:
            continue
        batch = _on(model.device, sequences), _on(model.device, candidates)
        before = generator_states(model.device) if model.device.type == "cpu" else {}
        try:
            loss, alignment = step(*batch, share)
        except NotFinite as found:
            raise _FaultyStep(found, number, batch, before) from None
        sums[0] += loss * size
        sums[1] += alignment * size
        tell_loss(reporter, loss)
        try:
            reporter.step()
        except StopTraining as cause:
            raise _StoppedWithin(cause, Within(number, *_of_all(sums, uses), generator_states(model.device))) from None
    losses, alignments = _of_all(sums, uses)
    return losses / len(order), alignments / len(order), given.waited


def _uses_of_codes(model: Trainable) -> list[tuple[Tensor, Tensor]]:
    """How often each entry of the model's codebooks was chosen: the counts as they grow, and as they are now."""
    counts = [module.usage for module in model.modules() if isinstance(module, Codebook)]
    return [(of_codes, of_codes.clone()) for of_codes in counts]


def _of_all(sums: Tensor, uses: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The sums of all processes, whose uses of codes every model then counts."""
    for counts, before in uses:
        counts.copy_(before + distributed.summed(counts - before))
    loss, alignment = distributed.summed(sums).tolist()
    return loss, alignment


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """The array on the device; to CUDA from pinned memory, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
