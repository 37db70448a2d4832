"""A dataset that grows: what comes after is read as what was first, and nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from solid_ext import Dataset, load_dataset
from solid_ext.data import Catalogue, in_order_of
from solid_ext.data.append import append_interactions, as_rows, rules_of, with_rules

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]})


def rows(*triples: tuple[Any, Any, Any]) -> pl.DataFrame:
    return pl.DataFrame(triples, schema=["user_id", "item_id", "timestamp"], orient="row")


FIRST = rows(("u", "b", 1), ("u", "c", 2), ("v", "b", 3), ("v", "c", 3))
THEN = rows(("v", "a", 3), ("u", "b", 9), ("w", "d", 4), ("u", "c", 2))


def test_a_dataset_that_grew_is_that_of_both_sources_read_as_one() -> None:
    grown = append_interactions(load_dataset(FIRST, items=ITEMS), THEN, items=ITEMS)
    at_once = load_dataset(pl.concat([FIRST, THEN]), items=ITEMS)
    assert grown.fingerprint == at_once.fingerprint
    names = ("rows_read", "rows_without_ids", "tied_timestamps", "repeated_pairs", "timestamp_unit")
    assert {name: grown.report[name] for name in names} == {name: at_once.report[name] for name in names}
    assert (grown.report["appended_rows"], grown.report["appended_duplicates"]) == (3, 1)


def test_growing_in_any_parts_of_a_random_source_gives_the_same_dataset() -> None:
    rng = np.random.default_rng(0)
    source = pl.DataFrame({
        "user_id": rng.integers(0, 20, 300), "item_id": rng.integers(0, 30, 300), "timestamp": rng.integers(0, 50, 300)
    })  # fmt: skip
    grown = load_dataset(source[:100])
    for first in (100, 150, 299):
        grown = append_interactions(grown, source[first : {100: 150, 150: 299, 299: 300}[first]])
    at_once = load_dataset(source)
    assert grown.fingerprint == at_once.fingerprint
    total = grown.report["exact_duplicates"] + grown.report["appended_duplicates"]  # type: ignore[operator]
    assert total == at_once.report["exact_duplicates"]


def test_without_times_what_comes_later_is_later() -> None:
    first, then = FIRST.drop("timestamp"), THEN.drop("timestamp")
    grown = append_interactions(load_dataset(first), then)
    assert grown.fingerprint == load_dataset(pl.concat([first, then])).fingerprint
    silent = replace(load_dataset(first), report={})
    assert append_interactions(silent, then).fingerprint == grown.fingerprint


def test_the_columns_are_those_of_the_first_time(tmp_path: Path) -> None:
    rules = {"user": "who", "item": "what", "timestamp": "when", "min_rating": 4.0, "rating": "stars"}
    named = FIRST.rename({"user_id": "who", "item_id": "what", "timestamp": "when"})
    dataset = with_rules(load_dataset(named.with_columns(stars=pl.lit(5)), **rules), rules)
    folder = dataset.save(tmp_path / "data")
    then = rows(("u", "d", 7), ("u", "e", 8)).rename({"user_id": "who", "item_id": "what", "timestamp": "when"})
    grown = append_interactions(Dataset.load(folder), then.with_columns(stars=pl.Series([5, 1])))
    assert grown.item_ids.to_list() == ["b", "c", "d"]
    assert rules_of(grown) == rules


def test_items_keep_their_description_and_new_ones_take_theirs() -> None:
    dataset = load_dataset(FIRST, items=ITEMS)
    others = ITEMS.with_columns(title=pl.col("title") + " again")
    grown = append_interactions(dataset, THEN, items=others)
    assert grown.item_table["title"].to_list() == ["A again", "B", "C", "D again"]
    plain = append_interactions(dataset, THEN)
    assert plain.item_table["title"].to_list() == [None, "B", "C", None]
    assert "2 items are new and have no description" in str(plain.report["note_undescribed"])


def test_ids_that_are_numbers_become_text_beside_text_and_stay_the_same() -> None:
    grown = append_interactions(load_dataset(rows((1, 2, 1), (1, 3, 2))), rows(("1", "x", 3), ("1", "2", 1)))
    assert as_rows(grown).rows() == [("1", "2", 1), ("1", "3", 2), ("1", "x", 3)]
    assert "text" in str(grown.report["note_text_ids"])


def test_rows_that_are_there_already_are_refused_where_there_are_no_others() -> None:
    with pytest.raises(ValueError, match="append: expected interactions that the dataset has not, got 4 that it has"):
        append_interactions(load_dataset(FIRST), FIRST)


WHOLE, FRACTION = "2024-01-0{} 10:00:00", "2024-01-0{} 10:00:00.5"


@pytest.mark.parametrize(("first", "then"), [(WHOLE, FRACTION), (FRACTION, WHOLE), (FRACTION, "2024-02-0{}")])
def test_dates_are_told_in_the_finer_unit_of_both(first: str, then: str, tmp_path: Path) -> None:
    held = rows(*((user, item, first.format(day)) for day, (user, item) in enumerate([(1, 2), (1, 3), (2, 3)], 1)))
    new = rows(*((user, item, then.format(day)) for day, (user, item) in enumerate([(1, 9), (2, 2)], 5)))
    before = load_dataset(held)
    before.save(tmp_path / "d")
    grown = append_interactions(Dataset.load(tmp_path / "d"), new)
    at_once = load_dataset(pl.concat([held, new]))
    assert grown.fingerprint == at_once.fingerprint
    assert grown.timestamp_unit == at_once.timestamp_unit == "microseconds"
    assert ("note_unit" in grown.report) == (first == WHOLE)


def test_dates_that_the_finer_unit_cannot_tell_are_refused() -> None:
    far = replace(load_dataset(rows((1, 2, "2024-01-01"), (1, 3, "2024-01-02"))), timestamps=np.array([1, 2**40]))
    new = rows((1, 4, 1), (2, 4, 2)).with_columns(pl.col("timestamp").cast(pl.Datetime("ns")))
    with pytest.raises(ValueError, match="append: expected times that 64 bits hold in nanoseconds, got 1099511627776"):
        append_interactions(far, new)


def test_times_of_another_unit_are_refused() -> None:
    dates = FIRST.with_columns(timestamp=pl.lit("2020-01-01"))
    with pytest.raises(ValueError, match="append: expected times of the unit that the dataset has, as in the source"):
        append_interactions(load_dataset(FIRST), dates)
    with pytest.raises(ValueError, match="append: expected times of the unit"):
        append_interactions(load_dataset(FIRST), FIRST.drop("timestamp"))


def test_a_dataset_takes_a_models_order_of_items() -> None:
    catalogue = Catalogue(pl.DataFrame({"item_id": ["c", "x", "b"], "title": ["see", None, "bee"]}))
    dataset = load_dataset(pl.concat([FIRST, THEN]), items=ITEMS)
    own = in_order_of(catalogue, dataset)
    assert own.item_ids.to_list() == ["c", "x", "b", "a", "d"]
    assert own.item_table["title"].to_list() == ["see", None, "bee", "A", "D"]
    assert as_rows(own).equals(as_rows(dataset))
    assert in_order_of(own.catalogue, own) is own


def test_numbers_and_text_of_one_id_are_one_item_in_a_models_order() -> None:
    catalogue = Catalogue(pl.DataFrame({"item_id": ["3", "x"]}))
    own = in_order_of(catalogue, load_dataset(rows((1, 2, 1), (1, 3, 2))))
    assert own.item_ids.to_list() == ["3", "x", "2"]
    assert own.items.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("held", "found", "words"),
    [
        ([880_000_000 + n for n in range(4)], [1_600_000_000_000], "what looks like seconds .* like milliseconds"),
        ([1_600_000_000_000 + n for n in range(4)], [1_600_000_000, 1_600_000_001], "like milliseconds .* seconds"),
        ([0, 880_000_000, 880_000_001, 880_000_002], [12.0, 13.0], "like seconds .* numbers of no known unit"),
        ([5, 6, 7, 8], [880_000_000], "numbers of no known unit .* like seconds"),
        ([880_000_000.5 + n for n in range(4)], [1_600_000_000_000.5], "like seconds .* like milliseconds"),
    ],
)
def test_times_that_look_like_another_unit_than_the_datasets_are_refused(
    held: list[float], found: list[float], words: str
) -> None:
    first = pl.DataFrame({"user_id": ["u", "u", "v", "v"], "item_id": ["b", "c", "b", "c"], "timestamp": held})
    then = pl.DataFrame({"user_id": ["u"] * len(found), "item_id": ["d"] * len(found), "timestamp": found})
    with pytest.raises(ValueError, match=f"append: expected new times of the unit that the dataset's have, .*{words}"):
        append_interactions(load_dataset(first), then)


def test_counters_that_go_on_and_old_dates_are_no_other_unit() -> None:
    counted = FIRST.with_columns(timestamp=pl.Series([3000, 3001, 3002, 3003]))
    assert append_interactions(load_dataset(counted), rows(("u", "d", 4000), ("u", "e", 0))).num_interactions == 6
    dates = FIRST.with_columns(timestamp=pl.lit("2020-01-01"))
    assert append_interactions(load_dataset(dates), rows(("u", "d", "1970-01-02"))).num_interactions == 5


MISSING = rows(("w", "a", 50), ("u", "d", None), ("w", "c", None), ("x", "a", None), ("u", "e", 70), ("u", "e", None))


def test_a_row_without_a_time_takes_its_own_users_as_in_one_source() -> None:
    grown, at_once = append_interactions(load_dataset(FIRST), MISSING), load_dataset(pl.concat([FIRST, MISSING]))
    assert as_rows(grown).equals(as_rows(at_once))
    assert ("u", "d", 2) in as_rows(grown).rows()
    names = ("missing_timestamps", "users_without_timestamps", "note_missing_times", "exact_duplicates", "rows_read")
    assert {name: grown.report[name] for name in names} == {name: at_once.report[name] for name in names}
    later = append_interactions(grown, rows(("u", "a", None), ("u", "a", 99)))
    assert "5 rows have no time" in str(later.report["note_missing_times"])


def test_the_report_of_a_dataset_that_grew_is_that_of_the_whole() -> None:
    many = pl.DataFrame({"user_id": "z", "item_id": [f"i{n}" for n in range(120)], "timestamp": range(120)})
    first = pl.concat([FIRST, many])
    described = pl.DataFrame({"item_id": ["b", "i1", "never"], "title": ["B", "One", "x"]})
    grown = append_interactions(load_dataset(first, items=described), THEN, items=described)
    at_once = load_dataset(pl.concat([first, THEN]), items=described)
    own = {"appended_rows", "appended_duplicates", "exact_duplicates", "note_undescribed"}
    assert {name: value for name, value in grown.report.items() if name not in own} == {
        name: value for name, value in at_once.report.items() if name not in own
    }
    assert grown.report["users_with_few_unseen_items"] == 1
    few = load_dataset(FIRST)
    assert "note_unseen" in few.report
    assert "note_unseen" not in append_interactions(few, many.with_columns(user_id=pl.col("item_id"))).report


def test_sentences_on_the_new_rows_alone_say_so() -> None:
    zero = FIRST.with_columns(timestamp=pl.Series([0, 880_000_000, 880_000_000, 880_000_001]))
    then = rows(*[("u", "d", 880_000_000 + n) for n in range(9)], ("w", "d", 0), ("w", "b", -1))
    grown = append_interactions(load_dataset(zero), then)
    assert str(grown.report["note_zero"]).startswith("1 times are 0")
    assert str(grown.report["note_appended_zero"]).startswith("Of the rows appended last: 2 times are 0")
