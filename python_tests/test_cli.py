"""The command line, as a user types it: from a raw file to recommendations, and mistakes on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from solid_ext.cli import main, parse
from solid_ext.config import Config

QUICK = ["--epochs", "1", "--dim", "16", "--heads", "2", "--length", "5", "--batch-size", "512"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a failing command prints."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1, sentence
    return sentence


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    lines = ["who,what,when"]
    for user in range(60):
        lines += [f"u{user},i{(user + step) % 40},{step}" for step in range(6)]
    (folder / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "log.csv"


@pytest.fixture(scope="module")
def data(raw: Path) -> Path:
    columns = ["--user", "who", "--item", "what", "--timestamp", "when"]
    main(["prepare", "interactions", "--raw", str(raw), "--out", str(raw.parent / "data"), *columns])
    return raw.parent / "data"


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    main(["train", "--dataset", str(data), "--out", str(out), "--candidates", "20", *QUICK])
    return out


def test_a_run_holds_everything_it_promises(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".solid_ext.lock",
        "config.yaml",
        "run.json",
        "static",
        "stage1",
        "stage2",
        "model",
        "semantics.safetensors",
        "metrics.json",
        "report.png",
    }
    assert Config.from_yaml(run / "config.yaml").flat()["dim"] == 16
    assert (run / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert set(json.loads((run / "metrics.json").read_text())["models"]) == {"popularity", "static", "SOLID"}


def test_printed_numbers_are_those_of_the_metrics_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["train", "--dataset", str(data), "--out", str(out), "--candidates", "20", *QUICK])
    printed = capsys.readouterr().out
    models = json.loads((out / "metrics.json").read_text())["models"]
    tables = dict(zip(("sampled", "full"), printed.split("one positive against")[1].split("full ranking"), strict=True))
    for protocol, table in tables.items():
        lines = [line for line in table.splitlines() if re.search(r"\d\.\d{4}", line)]
        found = {re.findall(r"[\w@]+", line)[0]: re.findall(r"\d+\.\d{4}", line) for line in lines}
        assert found == {
            metric: [f"{models[name][protocol][metric]:.4f}" for name in ("popularity", "static", "SOLID")]
            for metric in models["SOLID"][protocol]
        }
    for file in ("metrics.json", "report.png", "model"):
        assert str(out / file) in printed.replace("\n", "")


def test_evaluate_repeats_the_metrics_of_the_run(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "--run", str(run), "--dataset", str(data), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((run / "metrics.json").read_text())["models"]["SOLID"]


def test_recommend_answers_in_raw_ids(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recommend", "--run", str(run), "--history", "i3", "i4", "--k", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3
    assert all(re.fullmatch(r"i\d+", entry["item"]) for entry in found)
    assert not {"i3", "i4"} & {entry["item"] for entry in found}


def test_resume_repeats_nothing_and_changes_nothing(run: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    main(["train", "--dataset", str(data), "--out", str(copy), "--candidates", "20", "--resume", *QUICK])
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (run, copy))
    assert after["models"] == before["models"]
    assert (copy / "stage2" / "log.csv").read_text() == (run / "stage2" / "log.csv").read_text()


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 7\ndim: 64\n", encoding="utf-8")
    command = parse(
        ["train", "--dataset", "synthetic", "--out", "x", "--config", str(tmp_path / "c.yaml"), "--dim", "8"]
    )
    assert (command.settings.train.epochs, command.settings.model.dim) == (7, 8)


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "recommend", "compare", "tune", "doctor"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert command == "doctor" or f"Example: solid-ext {command}" in printed


def test_every_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for name in Config().flat():
        assert "--" + name.replace("_", "-") in printed, name


def test_doctor_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    printed = capsys.readouterr().out
    for word in ("solid_ext", "torch", "instruction sets", "threads", "GPU"):
        assert word in printed


def test_mistakes_get_one_sentence(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--out", str(tmp_path / "new"), "--dataset"]
    assert "dataset: expected movielens-100k, synthetic or a path" in fails([*train, "nowhere.csv"], capsys)
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv" in fails([*train, str(tmp_path / "empty.csv")], capsys)
    assert "expected a folder that does not exist yet" in fails(
        ["train", "--out", str(run), "--dataset", str(data)], capsys
    )
    assert "has no run.json" in fails(["train", "--out", str(data), "--dataset", str(data), "--overwrite"], capsys)
    assert "resume: expected a run in" in fails([*train, str(data), "--resume"], capsys)
    again = ["train", "--out", str(run), "--dataset", str(data), "--resume", "--candidates", "20", *QUICK]
    assert "resume: expected dropout=0.5" in fails([*again, "--dropout", "0.1"], capsys)
    assert "dim: expected at least 1, got 0" in fails([*train, str(data), "--dim", "0"], capsys)
    assert "expected a YAML file" in fails([*train, str(data), "--config", "none.yaml"], capsys)
    assert "load: expected a folder with model.safetensors" in fails(
        ["evaluate", "--run", str(tmp_path), "--dataset", str(data)], capsys
    )
    assert "expected the dataset the model was fitted on" in fails(
        ["evaluate", "--run", str(run), "--dataset", "synthetic"], capsys
    )
    assert "got 'nothing', which is not in it" in fails(
        ["recommend", "--run", str(run), "--history", "i3", "nothing"], capsys
    )
    assert "expected --raw FILE" in fails(["prepare", "interactions", "--out", str(tmp_path / "d")], capsys)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "d").exists()


def test_a_user_can_ask_for_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SOLID_EXT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="dataset: expected movielens"):
        main(["train", "--dataset", "nowhere.csv", "--out", "x"])
