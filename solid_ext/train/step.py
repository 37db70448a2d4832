"""One optimisation step on any device, on CUDA optionally recorded once and replayed."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from solid_ext import distributed
from solid_ext.config import TrainConfig
from solid_ext.distributed import Share
from solid_ext.nn.dropout import rows_behind
from solid_ext.train.gradients import check_and_clip, sum_gradients
from solid_ext.train.losses import binary_cross_entropy, full_softmax, sampled_softmax
from solid_ext.train.precision import tf32_products
from solid_ext.train.row_adam import LARGE_TABLE, RowAdam

WARM_UP = 3  # steps before a recording: allocations and the optimizer's state are made in them


def make_optimizer(model: nn.Module, config: TrainConfig) -> RowAdam:
    """Adam with decoupled weight decay, its update fused into one pass over each parameter.

    A loss that reads the catalogue by samples has large tables updated by rows (`RowAdam`): those of more rows than
    that, and of more than twice what a batch's own negatives read.
    """
    by_rows = config.loss != "full_softmax" and not config.records_steps
    own = 0 if config.shared_negatives > 0 else 2 * config.batch_size * config.negatives
    return RowAdam(
        model,
        max(LARGE_TABLE, own) if by_rows else sys.maxsize,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
        capturable=config.records_steps,
    )


class Step:
    """`loss = prediction + lambda * L_align`, its gradient and Adam's update, for one batch.

    A call takes sequences [B, L] and candidates int64 on the model's device: [B, 1 + n], the positive first, or [B],
    the positives alone, for a softmax over the catalogue, or [B + n], the positives and then negatives that all rows
    share. It returns the prediction loss and L_align, detached, and waits for nothing.

    With `amp` the loss is computed under autocast in bfloat16; generators, parameters and Adam stay in float32. With
    `tf32` float32 products on a GPU are rounded inside. With `cuda_graph`, on a GPU, the steps of the first full shape
    are recorded after a warm-up and replayed from then on; a batch of another shape is computed as ever, and so is
    every one, with a warning, where the recording fails.

    Where several processes train, sequences and candidates are of the rows of the batch that are this one's, `share`
    says how much of it they are, the gradient is the sum of all of theirs, and nothing is recorded. What is returned is
    then what this process adds to the batch's losses.
    """

    def __init__(self, model: Any, optimizer: RowAdam, config: TrainConfig) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._calls = 0
        self._records = config.records_steps and distributed.count() == 1

    def __call__(self, sequences: Tensor, candidates: Tensor, share: Share | None = None) -> tuple[Tensor, Tensor]:
        if share is not None:
            return self._together(sequences, candidates, share)
        if not self._records:
            return self._compute(sequences, candidates)
        if self._inputs is None:
            self._inputs = sequences.clone(), candidates.clone()
        if any(mine.shape != given.shape for mine, given in zip(self._inputs, (sequences, candidates), strict=True)):
            return self._compute(sequences, candidates)
        for mine, given in zip(self._inputs, (sequences, candidates), strict=True):
            mine.copy_(given, non_blocking=True)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._aside()
        if self._graph is None:
            try:
                self._graph = self._recording()
            except RuntimeError as error:  # nothing has been computed, but gradients may hang on
                self._records = False
                self.optimizer.zero_grad(set_to_none=True)
                what = str(error).partition("\n")[0]
                warnings.warn(f"cuda_graph: the training step is not recorded: {what}", stacklevel=2)
                return self._compute(sequences, candidates)
        assert self._outputs is not None
        self._graph.replay()
        prediction, alignment = self._outputs
        return prediction.clone(), alignment.clone()

    def _recording(self) -> torch.cuda.CUDAGraph:
        """A step on the inputs that are copied to, its outputs kept: recorded, and not computed yet."""
        assert self._inputs is not None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs = self._compute(*self._inputs)
        return graph

    def _aside(self) -> tuple[Tensor, Tensor]:
        """A step on a stream of its own, as the warm-up before a recording has to be."""
        assert self._inputs is not None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = self._compute(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return found

    def _compute(self, sequences: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        with tf32_products(self.config.tf32):
            return self._update(sequences, candidates)

    def _together(self, sequences: Tensor, candidates: Tensor, share: Share) -> tuple[Tensor, Tensor]:
        """A step whose gradient is the sum of what each process has of it; one without a row has nothing."""
        with tf32_products(self.config.tf32), rows_behind(share.rows.start):
            found = torch.zeros(2, dtype=torch.float64, device=sequences.device)
            if len(sequences):
                prediction, alignment = self._losses(sequences, candidates)
                prediction, alignment = share.of_rows * prediction, share.of_positions * alignment
                (prediction + self.config.stage2.alignment * alignment).backward()
                found = torch.stack([prediction.detach().double(), alignment.detach().double()])
            sum_gradients(self.optimizer)
        # Of all processes: what is not finite in one is not finite in every one's sum, and all end alike.
        self._move(distributed.summed(found.sum()))
        return found[0], found[1]

    def _update(self, sequences: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        prediction, alignment = self._losses(sequences, candidates)
        loss = prediction + self.config.stage2.alignment * alignment
        loss.backward()
        self._move(loss)
        return prediction.detach(), alignment.detach()

    def _move(self, loss: Tensor) -> None:
        """Adam's update by the gradients that hang on the parameters, where they and the loss are finite."""
        check_and_clip(self.model, loss, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, sequences: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction loss and L_align of the rows."""
        with torch.autocast(sequences.device.type, torch.bfloat16, enabled=self.config.amp):
            state = self.model(sequences)
            if candidates.dim() == 1 and len(candidates) > len(sequences):
                logits = self._shared(state.vector, *candidates.tensor_split([len(sequences)]))
                prediction = sampled_softmax(logits, self.model.num_items)
            elif candidates.dim() == 1:
                prediction = full_softmax(*self.model.over_catalogue(state.vector, candidates))
            else:
                logits = self.model.score(state.vector, candidates)
                if self.config.loss == "bce":
                    prediction = binary_cross_entropy(logits)
                else:
                    whole = self.config.loss == "sampled_softmax_log_q"
                    prediction = sampled_softmax(logits, self.model.num_items if whole else 0)
            return prediction, state.auxiliary_loss

    def _shared(self, vector: Any, positives: Tensor, negatives: Tensor) -> Tensor:
        """Logits [B, 1 + n] of positives [B] and of negatives [n] that all rows share; none of a row's own positive."""
        same = positives.unsqueeze(1) == negatives
        of_negatives = self.model.score(vector, negatives).masked_fill(same, float("-inf"))
        return torch.cat([self.model.score(vector, positives.unsqueeze(1)), of_negatives], dim=1)
