"""Adam of large tables by the rows that a step reads: what a step costs does not grow with the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solid_ext.models.symbols import SymbolEmbedding
from solid_ext.ops.segment_sum import sum_segments

LARGE_TABLE = 65_536  # rows; up to here Adam over the whole table takes a few milliseconds
REMEMBERED = 256  # steps: what momentum moves a row later is below float64's rounding, .9^256 of the first
FLUSHED = 65_536  # rows at a time where all are brought up to date


class RowAdam(torch.optim.AdamW):
    """AdamW whose large embedding tables have sparse gradients and are computed a row at a time, when it is read.

    Dense Adam moves every row in every step: a row without a gradient goes on by its momentum,

        m <- b1 m,  v <- b2 v,  w <- (1 - lr wd) w - lr c_t m / (sqrt(v) + eps'),  c_t = sqrt(1 - b2^t) / (1 - b1^t).

    As m / sqrt(v) shrinks by r = b1 / sqrt(b2) a step, the steps s + 1 .. t that a row has missed are one:

        w <- (1 - lr wd)^(t - s) w - A m / (sqrt(v) + eps E),
        A = sum_j a_j,  a_j = lr c_j r^(j - s) (1 - lr wd)^(t - j),

    with A a number for each s, kept from step to step. That is dense Adam but for eps, which stands beside the root of
    `v b2^(j - s) / (1 - b2^j)` in step j, and here counts by its mean: E = sum_j a_j e_j / A with
    `e_j = sqrt((1 - b2^j) / b2^(j - s))`, right to first order in eps over sqrt(v). Before a table is looked up, hooks
    bring the rows that will be read up to date; `flush` does all of them, after which weights and moments are those of
    AdamW, and saved as its.

    Args:
        model: its embeddings of more than `rows` rows are updated so, all other parameters by `AdamW`.
        rows: the size up to which a table is dense.
        options: of `AdamW`.

    Attributes:
        tables: the weights that are updated by rows.
    """

    def __init__(self, model: nn.Module, rows: int = LARGE_TABLE, **options: Any) -> None:
        super().__init__(model.parameters(), **options)
        self.steps = 0
        self.tables: list[Tensor] = []
        self._last: dict[Tensor, Tensor] = {}  # [rows], the step up to which a row is computed
        self._modules: list[nn.Embedding] = []
        self._hooks: list[Any] = []
        for module in model.modules():
            table = module.table if isinstance(module, SymbolEmbedding) else module
            if isinstance(table, nn.Embedding) and table.num_embeddings > rows:
                self._hooks.append(module.register_forward_pre_hook(self._reader(table.weight)))
                if table.weight not in self._last:
                    table.sparse = True
                    self._modules.append(table)
                    self.tables.append(table.weight)
                    self._last[table.weight] = torch.zeros(
                        len(table.weight), dtype=torch.int64, device=table.weight.device
                    )
        self._restart()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, of the tables the rows that have one."""
        if not self.tables:
            super().step(closure)
            return
        gradients = {weight: weight.grad for weight in self.tables if weight.grad is not None}
        for weight in self.tables:
            weight.grad = None
        super().step(closure)
        with torch.no_grad():
            summed = {weight: total_of_rows(gradient) for weight, gradient in gradients.items()}
            for weight, (rows, _) in summed.items():
                self._catch_up(weight, rows)
            self._count()
            for weight, (rows, total) in summed.items():
                self._update(weight, rows, total)

    @torch.no_grad()
    def flush(self) -> None:
        """Bring every row of every table up to date."""
        for weight, last in self._last.items():
            for rows in torch.nonzero(last < self.steps).flatten().split(FLUSHED):
                self._advance(weight, rows)
        self._restart()

    def close(self) -> None:
        """Flush, and leave the model as it was: gradients dense, no hooks."""
        self.flush()
        for hook in self._hooks:
            hook.remove()
        for module in self._modules:
            module.sparse = False

    def load_state_dict(self, state_dict: Any) -> None:
        """As `AdamW`, from a state that was flushed."""
        super().load_state_dict(state_dict)
        for weight in self.tables:
            if self.state.get(weight):
                self.steps = int(self.state[weight]["step"])
                self._last[weight].fill_(self.steps)
        self._restart()

    def behind(self) -> dict[str, Tensor]:
        """What the rows that are not up to date have missed, by name; nothing where every table is dense."""
        if not self.tables:
            return {}
        counts = torch.tensor([self.steps, self._first], device="cpu")
        last = {f"last.{number}": self._last[weight] for number, weight in enumerate(self.tables)}
        return {"counts": counts, "missed": torch.from_numpy(self._missed.copy()), **last}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `behind`, after `load_state_dict`.

        Raises:
            KeyError, ValueError: tensors that are not those of this optimizer.
        """
        if not self.tables:
            return
        self.steps, self._first = (int(count) for count in tensors["counts"])
        self._missed = tensors["missed"].numpy().copy()
        for number, weight in enumerate(self.tables):
            last = tensors[f"last.{number}"]
            if last.shape != (len(weight),) or last.dtype != torch.int64 or self._missed.shape[0] != 2:
                raise ValueError(f"rows {list(last.shape)} of a table {list(weight.shape)}")
            steps = self.steps - self._first
            if len(last) and (int(last.min()) < self._first or int(last.max()) > self.steps):
                raise ValueError(f"rows that are not within the last {steps} steps")
            if self._missed.shape[1] != steps + 1:
                raise ValueError(f"{self._missed.shape[1] - 1} steps that are remembered, of {steps}")
            self._last[weight].copy_(last)

    def _reader(self, weight: Tensor) -> Any:
        def catch_up(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if self.steps > self._first:
                with torch.no_grad():
                    self._catch_up(weight, torch.unique(arguments[0]))

        return catch_up

    def _restart(self) -> None:
        """All rows are up to date: nothing that they missed has to be remembered."""
        self._first = self.steps
        self._missed = np.zeros((2, 1))  # A, and A E

    def _count(self) -> None:
        """One step more: what it moves the rows that have not been read for 1, 2, .. steps."""
        self.steps += 1
        lr, decay, (first, second), _ = self._options()
        self._missed *= 1 - lr * decay
        bias = math.sqrt(1 - second**self.steps)
        ages = np.arange(min(REMEMBERED, self._missed.shape[1]), 0, -1)
        moved = lr * bias / (1 - first**self.steps) * (first / math.sqrt(second)) ** ages
        self._missed[:, -ages.size :] += np.stack([moved, moved * bias * second ** (-ages / 2)])
        self._missed = np.append(self._missed, np.zeros((2, 1)), axis=1)

    def _options(self) -> tuple[float, float, tuple[float, float], float]:
        group = self.param_groups[0]
        return float(group["lr"]), group["weight_decay"], group["betas"], group["eps"]

    def _catch_up(self, weight: Tensor, rows: Tensor) -> None:
        behind = self._last[weight].index_select(0, rows) < self.steps
        self._advance(weight, rows[behind])

    def _advance(self, weight: Tensor, rows: Tensor) -> None:
        """The steps that these rows have missed."""
        last, state = self._last[weight], self.state[weight]
        if not len(rows) or not state:
            return
        lr, decay, (first, second), eps = self._options()
        step = last.index_select(0, rows)
        missed = torch.from_numpy(self._missed).to(weight.device).index_select(1, step - self._first)
        gone = (self.steps - step).double()
        # As columns in the table's precision; the powers are computed in float64.
        move, least, kept, of_first, of_second = (
            number.to(weight.dtype).unsqueeze(1)
            for number in (
                missed[0],
                eps * missed[1] / missed[0],
                (1 - lr * decay) ** gone,
                first**gone,
                second**gone,
            )
        )
        moments = [state[name].index_select(0, rows) for name in ("exp_avg", "exp_avg_sq")]
        row = weight.data.index_select(0, rows)
        if decay:
            row.mul_(kept)
        row.addcmul_(moments[0].div(moments[1].sqrt().add_(least)), move, value=-1)
        weight.data.index_copy_(0, rows, row)
        state["exp_avg"].index_copy_(0, rows, moments[0].mul_(of_first))
        state["exp_avg_sq"].index_copy_(0, rows, moments[1].mul_(of_second))
        last.index_fill_(0, rows, self.steps)

    def _update(self, weight: Tensor, rows: Tensor, total: Tensor) -> None:
        """This step of the rows that have a gradient, the total of each."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"].fill_(self.steps)
        lr, decay, (first, second), eps = self._options()
        if not len(rows):
            return
        mean = state["exp_avg"].index_select(0, rows).lerp_(total, 1 - first)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(second).addcmul_(total, total, value=1 - second)
        row = weight.data.index_select(0, rows).mul_(1 - lr * decay)
        size = square.sqrt().div_(math.sqrt(1 - second**self.steps)).add_(eps)
        row.addcdiv_(mean, size, value=-lr / (1 - first**self.steps))
        weight.data.index_copy_(0, rows, row)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        self._last[weight].index_fill_(0, rows, self.steps)


def total_of_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have a gradient, each once, and the total of each."""
    if gradient.layout != torch.sparse_coo:
        return torch.arange(len(gradient), device=gradient.device), gradient
    rows, place = torch.unique(gradient._indices()[0], return_inverse=True)
    if not len(rows):
        return rows, gradient._values()
    return rows, sum_segments(gradient._values(), place, None, len(rows))
