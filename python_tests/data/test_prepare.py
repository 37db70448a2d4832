"""Rows with raw ids to numbered, sorted rows: against loops over the rules, whatever the ids, times and blocks."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from solid_ext.data import Dataset, load_dataset
from solid_ext.data import text as text_files
from solid_ext.data.histories import BLOCK, blocks_of_users
from solid_ext.data.prepare import sorted_rows

IDS: dict[str, list[Any]] = {
    "near": [5, 6, -3, 40, 41, 2, 7, 1],
    "far": [2**62, -(2**62), 0, 5, 10**12, -7],
    "text": ["b", "a", "é", "longer than twelve bytes", "longer than twelve bytez", "B"],
}
TIMES: dict[str, list[Any]] = {
    "near": [1, 2, 3],
    "far": [2**62, -(2**62), 0],
    "missing": [1, 2, None, 3, None],
    "fractions": [0.5, -0.0, 0.0, 2.0, None],
    "most missing": [None] * 6 + [4],
}


def by_loops(rows: list[tuple[Any, Any, Any]]) -> tuple[dict[Any, list[tuple[Any, Any]]], dict[str, int]]:
    """Each user's (item, time) in order, and the counts, rule by rule."""
    kept, seen = [], set()
    for row in rows:
        if row[2] is None or row not in seen:
            kept.append(row)
        seen.add(row)
    earliest = min(time for _, _, time in kept if time is not None)
    histories: dict[Any, list[list[Any]]] = {}
    for row in kept:
        histories.setdefault(row[0], []).append([row[1], row[2]])
    unknown = 0
    for own in histories.values():
        known = [time for _, time in own if time is not None]
        unknown += not known
        last = known[0] if known else earliest
        for entry in own:
            last = entry[1] = last if entry[1] is None else entry[1]
    found = {user: [(r[0], r[1]) for r in sorted(own, key=lambda row: row[1])] for user, own in histories.items()}
    counts = {
        "rows_read": len(rows),
        "exact_duplicates": len(rows) - len(kept),
        "missing_timestamps": sum(row[2] is None for row in rows),
        "users_without_timestamps": unknown,
        "repeated_pairs": len(kept) - len({(user, item) for user, own in found.items() for item, _ in own}),
        "tied_timestamps": sum(a[1] == b[1] for own in found.values() for a, b in itertools.pairwise(own)),
    }
    return found, counts


def histories(dataset: Dataset, unit: float) -> dict[Any, list[tuple[Any, Any]]]:
    assert dataset.timestamps is not None
    users, raw = dataset.user_ids.to_list(), dataset.item_ids.to_list()
    assert users == sorted(users)
    assert raw == sorted(raw)
    found: dict[Any, list[tuple[Any, Any]]] = {}
    for row, user in enumerate(users):
        span = slice(dataset.offsets[row], dataset.offsets[row + 1])
        own = zip(dataset.items[span], dataset.timestamps[span], strict=True)
        found[user] = [(raw[item - 1], int(time) / unit if unit > 1 else int(time)) for item, time in own]
    return found


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("item", IDS)
@pytest.mark.parametrize("user", IDS)
def test_rows_are_numbered_sorted_and_counted_as_by_loops(
    user: str, item: str, time: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        blocks = partial(blocks_of_users, size=(BLOCK, 1, 7, 30)[seed])
        monkeypatch.setattr("solid_ext.data.prepare.blocks_of_users", blocks)
        draw = random.Random(seed)
        rows = [
            (draw.choice(IDS[user]), draw.choice(IDS[item]), draw.choice(TIMES[time]))
            for _ in range((4, 20, 60, 200)[seed])
        ]
        rows += [draw.choice(rows) for _ in range(10)] + [(IDS[user][0], IDS[item][0], TIMES[time][0] or 4)]
        columns = [pl.Series([row[column] for row in rows]) for column in range(3)]
        dataset = load_dataset(tuple(columns))
        expected, counts = by_loops(rows)
        assert histories(dataset, 1e6 if columns[2].dtype == pl.Float64 else 1) == expected
        assert {name: dataset.report[name] for name in counts} == counts


def test_rows_that_are_listed_once_may_repeat_where_the_source_says_so() -> None:
    dataset = load_dataset(([1, 1, 1], [7, 7, 7], [3, 3, None]), drop_duplicates=False)
    assert dataset.num_interactions == 3
    assert dataset.report["exact_duplicates"] == 0


@pytest.mark.parametrize("span", [1, 1000, 2**40, 2**63 - 1])
def test_keys_are_sorted_with_the_rows_of_equal_ones_in_their_order(span: int) -> None:
    key = np.random.default_rng(0).integers(-span, span, 500)
    key[::3] = key[0]
    np.testing.assert_array_equal(sorted_rows(key), np.argsort(key, kind="stable"))
    np.testing.assert_array_equal(sorted_rows(key / 7), np.argsort(key / 7, kind="stable"))
    assert sorted_rows(key[:0]).size == 0
    assert sorted_rows(key[:1]).tolist() == [0]


@pytest.mark.parametrize("ids", [["1", "2", "30"], ["1", "02", "x"], ["1.0", "2", ""], ["nan", "7", " 8"]])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_blocks_in_which_a_file_is_read_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str], quote: str
) -> None:
    draw = random.Random(1)
    lines = [f"{quote}{draw.choice(ids)}{quote},{draw.randint(1, 30)},{draw.randint(1, 9)}" for _ in range(300)]
    # What makes text of a column of integers, a header in the middle, and lines that are left out, lie in late blocks.
    lines[250:250] = ["user_id,item_id,timestamp", "", f"{quote}{ids[-1]}{quote},0004,5", "1,2"]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    whole = load_dataset(path, max_malformed=1)
    for block in (1, 64, 1000):
        monkeypatch.setattr(text_files, "BLOCK", block)
        again = load_dataset(path, max_malformed=1)
        assert again.fingerprint == whole.fingerprint
        assert again.report == whole.report
    assert whole.report["repeated_headers"] == 1
    assert str(whole.report["malformed_lines_examples"]) == "line 255 '1,2'"


def test_bytes_that_are_no_utf8_in_a_late_block_are_named_after_malformed_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 16)
    path = tmp_path / "x.csv"
    good = b"user_id,item_id\n" + b"1,2\n" * 30
    path.write_bytes(good + b"1,\xe9\n" + b"1,3\n" * 30)
    with pytest.raises(ValueError, match="expected UTF-8 text, got other bytes in line 32, '1,é'"):
        load_dataset(path)
    path.write_bytes(good + b"1,\xe9\n" + b"1,3\n" * 30 + b"1\n")
    with pytest.raises(ValueError, match="expected 2 fields in every line, got line 63 '1'"):
        load_dataset(path)


def test_a_carriage_return_inside_the_header_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\n\nuser_id,item_id\r"x",1\r2,3\r')
    with pytest.raises(ValueError, match="expected columns user_id, item_id, got"):
        load_dataset(path)


def test_ids_that_share_a_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Series, "hash", lambda ids: ids.str.len_bytes().cast(pl.UInt64))
    dataset = load_dataset((["b", "aa", "a", "cc", "b"], ["x", "y", "x", "zz", "y"], [1, 2, 3, 4, 5]))
    assert dataset.user_ids.to_list() == ["a", "aa", "b", "cc"]
    assert dataset.item_ids.to_list() == ["x", "y", "zz"]
    assert dataset.offsets.tolist() == [0, 1, 2, 4, 5]
    assert dataset.items.tolist() == [1, 2, 1, 2, 3]
