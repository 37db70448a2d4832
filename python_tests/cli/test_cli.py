"""The command line, as a user types it: from a raw file to recommendations, and mistakes on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import solid_ext.cli
from python_tests.commands import fails
from solid_ext import build_info
from solid_ext.cli import main
from solid_ext.cli.compare import show_comparison
from solid_ext.cli.entry import parse
from solid_ext.cli.sources import separated
from solid_ext.cli.terminal import harmless
from solid_ext.config import Config

QUICK = ["--epochs", "1", "--dim", "16", "--heads", "2", "--length", "5", "--batch-size", "512"]


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
    main(["train", "--dataset", str(data), "--out", str(out), "--eval-negatives", "20", "--baseline", *QUICK])
    return out


def test_a_run_holds_everything_it_promises(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".solid_ext.lock",
        "config.yaml",
        "run.json",
        ".run.json",
        "static",
        "stage1",
        "stage2",
        "model",
        "semantics.safetensors",
        "metrics.json",
        "report.png",
        "users.parquet",
    }
    assert Config.from_yaml(run / "config.yaml").flat()["dim"] == 16
    assert (run / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert set(json.loads((run / "metrics.json").read_text())["models"]) == {"popularity", "itemknn", "static", "SOLID"}


def test_printed_numbers_are_those_of_the_metrics_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["train", "--dataset", str(data), "--out", str(out), "--eval-negatives", "20", *QUICK])
    assert "not trained: the static method" in capsys.readouterr().out
    main(
        ["train", "--dataset", str(data), "--out", str(out), "--eval-negatives", "20", *QUICK, "--resume", "--baseline"]
    )
    printed = capsys.readouterr().out
    assert "not trained" not in printed
    models = json.loads((out / "metrics.json").read_text())["models"]
    shown = printed.split("one positive against")[1].split("ndcg@10 user by user")[0]
    parts = re.split("full ranking|beyond accuracy", shown)
    tables = dict(zip(("sampled", "full", "beyond"), parts, strict=True))
    for protocol, table in tables.items():
        lines = [line for line in table.splitlines() if re.search(r"\d\.\d{4}", line)]
        found = {re.findall(r"[\w@]+", line)[0]: re.findall(r"\d+\.\d{4}", line) for line in lines}
        assert found == {
            metric: [f"{models[name][protocol][metric]:.4f}" for name in ("popularity", "itemknn", "static", "SOLID")]
            for metric in models["SOLID"][protocol]
        }
    for file in ("metrics.json", "report.png", "model"):
        assert str(out / file) in printed.replace("\n", "")
    told = [entry["in_words"] for entry in json.loads((out / "metrics.json").read_text())["differences"]]
    assert len(told) == 2 * 3
    for sentence in told:
        assert " ".join(sentence.split()) in " ".join(printed.split())


def test_evaluate_repeats_the_metrics_of_the_run(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "--run", str(run), "--dataset", str(data), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((run / "metrics.json").read_text())["models"]["SOLID"]


def test_recommend_answers_in_raw_ids(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recommend", "--run", str(run), "--history", "i3", "i4", "--k", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3
    assert all(re.fullmatch(r"i\d+", entry["item"]) for entry in found)
    assert not {"i3", "i4"} & {entry["item"] for entry in found}


def test_ids_that_begin_with_a_dash_follow_two_dashes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*arguments: str) -> list[dict[str, object]]:
        main(["recommend", "--run", str(run), "--json", *arguments])
        return json.loads(capsys.readouterr().out)

    expected = answer("--history", "i3", "i4")
    assert answer("--history", "--", "i3", "i4") == answer("--", "i3", "i4") == answer("--history", "i3", "--", "i4")
    assert answer("--history", "--", "i3", "i4") == expected
    for ids in (["-a5", "--b6"], ["--k", "3"], ["--"]):
        with pytest.raises(SystemExit) as ended:
            main(["recommend", "--run", str(run), "--history", "--", *ids])
        assert ended.value.code == 2
        assert f"expected items of the catalogue, got '{ids[0]}', which is not in it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recommend", "--help"])
    assert 'after "--"' in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_resume_repeats_nothing_and_changes_nothing(run: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    main(["train", "--dataset", str(data), "--out", str(copy), "--eval-negatives", "20", "--resume", *QUICK])
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (run, copy))
    assert after["models"] == before["models"]
    assert (copy / "stage2" / "log.csv").read_text() == (run / "stage2" / "log.csv").read_text()


def logged_epochs(run: Path) -> list[int]:
    return [stage["epochs"] for stage in json.loads((run / "metrics.json").read_text())["stages"]]


def test_resume_alone_goes_on_as_the_run_was_started_and_with_more_epochs_further(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    monkeypatch.chdir(data.parent)
    own = ["--method", "static", "--no-baseline", "--loss", "bce", "--delta", "0.5", "--seed", "3"]
    main(["train", "--dataset", data.name, "--out", str(out), "--eval-negatives", "20", *own, *QUICK])
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # where the dataset's relative path leads nowhere
    begun, metrics = (json.loads((out / name).read_text()) for name in ("run.json", "metrics.json"))
    main(["train", "--resume", "--out", str(out)])
    again = json.loads((out / "run.json").read_text())
    assert {**again, "sha256": "", "build": ""} == {**begun, "sha256": "", "build": ""}
    assert json.loads((out / "metrics.json").read_text())["models"] == metrics["models"]
    assert "static" in metrics["models"]
    assert "SOLID" not in metrics["models"]
    assert logged_epochs(out) == [1]

    main(["train", "--resume", "--out", str(out), "--epochs", "2"])
    assert logged_epochs(out) == [2]
    (elsewhere / "more.yaml").write_text("epochs: 3\n", encoding="utf-8")
    main(["train", "--resume", "--out", str(out), "--config", "more.yaml"])
    assert logged_epochs(out) == [3]
    capsys.readouterr()

    resumed = ["train", "--resume", "--out", str(out)]
    for flags, sentence in (
        (["--dim", "32"], "resume: expected dim=16 as in"),
        (["--loss", "full_softmax"], "resume: expected loss=bce as in"),
        (["--preset", "paper"], "as in"),
        (["--epochs", "2"], "resume: expected epochs of at least 3"),
        (["--method", "duet"], "resume: expected method=static as in"),
        (["--dataset", "synthetic"], "resume: expected the dataset of"),
    ):
        kept = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert sentence in fails([*resumed, *flags], capsys)
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == kept
    text = (out / "config.yaml").read_text(encoding="utf-8")
    (out / "config.yaml").write_text(text.replace("seed: 3", "seed: 4"), encoding="utf-8")
    assert "resume: expected seed=3 as in" in fails(resumed, capsys)
    (out / "config.yaml").write_text("\n".join(text.splitlines()[:9]), encoding="utf-8")
    main(resumed)  # fields that a file cut short has lost never become defaults
    assert (out / "config.yaml").read_text(encoding="utf-8") == text
    for name in ("run.json", ".run.json"):  # a copy of the other
        (out / name).write_text((out / name).read_text()[:-20])
    assert "expected a whole run.json" in fails(resumed, capsys)


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


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith(f"solid_ext {build_info()['version']} ")


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
    again = ["train", "--out", str(run), "--dataset", str(data), "--resume", "--eval-negatives", "20", *QUICK]
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "synthetic", "--out", "OUT"], "(--overwrite replaces one of its kind)"),
        (["prepare", "interactions", "--raw", "DATA", "--out", "new"], "expected --raw FILE, got the dataset folder "),
        (["recommend", "--run", "RUN", "--history", "nothing"], "(--unknown ignore reads histories"),
        (
            ["train", "--dataset", "s3://bucket/x", "--out", "new"],
            "dataset: expected a local path, got the address 's3:",
        ),
        (["recommend", "--run", "https://x.org/run", "--history", "1"], "load: expected a local path, got the address"),
    ],
)
def test_an_error_names_the_flag_and_not_pythons_argument(
    arguments: list[str], said: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": str(tmp_path), "RUN": str(run), "DATA": str(data)}
    assert said in fails([places.get(word, word) for word in arguments], capsys)


def test_a_user_can_ask_for_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SOLID_EXT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="dataset: expected movielens"):
        main(["train", "--dataset", "nowhere.csv", "--out", "x"])


HOSTILE = {
    "i0": "[new] Shirt",
    "i1": "[/sale] Hat",
    "i2": "\x1b[31mred\x07",
    "i3": ":smile: \u202egnp",
    "i4": "Café $x_1$ 日本",
}
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def in_a_process(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command line as another program starts it."""
    return subprocess.run(
        [sys.executable, "-m", "solid_ext.cli", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def hostile(raw: Path) -> Path:
    """A run whose folder, dataset and titles hold what a terminal, rich or polars would read as a command."""
    folder = raw.parent / "[bold]$ *?"
    items = raw.parent / "titles.csv"
    items.write_text("what,title\n" + "".join(f"{item},{title}\n" for item, title in HOSTILE.items()), encoding="utf-8")
    columns = ["--user", "who", "--item", "what", "--timestamp", "when"]
    main(["prepare", "interactions", "--raw", str(raw), "--items", str(items), "--out", str(folder / "[x]"), *columns])
    done = in_a_process(
        ["train", "--dataset", str(folder / "[x]"), "--out", str(folder / "run"), "--eval-negatives", "20", *QUICK],
        **ASCII,
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert b"[x]: 60 users" in done.stdout
    assert (folder / "run" / "metrics.json").exists()
    return folder


def test_titles_are_printed_as_they_are_and_obeyed_by_nothing(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["recommend", "--run", str(hostile / "run"), "--history", "i9", "--k", "39"])
    printed = capsys.readouterr().out
    for shown in ("[new] Shirt", "[/sale] Hat", "\\x1b[31mred\\x07", ":smile: \\u202egnp", "Café $x_1$ 日本"):
        assert shown in printed
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    main(["recommend", "--run", str(hostile / "run"), "--history", "i9", "--k", "39", "--json"])
    assert set(HOSTILE.values()) <= {entry["title"] for entry in json.loads(capsys.readouterr().out)}


def test_an_ascii_terminal_gets_what_it_can_show(hostile: Path) -> None:
    for arguments in (["--help"], ["train", "--help"], ["recommend", "--help"]):
        done = in_a_process(arguments, **ASCII)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
    done = in_a_process(["recommend", "--run", str(hostile / "run"), "--history", "i9", "--k", "39"], **ASCII)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert len({len(line) for line in lines}) == 1, "the columns stand under each other"
    assert any("Caf\\xe9 $x_1$ \\u65e5\\u672c" in line for line in lines)
    done = in_a_process(["recommend", "--run", "Größe", "--history", "i9"], **ASCII)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recommend", "--run", "RUN", "--history", "i9", "--json"], ["doctor"]]
)
def test_a_reader_that_goes_ends_it_quietly(hostile: Path, arguments: list[str]) -> None:
    command = [str(hostile / "run") if word == "RUN" else word for word in arguments]
    with subprocess.Popen(
        [sys.executable, "-m", "solid_ext.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 141


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert harmless("a\x1b]0;b\x9b\r\u2028\udc80\u2066") == "a\\x1b]0;b\\x9b\\r\\u2028\\udc80\\u2066"
    kept = "Café 日本 \u200d\u00a0 العربية 👩\u200d👧 line\nline\ttab"
    assert harmless(kept) == kept


def test_a_saved_model_serves_like_its_run_and_a_newcomer_is_told(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(run / "model", tmp_path / "kept")
    answers = []
    for folder in (run, model):
        main(["recommend", "--run", str(folder), "--history", "i3", "i4", "--json"])
        main(["evaluate", "--run", str(folder), "--dataset", str(data), "--json"])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    for none in (["--history"], ["--history", "strange", "--unknown", "ignore"]):
        main(["recommend", "--run", str(model), *none, "--json"])
        printed = capsys.readouterr()
        assert len(json.loads(printed.out)) == 10
        assert printed.err.count("\n") == 1
        assert "the most popular items of the training part" in printed.err


def test_a_list_may_hold_paths_with_commas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert separated('"a,b.csv", c.csv,') == ["a,b.csv", "c.csv"]
    odd = tmp_path / "a,b.csv"
    odd.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 30},i{n * n % 23},{n}\n" for n in range(180)))
    for place, names in enumerate((str(odd), f'"{odd}", synthetic')):
        main(["compare", "--datasets", names, "--methods", "popularity", "--out", str(tmp_path / f"out{place}")])
        assert "a,b" in capsys.readouterr().out


def test_a_comparison_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["dataset,backbone,method,seed,protocol,metric,value"]
    for seed, value in ((0, 0.1), (1, 0.3)):
        lines += [f"[b]x,sasrec,solid,{seed},{protocol},ndcg@10,{value}" for protocol in ("sampled", "full")]
    lines.append("[b]x,none,itemknn,0,sampled,user_auc,0.75")
    (tmp_path / "runs.csv").write_text("\n".join(lines), encoding="utf-8")
    show_comparison(tmp_path / "runs.csv")
    printed = capsys.readouterr().out
    assert "[b]x" in printed
    assert re.search(r"sasrec .* solid .* 0\.2000 ± .* 0\.2000 ±", printed)
    assert re.search(r"none .* itemknn .* 0\.7500", printed)


def test_nothing_is_printed_as_markup() -> None:
    """`console` reads none, so that titles may hold any: colours are `style`."""
    for source in Path(solid_ext.cli.__file__).parent.glob("*.py"):
        assert not re.findall(r"\[/?(?:bold|dim|red|green|yellow|blue|italic)\]", source.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("--candidates=20", "now eval_negatives"),
        ("--adaptive-layers", "now dynamic_layers"),
        ("--no-residual", "now dynamic_residual"),
        ("--log_q", "now a loss, sampled_softmax_log_q"),
    ],
)
def test_a_flag_of_an_earlier_version_is_told_what_became_of_it(
    flag: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--dataset", "synthetic", "--out", "nowhere", flag])
    assert ended.value.code == 2
    expected = f"solid-ext: train: expected a flag of this version, got {flag}, which is {advice}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        (">&-", "doctor", 0),
        ("2>&-", "doctor", 0),
        ("2>&-", "recommend --run nowhere --history 1", 2),
        (">&- 2>&-", "doctor", 0),
    ],
)
def test_a_closed_stream_changes_no_exit_code(closed: str, arguments: str, code: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m solid_ext.cli {arguments} {closed}'], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, b"")


def test_a_stopped_command_says_what_it_leaves(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    out = ["--out", str(tmp_path / "out")]
    said = {}
    for name, flags in {
        "train": ["--dataset", str(data), "--threads", "1"],
        "compare": ["--datasets", str(data)],
        "tune": ["--dataset", str(data)],
        "prepare": ["synthetic"],
    }.items():
        monkeypatch.setattr(f"solid_ext.cli.{name}.open_dataset", stop)
        with pytest.raises(SystemExit) as code:
            main([name, *flags, *out])
        assert code.value.code == 130
        said[name] = capsys.readouterr().err
    assert said["train"] == "solid-ext: stopped before the first epoch\n"
    assert said["compare"] == said["tune"] == "solid-ext: stopped; what finished is kept, the same command goes on\n"
    assert said["prepare"] == "solid-ext: stopped; nothing was written\n"
    (tmp_path / "out" / "stage1").mkdir(parents=True)
    (tmp_path / "out" / "stage1" / "last.safetensors").touch()
    with pytest.raises(SystemExit):
        main(["train", "--dataset", str(data), "--threads", "1", *out])
    going_on = f"`solid-ext train --resume --out {tmp_path / 'out'}` goes on"
    assert capsys.readouterr().err == f"solid-ext: stopped; what is trained is kept, and {going_on}\n"


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 8 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 TiB")],
)
def test_memory_that_is_not_there_gets_a_sentence(
    error: Exception, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("solid_ext.cli.train.open_dataset", fail)
    sentence = fails(["train", "--dataset", str(data), "--out", str(tmp_path / "out"), "--threads", "1"], capsys)
    assert sentence == f"solid-ext: memory: expected enough of it, got too little ({error})\n"


def test_an_append_that_runs_beside_another_is_refused_and_loses_no_rows(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from solid_ext import Dataset
    from solid_ext.data import append

    columns = ["--user", "who", "--item", "what", "--timestamp", "when"]
    out, more = tmp_path / "data", tmp_path / "more.csv"
    main(["prepare", "interactions", "--raw", str(raw), "--out", str(out), *columns])
    more.write_text("who,what,when\nu1,i1,90\n", encoding="utf-8")
    beside = "import sys; from solid_ext.cli import main; main(sys.argv[1:])"
    others = [
        ["prepare", "interactions", "--raw", str(more), "--out", str(out), flag, *columns]
        for flag in ("--append", "--overwrite")
    ]
    found, grown = [], append.append_interactions

    def while_others_run(*given: object, **named: object) -> object:
        found.extend(
            subprocess.run([sys.executable, "-c", beside, *other], capture_output=True, text=True) for other in others
        )
        return grown(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(append, "append_interactions", while_others_run)
    main(["prepare", "interactions", "--raw", str(more), "--out", str(out), "--append"])
    assert [other.returncode for other in found] == [2, 2]
    assert all("prepare: expected a folder that nobody works in" in other.stderr.replace("\n", " ") for other in found)
    assert Dataset.load(out).num_interactions == 361


@pytest.mark.slow
def test_export_writes_programs_and_refuses_a_folder_that_is_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--run", str(run), "--for", "torch", "--out", str(tmp_path / "out")]
    main(command)
    assert "encode.pt2, score.pt2 in" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / "items.parquet").exists()
    assert "export: expected" in fails(command, capsys)
    main([*command, "--overwrite"])
