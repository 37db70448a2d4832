"""Adam by rows against Adam over whole tables: the same weights, however long a row is not read."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solid_ext import Config, Dataset
from solid_ext.data import SyntheticTruth, leave_one_out
from solid_ext.models import DynamicRecommender
from solid_ext.models.symbols import ItemEmbedding, SymbolEmbedding
from solid_ext.ops._arguments import Backend
from solid_ext.train import Step, build_model, make_optimizer, row_adam, train_solid
from solid_ext.train import step as step_module
from solid_ext.train.row_adam import RowAdam

ROWS, LENGTH, DIM = 60, 4, 8


class Tables(nn.Module):
    """Two tables as the network has them, one of them read twice a step, and a dense layer."""

    def __init__(self, backend: Backend, dtype: torch.dtype) -> None:
        super().__init__()
        features = torch.randn(ROWS + 1, 3)
        features[0] = 0
        self.items = ItemEmbedding(ROWS, DIM, features, backend)
        self.symbols = SymbolEmbedding(ROWS, LENGTH, DIM, backend)
        self.dense = nn.Linear(DIM, DIM)
        self.to(dtype)

    def forward(self, sequences: Tensor, candidates: Tensor) -> Tensor:
        state = self.dense(self.items(sequences).sum(1)) + self.symbols(sequences).sum(1)
        return (self.items(candidates) * state.unsqueeze(1)).sum(2)


def batch(rng: np.random.Generator, step: int) -> tuple[Tensor, Tensor]:
    """Few rows a step, so that some are not read for hundreds of steps; the last ones for the first time late."""
    top = ROWS // 2 if step < 200 else ROWS
    sequences = rng.integers(1, top + 1, (3, LENGTH))
    sequences[0, 2:] = 0
    return torch.from_numpy(sequences), torch.from_numpy(rng.integers(1, min(top, 4 + step % 50) + 1, (3, 5)))


@pytest.mark.parametrize(("scale", "near"), [(1.0, 1e-7), (1e-7, 2e-4)])  # gradients far above eps, and near it
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_that_are_read_seldom_end_where_dense_adam_brings_them(
    backend: Backend, decay: float, scale: float, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_adam, "FLUSHED", 7)
    torch.manual_seed(0)
    dense = Tables(backend, torch.float64)
    by_rows = copy.deepcopy(dense)
    options: dict[str, Any] = {"lr": 0.003, "weight_decay": decay, "fused": True}
    adam, rows = torch.optim.AdamW(dense.parameters(), **options), RowAdam(by_rows, LENGTH, **options)
    assert len(rows.tables) == 2
    rng = np.random.default_rng(0)
    for step in range(400):
        sequences, candidates = batch(rng, step)
        losses = []
        for model, optimizer in ((dense, adam), (by_rows, rows)):
            loss = model(sequences, candidates).tanh().square().sum() * scale
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[1] == pytest.approx(losses[0], rel=10 * near)
        if step in (5, 250):
            rows.flush()
    rows.close()
    for (name, expected), (_, found) in zip(dense.state_dict().items(), by_rows.state_dict().items(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=near, msg=lambda text, name=name: f"{name}: {text}")
    for expected, found in zip(dense.parameters(), by_rows.parameters(), strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(rows.state[found][name], adam.state[expected][name], rtol=1e3 * near, atol=1e-8)


def test_after_close_gradients_are_dense_and_nothing_is_hooked() -> None:
    model = Tables("native", torch.float32)
    optimizer = RowAdam(model, 1)
    sequences, candidates = batch(np.random.default_rng(0), 0)
    model(sequences, candidates).sum().backward()
    assert model.items.weight.grad is not None
    assert model.items.weight.grad.is_sparse
    optimizer.step()
    optimizer.zero_grad()
    optimizer.close()
    model(sequences, candidates).sum().backward()
    assert not model.items.weight.grad.is_sparse
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_sparse_gradient_is_the_dense_one() -> None:
    for backend in ("native", "reference"):
        model = Tables(backend, torch.float64)  # type: ignore[arg-type]
        sequences, candidates = batch(np.random.default_rng(0), 300)
        gradients = []
        for sparse in (False, True):
            model.items.sparse = model.symbols.table.sparse = sparse
            model.zero_grad()
            model(sequences, candidates).square().sum().backward()
            found = [model.items.weight.grad, model.symbols.table.weight.grad]
            gradients.append([gradient.to_dense() if sparse else gradient for gradient in found])
        for dense, sparse_one in zip(*gradients, strict=True):
            torch.testing.assert_close(sparse_one, dense, rtol=1e-12, atol=1e-14)
            assert not sparse_one[0].any()


SAMPLED = Config().replace(
    length=5,
    dim=16,
    codebook_hidden=16,
    batch_size=128,
    loss="sampled_softmax_log_q",
    epochs=3,
    patience=99,
    dropout=0.2,
)


def validation_loss(model: Any) -> float:
    return -float(next(model.parameters()).detach().square().sum())


@pytest.mark.parametrize("shared", [0, 40])
def test_a_training_by_rows_equals_a_dense_one_and_one_that_was_resumed(
    world: tuple[Dataset, SyntheticTruth],
    tmp_path: Path,
    shared: int,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, truth = world
    split = leave_one_out(dataset)

    def train(folder: str, epochs: int, rows: int, dtype: str = "float64") -> dict[str, Tensor]:
        monkeypatch.setattr(step_module, "LARGE_TABLE", rows)
        monkeypatch.setattr(step_module, "max", lambda large, _: large, raising=False)  # however few negatives
        config = SAMPLED.replace(epochs=epochs, dtype=dtype, shared_negatives=shared, weight_decay=0.01)
        found, _ = train_solid(config, dataset, split, truth.semantics, validation_loss, folder=tmp_path / folder)
        assert isinstance(found, DynamicRecommender)
        assert not found.item_embedding.sparse
        return found.state_dict()

    dense, by_rows = train("dense", 2, 10**9), train("rows", 2, 20)
    for name, expected in dense.items():
        torch.testing.assert_close(
            by_rows[name], expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    straight = train("straight", 3, 20)
    train("stopped", 2, 20)
    shutil.rmtree(tmp_path / "stopped" / "stage2")
    train("stopped", 2, 20)
    resumed = train("stopped", 3, 20)
    for name, expected in straight.items():
        assert torch.equal(resumed[name], expected), name


def test_shared_negatives_leave_out_the_own_positive_of_a_row(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    config = SAMPLED.replace(shared_negatives=30, dropout=0.0, alignment=0.0)
    model = build_model(config, config.model, dataset.num_items, truth.semantics)
    sequences = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    positives, negatives = torch.tensor([7, 9]), torch.tensor([9, 7, 7, 3, 1, 2])
    with torch.no_grad():
        logits = model.score(model.encode(sequences), torch.arange(1, dataset.num_items + 1)).double()
    more = np.log((dataset.num_items - 1) / len(negatives))
    expected = []
    for row, positive in enumerate(positives):
        others = negatives[negatives != positive]
        terms = torch.cat([logits[row, positive - 1].view(1), logits[row, others - 1] + more])
        expected.append(float(terms.logsumexp(0) - terms[0]))
    step = Step(model, make_optimizer(model, config.train), config.train)
    prediction, _ = step(sequences, torch.cat([positives, negatives]))
    assert float(prediction) == pytest.approx(np.mean(expected), rel=1e-5)


def test_negatives_are_shared_where_a_sampled_softmax_can() -> None:
    assert Config().replace(shared_negatives=8).resolved(10, 50).train.shared_negatives == 8
    with pytest.raises(ValueError, match="shared_negatives: expected 0 with loss=bce"):
        Config().replace(loss="bce", shared_negatives=8)
    with pytest.raises(ValueError, match="shared_negatives: expected 0 or more, got -2"):
        Config().replace(shared_negatives=-2)
    with pytest.raises(ValueError, match="shared_negatives: expected 0 with backbone din"):
        Config().replace(backbone="din", shared_negatives=8)


def test_tables_are_updated_by_rows_where_a_batch_reads_few_of_them() -> None:
    def by_rows(rows: int, **fields: Any) -> bool:
        with torch.device("meta"):
            model = nn.Embedding(rows, 4)
        return bool(make_optimizer(model, Config().replace(**fields).train).tables)

    sampled = {"loss": "sampled_softmax_log_q"}
    assert not by_rows(65_536, **sampled, shared_negatives=64)
    assert by_rows(65_537, **sampled, shared_negatives=64)
    assert not by_rows(2 * 1024 * 64, **sampled)
    assert by_rows(2 * 1024 * 64 + 1, **sampled)
    assert not by_rows(10**6, loss="full_softmax")
