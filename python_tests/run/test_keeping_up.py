"""Runs with a model for use, and updates from a run's folder to another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.cli import main
from solid_ext.data import synthetic_dataset
from solid_ext.data.append import as_rows
from solid_ext.files import read_json
from solid_ext.run import begun_run, train_run, update_run
from solid_ext.train import Epoch, Silent

TINY = Config().replace(
    length=5, dim=8, heads=2, codebook_hidden=8, batch_size=512, epochs=2, eval_negatives=20, num_semantics=6
)


@pytest.fixture(scope="module")
def both() -> tuple[Dataset, Dataset]:
    """The data until a time and without an item, and all of it."""
    dataset = synthetic_dataset(150, 40, 4, predictability=1.0, drift=0.0, seed=1)[0]
    assert dataset.timestamps is not None
    kept = (dataset.timestamps < np.quantile(dataset.timestamps, 0.7)) & (dataset.items < 40)
    return load_dataset(as_rows(dataset).filter(pl.Series(kept)), items=dataset.item_table, name="old"), dataset


@pytest.fixture(scope="module")
def refitted(both: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    train_run(folder, TINY, both[0], refit=True, reporter=Silent())
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return SOLID.load(folder)._fitted().state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_refitted_run_says_which_model_is_which(
    refitted: Path, both: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    plain = train_run(tmp_path / "plain", TINY, both[0], reporter=Silent())
    metrics = read_json(refitted / "metrics.json", "test")
    assert metrics["models"] == plain.metrics["models"]
    assert metrics["folders"].keys() == {"model", "measured"}
    assert plain.metrics["folders"].keys() == {"model"}
    assert read_json(refitted / "run.json", "test")["refit"] is True
    assert same(weights(refitted / "measured"), weights(tmp_path / "plain"))
    assert not same(weights(refitted), weights(refitted / "measured"))
    again = SOLID.load(refitted / "measured").evaluate(both[0])
    assert again["full"] == metrics["models"]["SOLID"]["full"]
    with pytest.raises(ValueError, match="a run keeps that model in its folder `measured`"):
        SOLID.load(refitted).evaluate(both[0])
    used = SOLID(TINY).fit(both[0], reporter=Silent()).refit()
    assert same(weights(refitted), used._fitted().state_dict())


def test_a_run_that_has_ended_is_refitted_when_it_is_resumed_with_it(
    refitted: Path, both: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train_run(tmp_path / "run", TINY, both[0], reporter=Silent())
    assert not begun_run(tmp_path / "run").refit
    train_run(tmp_path / "run", TINY, both[0], refit=True, resume=True, reporter=Silent())
    assert begun_run(tmp_path / "run").refit
    assert same(weights(tmp_path / "run"), weights(refitted))
    train_run(tmp_path / "run", TINY, both[0], resume=True, reporter=Silent())
    assert same(weights(tmp_path / "run"), weights(refitted))


class KilledInRefit(Silent):
    """Ends the run after an epoch of the refit, as a kill would."""

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        if epoch.stage == "refit stage2":
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_in_its_refit_goes_on_to_the_same_model(
    refitted: Path, both: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_run(tmp_path / "run", TINY, both[0], refit=True, reporter=KilledInRefit())
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run" / "measured").exists()
    train_run(tmp_path / "run", TINY, both[0], resume=True, reporter=Silent())
    assert same(weights(tmp_path / "run"), weights(refitted))


def test_an_update_writes_a_run_that_can_be_asked_and_updated_and_leaves_the_old_one(
    refitted: Path, both: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in refitted.rglob("*") if path.is_file()}
    run = update_run(refitted, both[1], tmp_path / "second", epochs=1)
    assert {path: path.read_bytes() for path in refitted.rglob("*") if path.is_file()} == before
    metrics = read_json(tmp_path / "second" / "metrics.json", "test")
    assert metrics["items"] == {"known": 39, "new": 1}
    assert metrics["models"].keys() == {"before", "update"}
    assert same(weights(tmp_path / "second"), run.solid._fitted().state_dict())
    assert len(SOLID.load(tmp_path / "second").recommend([["item-01"]], 50)[0]) == 39
    with pytest.raises(ValueError, match="expected interactions later than"):
        update_run(tmp_path / "second", both[1], tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_an_update_refuses_a_folder_that_is_there_before_any_work(
    refitted: Path, both: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out: expected a folder that does not exist yet"):
        update_run(tmp_path / "no run", both[1], tmp_path / "out")


def test_an_update_that_is_killed_leaves_nothing(refitted: Path, both: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    both[1].save(tmp_path / "data")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom solid_ext import load_dataset\n"
        "from solid_ext.run import update_run\nfrom solid_ext.train import Silent\n"
        "class Kill(Silent):\n    def epoch(self, *_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "update_run(Path(sys.argv[1]), load_dataset(sys.argv[2]), Path(sys.argv[3]), reporter=Kill())\n"
    )
    (tmp_path / "outs").mkdir()
    arguments = [str(refitted), str(tmp_path / "data"), str(tmp_path / "outs" / "out")]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "outs").iterdir()) == []


def test_a_night_on_the_command_line(
    both: tuple[Dataset, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, dataset = both
    rows = as_rows(dataset).rename({"user_id": "who"})
    as_rows(old).rename({"user_id": "who"}).write_csv(tmp_path / "monday.csv")
    rows.write_csv(tmp_path / "tuesday.csv")
    dataset.item_table.write_csv(tmp_path / "items.csv")
    data, first, second = (str(tmp_path / name) for name in ("data", "first", "second"))
    items = ["--items", str(tmp_path / "items.csv"), "--out", data]
    main(["prepare", "interactions", "--raw", str(tmp_path / "monday.csv"), "--user", "who", *items])
    fields = ["--length=5", "--dim=8", "--codebook-hidden=8", "--batch-size=512", "--epochs=1", "--eval-negatives=20"]
    main(["train", "--dataset", data, "--out", first, "--refit", *fields])
    said = capsys.readouterr().out.replace("\n", "")
    assert "trained on all interactions, for use" in said
    main(["prepare", "interactions", "--raw", str(tmp_path / "tuesday.csv"), "--append", *items])
    said = capsys.readouterr().out
    assert "user who" in said
    assert f"{dataset.num_interactions - old.num_interactions:,} interactions" in said
    assert Dataset.load(data).num_interactions == dataset.num_interactions
    main(["update", "--run", first, "--dataset", data, "--out", second, "--epochs", "1"])
    said = capsys.readouterr().out
    assert "39 known, 1 new" in said
    metrics = read_json(tmp_path / "second" / "metrics.json", "test")
    before, after = (metrics["models"][name]["full"]["ndcg@10"] for name in ("before", "update"))
    assert ("ranks them worse" in said) == (after < before)
    older = metrics["split"]["older_not_trained_on"]
    assert dataset.timestamps is not None
    assert old.timestamps is not None
    assert older == int(np.sum(dataset.timestamps <= old.timestamps.max())) - old.num_interactions
    assert f"note: {older:,} interactions that the old model had not are not trained on" in said.replace("\n", " ")
    main(["recommend", "--run", second, "--history", "item-01", "item-02"])
    with pytest.raises(SystemExit):
        main(["evaluate", "--run", second, "--dataset", data])
    assert "not trained on" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--user", "other"], "append: expected --user user_id"),
        (["--min-rating", "4"], "append: expected --min-rating None"),
        (["--overwrite"], "expected --append with interactions and without --overwrite, got --overwrite"),
    ],
)
def test_appending_by_other_columns_than_the_first_time_is_refused_and_changes_nothing(
    both: tuple[Dataset, Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
) -> None:
    as_rows(both[0]).write_csv(tmp_path / "old.csv")
    main(["prepare", "interactions", "--raw", str(tmp_path / "old.csv"), "--out", str(tmp_path / "data")])
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    as_rows(both[1]).write_csv(tmp_path / "new.csv")
    into = ["--raw", str(tmp_path / "new.csv"), "--out", str(tmp_path / "data")]
    with pytest.raises(SystemExit):
        main(["prepare", "interactions", *into, "--append", *flags])
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
