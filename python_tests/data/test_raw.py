"""Raw files as published: every good line is read, every broken one is named, nothing else is held in memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from solid_ext.data import raw
from solid_ext.data.raw import Layout, read_metadata, read_raw

REVIEW = {
    "overall": 5.0,
    "vote": "2",
    "verified": True,
    "reviewTime": "09 9, 2016",
    "reviewerID": "A2SUAM1J3GNN3B",
    "asin": "0000013714",
    "style": {"Format:": " Hardcover"},
    "reviewerName": "J. M\u00fcller",
    "reviewText": 'Tabs\tand "quotes", commas,\nlines and \U0001f600.',
    "summary": "{not, the end}",
    "unixReviewTime": 1252800000,
}


def write(path: Path, lines: list[str | bytes], ending: bytes = b"\n") -> Path:
    data = b"".join((line.encode() if isinstance(line, str) else line) + ending for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def review(user: Any, item: Any, rating: Any = 5.0, time: Any = 7, **more: Any) -> str:
    return json.dumps(REVIEW | {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time} | more)


def rows(path: Path, layout: Layout, **options: Any) -> list[tuple[Any, ...]]:
    return read_raw(path, layout, **options)[0].rows()


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_amazon_2018_reviews(tmp_path: Path, suffix: str) -> None:
    lines = [json.dumps(REVIEW), review("A2", "B00X", 3.0, 1409529600), "", review("A2", "B00X", 3, 1409529600)]
    frame, report = read_raw(write(tmp_path / f"x_5{suffix}", lines), "json")
    expected = {
        "user_id": ["A2SUAM1J3GNN3B", "A2", "A2"],
        "item_id": ["0000013714", "B00X", "B00X"],
        "rating": [5.0, 3.0, 3.0],
        "timestamp": [1252800000, 1409529600, 1409529600],
    }
    assert_frame_equal(frame, pl.DataFrame(expected))
    assert report == {"lines_read": 4, "malformed_lines": 0}


@pytest.mark.parametrize(
    "broken",
    [
        '{"reviewerID": "A1", "asin": "B1", "overall": 5.0',
        "[1, 2, 3, 4]",
        "null",
        "A1,B1,5.0,7",
        json.dumps({"reviewerID": "A1", "asin": "B1", "overall": 5.0}),
        review(None, "B1"),
        review("", "B1"),
        review("A1", 12),
        review("A1", ["B1"]),
        review("A1", "B1", "five"),
        review("A1", "B1", float("nan")),
        review("A1", "B1", 5.0, "7"),
        review("A1", "B1", 5.0, 10**40),
        review("A1", "\ud800"),
        b'{"reviewerID": "\xff", "asin": "B1", "overall": 5.0, "unixReviewTime": 7}',
        "[" * 100_000,
    ],
)
def test_a_broken_review_is_counted_and_named(tmp_path: Path, broken: str | bytes) -> None:
    path = write(tmp_path / "x.json", [review("A1", "B1"), "  ", broken, review("A2", "B2")])
    frame, report = read_raw(path, "json")
    assert frame["user_id"].to_list() == ["A1", "A2"]
    assert report["malformed_lines"] == 1
    assert str(report["malformed_lines_examples"]).startswith("line 3 ")


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize("header", [None, "userId,productId,Rating,timestamp"])
def test_amazon_2014_ratings(tmp_path: Path, ending: bytes, suffix: str, header: str | None) -> None:
    lines = ["AKM1MP6P0OYPR,0132793040,5.0,1365811200", "", "A2CX7LUOHB2NDG,0321732944,1.0,1341100800"]
    path = write(tmp_path / f"ratings{suffix}", ([header] if header else []) + lines, ending)
    frame, report = read_raw(path, "csv")
    assert frame.rows() == [
        ("AKM1MP6P0OYPR", "0132793040", 5.0, 1365811200),
        ("A2CX7LUOHB2NDG", "0321732944", 1.0, 1341100800),
    ]
    assert report == {"lines_read": 4 if header else 3, "malformed_lines": 0}


def test_the_last_line_needs_no_end_and_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfA1,B1,5.0,1\nA2,B2,4.0,2")
    assert rows(path, "csv") == [("A1", "B1", 5.0, 1), ("A2", "B2", 4.0, 2)]


@pytest.mark.parametrize(
    "broken",
    [
        "A1",
        "A1,B1",
        "A1,B1,5.0",
        "A1,B1,5.0,7,more",
        "A1,B1,five,7",
        "A1,B1,nan,7",
        "A1,B1,5.0,yesterday",
        "A1,B1,5.0,",
        "A1,B1,5.0,1e30",
        ",B1,5.0,7",
        "A1,,5.0,7",
        ",,,",
        b"A\xff,B1,5.0,7",
        review("A1", "B1"),
    ],
)
def test_a_broken_rating_is_counted_and_named(tmp_path: Path, broken: str | bytes) -> None:
    path = write(tmp_path / "x.csv", ["A1,B1,5.0,1", "", broken, "A2,B2,4.0,2"])
    frame, report = read_raw(path, "csv")
    assert frame["user_id"].to_list() == ["A1", "A2"]
    assert report["malformed_lines"] == 1
    assert str(report["malformed_lines_examples"]).startswith("line 3 ")


def test_douban_ratings(tmp_path: Path) -> None:
    lines = ["UserId\tItemId\tRating\tTimestamp", "630157\t0\t5\t1182009600.0", "", "630157\t7\t-1\t1182096000.0"]
    expected = [(630157, 0, 5.0, 1182009600), (630157, 7, -1.0, 1182096000)]
    assert rows(write(tmp_path / "douban_book.tsv", lines), "tsv") == expected
    assert rows(write(tmp_path / "douban_book.tsv.gz", lines), "tsv") == expected
    frame, report = read_raw(write(tmp_path / "broken.tsv", [*lines, "630157 3 5 1182009600.0", "1\t2\t\t5"]), "tsv")
    assert frame.height == 2
    assert report["malformed_lines"] == 2


def test_doubans_other_release_has_more_columns_quotes_and_dates(tmp_path: Path) -> None:
    lines = [
        '"user_id"\t"music_id"\t"rating"\t"labels"\t"comment"\t"useful_num"\t"time"\t"ID"',
        '57\t9\t5\t"a|b"\t"fine, really"\t0\t"2008-10-27"\t1',
        "58\t10\t4\t\t\t\t2008-10-27 01:00:00\t2",
        "59\t10\t4\t\t\t\t27.10.2008\t3",
    ]
    frame, report = read_raw(write(tmp_path / "musicreviews_cleaned.txt", lines), "tsv")
    assert frame.rows() == [(57, 9, 5.0, 1225065600), (58, 10, 4.0, 1225069200)]
    assert str(report["malformed_lines_examples"]).startswith("line 4 ")


def test_a_header_without_a_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", ["UserId\tItemId\tStars\tTimestamp", "1\t2\t5\t7"])
    with pytest.raises(ValueError, match="expected a header with user, item, rating and time, got none for rating"):
        read_raw(path, "tsv")


@pytest.mark.parametrize("block", [1, 7, 64, 300])
@pytest.mark.parametrize("layout", ["csv", "json"])
def test_blocks_of_any_size_give_the_same_rows_and_line_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, block: int
) -> None:
    good = [f"A{n},B{n % 7},{n % 5 + 1}.0,{n}" if layout == "csv" else review(f"A{n}", f"B{n % 7}") for n in range(40)]
    lines = [*good[:20], "", "oops", *good[20:], "again"]
    path = write(tmp_path / "x.gz", lines)
    expected, report = read_raw(path, layout)
    assert expected.height == 40
    assert report["malformed_lines_examples"] == "line 22 'oops'; line 43 'again'"
    monkeypatch.setattr(raw, "BLOCK", block)
    found, again = read_raw(path, layout)
    assert_frame_equal(found, expected)
    assert again == report


def test_ids_are_integers_only_if_that_loses_nothing(tmp_path: Path) -> None:
    whole = read_raw(write(tmp_path / "a.csv", ["1,7,5,1", "2,8,5,1"]), "csv")[0]
    padded = read_raw(write(tmp_path / "b.csv", ["1,07,5,1", "2,8,5,1"]), "csv")[0]
    assert whole["item_id"].to_list() == [7, 8]
    assert padded["item_id"].to_list() == ["07", "8"]


def test_malformed_lines_are_refused_beyond_the_limit(tmp_path: Path) -> None:
    lines = ["A,B,5.0,1", "bad one", "A,C,5.0,2", "bad two", "x" * 500, "bad four"]
    path = write(tmp_path / "x.csv", lines)
    frame, report = read_raw(path, "csv", max_malformed=4)
    assert frame.height == 2
    assert report["malformed_lines"] == 4
    assert report["malformed_lines_examples"] == f"line 2 'bad one'; line 4 'bad two'; line 5 '{'x' * 60}...'"
    sentence = (
        r"x.csv': expected user,item,rating,timestamp in all lines but 1, "
        r"got 2 malformed ones by line 4: line 2 'bad one'; line 4 'bad two'"
    )
    with pytest.raises(ValueError, match=sentence):
        read_raw(path, "csv", max_malformed=1)
    with pytest.raises(ValueError, match=r"user,item,rating,timestamp in every line, got line 2 'bad one'$"):
        read_raw(path, "csv", max_malformed=0)


def test_files_that_are_no_such_thing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected an existing file, got none"):
        read_raw(tmp_path / "nowhere.csv", "csv")
    with pytest.raises(ValueError, match="expected an existing file, got a folder"):
        read_raw(tmp_path, "csv")
    with pytest.raises(ValueError, match="expected lines of user,item,rating,timestamp, got nothing"):
        read_raw(write(tmp_path / "empty.csv", []), "csv")
    with pytest.raises(ValueError, match=r"expected lines of JSON with .*, got line 1 'A,B,5.0,1'"):
        read_raw(write(tmp_path / "wrong.json", ["A,B,5.0,1"]), "json")
    cut = write(tmp_path / "cut.csv.gz", [f"A{n},B,5.0,{n}" for n in range(9999)])
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a readable file"):
        read_raw(cut, "csv")
    monkeypatch.setattr(raw, "BLOCK", 1000)
    monkeypatch.setattr(raw, "LONGEST_LINE", 5000)
    with pytest.raises(ValueError, match="expected lines of text, got one of more than 5,000 bytes at line 2"):
        read_raw(write(tmp_path / "binary.csv", ["A,B,5.0,1", "\0" * 9000]), "csv")


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_memory_depends_on_rows_not_on_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", [review(f"A{n}", "B", reviewText="long text " * 10_000) for n in range(100)])
    monkeypatch.setattr(raw, "BLOCK", 1 << 17)
    read_raw(path, "json")
    tracemalloc.start()
    try:
        assert read_raw(path, "json")[0].height == 100
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000, f"{peak:,} bytes for a file of 10 MB"


def test_metadata_of_both_releases(tmp_path: Path) -> None:
    new = [
        json.dumps(
            {"asin": "B1", "title": "Nuts &amp;\n  bolts", "category": ["Tools", "Hand &amp; power"], "brand": "X"}
        ),
        json.dumps({"asin": "B2", "title": "", "category": []}),
        json.dumps({"asin": "B3", "title": "var a = 1;" * 200, "category": ["A|B", ""]}),
        json.dumps({"asin": "B4"}),
        "",
        json.dumps({"title": "no id"}),
    ]
    frame, report = read_metadata(write(tmp_path / "meta.json.gz", new))
    assert frame.rows() == [
        ("B1", "Nuts & bolts", "Tools|Hand & power"),
        ("B2", None, None),
        ("B3", None, "A/B"),
        ("B4", None, None),
    ]
    assert report["malformed_metadata_lines"] == 1
    assert str(report["malformed_metadata_lines_examples"]).startswith("line 6 ")
    old = ["{'asin': '0001', 'title': \"It's\", 'categories': [['Electronics', 'Cables'], ['Other']]}", "{'asin': 1+1}"]
    frame, report = read_metadata(write(tmp_path / "meta_old.json", old))
    assert frame.rows() == [("0001", "It's", "Electronics|Cables")]
    assert report["malformed_metadata_lines"] == 1
    with pytest.raises(ValueError, match="expected an object with asin in every line, got line 2 "):
        read_metadata(tmp_path / "meta_old.json", max_malformed=0)
