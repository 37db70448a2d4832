"""Comparisons: the grid, what a kill leaves and a second call makes of it, the tests over users, the report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from filelock import FileLock

from python_tests.damage import flip
from solid_ext import Config
from solid_ext.cli import main
from solid_ext.compare import PEERS, Grid, PlannedRun, compare, make_grid
from solid_ext.compare.process import run_planned
from solid_ext.compare.report import write_report
from solid_ext.data import Dataset, SyntheticTruth, synthetic_dataset
from solid_ext.evaluate import hr, mrr, ndcg
from solid_ext.files import LOCK, write_json

QUICK = "epochs: 3\ndim: 8\nheads: 2\nlength: 5\nbatch_size: 128\neval_negatives: 20\n"
SHOWN = [
    "sampled user_auc",
    "sampled ndcg@10",
    "sampled hr@10",
    "full ndcg@10",
    "full hr@10",
    "full, history excluded ndcg@10",
    "full mrr",
]


@pytest.fixture
def arguments(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> list[str]:
    """A comparison of tiny runs, in a folder of its own."""
    world[0].save(tmp_path / "world")
    (tmp_path / "quick.yaml").write_text(QUICK, encoding="utf-8")
    out = ["--out", str(tmp_path / "out"), "--config", str(tmp_path / "quick.yaml"), "--jobs", "1"]
    return ["compare", "--datasets", str(tmp_path / "world"), *out]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_comparison_goes_on_without_repeating_anything(arguments: list[str], tmp_path: Path) -> None:
    arguments += ["--methods", "itemknn,static"]
    (tmp_path / "quick.yaml").write_text(QUICK.replace("epochs: 3", "epochs: 12"), encoding="utf-8")
    runs = tmp_path / "out" / "runs" / "synthetic"
    with subprocess.Popen([sys.executable, "-m", "solid_ext.cli", *arguments], stdout=subprocess.DEVNULL) as process:
        tasks = Path(f"/proc/{process.pid}/task")
        while not (runs / "sasrec" / "static" / "0" / "stage2" / "log.csv").exists():
            assert process.poll() is None
            time.sleep(0.01)
        (child,) = (child for task in tasks.glob("*/children") for child in map(int, task.read_text().split()))
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < deadline, "a run outlived the comparison"
        time.sleep(0.01)
    finished = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")}
    assert list(finished) == [runs / "itemknn" / "0" / "metrics.json"], "a run went on without the comparison"
    begun = (runs / "sasrec" / "static" / "0" / "stage2" / "log.csv").read_text().splitlines()

    main(arguments)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    # Seconds are in the log, so equal lines are the same epochs and not their repetition.
    assert (runs / "sasrec" / "static" / "0" / "stage2" / "log.csv").read_text().splitlines()[: len(begun)] == begun
    whole = tmp_path / "whole"
    grid = Grid.load(tmp_path / "out" / "compare.json")
    dataset = Dataset.load(tmp_path / "world")
    (static,) = (planned for planned in grid.plan() if planned.method == "static")
    run_planned(whole, static, dataset)
    uninterrupted, resumed = (
        json.loads((folder / "metrics.json").read_text()) for folder in (whole, runs / "sasrec" / "static" / "0")
    )
    assert resumed["metrics"] == uninterrupted["metrics"]

    table = pl.read_csv(tmp_path / "out" / "runs.csv")
    assert table.columns == ["dataset", "backbone", "method", "seed", "protocol", "metric", "value"]
    assert table.select("backbone", "method").unique(maintain_order=True).rows() == [
        ("-", "itemknn"),
        ("sasrec", "static"),
    ]
    of_static = table.filter(pl.col("method") == "static")
    assert {(protocol, metric): value for *_, protocol, metric, value in of_static.rows()} == {
        (protocol, metric): pytest.approx(value)
        for protocol, metrics in resumed["metrics"].items()
        for metric, value in metrics.items()
    }
    users = pl.read_parquet(runs / "sasrec" / "static" / "0" / "users.parquet")
    assert users["user"].n_unique() == len(users) == dataset.num_users
    sampled, full = resumed["metrics"]["sampled"], resumed["metrics"]["full"]
    assert users["area"].mean() == pytest.approx(sampled["user_auc"])
    assert ndcg(users["sampled_rank"].to_numpy(), 10) == pytest.approx(sampled["ndcg@10"])
    assert hr(users["full_rank"].to_numpy(), 5) == pytest.approx(full["hr@5"])
    assert mrr(users["full_rank"].to_numpy()) == pytest.approx(full["mrr"])
    costs = pl.read_csv(tmp_path / "out" / "costs.csv")
    assert costs["peak_mb"].min() > 100  # torch alone is more
    assert (costs.filter(pl.col("method") != "itemknn")["rows_per_second"] > 0).all()
    assert costs["epochs"].to_list()[0] == 0
    assert (tmp_path / "out" / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_runs_share_a_stage1_that_is_the_same(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    names = ["solid", "solid-no-codebook", "solid-cold", "solid-apg", "static-semantic-start"]
    fields = {"epochs": 3, "dim": 8, "heads": 2, "length": 5, "batch_size": 512, "eval_negatives": 20}
    plan = make_grid([world[0]], ["sasrec"], names, [0], "paper", fields).plan()
    runs = {planned.method: tmp_path / planned.method for planned in plan}
    done: dict[Path, PlannedRun] = {}
    for planned in plan:
        run_planned(runs[planned.method], planned, world[0], dict(done))
        done[runs[planned.method]] = planned
    logs = {name: (folder / "stage1" / "log.csv").read_text() for name, folder in runs.items()}
    # Seconds are in the log, so equal ones are one training.
    assert logs["solid"] == logs["solid-no-codebook"] == logs["solid-cold"]
    assert len(set(logs.values())) == 3, "a low-rank generator or none at all trains another stage 1"
    run_planned(tmp_path / "alone", done[runs["solid-cold"]], world[0])
    borrowed, alone = (
        json.loads((folder / "metrics.json").read_text()) for folder in (runs["solid-cold"], tmp_path / "alone")
    )
    assert borrowed["metrics"] == alone["metrics"]
    assert [stage["epochs"] for stage in borrowed["stages"]] == [stage["epochs"] for stage in alone["stages"]]


def test_a_run_that_fails_leaves_the_others_alone(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quick.yaml").write_text(QUICK + "learning_rate: 1.0e+30\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main([*arguments, "--methods", "popularity,static"])
    sentence = capsys.readouterr().err
    assert (
        "expected 2 runs to finish, got 1 that failed (synthetic/sasrec/static/0: stage2: expected a finite" in sentence
    )
    assert sentence.count("\n") == 1
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**Not finished: synthetic/sasrec/static/0.**" in report
    assert "| - | popularity |" in report


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--methods", "solid,sliod"], "methods: expected some of .*popularity.*, got 'sliod'"),
        (["--methods", ","], "methods: expected at least one, got none"),
        (["--methods", "static,static"], "methods: expected different ones, got 'static' twice"),
        (["--backbones", "resnet"], "backbones: expected some of .*sasrec.*, got 'resnet'"),
        (["--seeds", "0,x"], "seeds: expected numbers of 0 or more, got '0,x'"),
        (["--seeds", "1,1"], "seeds: expected different ones, got 1 twice"),
        (["--preset", "worst"], "preset: expected one of paper, best, device, got 'worst'"),
        (["--jobs", "-1"], "jobs: expected 0 or more, got -1"),
        (["--datasets", "nowhere"], "dataset: expected .* a path that exists, got nowhere"),
        (["--datasets", "synthetic,synthetic"], "datasets: expected different ones, got 'synthetic' twice"),
        (["--config", "none.yaml"], "config: expected a YAML file"),
    ],
)
def test_mistakes_get_one_sentence_before_anything_starts(
    arguments: list[str], flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *flags])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert re.search(sentence, printed)
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_comparison_grows(arguments: list[str], tmp_path: Path) -> None:
    main([*arguments, "--methods", "popularity", "--seeds", "0"])
    first = tmp_path / "out" / "runs" / "synthetic" / "popularity" / "0" / "metrics.json"
    before = first.stat()
    main([*arguments, "--methods", "markov,popularity", "--seeds", "1,0"])
    assert first.stat() == before
    runs = pl.read_csv(tmp_path / "out" / "runs.csv")
    assert set(runs.select("method", "seed").unique().rows()) == {
        (method, seed) for method in ("markov", "popularity") for seed in (0, 1)
    }


def test_a_dataset_that_cannot_be_used_is_refused_by_name(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{user},{item}" for user in range(5) for item in range(2)]
    (tmp_path / "short.csv").write_text("\n".join(["user_id,item_id", *lines]), encoding="utf-8")
    with pytest.raises(SystemExit):
        main([*arguments, "--datasets", f"{tmp_path / 'world'},{tmp_path / 'short.csv'}"])
    assert "short: leave_one_out: expected validation rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(
    arguments: list[str], world: tuple[Dataset, SyntheticTruth], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "which holds something else" in capsys.readouterr().err
    (out / "thesis.tex").unlink()
    fields = {"epochs": 3, "dim": 8, "heads": 2, "length": 5, "batch_size": 128, "eval_negatives": 20}
    grid = make_grid([world[0]], ["sasrec"], ["popularity"], [0], "paper", fields)
    grid.save(out / "compare.json")
    assert Grid.load(out / "compare.json") == grid
    with pytest.raises(SystemExit):
        main([*arguments, "--methods", "markov"])
    assert "with methods popularity, not markov" in capsys.readouterr().err
    with FileLock(out / LOCK), pytest.raises(SystemExit):
        main([*arguments, "--methods", "popularity,markov"])
    assert Grid.load(out / "compare.json") == grid
    assert "in use by another process" in capsys.readouterr().err
    (out / "compare.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "out: expected a comparison's grid of this version" in capsys.readouterr().err


def test_a_grid_holds_every_combination_once() -> None:
    datasets = [synthetic_dataset(30, 20, 2, name=name)[0] for name in ("a", "b")]
    grid = make_grid(datasets, ["sasrec", "gru4rec"], ["static", *PEERS, "solid"], [0, 7], "best", {"dim": 16})
    plan = grid.plan()
    assert len({planned.name for planned in plan}) == len(plan) == 2 * 2 * (5 + 2 * 2)
    for planned in plan:
        train = planned.config.train
        assert (train.seed, train.threads) == (planned.seed, 1)
        if planned.method in PEERS:
            assert planned.backbone == "-"
            assert planned.config == Config().replace(seed=planned.seed, threads=1)
        else:
            assert (planned.config.model.backbone, planned.config.model.dim, train.loss) == (
                planned.backbone,
                16,
                "auto",
            )
            assert planned.config.model.semantic_trunk == (planned.method == "solid")


def test_a_file_cannot_switch_a_method_off_and_din_has_a_loss_it_can_use() -> None:
    fields = {"item_branch": False, "finetune_steps": 5, "backbone": "gru4rec", "seed": 3, "delta": 0.5}
    datasets = [synthetic_dataset(30, 20, 2)[0]]
    found = make_grid(datasets, ["din"], ["solid", "duet", "finetune"], [0], "best", fields).plan()
    assert found[0].config.model == Config().replace(backbone="din", delta=0.5).model
    assert found[1].config.model.item.delta == np.inf
    assert {planned.config.resolved(30, 20).train.loss for planned in found} == {"sampled_softmax_log_q"}
    with pytest.raises(ValueError, match="loss: expected bce or a sampled softmax with backbone din"):
        make_grid(datasets, ["din"], ["solid"], [0], "best", {"loss": "full_softmax"})


def test_the_report_says_what_the_runs_say(tmp_path: Path) -> None:
    """Runs made up: solid's ranks are one better than static's for every user of seed 0 and equal in seed 1."""
    dataset = synthetic_dataset(40, 20, 2, name="made-up")[0]
    grid = make_grid([dataset], ["sasrec"], ["popularity", "static", "solid"], [0, 1], "paper", {})
    for planned in grid.plan():
        folder = tmp_path / "runs" / planned.name
        folder.mkdir(parents=True)
        rank = np.arange(40) % 9 + {"popularity": 3, "static": 2}.get(planned.method, 2 - (planned.seed == 0))
        area = 1 - rank / 20
        users = {"user": np.arange(40), "area": area, "sampled_rank": rank, "full_rank": rank, "new_rank": rank}
        pl.DataFrame(users).write_parquet(folder / "users.parquet")
        values = {"ndcg@10": ndcg(rank, 10), "hr@10": hr(rank, 10), "mrr": mrr(rank)}
        run = {
            "dataset": planned.dataset,
            "backbone": planned.backbone,
            "method": planned.method,
            "seed": planned.seed,
            "metrics": {
                "sampled": {"user_auc": area.mean(), **values},
                "full": values,
                "full, history excluded": values,
            },
            "stages": [{"stage": "stage2", "epochs": 4, "best_epoch": 2}],
            "seconds": {"train": 10.0 + planned.seed, "evaluate": 1.0},
            "rows_per_second": None if planned.method == "popularity" else 1234.5,
            "peak_bytes": 5e8,
        }
        write_json(folder / "metrics.json", run)
    write_report(tmp_path, grid)
    report = (tmp_path / "report.md").read_text()
    row = {
        line.split(" | ")[1]: line.split(" | ")[2:]
        for line in report.splitlines()
        if re.match(r"\| (sasrec|-) \|", line)
    }
    header = next(line for line in report.splitlines() if line.startswith("| backbone | method | sampled"))
    assert header.strip("| ").split(" | ")[2:] == SHOWN
    table = report.split("### Cost")[0].split("### solid against")
    ranks = np.arange(40) % 9
    areas = [1 - (ranks + 1).mean() / 20, 1 - (ranks + 2).mean() / 20]
    assert f"| sasrec | solid | **{np.mean(areas):.4f}** ± {np.std(areas, ddof=1):.4f} |" in table[0]
    assert f"| sasrec | static | {areas[1]:.4f} ± 0.0000 |" in table[0]
    gap = np.mean([1 / np.log2(ranks + 2) * (ranks < 10), 1 / np.log2(ranks + 3) * (ranks < 9)], axis=0).mean()
    gap -= (1 / np.log2(ranks + 3) * (ranks < 9)).mean()
    # Of two seeds one has no gap: over users the mean is certain, over seeds nothing is.
    assert f"| sasrec | static | +0.0250 [+0.0250, +0.0250] p < 0.001, with seeds 0.500 | {gap:+.4f} [" in table[1]
    assert "| sasrec | popularity |" in table[1]
    assert row["static"][0] == "10.5"
    assert "| sasrec | solid | 10.5 | 4 | 1,234 | 1.0 | 500 |" in report
    assert "Not finished" not in report
    assert (tmp_path / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("file", "damage"),
    [("metrics.json", cut), ("metrics.json", Path.unlink), ("users.parquet", flip), ("users.parquet", Path.unlink)],
)
def test_a_damaged_run_is_run_again(
    file: str, damage: Callable[[Path], None], world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    grid = make_grid([world[0]], ["sasrec"], ["popularity", "markov"], [0], "paper", {"dim": 8, "eval_negatives": 20})
    compare(tmp_path / "out", grid, [world[0]], jobs=1)
    before = pl.read_csv(tmp_path / "out" / "runs.csv")
    folder = tmp_path / "out" / "runs" / "synthetic" / "popularity" / "0"
    whole = pl.read_parquet(folder / "users.parquet")
    damage(folder / file)
    write_report(tmp_path / "out", grid)
    assert "**Not finished: synthetic/popularity/0.**" in (tmp_path / "out" / "report.md").read_text()
    compare(tmp_path / "out", grid, [world[0]], jobs=1)
    assert pl.read_csv(tmp_path / "out" / "runs.csv").equals(before)
    assert pl.read_parquet(folder / "users.parquet").equals(whole)


def test_a_damaged_stage1_is_not_lent(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    fields = {"dim": 8, "epochs": 1, "length": 5, "eval_negatives": 20}
    grid = make_grid([world[0]], ["gru4rec"], ["solid", "solid-cold"], [0], "paper", fields)
    solid, cold = grid.plan()
    run_planned(tmp_path / "solid", solid, world[0])
    flip(tmp_path / "solid" / "stage1" / "best.safetensors")
    run_planned(tmp_path / "cold", cold, world[0], {tmp_path / "solid": solid})
    assert (tmp_path / "cold" / "metrics.json").exists()
