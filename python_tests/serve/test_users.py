"""Recommendations for the users of a dataset: those of `recommend`, user by user, as a frame and as a file."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from solid_ext import SOLID, Dataset, load_dataset
from solid_ext.serve.users import checked_out, write_users

USERS = sys.modules["solid_ext.serve.users"]


def histories(data: Dataset) -> list[list[Any]]:
    ids = data.item_ids.to_list()
    return [
        [ids[item - 1] for item in data.items[data.offsets[user] : data.offsets[user + 1]]]
        for user in range(data.num_users)
    ]


def one_by_one(solid: SOLID, data: Dataset, rows: list[int], **options: Any) -> pl.DataFrame:
    own, lines = histories(data), []
    for user in rows:
        for rank, entry in enumerate(solid.recommend([own[user]], **options)[0], 1):
            lines.append((data.user_ids[user], rank, entry.item, entry.title, entry.score))
    return pl.DataFrame(lines, schema=["user_id", "rank", "item_id", "title", "score"], orient="row")


def same(found: pl.DataFrame, expected: pl.DataFrame) -> bool:
    """Scores of a product of another shape may round otherwise."""
    assert found.columns == expected.columns
    close = np.allclose(found["score"], expected["score"], rtol=1e-5, atol=1e-5)
    return close and found.drop("score").equals(expected.drop("score"))


@pytest.mark.parametrize(
    "options", [{}, {"k": 3, "exclude_history": False}, {"k": 20}, {"include": [5, 6, 7, 200], "exclude": [6]}]
)
def test_a_frame_holds_what_recommend_says_user_by_user(
    skewed: tuple[Dataset, SOLID], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, solid = skewed
    monkeypatch.setattr(USERS, "USERS", 37)
    known = [item for item in options.get("include", []) if item in set(data.item_ids)]
    options = {**options, "include": known} if known else options
    rows = list(range(0, data.num_users, 7))
    found = solid.recommend_users(data, [data.user_ids[user] for user in rows], **options)
    assert same(found, one_by_one(solid, data, rows, **options))
    if not options:
        everybody = solid.recommend_users(data)
        assert everybody["user_id"].unique(maintain_order=True).to_list() == data.user_ids.to_list()
        assert same(everybody.filter(pl.col("user_id").is_in([data.user_ids[user] for user in rows])), found)


def test_rules_of_each_user_follow_the_blocks(skewed: tuple[Dataset, SOLID], monkeypatch: pytest.MonkeyPatch) -> None:
    data, solid = skewed
    monkeypatch.setattr(USERS, "USERS", 2)
    ids = data.item_ids.to_list()
    include = [[ids[place]] for place in range(5)]
    users = data.user_ids.head(5).to_list()
    found = solid.recommend_users(data, users, 3, include=include, exclude_history=False)
    assert found.select("user_id", "item_id").rows() == [
        (user, item) for user, (item,) in zip(users, include, strict=True)
    ]


def test_users_of_other_data_with_items_that_the_model_does_not_know(skewed: tuple[Dataset, SOLID]) -> None:
    data, solid = skewed
    first, second = data.item_ids.head(2).to_list()
    other = load_dataset((["a", "a", "a", "b"], [str(first), "strange", str(second), "odd"], [1, 2, 3, 4]))
    with pytest.raises(
        ValueError, match="recommend_users: expected histories of items that the model knows, got 'strange' in that of "
    ):
        solid.recommend_users(other)
    with pytest.warns(UserWarning, match="recommend_users: histories without .* 1 of 2; .*most popular") as told:
        found = solid.recommend_users(other, unknown="ignore", k=4)
    assert told[0].filename == __file__
    expected = solid.recommend([[first, second]], 4)[0]
    assert found.filter(pl.col("user_id") == "a")["item_id"].to_list() == [entry.item for entry in expected]
    with pytest.warns(UserWarning, match="1 of 1"):
        newcomer = solid.recommend([[]], 4)[0]
    assert found.filter(pl.col("user_id") == "b")["item_id"].to_list() == [entry.item for entry in newcomer]
    assert same(solid.recommend_users(other, ["a"], unknown="ignore", k=4), found.head(4))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_holds_the_frame_and_is_told_of(
    skewed: tuple[Dataset, SOLID], tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, solid = skewed
    monkeypatch.setattr(USERS, "USERS", 64)
    done: list[int] = []
    path = checked_out(tmp_path / f"recs.{ending}")
    write_users(solid.user_query(data), path, told=done.append)
    assert done == [64, 64, 64, 64, 44]
    expected = solid.recommend_users(data)
    read = pl.read_parquet(path) if ending == "parquet" else pl.read_csv(path, schema=expected.schema)
    assert read.equals(expected)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_that_cannot_be_finished_is_not_there(skewed: tuple[Dataset, SOLID], tmp_path: Path) -> None:
    class Broken:
        length = 3

        def encode(self, sequences: Any) -> Any:
            return sequences.float()

        def score(self, state: Any, candidates: Any) -> Any:
            return (state[:, :1] * candidates).masked_fill(candidates == 3, float("nan"))

    data, solid = skewed
    query = solid.user_query(data)
    broken = type(query)(**{**vars(query), "scorer": Broken()})
    (tmp_path / "recs.csv").write_text("old")
    for name in ("recs.parquet", "recs.csv"):
        with pytest.raises(ValueError, match="recommend: expected finite scores, got NaN for item 3"):
            write_users(broken, tmp_path / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("recs.csv", "old")]


def test_users_and_items_of_any_kind_of_id() -> None:
    days = [date(2024, 1, 1 + place % 25) for place in range(160)]
    data = load_dataset(([date(2023, 1, 1 + place // 8) for place in range(160)], days, list(range(160))))
    solid = SOLID(length=4, dim=8, heads=2, codebook_hidden=8, epochs=1, eval_negatives=5).fit(data)
    found = solid.recommend_users(data, ["2023-01-03", date(2023, 1, 1)], 2)
    assert found["user_id"].to_list() == ["2023-01-03"] * 2 + ["2023-01-01"] * 2
    assert same(found, one_by_one(solid, data, [2, 0], k=2))


def test_nobody_is_kept_in_the_model_s_folder(skewed: tuple[Dataset, SOLID], tmp_path: Path) -> None:
    data, solid = skewed
    before = {path.name: path.stat().st_size for path in solid.save(tmp_path / "before").iterdir()}
    items = data.item_ids.sample(600, with_replacement=True, seed=0)
    people = load_dataset(([f"visitor {user}" for user in range(300)] * 2, items, list(range(600))))
    solid.recommend_users(people)
    for path in solid.save(tmp_path / "after").iterdir():
        assert path.stat().st_size == before.pop(path.name)
        assert b"visitor" not in path.read_bytes()
    assert before == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"users": ["nobody"]}, "expected users of the data, got 'nobody', which is not among the 300 users of"),
        ({"users": "1"}, "expected users None for all, or a list of user ids, got '1'"),
        ({"users": [[1]]}, r"expected users None for all, or a list of user ids, got \[\[1\]\]"),
        ({"users": [True]}, r"expected user ids as numbers, text or times, got \[True\]"),
        ({"k": 0}, "expected k of at least 1, got 0"),
        ({"k": 1.5}, "expected k as an integer, got 1.5"),
        ({"unknown": "drop"}, "expected unknown 'error' or 'ignore', got 'drop'"),
        ({"exclude_history": None}, "expected exclude_history True or False, got None"),
        ({"exclude": ["strange"]}, "expected items of the catalogue in exclude, got 'strange'"),
        ({"include": [[1], [2]]}, "expected include for all histories or for each of 300, got 2 lists"),
    ],
)
def test_bad_questions_get_a_sentence(skewed: tuple[Dataset, SOLID], arguments: dict[str, Any], sentence: str) -> None:
    data, solid = skewed
    with pytest.raises((ValueError, TypeError), match=f"^recommend_users: {sentence}"):
        solid.recommend_users(data, **arguments)


def test_a_file_of_another_kind_or_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recs.csv").write_text("old")
    with pytest.raises(ValueError, match=r"out: expected a file that ends in .parquet or .csv, got .*recs.tsv"):
        checked_out(tmp_path / "recs.tsv")
    with pytest.raises(ValueError, match=r"out: expected a file that does not exist yet, .* \(overwrite=True replaces"):
        checked_out(tmp_path / "recs.csv")
    assert checked_out(tmp_path / "recs.csv", overwrite=True) == tmp_path / "recs.csv"


def test_no_user_gets_an_empty_frame(skewed: tuple[Dataset, SOLID], tmp_path: Path) -> None:
    data, solid = skewed
    found = solid.recommend_users(data, [])
    assert found.height == 0
    write_users(solid.user_query(data, []), tmp_path / "none.parquet")
    assert pl.read_parquet(tmp_path / "none.parquet").schema == found.schema


def test_a_link_to_nothing_is_a_file_that_exists(tmp_path: Path) -> None:
    link = tmp_path / "recs.csv"
    link.symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(ValueError, match="out: expected a file that does not exist yet"):
        checked_out(link)
    assert checked_out(link, overwrite=True) == link
    assert link.is_symlink()
