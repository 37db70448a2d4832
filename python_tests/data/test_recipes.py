"""The paper's datasets: each recipe against a plain loop, Table 1 beside the result, and the command that does it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from solid_ext.cli import main
from solid_ext.data import RECIPES, Dataset, Statistics, compare_with_table1, load_dataset, prepare_raw
from solid_ext.data.recipes import k_core

Event = tuple[str, str, float, int]


def write(path: Path, lines: list[str]) -> Path:
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_json(event: Event) -> str:
    fields = ("reviewerID", "asin", "overall", "unixReviewTime")
    return json.dumps(dict(zip(fields, event, strict=True)) | {"reviewText": "fine", "verified": True})


def core_by_hand(events: list[Event], core: int) -> list[Event]:
    while True:
        users, items = Counter(event[0] for event in events), Counter(event[1] for event in events)
        kept = [event for event in events if users[event[0]] >= core and items[event[1]] >= core]
        if len(kept) == len(events):
            return kept
        events = kept


def histories(dataset: Dataset) -> dict[str, list[str]]:
    bounds = dataset.offsets.tolist()
    raw = dataset.catalogue.raw_items(dataset.items)
    return {user: raw[bounds[row] : bounds[row + 1]] for row, user in enumerate(dataset.user_ids.to_list())}


def random_events(count: int, users: int, items: int, seed: int) -> list[Event]:
    rng = np.random.default_rng(seed)
    who, what = (rng.integers(0, size, count) * rng.integers(0, size, count) // size for size in (users, items))
    times = rng.permutation(count)
    return [(f"A{u}", f"B{v}", float(v % 5 + 1), int(t)) for u, v, t in zip(who, what, times, strict=True)]


@pytest.mark.parametrize("core", [0, 1, 2, 5, 9])
def test_k_core_is_that_of_a_plain_loop(core: int) -> None:
    events = random_events(600, 60, 40, seed=core)
    users, items = (np.array([int(event[side][1:]) for event in events]) for side in (0, 1))
    kept = k_core(users, items, core)
    expected = {event[3] for event in core_by_hand(events, core)}
    assert {event[3] for event, keep in zip(events, kept, strict=True) if keep} == expected
    assert k_core(users[:0], items[:0], 5).size == 0


def test_amazon_2018_by_its_rules_one_after_the_other(tmp_path: Path) -> None:
    events = random_events(1500, 120, 60, seed=3)
    known = [f"B{v}" for v in range(60) if v % 4]
    repeated = [*events, *events[::3], ("A1", "B1", 2.0, 50_000), ("A1", "B1", 3.0, 50_000)]
    raw = write(tmp_path / "x_5.json.gz", ["broken {", *map(as_json, repeated)])
    meta = [{"asin": item, "title": f"Title {item}", "category": ["All", item[:2]]} for item in [*known, "B999"]]
    items = write(tmp_path / "meta_x.json.gz", [json.dumps(entry) for entry in meta])
    expected = core_by_hand([event for event in dict.fromkeys(repeated) if event[1] in known], 5)
    dataset = prepare_raw("scientific", raw, items=items)
    by_time: dict[str, list[str]] = {}
    for user, item, _, _ in sorted(expected, key=lambda event: event[3]):
        by_time.setdefault(user, []).append(item)
    assert 200 < len(expected) < 1100
    assert histories(dataset) == by_time
    assert dataset.titles([1]) == [f"Title {dataset.item_ids[0]}"]
    report = dataset.report
    assert report["malformed_lines"] == 1
    assert report["equal_lines"] == 500
    assert report["rows_of_items_without_metadata"] == sum(e[1] not in known for e in dict.fromkeys(repeated))
    assert dataset.name == "scientific"
    without = prepare_raw("scientific", raw)
    assert without.num_interactions == len(core_by_hand(list(dict.fromkeys(repeated)), 5))
    assert str(without.report["metadata"]).startswith("none given")
    assert without.report["source"] == "Amazon Review 2018, Industrial_and_Scientific_5.json.gz"
    assert report["metadata"] == "meta_x.json.gz"


def test_amazon_2014_and_douban_keep_every_line(tmp_path: Path) -> None:
    lines = ["A1,B1,5.0,10", "A1,B1,5.0,10", "A2,B1,5.0,3", "A1,B0,5.0,9"]
    dataset = prepare_raw("electronic", write(tmp_path / "x.csv", lines))
    assert histories(dataset) == {"A1": ["B0", "B1", "B1"], "A2": ["B1"]}
    lines = ["UserId\tItemId\tRating\tTimestamp", "7\t3\t-1\t20.0", "7\t2\t4\t10.0", "7\t3\t-1\t20.0"]
    dataset = prepare_raw("music", write(tmp_path / "x.tsv", lines))
    assert dataset.catalogue.raw_items(dataset.items) == [2, 3, 3]
    items = write(tmp_path / "items.tsv", ["item_id\ttitle", "3\tThree", "9\tNine"])
    assert prepare_raw("music", tmp_path / "x.tsv", items=items).titles([1, 2]) == ["2", "Three"]


def test_the_real_scientific_data_match_table_1(shared_data: Path, tmp_path: Path) -> None:
    """Around the real interactions: lines said twice, items without metadata, users and items outside the core."""
    real = load_dataset(shared_data / "amazon_scientific")
    users = np.repeat(real.user_ids.to_numpy(), np.diff(real.offsets))
    events = [(f"U{u}", f"I{v}", 5.0, t) for t, (u, v) in enumerate(zip(users, real.items.tolist(), strict=True))]
    noise = [(f"U{u}", f"NO{u % 40}", 1.0, u) for u in range(1, 2000)]
    noise += [(f"V{n}", f"I{n % 900 + 1}", 4.0, n) for n in range(3600)]
    raw = write(tmp_path / "Industrial_and_Scientific_5.json", [as_json(e) for e in [*noise, *events, *events[:999]]])
    meta = [json.dumps({"asin": f"I{v}", "title": "t"}) for v in range(1, real.num_items + 1)]
    dataset = prepare_raw("scientific", raw, items=write(tmp_path / "meta.json", meta))
    assert compare_with_table1("scientific", Statistics.of(dataset)) == "match"
    assert histories(dataset)["U8"] == [f"I{v}" for v in real.items[real.offsets[7] : real.offsets[8]]]
    assert dataset.report["equal_lines"] == 999


def test_comparison_with_table_1() -> None:
    for name, recipe in RECIPES.items():
        assert compare_with_table1(name, recipe.table1) == "match"
        if recipe.counted is not None:
            verdict = compare_with_table1(name, recipe.counted)
            assert verdict.startswith("match with what other sources count")
            assert recipe.note in verdict
    assert "swapped digits" in compare_with_table1("office", Statistics(87_346, 25_986, 684_837))
    found = Statistics(1_578_597, 486_000, 3_749_005)
    assert compare_with_table1("cds", found) == "no match: items -360 (-0.07%), interactions +1 (+0.00%)"


def test_densities_are_those_that_table_1_prints() -> None:
    printed = {
        "arts": 0.0004133,
        "office": 0.0003014,
        "instruments": 0.0008400,
        "scientific": 0.0016053,
        "cds": 0.0000049,
        "electronic": 0.0000039,
        "book": 0.0001878,
        "music": 0.0002746,
    }
    assert {name: round(recipe.table1.density, 7) for name, recipe in RECIPES.items()} == printed


def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    raw = write(tmp_path / "x.json", [as_json(("A", f"B{n}", 5.0, n)) for n in range(9)])
    with pytest.raises(ValueError, match=r"expected one of arts, office, .*, got 'toys'"):
        prepare_raw("toys", raw)
    with pytest.raises(ValueError, match=r"arts: expected interactions in the 5-core of .*, got none of 9 lines"):
        prepare_raw("arts", raw)
    with pytest.raises(ValueError, match="expected user,item,rating,timestamp in all lines but 5, got 6"):
        prepare_raw("cds", raw, max_malformed=5)


def test_the_command_prints_the_statistics_beside_table_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "x.csv", ["A1,B1,5.0,1", "A2,B2,5.0,2", "A1,B3,5.0,3", "oops"])
    command = ["prepare", "electronic", "--raw", str(raw), "--out", str(tmp_path / "out")]
    main(command)
    printed = capsys.readouterr().out
    assert "line 4 'oops'" in printed
    assert [word for word in ("4,201,696", "-475,999", "-7,824,479", "no match: users") if word not in printed] == []
    assert load_dataset(tmp_path / "out").num_interactions == 3
    for bad, sentence in (
        (
            ["--max-malformed", "0", "--out", str(tmp_path / "other")],
            "rating,timestamp in every line, got line 4 'oops'",
        ),
        ([], "expected a folder that does not exist yet"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *bad])
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prepare", "book", "--out", str(tmp_path / "other")])
    assert "expected --raw FILE with the book data, got none" in capsys.readouterr().err


def test_the_command_says_what_was_guessed_and_takes_what_it_offers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write(tmp_path / "x.csv", ["userId,movieId,rating,time", "1,7,4,10", "1,8,2,20", "2,7,5,10", "2,8,5,10"])
    films = write(tmp_path / "films.csv", ["movieId,title,genres", "7,[new] Heat,Crime|Drama", "8,Up,Animation"])
    command = ["prepare", "interactions", "--raw", str(raw), "--items", str(films), "--user", "userId"]
    command += ["--item", "movieId", "--out", str(tmp_path / "out")]
    main(command)
    printed = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "note: There is no column 'timestamp': each user's rows are taken to stand in the order in which they",
        "The column 'time' may hold the times: timestamp='time' (--timestamp time) reads it.",
        "note: The column 'rating' is not used: every row counts as one interaction",
        "categories='genres' (--categories genres) reads it.",
    ):
        assert sentence in printed
    assert "note_" not in printed
    main([*command, "--timestamp", "time", "--min-rating", "4", "--categories", "genres", "--overwrite"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: 1 of 2 users (such as 2) have equal times among their last three rows" in printed
    assert "rows_below_min_rating: 1" in printed
    assert "is not used" not in printed
    dataset = load_dataset(tmp_path / "out")
    assert dataset.num_interactions == 3
    assert dataset.item_table.row(0) == (7, "[new] Heat", "Crime|Drama")
    assert any("equal times" in note for note in dataset.notes)


def test_flags_that_would_be_ignored_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "x.csv", ["A1,B1,5.0,1"])
    for command, flags in (
        (["electronic", "--raw", str(raw), "--min-rating", "4"], "--min-rating with electronic"),
        (["synthetic", "--raw", str(raw), "--user", "who"], "--user, --raw with synthetic"),
    ):
        with pytest.raises(SystemExit):
            main(["prepare", *command, "--out", str(tmp_path / "out")])
        assert f"prepare: expected no {flags}" in capsys.readouterr().err
