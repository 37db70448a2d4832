"""A training that is stopped inside an epoch, or whose newest checkpoint is damaged, ends at the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.damage import flip
from solid_ext import Config, Dataset
from solid_ext.config import PAPER
from solid_ext.data import SyntheticTruth, leave_one_out
from solid_ext.train import Silent, Stage, StopTraining, build_model, load_checkpoint, train_stage
from solid_ext.train.stage import Trainable
from solid_ext.train.stage_folder import BEST, LAST, PREVIOUS

FIELDS = {
    "length": 5,
    "dim": 8,
    "heads": 2,
    "learning_rate": 0.01,
    "item_branch": False,
    "semantic_trunk": False,
    "dropout": 0.2,
}
CONFIG = Config().replace(**PAPER | FIELDS, batch_size=512, epochs=3)
SOFTMAX = CONFIG.replace(loss="full_softmax")
SHARED = CONFIG.replace(loss="sampled_softmax_log_q", shared_negatives=8)
Tensors = dict[str, torch.Tensor]


class StopAfter(Silent):
    """Stops after so many steps of all."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise StopTraining


def score(model: Trainable) -> float:
    """A validation metric that is best in the first epoch, whose biases have moved least."""
    return -float(sum(abs(parameter.detach()).sum() for name, parameter in model.named_parameters() if "bias" in name))


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Item tables are updated by rows, as only large ones are otherwise."""
    monkeypatch.setattr("solid_ext.train.step.LARGE_TABLE", 10)


def train(
    world: tuple[Dataset, SyntheticTruth], folder: Path | None, config: Config = CONFIG, reporter: Any = None
) -> tuple[Tensors, Stage]:
    dataset, truth = world
    model = build_model(config, config.model, dataset.num_items, truth.semantics)
    stage = train_stage(
        "s", model, dataset, leave_one_out(dataset), config.train, score, folder=folder, reporter=reporter
    )
    return model.state_dict(), stage


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("config", [CONFIG, SOFTMAX, SHARED], ids=["own", "softmax", "shared"])
def test_a_stage_stopped_in_any_step_ends_at_the_same_bits(
    config: Config, world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None, small_tables: None
) -> None:
    """Stopped again and again: in the first epoch, in its last step, and twice in a later one."""
    straight, whole = train(world, tmp_path / "straight", config)
    for steps in (1, 4, 2, 5):
        with pytest.raises(StopTraining):
            train(world, tmp_path / "cut", config, StopAfter(steps))
        assert load_checkpoint(tmp_path / "cut" / LAST)[1]["within"]["steps"] >= 1
    resumed, stage = train(world, tmp_path / "cut", config)
    assert same(straight, resumed)
    assert [epoch.row() | {"seconds": 0, "waited": 0} for epoch in stage.history] == [
        epoch.row() | {"seconds": 0, "waited": 0} for epoch in whole.history
    ]
    one, other = (load_checkpoint(tmp_path / name / LAST)[0] for name in ("straight", "cut"))
    assert same(one, other)


def test_a_saved_dataset_trains_to_the_bits_of_the_one_in_memory(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    dataset, truth = world
    mapped = Dataset.load(dataset.save(tmp_path / "data"))
    in_memory, stage = train(world, None)
    from_file, other = train((mapped, truth), None)
    assert same(in_memory, from_file)
    assert [epoch.loss for epoch in stage.history] == [epoch.loss for epoch in other.history]
    assert all(0 < epoch.waited < epoch.seconds for epoch in other.history)


def test_a_damaged_checkpoint_is_left_for_the_one_before_it(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    straight, _ = train(world, tmp_path / "s")
    last = {name: tensor.clone() for name, tensor in load_checkpoint(tmp_path / "s" / LAST)[0].items()}
    flip(tmp_path / "s" / LAST)
    with pytest.warns(UserWarning, match=rf"{LAST} as it was written.*; the training goes on from .*{PREVIOUS}"):
        resumed, stage = train(world, tmp_path / "s")
    assert len(stage.history) == 3
    assert same(resumed, straight)
    assert same(load_checkpoint(tmp_path / "s" / LAST)[0], last)
    (tmp_path / "s" / LAST).unlink()
    with pytest.warns(UserWarning, match=rf"expected a file, got .*{LAST}"):
        assert same(train(world, tmp_path / "s")[0], straight)
    for name in (LAST, PREVIOUS):
        flip(tmp_path / "s" / name)
    with pytest.raises(ValueError, match=rf"resume: .*{LAST}.*{PREVIOUS}.*; delete .*, and this stage is trained"):
        train(world, tmp_path / "s")


def test_a_damaged_best_model_is_written_again_from_the_checkpoint(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    """The best epoch is the first here, which neither of the two checkpoints stands at."""
    straight, stage = train(world, tmp_path / "s")
    assert stage.best.epoch == 1
    flip(tmp_path / "s" / BEST)
    with pytest.warns(UserWarning, match=rf"{BEST} as it was written.*; it is written again"):
        resumed, _ = train(world, tmp_path / "s")
    assert same(resumed, straight)
    assert same(load_checkpoint(tmp_path / "s" / BEST)[0], straight)


def test_a_stop_without_a_folder_is_passed_on_alone(world: tuple[Dataset, SyntheticTruth]) -> None:
    with pytest.raises(StopTraining):
        train(world, None, CONFIG, StopAfter(2))


def test_a_full_disk_leaves_both_checkpoints_whole(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(world, tmp_path / "s", CONFIG.replace(epochs=2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("solid_ext.train.checkpoint.save_file", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(ValueError, match=r"^write: expected a file that can be written, got .* \(No space"):
                train(world, tmp_path / "s")
        assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    shutil.rmtree(tmp_path / "s")
