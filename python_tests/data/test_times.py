"""Times: exact cell by cell, one unit a column, and a sentence with the row for what is neither."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from solid_ext.data import load_dataset
from solid_ext.data.reading import Reading
from solid_ext.data.times import normalise_timestamps

NANO = 1_700_000_000_123_456_789


def times(values: object) -> list[object]:
    return normalise_timestamps("t", values).to_list()


def noted(values: object) -> str:
    reading = Reading()
    normalise_timestamps("t", values, reading)
    return "\n".join(map(str, reading.notes.values()))


@pytest.mark.parametrize(
    ("odd", "read"),
    [
        ("nan", None),
        ("N/A", None),
        ("", None),
        ("NULL", None),
        ("1.7e18", 1_700_000_000_000_000_000),
        ("1.700000000123456789E+18", NANO),
        ("1700000000123456788.0", NANO - 1),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_one_odd_cell_leaves_the_others_as_they_are(odd: str, read: int | None) -> None:
    text = [str(NANO), odd, str(NANO + 1), str(NANO + 2)]
    assert times(text) == [NANO, read, NANO + 1, NANO + 2]


def test_gaps_among_objects_frames_and_decimals_change_no_integer() -> None:
    whole = [NANO, None, NANO + 1]
    for values in (
        [NANO, float("nan"), NANO + 1],
        [NANO, None, NANO + 1],
        np.array([NANO, np.nan, NANO + 1], dtype=object),
        pd.Series([NANO, None, NANO + 1], dtype="Int64"),
        pd.Series([NANO, pd.NA, NANO + 1], dtype=object),
        [Decimal(NANO), Decimal("nan"), Decimal(NANO + 1)],
        [Decimal(NANO), None, NANO + 1],
        pl.Series([str(NANO), None, str(NANO + 1)]).cast(pl.Decimal(38, 2)),
        np.array([NANO, NANO - 5, NANO + 1], dtype=np.uint64),
    ):
        found = times(values)
        assert [found[0], found[2]] == [whole[0], whole[2]]
    assert times([2**40 + 1, 2.0**40, None]) == [2**40 + 1, 2**40, None]


@pytest.mark.parametrize(
    "values",
    [
        [NANO, 1.7e18],
        np.array([float(NANO), 1.0]),
        pd.Series([NANO, None]),
        [float(2**53), 1.0],
        np.array([1_700_000_000], dtype=np.float32),
    ],
)
def test_floats_that_may_have_lost_digits_are_refused(values: object) -> None:
    with pytest.raises(
        ValueError, match=r"t: expected whole numbers with all of their digits, got the float .* in row"
    ):
        normalise_timestamps("t", values)


def test_fractions_are_floats_and_refused_beside_what_a_float_cannot_hold() -> None:
    assert times(["1.5", "2", "1e3"]) == [1.5, 2.0, 1000.0]
    assert times(["881250949.25", "881250950"]) == [881250949.25, 881250950.0]
    with pytest.raises(
        ValueError, match=rf"numbers below 2\^53 beside fractions, got '{NANO}' in row 1 and '1.5' in row 2"
    ):
        times([str(NANO), "1.5"])
    with pytest.raises(
        ValueError, match="expected whole numbers that fit in 64 bits, got '99999999999999999999' in row 2"
    ):
        times(["1", "99999999999999999999"])
    with pytest.raises(ValueError, match="fit in 64 bits, got 9223372036854775808 in row 2"):
        times(np.array([1, 2**63], dtype=np.uint64))
    assert "1 times are written with an exponent ('1.7e9' in row 2)" in noted(["1700000001", "1.7e9"])


def test_every_way_to_write_a_date_is_the_same_moment() -> None:
    moment = datetime.datetime(2022, 6, 24, 21, 20, 11)
    texts = [
        "2022-06-24 21:20:11",
        "2022-06-24T21:20:11Z",
        "2022-06-24T21:20:11.000000",
        "2022-06-24T23:20:11+02:00",
        "2022-06-24T23:20:11+0200",
        "2022-06-24 19:20:11 -02",
        "2022-06-24 21:20:11 UTC",
        "2022/6/24 21:20:11",
        "2022.06.24 21:20:11",
        "2022-06-24 21:20:11,0",
        "  2022-06-24 21:20:11 ",
    ]
    assert times(texts) == [moment] * len(texts)
    for text in texts:
        assert times([text, text]) == [moment] * 2
    assert times(["2022-06-24", "2022-06-24 12:30"]) == [
        datetime.datetime(2022, 6, 24),
        moment.replace(hour=12, minute=30, second=0),
    ]
    assert times(["2022-06-24 21:20:11.25", "N/A"]) == [moment.replace(microsecond=250_000), None]
    assert times(["1969-12-31 23:59:59"]) == [datetime.datetime(1969, 12, 31, 23, 59, 59)]
    assert "1 times name no zone ('2022-06-24 21:20:11' in row 1), others do" in noted(texts[:2])
    assert noted(texts[1:2] * 2) == ""


def test_dates_agree_with_python() -> None:
    rng = np.random.default_rng(0)
    zone = [datetime.timezone(datetime.timedelta(minutes=int(m))) for m in rng.integers(-14 * 60, 14 * 60, 300)]
    start = datetime.datetime(1900, 1, 1)
    moments = [
        (start + datetime.timedelta(microseconds=int(u))).replace(tzinfo=z)
        for u, z in zip(rng.integers(0, 7 * 10**15, 300), zone, strict=True)
    ]
    expected = [moment.astimezone(datetime.timezone.utc).replace(tzinfo=None) for moment in moments]
    assert times([moment.isoformat() for moment in moments]) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2022-06-24"] * 1199 + ["24.06.2022"], "got '24.06.2022' in row 1,200"),
        (["1"] * 1199 + ["soon"], "expected numbers or ISO dates, got 'soon' in row 1,200"),
        (
            ["2022-06-24", "1656105611"],
            "ISO dates and not both, got '1656105611' in row 2 beside '2022-06-24' in row 1",
        ),
        (["1,656,105,611"], "got '1,656,105,611' in row 1 .*without thousands separators"),
        (["2022-02-30", "2022-02-28"], "got '2022-02-30' in row 1"),
        (["2022-06-24 25:00:00", "2022-06-24"], "got '2022-06-24 25:00:00' in row 1"),
    ],
)
def test_what_is_no_time_is_named_with_its_row(values: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        times(values)


SECONDS = 1_600_000_000


@pytest.mark.parametrize(
    ("factor", "unit"), [(1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"), (1 / 86_400, "days")]
)
@pytest.mark.parametrize("odd", [1, 50])
def test_two_units_in_one_column_are_refused_with_rows(factor: float, unit: str, odd: int) -> None:
    values = [SECONDS + row for row in range(100)]
    values[7 : 7 + odd] = [int(value * factor) for value in values[7 : 7 + odd]]
    for form in (
        values,
        [str(value) for value in values],
        [float(value) for value in values] if factor < 1e9 else values,
    ):
        with pytest.raises(
            ValueError, match=rf"expected times in one unit, got .*{unit} in {odd} rows \(\d+ in row 8\)"
        ):
            times(form)
    with pytest.raises(ValueError, match="expected times in one unit"):
        times([*values, 0, -1])


def test_counters_of_any_size_are_one_unit() -> None:
    rng = np.random.default_rng(0)
    for top in (10**4, 10**6, 10**9, 10**10, 10**12, 10**15, 10**18):
        values = rng.integers(0, top, 3000)
        assert times(values) == values.tolist()
    assert times(list(range(1, 200))) == list(range(1, 200))
    assert times([SECONDS, SECONDS * 2]) == [SECONDS, SECONDS * 2]


def test_dates_written_as_numbers() -> None:
    assert times([20200131, 20191231]) == [20200131, 20191231]
    assert "YYYYMMDD" in noted([20200131, 20191231])
    assert "YYYYMMDD" not in noted([20200199, 20191231])
    for values in ([31122019, 1022020], [12312019, 1022020]):
        with pytest.raises(
            ValueError, match="expected times that sort as numbers, got what looks like dates with the year"
        ):
            times(values)
    with pytest.raises(ValueError, match=r"dates such as 20200131 in 1 rows \(20200131 in row 3\)"):
        times([SECONDS, SECONDS + 1, 20200131])


def test_a_time_far_from_the_others_is_said() -> None:
    values = [SECONDS + row for row in range(200)]
    values[5] = 99_999_999_999_999
    assert "1 times lie far from the others, which look like seconds: 99999999999999 in row 6" in noted(values)
    assert noted(values[6:]) == ""


def test_zero_beside_real_times_is_said() -> None:
    assert "2 times are 0 or -1 (1970)" in noted([SECONDS, 0, SECONDS + 5, SECONDS + 9, 0])
    assert noted([0, 1, 2, 3]) == ""


def test_numbers_beside_dates_are_refused() -> None:
    moment = datetime.datetime(2020, 1, 1, 10)
    for values in ([5, moment, 3], [5.5, moment.date(), 3], np.array([moment, 3, 4], dtype=object)):
        with pytest.raises(TypeError, match=r"expected numbers or dates and not both, got .* in row"):
            normalise_timestamps("t", values)


def test_nanoseconds_of_text_and_arrays_keep_their_order() -> None:
    texts = ["2020-01-01T00:00:00.000000002", "2020-01-01T00:00:00.000000001Z", "2020-01-01T00:00:00.5", None]
    start = 1_577_836_800 * 10**9
    expected = [start + 2, start + 1, start + 5 * 10**8, None]
    assert normalise_timestamps("t", texts).to_physical().to_list() == expected
    small = np.array([2_000, 1_000], dtype="M8[ps]")
    assert normalise_timestamps("t", small).to_physical().to_list() == [2, 1]
    with pytest.raises(ValueError, match=r"expected times in whole nanoseconds that fit in 64 bits, got .* in row 2"):
        normalise_timestamps("t", np.array([2_000, 1_001], dtype="M8[ps]"))
    data = load_dataset(([1, 1], ["b", "a"], texts[:2]))
    assert data.item_ids.gather(data.items - 1).to_list() == ["a", "b"]
    assert data.report["timestamp_unit"] == "nanoseconds"


@pytest.mark.parametrize("zone", ["+99:99", "-15:00", "+05:60"])
def test_a_zone_that_cannot_be_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="expected numbers or ISO dates"):
        normalise_timestamps("t", [f"2020-01-01T10:00:00{zone}"])


def test_unusual_ids_are_read_or_refused_by_a_sentence() -> None:
    names = [uuid.UUID(int=1), uuid.UUID(int=2)]
    assert load_dataset(([1, 1], names)).item_ids.to_list() == [str(name) for name in names]
    with pytest.raises(ValueError, match="expected bytes that are UTF-8 text"):
        load_dataset(([1, 1], np.array([b"\xff", b"a"])))
