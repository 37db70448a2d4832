"""Callbacks, the documented ones for MLflow and Weights & Biases, the profile, the time left, the slowest part."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from solid_ext import SOLID, Config, Dataset
from solid_ext.data import SyntheticTruth
from solid_ext.run import planned_stages, slowest_part, train_run
from solid_ext.train import Callback, Epoch, ProgressBar, Silent, Stage, StepDone, StopTraining
from solid_ext.train.profiled import Profiled
from solid_ext.train.time_left import TimeLeft

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
FIELDS = {"length": 5, "dim": 8, "heads": 2, "epochs": 2, "batch_size": 1024, "eval_negatives": 20, "neighbours": False}
STATIC = {"semantic_trunk": False, "item_branch": False}
TINY = Config().replace(**FIELDS)


class Recorded(Callback):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_step(self, done: StepDone) -> None:
        self.told.append((done.stage, done.epoch, done.step, done.steps, done.loss))

    def on_epoch(self, epoch: Epoch, best: Epoch) -> None:
        self.told.append((epoch, best))

    def on_end(self, stages: Sequence[Stage]) -> None:
        self.told.append([stage.name for stage in stages])


def test_callbacks_are_told_of_each_step_each_epoch_and_the_end(world: tuple[Dataset, SyntheticTruth]) -> None:
    recorded = Recorded()
    solid = SOLID(TINY).fit(world[0], callbacks=[recorded, object.__new__(OnlyAtTheEnd)])
    stages = solid.training.stages
    steps = recorded.told[0][3]
    expected: list[Any] = []
    for stage in stages:
        for epoch in stage.history:
            expected += [(stage.name, epoch.epoch, step, steps) for step in range(1, steps + 1)]
            expected += [(epoch, Stage(stage.name, stage.history[: epoch.epoch]).best)]
    found = [one[:4] if len(one) == 5 else one for one in recorded.told]
    assert found == [*expected, [stage.name for stage in stages]]
    losses = [one[4] for one in recorded.told if len(one) == 5 and one[:2] == ("stage1", 1)]
    first = stages[0].history[0]
    assert min(losses) <= first.loss <= max(losses)


class OnlyAtTheEnd:
    """Not a `Callback`, and without the other calls."""

    def on_end(self, stages: Sequence[Stage]) -> None: ...


def test_a_callback_can_stop_a_run_that_goes_on(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    class Stopping(Callback):
        def on_step(self, done: StepDone) -> None:
            if (done.stage, done.epoch) == ("stage2", 2):
                raise StopTraining

    with pytest.raises(StopTraining):
        train_run(tmp_path / "run", TINY, world[0], callbacks=[Stopping()])
    recorded = Recorded()
    run = train_run(tmp_path / "run", TINY, world[0], resume=True, refit=True, callbacks=[recorded])
    assert recorded.told[-1] == ["stage1", "stage2", "stage1", "stage2"]
    assert {one[0] for one in recorded.told if len(one) == 5} == {"stage2", "refit stage1", "refit stage2"}
    parts = run.metrics["seconds"]["parts"]
    assert parts.keys() == {"semantics", "stage1", "stage2", "neighbours", "evaluation", "refit"}
    assert slowest_part(parts).startswith(
        f"{sum(parts.values()):.0f} s in all, the slowest part {max(parts, key=parts.get)}"
    )


@pytest.mark.parametrize("callbacks", [[3], "words", Recorded(), [Recorded], [Silent()], None])
def test_what_is_no_callback_is_refused_before_work_starts(
    callbacks: Any, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=r"^fit: expected (a list of callbacks|callbacks with some of on_step)"):
        SOLID(TINY).fit(world[0], callbacks=callbacks)
    with pytest.raises(TypeError, match=r"^train_run: expected"):
        train_run(tmp_path / "run", TINY, world[0], callbacks=callbacks)
    assert not (tmp_path / "run").exists()


class StandIn(ModuleType):
    """Writes down how it is called: as mlflow, as wandb, and as what either gives."""

    def __init__(self, name: str, calls: list[tuple[str, Any, Any]]) -> None:
        super().__init__(name)
        self.calls, self.summary = calls, dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> StandIn:
            self.calls.append((name, arguments, named))
            return self

        return call

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *error: Any) -> None:
        self.calls.append(("end", (), {}))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_documented_callbacks_log_what_they_say(
    name: str, world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)
    (block,) = (block for block in blocks if f"train_with_{name}" in block)
    calls: list[tuple[str, Any, Any]] = []
    module = StandIn(name, calls)
    monkeypatch.setitem(sys.modules, name, module)
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile(block, "docs", "exec"), namespace)
    solid = namespace[f"train_with_{name}"](world[0], **FIELDS | STATIC | {"batch_size": 64, "epochs": 1})
    best = {f"{stage.name}/best": stage.best.valid for stage in solid.training.stages}
    epochs = [epoch for stage in solid.training.stages for epoch in stage.history]
    assert calls[-1][0] == "end"
    if name == "mlflow":
        assert calls[0][0] == "start_run"
        assert calls[1] == ("log_params", (solid.config.flat(),), {})
        assert calls[-2] == ("log_metrics", (best,), {})
        logged = [
            (arguments[0], arguments[1], named["step"]) for call, arguments, named in calls if call == "log_metric"
        ]
        assert [one for one in logged if one[0].endswith("/loss")] == [
            (f"{epoch.stage}/loss", epoch.loss, epoch.epoch) for epoch in epochs
        ]
        assert any(one[0].endswith("/step_loss") and one[2] % 50 == 0 for one in logged)
    else:
        assert calls[0] == ("init", (), {"project": "solid_ext", "config": solid.config.flat()})
        assert module.summary == best
        logged = [arguments[0] for call, arguments, _ in calls if call == "log"]
        assert [one[f"{epoch.stage}/loss"] for one, epoch in zip(
            [one for one in logged if any(key.endswith("/loss") for key in one)], epochs, strict=True
        )] == [epoch.loss for epoch in epochs]  # fmt: skip
        assert any(key.endswith("/step_loss") for one in logged for key in one)


def test_a_profile_leaves_a_trace_and_a_table_of_each_stage(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    profiled = Profiled(tmp_path / "profile", Silent())
    SOLID(TINY.replace(epochs=1)).fit(world[0], reporter=profiled)
    assert list(profiled.tables) == ["stage1", "stage2"]
    for stage in ("stage1", "stage2"):
        table = (tmp_path / "profile" / f"{stage}.txt").read_text()
        assert table == profiled.tables[stage] + "\n"
        assert "solid_ext::" in table, "our own operations are named"
        assert json.loads((tmp_path / "profile" / f"{stage}.json").read_text())["traceEvents"]


def test_the_time_left_is_that_of_all_stages() -> None:
    left = TimeLeft(["stage1", "stage2", "static"], epochs=20, patience=4)
    assert left.words() == ""
    left.begin("stage1", 20)
    first = Epoch("stage1", 1, 0.5, 0.0, 0.3, 10.0)
    left.epoch(first, first)
    assert left.seconds() == (10 * (4 + 5 + 5), 10 * (19 + 20 + 20))
    assert left.words() == ", 2 to 10 min of training left"
    left.epoch(Epoch("stage1", 2, 0.5, 0.0, 0.2, 20.0), first)
    assert left.seconds() == (15 * (3 + 5 + 5), 15 * (18 + 20 + 20))
    left.end()
    left.begin("stage2", 20)
    left.end()
    left.begin("static", 20)
    assert left.seconds() == (15 * 5, 15 * 20)
    left.epoch(Epoch("static", 20, 0.5, 0.0, 0.2, 15.0), first)
    assert left.seconds() == (0, 0)
    again = TimeLeft(["refit stage2"], epochs=20, patience=4)
    again.begin("refit stage2", 7)
    again.epoch(Epoch("refit stage2", 2, 0.5, 0.0, None, 60.0), first)
    assert again.words() == ", 5 min of training left"


def test_the_bar_says_how_long_the_whole_run_trains() -> None:
    bar = ProgressBar(Console(file=io.StringIO(), width=120), "ndcg@10", TimeLeft(["s", "t"], 10, 2))
    with bar:
        bar.begin("s", 3, 10)
        epoch = Epoch("s", 1, 0.5, 0.0, 0.25, 3600.0)
        bar.epoch(epoch, epoch)
        assert bar.bar.tasks[0].fields["status"].endswith("(best 0.2500 at 1), 5 to 19 h of training left")
        bar.end("s", epoch)


def test_the_stages_of_a_run_are_planned() -> None:
    assert planned_stages(Config(), baseline=True, refit=True) == [
        "stage1", "stage2", "static", "refit stage1", "refit stage2",
    ]  # fmt: skip
    static = Config().replace(semantic_trunk=False, item_branch=False)
    assert planned_stages(static, baseline=True, refit=False) == ["stage2"]
