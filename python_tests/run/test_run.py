"""A run's folder: begun, killed, resumed, extended, overwritten, and never by two at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from python_tests.damage import flip
from solid_ext import SOLID, Config, Dataset
from solid_ext.cli import main
from solid_ext.compare import compare, make_grid
from solid_ext.data import SyntheticTruth, synthetic_dataset
from solid_ext.files import LOCK, read_json, write_json
from solid_ext.methods import method_config
from solid_ext.run import begun_run, train_run
from solid_ext.train import Silent, load_checkpoint
from solid_ext.tune import make_search, tune

TINY = Config().replace(length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=1, eval_negatives=20)
QUICK = ["--length", "5", "--dim", "16", "--heads", "2", "--codebook-hidden", "16", "--batch-size", "128"]
QUICK += ["--eval-negatives", "20", "--threads", "1", "--semantics", "category", "--no-neighbours"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a failing command prints, and nothing of a configuration before it."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert "configuration" not in printed.out
    return printed.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(world: tuple[Dataset, SyntheticTruth], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world[0].save(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="module")
def finished(world: tuple[Dataset, SyntheticTruth], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("runs") / "run", TINY, world[0], baseline=False).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may damage."""
    for name, content in contents(finished).items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    return tmp_path / "run"


def test_a_run_killed_at_any_time_ends_at_the_same_bits(data: Path, tmp_path: Path, one_thread: None) -> None:
    """Killed again and again, between and inside epochs, also before the first; each time resumed or begun anew."""

    def command(out: Path, *flags: str) -> list[str]:
        return ["train", "--dataset", str(data), "--out", str(out), "--epochs", "8", "--no-baseline", *QUICK, *flags]

    cut, kills = tmp_path / "cut", 0
    for until in ("run.json", "stage1/best.safetensors", "stage2/last.safetensors"):
        arguments = command(cut, *(["--resume"] if (cut / "run.json").exists() else []))
        with subprocess.Popen(
            [sys.executable, "-m", "solid_ext.cli", *arguments], stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not (cut / until).exists():
                time.sleep(0.002)
            kills += process.poll() is None
            process.kill()
    assert kills >= 2
    main(command(cut, "--resume"))
    main(command(tmp_path / "whole"))
    for stage in ("stage1", "stage2"):
        one, other = (load_checkpoint(out / stage / "last.safetensors")[0] for out in (cut, tmp_path / "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), stage
    one, other = (load_file(out / "model" / "model.safetensors") for out in (cut, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not [name for name in contents(tmp_path) if "partial" in name or ".replaced" in name]


def test_a_run_has_one_owner(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    command = ["train", "--dataset", str(data), "--out", str(run), *QUICK]
    with FileLock(run / LOCK):
        for flag in ("--overwrite", "--resume"):
            assert "in use by another process or thread" in fails([*command, flag], capsys)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backbone", "gru"], "backbone: expected .* did you mean gru4rec"),
        (["--device", "cuda:99"], "device: expected cpu or one of"),
        (["--text-features", "nowhere.npy", "--semantics", "text"], "text_features: expected an existing file"),
        (["--semantics", "image"], "semantics: expected image_features FILE or image_folder FOLDER"),
        (["--semantics", "image", "--image-folder", "nowhere"], "image_folder: expected a folder"),
        (["--semantics", "id", "--num-semantics", "9999"], "num_semantics: expected at most the number of items"),
        (["--method", "sliod"], "method: expected one of .* did you mean solid"),
        (["--dim", "65536", "--length", "65536", "--heads", "1"], "model: expected a network that can be trained"),
    ],
)
def test_a_run_that_cannot_start_leaves_what_there_was(
    flags: list[str], sentence: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "run"
    assert re.search(sentence, fails(["train", "--dataset", str(data), "--out", str(out), *QUICK, *flags], capsys))
    assert not out.exists(), "nothing is in the way of the corrected command"
    before = contents(run)
    command = ["train", "--dataset", str(data), "--out", str(run), "--overwrite", *QUICK, *flags]
    assert re.search(sentence, fails(command, capsys))
    assert contents(run) == before


class Stopped(RuntimeError):
    """What stops a training in a test."""


class StopAt:
    """A reporter that stops at the first epoch's beginning or at its end."""

    def __init__(self, when: str) -> None:
        self.when = when

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        if self.when == "begin":
            raise Stopped

    def step(self) -> None: ...

    def epoch(self, epoch: Any, best: Any) -> None:
        raise Stopped

    def end(self, stage: str, best: Any) -> None: ...


def test_an_overwritten_run_is_kept_until_the_new_one_has_an_epoch(
    run: Path, world: tuple[Dataset, SyntheticTruth]
) -> None:
    before = contents(run)
    other = TINY.replace(seed=1)
    with pytest.raises(Stopped):
        train_run(run, other, world[0], overwrite=True, reporter=StopAt("begin"))
    assert contents(run) == before
    with pytest.raises(Stopped):
        train_run(run, other, world[0], overwrite=True, baseline=False, reporter=StopAt("epoch"))
    assert {path.name for path in run.iterdir()} == {LOCK, "config.yaml", "run.json", ".run.json", "stage1", "model"}
    assert SOLID.load(run).config.train.seed == 0, "who reads the model finds the old one until there is a new one"
    resumed = train_run(run, other, world[0], resume=True, baseline=False)
    assert [len(stage.history) for stage in resumed.solid.training.stages] == [1, 1]
    assert not (run / ".replaced").exists()
    assert SOLID.load(run).config.train.seed == 1


def test_what_a_kill_leaves_before_the_first_epoch_is_in_nobodys_way(
    run: Path, world: tuple[Dataset, SyntheticTruth], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = tmp_path / "early"
    early.mkdir()
    (early / LOCK).touch()
    with pytest.raises(ValueError, match=r"resume: expected a run in .* stopped before its first epoch: start"):
        train_run(early, TINY, world[0], resume=True)
    train_run(early, TINY, world[0], baseline=False)

    for name in ("run.json", ".run.json"):
        (run / name).write_text((run / name).read_text()[:100])
    with pytest.raises(ValueError, match=r"resume: expected a whole run\.json, got .*; --overwrite starts"):
        train_run(run, TINY, world[0], resume=True)
    with pytest.raises(ValueError, match="out: expected a folder that does not exist yet"):
        train_run(run, TINY, world[0])
    train_run(run, TINY, world[0], overwrite=True, baseline=False)
    assert SOLID.load(run).fingerprint == world[0].fingerprint


def test_a_folder_with_other_things_is_not_overwritten(
    run: Path, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    (run / "notes.md").write_text("years of work")
    before = contents(run)
    with pytest.raises(ValueError, match=r"overwrite: expected nothing but a run in .*, got notes\.md"):
        train_run(run, TINY, world[0], overwrite=True)
    assert contents(run) == before
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"out: expected a folder, got .*file, which is none"):
            train_run(tmp_path / "file", TINY, world[0], overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.yaml").write_text("dim: 8")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"expected a folder that does not exist yet|has no run\.json"):
            train_run(precious, TINY, world[0], overwrite=overwrite)
    assert contents(precious) == {"config.yaml": b"dim: 8"}


def test_a_finished_run_is_extended(
    run: Path, world: tuple[Dataset, SyntheticTruth], capsys: pytest.CaptureFixture[str]
) -> None:
    longer = train_run(run, TINY.replace(epochs=3), world[0], resume=True, baseline=False)
    assert [len(stage.history) for stage in longer.solid.training.stages] == [3, 3]
    assert Config.from_yaml(run / "config.yaml").train.epochs == 3
    assert Config.from_yaml(run / "model" / "config.yaml").train.epochs == 3
    assert [stage["epochs"] for stage in json.loads((run / "metrics.json").read_text())["stages"]] == [3, 3]
    before = contents(run)
    for fields, sentence in (
        ({"epochs": 2}, "expected epochs of at least 3 as in"),
        ({"epochs": 3, "seed": 4}, "expected seed=0 as in"),
    ):
        with pytest.raises(ValueError, match=f"resume: {sentence}"):
            train_run(run, TINY.replace(**fields), world[0], resume=True)
    other = synthetic_dataset(400, 60, 6, predictability=1.0, drift=0.0, seed=9)[0]
    with pytest.raises(ValueError, match="resume: expected the dataset of"):
        train_run(run, TINY.replace(epochs=3), other, resume=True)
    assert contents(run) == before


def test_a_row_has_the_name_of_its_method(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    duet = train_run(tmp_path / "duet", method_config(TINY, "duet"), world[0], method="duet", baseline=True)
    assert list(duet.metrics["models"]) == ["popularity", "itemknn", "static", "duet"]
    assert json.loads((tmp_path / "duet" / "run.json").read_text())["method"] == "duet"
    static = train_run(tmp_path / "static", method_config(TINY, "static"), world[0], method="static", baseline=True)
    assert list(static.metrics["models"]) == ["popularity", "itemknn", "static"]
    assert [stage["stage"] for stage in static.metrics["stages"]] == ["stage2"], "one training, not two"
    assert [stage["stage"] for stage in duet.metrics["stages"]] == ["static", "stage2"]
    assert duet.metrics["models"]["static"] == static.metrics["models"]["static"], "a rival is the method itself"


@pytest.mark.parametrize("method", ["finetune", "static-semantic-start"])
def test_a_static_method_with_something_to_it_is_compared_with_the_one_without(
    method: str, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    run = train_run(tmp_path / "run", method_config(TINY, method), world[0], method=method, baseline=True)
    assert list(run.metrics["models"]) == ["popularity", "itemknn", "static", method]
    rival = load_checkpoint(tmp_path / "run" / "static" / "stage2" / "best.safetensors")[1]["config"]
    assert (rival["finetune_steps"], rival["semantic_start"]) == (0, False)


def test_a_run_stopped_in_its_rival_goes_on_there(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    class StopInRival(Silent):
        def epoch(self, epoch: Any, best: Any) -> None:
            if (epoch.stage, epoch.epoch) == ("static", 1):
                raise Stopped

    config = TINY.replace(epochs=2)
    with pytest.raises(Stopped):
        train_run(tmp_path / "cut", config, world[0], baseline=True, reporter=StopInRival())
    assert (tmp_path / "cut" / "static" / "stage2" / "last.safetensors").exists()
    resumed = train_run(tmp_path / "cut", config, world[0], resume=True)
    whole = train_run(tmp_path / "whole", config, world[0], baseline=True)
    assert resumed.metrics["models"] == whole.metrics["models"]
    assert [(stage["stage"], stage["epochs"]) for stage in resumed.metrics["stages"]] == [
        ("static", 2),
        ("stage1", 2),
        ("stage2", 2),
    ]


def test_a_rival_is_trained_only_where_it_was_asked_for(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    without = train_run(tmp_path / "run", TINY, world[0])
    assert list(without.metrics["models"]) == ["popularity", "itemknn", "SOLID"]
    assert not (tmp_path / "run" / "static").exists()
    trained = (tmp_path / "run" / "stage2" / "best.safetensors").read_bytes()
    asked = train_run(tmp_path / "run", TINY, world[0], resume=True, baseline=True)
    again = train_run(tmp_path / "run", TINY, world[0], resume=True)
    for run in (asked, again):
        assert list(run.metrics["models"]) == ["popularity", "itemknn", "static", "SOLID"]
        assert run.metrics["models"]["SOLID"] == without.metrics["models"]["SOLID"]
    assert (tmp_path / "run" / "stage2" / "best.safetensors").read_bytes() == trained


def test_a_run_says_which_differences_its_users_show(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", TINY.replace(epochs=8), world[0], baseline=False)
    found = {(entry["protocol"], entry["other"]): entry for entry in run.metrics["differences"]}
    assert set(found) == {(protocol, other) for protocol in ("full", "sampled") for other in ("popularity", "itemknn")}
    for (protocol, other), entry in found.items():
        ours, theirs = (run.metrics["models"][name][protocol]["ndcg@10"] for name in ("SOLID", other))
        assert entry["mean"] == pytest.approx(ours - theirs, abs=1e-9), "a row a user"
        assert entry["low"] < entry["mean"] < entry["high"]
        assert entry["users"] == world[0].num_users
        assert ("no difference that" in entry["in_words"]) == (entry["p"] >= 0.05)
    beaten = found["sampled", "popularity"]
    assert beaten["mean"] > 0.05
    assert beaten["in_words"].startswith(f"SOLID over popularity, sampled ndcg@10: +{beaten['mean']:.4f} (95 % +")


def test_a_rival_is_named_in_its_own_right_on_the_way(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    begun: list[str] = []

    class Listening(Silent):
        def begin(self, stage: str, steps: int, epochs: int) -> None:
            begun.append(stage)

    train_run(tmp_path / "run", TINY, world[0], baseline=True, reporter=Listening())
    assert begun == ["stage1", "stage2", "static"]


def test_a_picture_that_fails_loses_no_number(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no font")

    monkeypatch.setattr("solid_ext.run.training.draw_report", fail)
    with pytest.raises(OSError, match="no font"):
        train_run(tmp_path / "run", TINY, world[0], baseline=False)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["models"]["SOLID"]
    assert SOLID.load(tmp_path / "run").fingerprint == world[0].fingerprint


def test_train_prints_what_is_not_the_default(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--dataset", str(data), "--out", str(tmp_path / "run"), "--preset", "paper", "--epochs", "1"]
    main([*command, "--eval-negatives", "20", "--dim", "16"])
    printed = capsys.readouterr().out.split("not the default:")[1].split("popularity")[0]
    config = Config.from_yaml(tmp_path / "run" / "config.yaml")
    for line in ("learning_rate: 0.001", "loss: bce", "dim: 16", "epochs: 1", "eval_negatives: 20"):
        assert line in printed
    assert "backbone:" not in printed
    assert (config.train.negatives, config.model.target, config.model.dim) == (4, "mlp", 16)


def test_a_flipped_bit_is_not_resumed(run: Path, world: tuple[Dataset, SyntheticTruth]) -> None:
    flip(run / "stage1" / "last.safetensors")
    with pytest.raises(ValueError, match=r"last\.safetensors"):
        train_run(run, TINY, world[0], resume=True, baseline=False)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"a whole run\.json, got .*"),
        (
            lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "x"})),
            r".*run\.json as it was written, got another content than its sha256",
        ),
        (lambda path: path.write_bytes(b""), r"a whole run\.json, got .*"),
        (lambda path: path.unlink(), r"a whole run\.json, got .*"),
    ],
)
def test_a_run_outlives_its_description(
    damage: Callable[[Path], None], said: str, run: Path, data: Path, world: tuple[Dataset, SyntheticTruth]
) -> None:
    before = read_json(run / "run.json", "test")
    damage(run / "run.json")
    with pytest.warns(UserWarning, match=rf"resume: expected {said}; its copy .*run\.json is taken"):
        train_run(run, TINY, world[0], resume=True, baseline=False)
    assert read_json(run / "run.json", "test") == before


@pytest.mark.parametrize(("old", "which"), [("adaptive_layers", "has a field adaptive_layers"), (None, "no field dim")])
def test_a_run_of_another_version_is_not_resumed(
    old: str | None, which: str, run: Path, world: tuple[Dataset, SyntheticTruth]
) -> None:
    described = read_json(run / "run.json", "test")
    fields = described["config"]
    if old is None:
        del fields["dim"]
    else:
        fields[old] = fields.pop("dynamic_layers")
    write_json(run / "run.json", described)
    before = contents(run)
    with pytest.raises(ValueError, match=rf"resume: expected a run of this version in .*{which} \(train it again\)"):
        train_run(run, TINY, world[0], resume=True)
    assert contents(run) == before


def test_a_name_that_not_every_library_can_open_is_refused_before_work_starts(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"lat\xff")
    grid = make_grid([world[0]], ["sasrec"], ["popularity"], [0], "paper", {"dim": 8})
    search = make_search(["dropout"], "static", "sasrec", "best", {}, 0)
    monkeypatch.setattr("solid_ext.train.stage._train_epoch", None)
    tries: list[Callable[[], object]] = [
        lambda: train_run(odd, TINY, world[0]),
        lambda: SOLID(TINY).fit(world[0], folder=odd),
        lambda: compare(odd, grid, [world[0]], jobs=1),
        lambda: tune(odd, search, world[0], trials=1),
        lambda: world[0].save(odd),
        lambda: Dataset.load(odd),
        lambda: SOLID.load(odd),
    ]
    for attempt in tries:
        with pytest.raises(ValueError, match=r": expected a path of names in UTF-8, got '.*lat\\udcff'"):
            attempt()
    assert not odd.exists()
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ValueError, match=r"expected a path of names in UTF-8, got '.*lat\\udcff/run'"):
        train_run(Path("run"), TINY, world[0])


@pytest.mark.parametrize("place", ["model/mine.txt", "semantics.safetensors/mine.txt", "report.png/mine.txt"])
def test_what_would_keep_a_resumed_run_from_being_written_is_said_before_it_trains(
    place: str, run: Path, world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / place).parent.unlink() if (run / place).parent.is_file() else None
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).write_text("mine")
    before = contents(run)
    monkeypatch.setattr("solid_ext.train.stage._train_epoch", None)
    with pytest.raises(ValueError, match=r"out: expected a (folder of its own|file)"):
        train_run(run, TINY.replace(epochs=2), world[0], baseline=False, resume=True)
    assert contents(run) == before


def test_a_torn_stage_is_trained_again_once_it_is_deleted_as_told(
    run: Path, world: tuple[Dataset, SyntheticTruth]
) -> None:
    whole, last = (run / "stage2" / f"{name}.safetensors" for name in ("best", "last"))
    before = load_checkpoint(whole)[0]
    last.write_bytes(last.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"resume: .*last.safetensors.*; delete .*stage2, and this stage is trained"):
        train_run(run, TINY, world[0], baseline=False, resume=True)
    shutil.rmtree(run / "stage2")
    train_run(run, TINY, world[0], baseline=False, resume=True)
    again = load_checkpoint(whole)[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.items())


def test_a_signal_ends_a_training_after_its_step_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    """A second one ends it at once; either way what was trained is there, and the end is that of a run left alone."""
    command = ["train", "--dataset", str(data), "--epochs", "99", "--patience", "99", "--method", "static", *QUICK]
    for name, number, code in (("int", signal.SIGINT, 130), ("term", signal.SIGTERM, 143)):
        out = tmp_path / name
        arguments = [sys.executable, "-m", "solid_ext.cli", *command, "--out", str(out)]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not (out / "stage2" / "previous.safetensors").exists():
                time.sleep(0.002)
            process.send_signal(number)
            _, said = process.communicate()
        assert process.returncode == code, said
        assert f"`solid-ext train --resume --out {out}` goes on" in said
        assert "Traceback" not in said
        state = load_checkpoint(out / "stage2" / "last.safetensors")[1]
        assert "within" in state or "after this step" in said
        assert begun_run(out).method == "static"
