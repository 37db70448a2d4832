"""The commands that ask a model, as a user types them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from python_tests.commands import fails
from solid_ext import SOLID
from solid_ext.cli import main

QUICK = ["--epochs", "1", "--dim", "16", "--heads", "2", "--length", "5", "--batch-size", "512"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asking")
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},i{(user * 7 + 3 * step) % 40},{step}" for user in range(60) for step in range(6)]
    (folder / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    main(["prepare", "interactions", "--raw", str(folder / "log.csv"), "--out", str(folder / "data")])
    return folder / "data"


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    main(["train", "--dataset", str(data), "--out", str(out), "--eval-negatives", "20", *QUICK])
    return out


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_all_users_of_a_dataset_go_to_a_file(run: Path, data: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"recs.{ending}"
    asked = ["recommend", "--run", str(run), "--dataset", str(data), "--all-users", "--k", "4", "--out", str(out)]
    main([*asked, "--exclude", "i3"])
    expected = SOLID.load(run).recommend_users(data, k=4, exclude=["i3"])
    found = pl.read_parquet(out) if ending == "parquet" else pl.read_csv(out)
    assert found.equals(expected)
    assert found["user_id"].n_unique() == 60
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_exists_is_replaced_on_request_alone(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recs.csv"
    out.write_text("mine")
    asked = ["recommend", "--run", str(run), "--dataset", str(data), "--all-users", "--out", str(out)]
    assert "which exists (--overwrite replaces it)" in fails(asked, capsys)
    assert out.read_text() == "mine"
    main([*asked, "--overwrite"])
    assert out.read_text().startswith("user_id,rank,item_id,title,score\n")


def test_some_users_are_printed(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["recommend", "--run", str(run), "--dataset", str(data), "--users", "u3", "u1", "--k", "2"]
    main([*asked, "--json", "--include", "i1", "i2", "i9"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == SOLID.load(run).recommend_users(data, ["u3", "u1"], 2, include=["i1", "i2", "i9"]).to_dicts()
    main(asked)
    printed = capsys.readouterr().out
    assert printed.index("u3") < printed.index("u1")


def test_every_question_has_its_command(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solid = SOLID.load(run)

    def answer(*arguments: str) -> Any:
        main([arguments[0], "--run", str(run), *arguments[1:]])
        return capsys.readouterr().out

    similar = json.loads(answer("similar", "--items", "i1", "i2", "--k", "3", "--json"))
    assert similar == [[entry._asdict() for entry in found] for found in solid.similar_items(["i1", "i2"], 3)]
    assert "like i2" in answer("similar", "--items", "i1", "i2")
    scored = json.loads(answer("score", "--items", "i1", "i2", "--json", "--", "i3", "i4"))
    assert [entry["score"] for entry in scored] == solid.score([["i3", "i4"]], ["i1", "i2"])[0].tolist()
    assert "i2" in answer("score", "--items", "i2", "--history", "i3")
    told = json.loads(answer("explain", "--item", "i9", "--history", "i3", "i4", "--json"))
    assert told == json.loads(json.dumps(asdict(solid.explain(["i3", "i4"], "i9"))))
    assert "neighbours" in answer("explain", "--item", "i9", "--history", "i3", "i4")
    answer("vectors", "--out", str(tmp_path / "items.parquet"))
    items = pl.read_parquet(tmp_path / "items.parquet")
    ids, vectors = solid.item_vectors()
    assert items["item_id"].to_list() == ids
    assert (items["vector"].to_numpy() == vectors).all()
    answer("vectors", "--dataset", str(data), "--out", str(tmp_path / "users.parquet"))
    users = pl.read_parquet(tmp_path / "users.parquet")
    assert users["user_id"].n_unique() == 60
    history = [f"i{(7 + 3 * step) % 40}" for step in range(6)]
    own = users.filter(pl.col("user_id") == "u1")["vector"].to_numpy()
    assert own == pytest.approx(solid.user_vectors([history]), abs=1e-5)
    assert "ends in .parquet, got items.csv" in fails(["vectors", "--run", str(run), "--out", "items.csv"], capsys)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "recommend: expected one of --history, --users and --all-users, got none"),
        (["--history", "i1", "--users", "u1"], "got --history and --users"),
        (["--history", "i1", "--dataset", "D"], "expected --dataset beside --users or --all-users"),
        (["--history", "i1", "--out", "recs.csv"], "expected --out beside --users or --all-users"),
        (["--users", "u1"], "expected --dataset NAME|PATH beside --users, got none"),
        (["--all-users", "--dataset", "D"], "expected --out FILE beside --all-users, got none"),
        (["--all-users", "--dataset", "D", "--out", "recs.tsv"], "ends in .parquet or .csv, got recs.tsv"),
        (["--users", "nobody", "--dataset", "D"], "expected users of the data, got 'nobody'"),
        (["--history", "i1", "--exclude", "what"], "expected items of the catalogue in exclude, got 'what'"),
        (["--history", "i1", "--include", "what"], "(--unknown ignore reads include without such items)"),
    ],
)
def test_flags_that_make_no_sense_get_a_sentence(
    run: Path, data: Path, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(data) if flag == "D" else flag for flag in flags]
    assert sentence in fails(["recommend", "--run", str(run), *flags], capsys)


def test_an_empty_whitelist_recommends_nothing_and_an_empty_blacklist_leaves_out_nothing(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*flags: str) -> Any:
        main(["recommend", "--run", str(run), "--json", *flags])
        return json.loads(capsys.readouterr().out)

    assert found("--history", "i1", "--include") == []
    assert found("--dataset", str(data), "--users", "u1", "--include") == []
    assert found("--history", "i1", "--exclude") == found("--history", "i1") != []
    assert found("--dataset", str(data), "--users") == []


@pytest.mark.parametrize("together", [1, 4096])
def test_users_without_a_known_item_are_left_out_of_the_vectors_on_request_and_counted(
    together: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solid_ext.serve.users.USERS", together)
    rows = [("a", "i3", 1), ("a", "what", 2), ("a", "i5", 3), ("b", "what", 1), ("c", "i5", 1)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    out = tmp_path / "users.parquet"
    asked = ["vectors", "--run", str(run), "--dataset", str(tmp_path / "log.csv"), "--out", str(out)]
    assert "(--unknown ignore reads histories without such items)" in fails(asked, capsys)
    assert not out.exists()
    alone = ["vectors", "--run", str(run), "--unknown", "ignore", "--out", str(out)]
    assert "expected --unknown beside --dataset" in fails(alone, capsys)
    main([*asked, "--unknown", "ignore"])
    assert "note: left out 1 of 3 users, with no item that the model knows" in capsys.readouterr().err
    users = pl.read_parquet(out)
    assert users["user_id"].to_list() == ["a", "c"]
    expected = SOLID.load(run).user_vectors([["i3", "i5"], ["i5"]])
    assert users["vector"].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_items_that_nobody_has_had_are_added_to_a_model_in_a_folder_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["item_id,name", "i3,known", "fresh,Fresh & new", "fresh,Again", ",No id", "bare,"]
    (tmp_path / "new.csv").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "model"
    asked = ["add-items", "--run", str(run), "--items", str(tmp_path / "new.csv"), "--out", str(out)]
    main([*asked, "--title", "name"])
    printed = capsys.readouterr()
    assert "2 new items beside 40" in printed.out
    assert "1 of them have neither title nor categories" in printed.out
    assert "note: add_items: left out 1 of 5 rows, without an id\n" in printed.err
    assert "note: add_items: left out 1 of 5 rows, with an id that came before\n" in printed.err
    ids, vectors = SOLID.load(out).item_vectors()
    before = SOLID.load(run).item_vectors()
    assert ids == [*before[0], "fresh", "bare"]
    assert (vectors[:-2] == before[1]).all()
    assert "expected a folder that does not exist yet" in fails(asked, capsys)
    main([*asked, "--title", "name", "--overwrite"])
    capsys.readouterr()
    asked[2] = str(out)
    asked[-1] = str(tmp_path / "again")
    with pytest.raises(SystemExit):
        main(asked)
    assert "expected items that the model has not yet, got none among 5 rows" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "command", ["recommend", "vectors", "prepare", "update", "add-items", "train", "compare", "tune"]
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    command: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "file.csv").touch()

    def work(*_: Any, **__: Any) -> Any:
        raise AssertionError("the work began")

    reads = "data.load_dataset" if command == "prepare" else "SOLID.load"
    for name in (reads, "SOLID.fit", "compare.comparison.run_all", "tune._train"):
        monkeypatch.setattr(f"solid_ext.{name}", work)
    flags = {
        "recommend": ["--run", str(run), "--dataset", str(data), "--all-users"],
        "vectors": ["--run", str(run)],
        "prepare": ["interactions", "--raw", str(data.parent / "log.csv")],
        "update": ["--run", str(run), "--dataset", str(data)],
        "add-items": ["--run", str(run), "--items", str(data.parent / "log.csv")],
        "train": ["--dataset", str(data), *QUICK],
        "compare": ["--datasets", str(data), "--methods", "popularity"],
        "tune": ["--dataset", str(data)],
    }[command]
    for out in ("file.csv/in.parquet", "x" * 300 + ".parquet"):
        sentence = fails([command, *flags, "--out", str(tmp_path / out)], capsys)
        assert "that can be written, got " in sentence or "expected a path of shorter names, got " in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file.csv"]
