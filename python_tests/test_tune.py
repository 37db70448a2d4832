"""Tuning: a search that goes on as if it had not stopped, a file that the other commands read, mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml

from solid_ext import SOLID
from solid_ext.cli import main
from solid_ext.cli.entry import parse
from solid_ext.config import Config
from solid_ext.data import Dataset, SyntheticTruth
from solid_ext.tune import SPACE, Trial, make_search, tune

FIELDS = {"epochs": 1, "dim": 8, "heads": 2, "length": 5, "batch_size": 512, "eval_negatives": 20}


def test_a_search_goes_on_as_if_it_had_not_stopped(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    search = make_search(["learning_rate", "dropout"], "static", "gru4rec", "best", FIELDS, 3)
    trials: dict[str, list[Trial]] = {"once": [], "twice": []}
    tune(tmp_path / "twice", search, world[0], trials=1, on_finished=trials["twice"].append)
    best = tune(tmp_path / "twice", search, world[0], trials=3, on_finished=trials["twice"].append)
    assert tune(tmp_path / "once", search, world[0], trials=3, on_finished=trials["once"].append) == best
    assert trials["once"] == trials["twice"]
    assert len({trial.values["learning_rate"] for trial in trials["once"]}) == 3
    assert best == max(trials["once"], key=lambda trial: trial.metric)
    found = Config.from_yaml(tmp_path / "once" / "best.yaml")
    assert found == search.config.replace(**best.values, seed=0)
    command = parse(["train", "--dataset", "x", "--out", "y", "--config", str(tmp_path / "once" / "best.yaml")])
    assert command.settings == found
    with pytest.raises(
        ValueError, match=r"out: expected a new folder or one of this search, got .*, whose names differ"
    ):
        tune(tmp_path / "once", make_search(["dropout"], "static", "gru4rec", "best", FIELDS, 3), world[0])


def test_a_trial_that_was_killed_goes_on(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after training and before its result was kept: the stage is not trained again, the values are the same."""
    search = make_search(["learning_rate"], "static", "gru4rec", "best", FIELDS, 0)
    whole = tune(tmp_path / "whole", search, world[0], trials=1)
    with monkeypatch.context() as patch:
        patch.setattr("solid_ext.tune.shutil.rmtree", lambda folder, ignore_errors=False: None)
        patch.setattr("optuna.study.Study.tell", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune(tmp_path / "cut", search, world[0], trials=1)
    log = tmp_path / "cut" / "trials" / "0" / "stage2" / "last.safetensors"
    assert log.exists()
    monkeypatch.setattr("solid_ext.train.stage._train_epoch", None)
    assert tune(tmp_path / "cut", search, world[0], trials=1) == whole
    assert not log.exists()


def test_processes_share_a_search_and_one_that_is_killed_costs_a_trial(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    """The metric of every trial has the bits of a training with its values, whichever process had it."""
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    world[0].save(tmp_path / "world")
    slow = FIELDS | {"epochs": 10, "patience": 10}
    (tmp_path / "fields.yaml").write_text(yaml.safe_dump(slow), encoding="utf-8")
    search = make_search(["learning_rate"], "static", "gru4rec", "best", slow, 0)
    flags = ["--dataset", str(tmp_path / "world"), "--config", str(tmp_path / "fields.yaml"), "--storage", storage]
    flags += ["--fields", "learning_rate", "--method", "static", "--backbone", "gru4rec", "--trials", "3"]
    command = [sys.executable, "-m", "solid_ext.cli", "tune", *flags, "--out", str(tmp_path / "killed")]
    with subprocess.Popen(command) as process:
        while not (tmp_path / "killed" / "trials" / "0" / "stage2" / "last.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    told: list[Trial] = []
    best = tune(tmp_path / "other", search, world[0], trials=2, storage=storage, on_finished=told.append)
    again = tune(tmp_path / "killed", search, world[0], trials=2, storage=storage, on_finished=told.append)
    assert len(told) == 2
    assert again == best == max(told, key=lambda trial: trial.metric)
    assert len({trial.values["learning_rate"] for trial in told}) == 2
    for trial in told:
        alone = SOLID(search.config.replace(**trial.values)).fit(Dataset.load(tmp_path / "world"))
        assert alone.training.stages[-1].best.valid == trial.metric
    (study,) = optuna.get_all_study_summaries(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=study.study_name, storage=storage).trials]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]
    with pytest.raises(
        ValueError, match=r"storage: expected a file, or the URL of a database that answers, got NoSuch"
    ):
        tune(tmp_path / "other", search, world[0], storage="redis://nowhere")


def test_a_journal_is_shared_too_and_other_searches_beside_it_are_left_alone(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = [0.25, 0.5, 0.125]
    monkeypatch.setattr("solid_ext.tune._train", lambda folder, *rest: (folder.mkdir(parents=True), metrics.pop(0))[1])
    search, other = (make_search([name], "static", "gru4rec", "best", FIELDS, 0) for name in ("dropout", "dim"))
    storage = str(tmp_path / "journal")
    assert tune(tmp_path / "first", search, world[0], trials=1, storage=storage).metric == 0.25
    assert tune(tmp_path / "second", search, world[0], trials=2, storage=storage).metric == 0.5
    assert tune(tmp_path / "third", other, world[0], trials=1, storage=storage).metric == 0.125
    assert not metrics


def test_a_shared_journal_that_was_cut_off_is_refused_before_a_line_is_appended_to_the_torn_one(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solid_ext.tune._train", lambda folder, *rest: (folder.mkdir(parents=True), 0.5)[1])
    search, journal = make_search(["dropout"], "static", "gru4rec", "best", FIELDS, 0), tmp_path / "journal"
    tune(tmp_path / "first", search, world[0], trials=1, storage=str(journal))
    torn = journal.read_bytes()[:-7]
    journal.write_bytes(torn)
    with pytest.raises(
        ValueError, match=r"storage: expected a journal of whole lines in .*journal, got a last one that"
    ):
        tune(tmp_path / "second", search, world[0], trials=2, storage=str(journal))
    assert journal.read_bytes() == torn


def test_every_searched_field_exists_and_its_range_is_allowed() -> None:
    for name, where in SPACE.items():
        for value in where[:2]:
            assert Config().replace(**{name: value}).flat()[name] == value


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--fields", ""], "fields: expected at least one, got none"),
        (["--fields", "luck"], "fields: expected one of learning_rate, .*, got 'luck'"),
        (["--fields", "delta,delta"], "fields: expected different ones, got 'delta' twice"),
        (["--method", "sliod"], "method: expected one of static, .*, got 'sliod'"),
        (["--preset", "worst"], "preset: expected one of paper, best, device, got 'worst'"),
        (["--backbone", "resnet"], "backbone: expected one of .*sasrec.*, got 'resnet'"),
        (["--trials", "0"], "trials: expected at least 1, got 0"),
    ],
)
def test_mistakes_get_one_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tune", "--dataset", "synthetic", "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.search(sentence, printed)
    assert not (tmp_path / "out").exists()


def test_without_optuna_one_sentence_says_what_to_install(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    search = make_search(["dropout"], "solid", "sasrec", "paper", {}, 0)
    with pytest.raises(ValueError, match=r"tune: expected the package optuna \(pip install 'solid_ext\[tune\]'\)"):
        tune(tmp_path / "out", search, world[0])
    assert not (tmp_path / "out").exists()


def test_a_trial_that_diverges_is_no_candidate(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search(["learning_rate"], "static", "gru4rec", "best", {**FIELDS, "weight_decay": 1e6}, 0)
    told: list[Trial] = []
    with pytest.raises(ValueError, match="tune: expected a trial that trains to an end, got 2 that diverged"):
        tune(tmp_path / "all", search, world[0], trials=2, on_finished=told.append)
    assert [trial.metric for trial in told] == [None, None]
    assert not (tmp_path / "all" / "best.yaml").exists()
    results: list[float | None] = [None, 0.0, 0.25, None]
    monkeypatch.setattr("solid_ext.tune._train", lambda folder, *rest: (folder.mkdir(parents=True), results.pop(0))[1])
    assert tune(tmp_path / "some", search, world[0], trials=3).metric == 0.25
    assert tune(tmp_path / "some", search, world[0], trials=4).number == 2


@pytest.mark.parametrize(
    ("fields", "method", "backbone", "others"),
    [
        ("delta", "static", "sasrec", {}),
        ("alignment", "static", "sasrec", {}),
        ("alignment", "solid-no-codebook", "sasrec", {}),
        ("num_semantics", "finetune", "sasrec", {}),
        ("num_semantics", "solid", "sasrec", {"semantics": "category"}),
        ("negatives", "solid", "sasrec", {}),
        ("blocks", "solid", "gru4rec", {}),
    ],
)
def test_a_field_that_no_trial_reads_is_refused(
    fields: str,
    method: str,
    backbone: str,
    others: dict[str, str],
    world: tuple[Dataset, SyntheticTruth],
    tmp_path: Path,
) -> None:
    search = make_search(["dropout", fields], method, backbone, "best", {**FIELDS, **others}, 0)
    with pytest.raises(ValueError, match=f"fields: expected fields that the trials read, got {fields}, which"):
        tune(tmp_path / "out", search, world[0], trials=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "method"), [("delta", "duet"), ("alignment", "solid-no-alignment")])
def test_a_field_that_the_method_sets_is_refused(field: str, method: str) -> None:
    with pytest.raises(ValueError, match=f"fields: expected fields that method {method} leaves open, got {field}"):
        make_search([field], method, "sasrec", "best", {}, 0)


def test_a_choice_that_does_not_go_with_the_other_fields_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fields: expected values that go with .*, got dim=16: heads: expected a div"):
        make_search(["dim"], "solid", "sasrec", "best", {"dim": 48, "heads": 3}, 0)


def test_a_torn_journal_goes_on_and_a_damaged_one_gets_a_sentence(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    search = make_search(["dropout"], "static", "gru4rec", "best", FIELDS, 2**63 - 1)
    best = tune(tmp_path / "out", search, world[0], trials=2)
    journal = tmp_path / "out" / "journal.log"
    content = journal.read_bytes()
    journal.write_bytes(content[:-7])
    assert tune(tmp_path / "out", search, world[0], trials=2) == best
    for damage, found in ((b"\xff\x00\n", "another, line 3"), (b"{}\n", "lines that tell of no search")):
        lines = content.splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
        with pytest.raises(
            ValueError, match=rf"out: expected a journal of lines of JSON in .*, got {found}.*new folder"
        ):
            tune(tmp_path / "out", search, world[0], trials=2)
