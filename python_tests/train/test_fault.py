"""A step that is not finite ends the training, is kept, and is computed again; a gradient may be bounded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from solid_ext import SOLID, Config, Dataset
from solid_ext.cli import main
from solid_ext.config import PAPER, TrainConfig
from solid_ext.data import SyntheticTruth, gather_sequences, leave_one_out
from solid_ext.run import check_out, train_run
from solid_ext.train import Step, build_model, make_optimizer
from solid_ext.train.fault import fault_of, replay
from solid_ext.train.gradients import NotFinite, check_and_clip

FIELDS = {"length": 5, "dim": 8, "heads": 2, "dropout": 0.2, "learning_rate": 0.01, "eval_negatives": 20}
TINY = Config().replace(**PAPER | FIELDS | {"neighbours": False}, batch_size=512, epochs=2)


class Poison:
    """Makes a parameter infinite after so many steps, through the step's own function."""

    def __init__(self, after: int) -> None:
        self.after, self.whole = after, Step.__call__

    def __call__(self, step: Step, *batch: Any) -> tuple[torch.Tensor, ...]:
        self.after -= 1
        if self.after == 0:
            with torch.no_grad():
                next(step.model.parameters())[1:].fill_(3e38)
        return self.whole(step, *batch)


def test_a_step_that_is_not_finite_is_kept_and_computed_again(
    world: tuple[Dataset, SyntheticTruth],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for after, stage, epoch, step in ((3, "stage1", 1, 3), (14, "stage1", 2, 6), (17, "stage2", 1, 1)):
        out, poison = tmp_path / f"run{after}", Poison(after)
        with monkeypatch.context() as patch:
            patch.setattr(Step, "__call__", lambda *arguments: poison(*arguments))  # noqa: B023
            sentence = rf"{stage}: expected .* in epoch {epoch}; a learning_rate below .* may help \(step {step}, which"
            with pytest.raises(FloatingPointError, match=sentence):
                train_run(out, TINY, world[0]) if after == 3 else SOLID(TINY).fit(world[0], folder=out)
        found = replay(fault_of(out))
        assert (found.stage, found.epoch, found.step) == (stage, epoch, step)
        assert found.error == found.said
        assert found.first is not None
        assert any(not math.isfinite(length) for length in found.gradients.values())
        assert list(found.largest.values()) == pytest.approx([3e38])
        again = replay(fault_of(out))
        assert (again.first, again.error, again.largest) == (found.first, found.error, found.largest)
        main(["replay", "--run", str(out)])
        printed = capsys.readouterr().out
        assert f"{stage}, epoch {epoch}, step {step}: the training expected" in printed
        assert "the first output that is not finite: that of " in printed
    resumed = SOLID(TINY).fit(world[0], folder=tmp_path / "run14").training.stages
    assert [len(each.history) for each in resumed] == [2, 2], "the last good checkpoint is kept"
    assert not list((tmp_path / "run14").rglob("fault.safetensors")), "a stage that went on has no such step"
    check_out(tmp_path / "run3", resume=False, overwrite=False)  # a fault before the first epoch is in nobody's way


def test_what_is_no_fault_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="replay: expected a run that was ended by a step which was not finite, got"):
        fault_of(tmp_path)
    (tmp_path / "fault.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="checkpoint: expected safetensors in"):
        replay(fault_of(tmp_path))


def test_a_gradient_is_bounded_as_torch_bounds_it(world: tuple[Dataset, SyntheticTruth]) -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(5, 7), nn.Linear(5, 7)
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, 5)
    for most in (0.1, 1e6):
        for model in (one, other):
            model.zero_grad()
            model(x).square().sum().backward()
        check_and_clip(one, torch.tensor(1.0), TrainConfig(clip_gradient=most))
        nn.utils.clip_grad_norm_(other.parameters(), most)
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
    dense, sparse = nn.Embedding(9, 4), nn.Embedding(9, 4, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    for table in (dense, sparse):
        table(torch.tensor([1, 1, 4])).square().sum().backward()
        check_and_clip(table, torch.tensor(1.0), TrainConfig(clip_gradient=0.5))
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)  # type: ignore[union-attr]
    assert dense.weight.grad is not None
    assert float(dense.weight.grad.norm()) == pytest.approx(0.5, rel=1e-4)


def test_an_unbounded_gradient_is_left_as_it_is(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    rows = leave_one_out(dataset).train
    sequences = torch.from_numpy(gather_sequences(dataset, rows, 5))[:64]
    candidates = torch.arange(1, 61).repeat(64, 1)[:, :4]
    moved = []
    for clip in (0.0, 1e9, 1e-3):
        config = TINY.replace(clip_gradient=clip)
        model = build_model(config, config.model, dataset.num_items, truth.semantics)
        torch.manual_seed(0)
        Step(model.train(), make_optimizer(model, config.train), config.train)(sequences, candidates)
        moved.append(model.item_embedding.weight.detach().clone())
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    with pytest.raises(ValueError, match="clip_gradient: expected a number of 0 or more, got -1"):
        TINY.replace(clip_gradient=-1.0)


def test_a_gradient_alone_that_is_not_finite_ends_the_step_before_it_moves_anything() -> None:
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[0.0, math.inf], [0.0, 0.0]])
    with pytest.raises(NotFinite, match="finite gradients, got NaN or infinity in that of weight"):
        check_and_clip(model, torch.tensor(1.0), TrainConfig())
    model.weight.grad = torch.full((2, 2), 3e38)
    check_and_clip(model, torch.tensor(1.0), TrainConfig())  # whose squares are infinite, and itself is not
