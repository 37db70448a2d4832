"""What training reports: the bar's words, and TensorBoard only where it is installed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from solid_ext import SOLID, Dataset
from solid_ext.data import SyntheticTruth, synthetic_dataset
from solid_ext.run import train_run
from solid_ext.train import Epoch, ProgressBar, Silent


def test_the_bar_says_the_stage_the_epoch_and_the_best() -> None:
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, width=120), "ndcg@10")
    with bar:
        bar.begin("stage1", 7, 20)
        for _ in range(7):
            bar.step()
        first = Epoch("stage1", 1, 0.5, 0.0, 0.25, 1.0)
        bar.epoch(first, first)
        status = bar.bar.tasks[0].fields["status"]
        assert "epoch 2" in status
        assert "loss 0.5000" in status
        assert "ndcg@10 0.2500 (best 0.2500 at 1)" in status
        bar.end("stage1", first)
    assert "best ndcg@10 0.2500 at epoch 1, 0 s" in text.getvalue()


def test_every_step_epoch_and_stage_is_reported(world: tuple[Dataset, SyntheticTruth]) -> None:
    class Recorder(Silent):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def begin(self, stage: str, steps: int, epochs: int) -> None:
            self.calls += [f"begin {stage} {steps} {epochs}"]

        def step(self) -> None:
            self.calls += ["step"]

        def epoch(self, epoch: Epoch, best: Epoch) -> None:
            self.calls += [f"epoch {epoch.epoch}"]

        def end(self, stage: str, best: Epoch) -> None:
            self.calls += [f"end {stage}"]

    recorder = Recorder()
    SOLID(dim=8, heads=2, epochs=1, batch_size=2048, eval_negatives=20).fit(world[0], reporter=recorder)
    rows = sum(max(0, length - 3) for length in (world[0].offsets[1:] - world[0].offsets[:-1]))
    steps = -(-int(rows) // 2048)
    expected = []
    for stage in ("stage1", "stage2"):
        expected += [f"begin {stage} {steps} 1", *["step"] * steps, "epoch 1", f"end {stage}"]
    assert recorder.calls == expected


def test_tensorboard_that_is_not_there_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    dataset = synthetic_dataset(50, 30, 3, seed=0)[0]
    config = SOLID(tensorboard=True).config
    with pytest.raises(ValueError, match="tensorboard: expected the package tensorboard"):
        train_run(tmp_path / "run", config, dataset)
    assert not (tmp_path / "run").exists()
