"""Times from numbers, dates and text: exact cell by cell, in one unit, or refused by a sentence that names the row."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import polars as pl

from solid_ext.data.reading import Reading
from solid_ext.data.tables import EXACT_FLOAT, as_series, lost_digits, without_markers

# Year first, so that day and month are no guess; the zone may be missing (UTC).
ISO = (
    r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})"
    r"(?:[T ]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"(?:\s*(?P<zone>Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?$"
)
FRACTION = 7  # the group of ISO
MICRO = 1_000_000
INTEGERS = 2**63

# How large the numbers are that count units since 1970, from some years after it to the second half of this century.
# Between the bands lies much room: a column that has values in two of them holds two units.
BANDS = (
    ("days", 3_650, 50_000),
    ("dates such as 20200131", 19_000_101, 21_001_231),
    ("seconds", 100_000_000, 5_000_000_000),
    ("milliseconds", 100_000_000_000, 5_000_000_000_000),
    ("dates such as 20200131120000", 19_000_101_000_000, 21_001_231_235_959),
    ("microseconds", 100_000_000_000_000, 5_000_000_000_000_000),
    ("nanoseconds", 100_000_000_000_000_000, 5_000_000_000_000_000_000),
)
FAR = 100  # times as large or as small: no series of counters goes on so, another unit does
PER_SECOND = {"seconds": 1, "microseconds": MICRO, "nanoseconds": 1000 * MICRO}
"""The units of times that were dates: so many make a second, and times of one can be told in another."""
# Counters that are no dates may lie anywhere; then more of them than this share lie between the bands.
OUTSIDE = 0.01


def normalise_timestamps(name: str, values: Any, reading: Reading | None = None) -> pl.Series:
    """Return timestamps as int64, float64, date or datetime (UTC), with null for missing and infinite ones.

    Whole numbers become int64 exactly, however large and however they are written ("1.7e18"); fractions make the column
    float64 if all of it is below 2^53. Text may hold numbers, or dates with the year first.

    Args:
        name: named in errors.
        values: `[N]`.
        reading: takes notes of what was guessed.

    Raises:
        TypeError: a dtype that is no time.
        ValueError: text that is no time, integers beyond 64 bits, floats that have lost digits, or two units in one
            column.
    """
    notes = (reading or Reading()).notes
    series = as_series(name, values)
    if series.dtype == pl.String:
        series = _parse(name, series, notes)
    dtype = series.dtype
    if dtype == pl.Null:
        return series.cast(pl.Int64)
    if isinstance(dtype, pl.Datetime):
        in_utc = series if dtype.time_zone is None else series.dt.convert_time_zone("UTC")
        return in_utc.dt.replace_time_zone(None)
    if dtype == pl.Date:
        return series
    if dtype.is_integer():
        numbers = _as_int64(name, series)
    elif dtype.is_float():
        numbers = _from_floats(name, series)
    elif dtype.is_decimal():
        numbers = _parse(name, series.cast(pl.String), notes)
    else:
        raise TypeError(f"{name}: expected timestamps as numbers, dates or ISO text, got {dtype}")
    _check_units(name, numbers, notes)
    return numbers


def _as_int64(name: str, series: pl.Series) -> pl.Series:
    numbers = series.cast(pl.Int64, strict=False)
    wrong = (series.is_not_null() & numbers.is_null()).arg_true()
    if len(wrong):
        raise ValueError(
            f"{name}: expected timestamps that fit in 64 bits, got {series[wrong[0]]!r} in row {wrong[0] + 1:,}"
        )
    return numbers


def _from_floats(name: str, series: pl.Series) -> pl.Series:
    exact = EXACT_FLOAT if series.dtype == pl.Float64 else 2**24
    real = series.to_frame("t").select(pl.when(pl.col("t").is_finite()).then(pl.col("t").cast(pl.Float64))).to_series()
    large = (real.abs() >= exact).fill_null(False).arg_true()
    if len(large):
        raise ValueError(lost_digits(name, large[0] + 1, real[large[0]]))
    return real.cast(pl.Int64) if (real == real.floor()).all() else _fractions(name, real)


def _parse(name: str, series: pl.Series, notes: dict[str, int | str]) -> pl.Series:
    text = without_markers(series)
    numbers = text.cast(pl.Int64, strict=False)
    rest = text.is_not_null() & numbers.is_null()
    if not rest.any():
        return numbers
    micro, zoned = _dates(text)
    is_date = micro.is_not_null()
    if is_date.any():
        wrong = (text.is_not_null() & ~is_date).arg_true()
        if len(wrong):
            number = " and numbers" if numbers[wrong[0]] is not None else ""
            row, other = wrong[0], int(is_date.arg_true()[0])
            raise ValueError(
                f"{name}: expected numbers or ISO dates{' and not both' if number else ''}, got {text[row]!r} in row "
                f"{row + 1:,} beside {text[other]!r} in row {other + 1:,}"
            )
        if 0 < int(zoned.sum()) < int(is_date.sum()):
            row = int((is_date & ~zoned).arg_true()[0])
            notes["note_zones"] = (
                f"{int((is_date & ~zoned).sum()):,} times name no zone ({text[row]!r} in row {row + 1:,}), others do: "
                "those without are taken as UTC."
            )
        # A part below the microsecond decides the order of two rows; it is kept wherever there is one.
        fine = text.str.extract(ISO, FRACTION).str.slice(6).str.pad_end(3, "0").cast(pl.Int64).fill_null(0)
        if not (fine > 0).any():
            return micro.cast(pl.Datetime("us"))
        far = ((micro >= INTEGERS // 1000 - 1) | (micro <= -(INTEGERS // 1000) + 1)).fill_null(False).arg_true()
        if len(far):
            raise ValueError(
                f"{name}: expected dates between 1678 and 2261 beside nanoseconds, got {text[far[0]]!r} in row "
                f"{far[0] + 1:,}"
            )
        return (micro * 1000 + fine).cast(pl.Datetime("ns"))
    return _numbers(name, text, numbers, rest, notes)


def _dates(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Microseconds since 1970 of every cell that is a date, and whether it names a zone."""
    parts = text.str.extract_groups(ISO).struct.unnest()
    part = {name: pl.col(name).cast(pl.Int64).fill_null(0) for name in ("hour", "minute", "second")}
    offset = pl.col("zone").str.replace_all(":", "")
    minutes = (offset.str.slice(1, 2).cast(pl.Int64, strict=False) * 60).fill_null(0)
    minutes = minutes + offset.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    zone = pl.when(offset.str.starts_with("-")).then(-minutes).when(offset.str.starts_with("+")).then(minutes)
    padded = pl.concat_str(pl.col("year"), *(pl.col(name).str.zfill(2) for name in ("month", "day")), separator="-")
    days = padded.str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    seconds = ((days * 24 + part["hour"]) * 60 + part["minute"] - zone.fill_null(0)) * 60 + part["second"]
    fraction = (pl.col("fraction") + "000000").str.slice(0, 6).cast(pl.Int64).fill_null(0)
    valid = (part["hour"] < 24) & (part["minute"] < 60) & (part["second"] < 60)
    # No zone lies further from UTC than 14 hours, or counts 60 minutes.
    valid &= ((minutes <= 14 * 60) & (offset.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0) < 60)).fill_null(
        True
    )
    found = parts.select(micro=pl.when(valid).then(seconds * MICRO + fraction), zoned=pl.col("zone").is_not_null())
    return found["micro"], found["zoned"].fill_null(False)


def _numbers(name: str, text: pl.Series, numbers: pl.Series, rest: pl.Series, notes: dict[str, int | str]) -> pl.Series:
    """A column of numbers in which some are not written as integers: whole ones exactly, the others as floats."""
    real = text.cast(pl.Float64, strict=False)
    wrong = (rest & real.is_null()).arg_true()
    if len(wrong):
        raise ValueError(
            f"{name}: expected numbers or ISO dates, got {text[wrong[0]]!r} in row {wrong[0] + 1:,} "
            "(numbers without thousands separators, dates as 2020-01-31 or 2020-01-31T12:00:00)"
        )
    exponents = (rest & text.str.contains("[eE]") & real.is_finite()).fill_null(False).arg_true()
    if len(exponents):
        notes["note_exponents"] = (
            f"{len(exponents):,} times are written with an exponent ({text[exponents[0]]!r} in row "
            f"{exponents[0] + 1:,}); the program that wrote them may have cut their last digits."
        )
    finite = real.is_finite().fill_null(False)
    small = finite & (real.abs() < EXACT_FLOAT)
    fraction = small & (real != real.floor())
    whole = numbers.to_frame("n").select(
        pl.when(pl.col("n").is_not_null())
        .then("n")
        .otherwise(pl.when(small & ~fraction).then(real.cast(pl.Int64, strict=False)))
    )["n"]
    large = (rest & finite & ~small).arg_true()
    found = [_large(name, text[row], row + 1) for row in large]
    if found:
        whole = whole.scatter(large, pl.Series(found, dtype=pl.Int64))
    if not fraction.any():
        return whole
    too_large = ((whole >= EXACT_FLOAT) | (whole <= -EXACT_FLOAT)).fill_null(False).arg_true()
    if len(too_large):
        row, other = too_large[0], int(fraction.arg_true()[0])
        raise ValueError(
            f"{name}: expected whole numbers, or numbers below 2^53 beside fractions, got {text[row]!r} in row "
            f"{row + 1:,} and {text[other]!r} in row {other + 1:,}"
        )
    return _fractions(name, real.to_frame("t").select(pl.when(pl.col("t").is_finite()).then("t")).to_series())


def _fractions(name: str, real: pl.Series) -> pl.Series:
    """Numbers with fractions, of which a dataset keeps the millionths as int64."""
    far = (real.abs() * MICRO >= INTEGERS).fill_null(False).arg_true()
    if len(far):
        row = int((real != real.floor()).fill_null(False).arg_true()[0])
        raise ValueError(
            f"{name}: expected whole numbers, or numbers below {INTEGERS // MICRO:,} beside fractions, got "
            f"{real[far[0]]!r} in row {far[0] + 1:,} and the fraction {real[row]!r} in row {row + 1:,} (round them, or "
            "divide them all so that they count seconds)"
        )
    return real


def _large(name: str, text: str, row: int) -> int:
    """The integer that a cell of 2^53 or more writes as a decimal number."""
    try:
        exact = Decimal(text)
        if abs(exact) < INTEGERS and exact == int(exact):
            return int(exact)
    except (InvalidOperation, OverflowError):
        pass
    raise ValueError(f"{name}: expected whole numbers that fit in 64 bits, got {text!r} in row {row:,}")


def _check_units(name: str, numbers: pl.Series, notes: dict[str, int | str]) -> None:
    """Refuse two units in one column, and dates that do not sort; say what looks like something else.

    Raises:
        ValueError: as above.
    """
    times = numbers.drop_nulls().to_numpy()
    if times.size == 0:
        return
    high, counts = times.max(), _in_bands(times)
    placeholders = int(_is_placeholder(times).sum())
    hit = [index for index, count in enumerate(counts) if count]
    if _are_two_units(times, counts):
        parts = []
        for index in sorted(hit, key=lambda index: -counts[index])[:2]:
            unit, bottom, top = BANDS[index]
            row = int(numbers.is_between(bottom, top).fill_null(False).arg_true()[0])
            parts.append(f"what looks like {unit} in {counts[index]:,} rows ({numbers[row]} in row {row + 1:,})")
        raise ValueError(
            f"{name}: expected times in one unit, got {' and '.join(parts)}; bring them to one unit, or take them out"
        )
    if len(hit) == 1 and 0 < (strays := times.size - sum(counts) - placeholders) <= OUTSIDE * times.size:
        unit, bottom, top = BANDS[hit[0]]
        stray = ~(numbers.is_between(bottom, top) | numbers.is_in([0, -1])).fill_null(True)
        row = int(stray.arg_true()[0])
        notes["note_strays"] = (
            f"{strays:,} times lie far from the others, which look like {unit}: {numbers[row]} in row {row + 1:,}."
        )
    if hit == [1] and counts[1] == times.size and _sorts_as_dates(times, day_first=False):
        notes["note_units"] = (
            "The times look like dates written as YYYYMMDD; they are ordered as numbers, which is right."
        )
    if times.size > 1 and high > 1_011_900 and high < 32_000_000 and _sorts_as_dates(times, day_first=True):
        raise ValueError(
            f"{name}: expected times that sort as numbers, got what looks like dates with the year at the end "
            f"({times[0]} in the first row); write them as 2020-01-31"
        )
    if placeholders and counts[2] + counts[3] > 0.5 * times.size:
        notes["note_zero"] = (
            f"{placeholders:,} times are 0 or -1 (1970) beside times of this century: those rows come first in their "
            "users' histories. Leave the cells empty if the times are not known."
        )


def in_other_unit(name: str, times: np.ndarray, unit: str, wanted: str) -> np.ndarray:
    """Times `[N]` int64 of one of the units `PER_SECOND` in another, with what is finer cut off.

    Args:
        name: begins the error's sentence.

    Raises:
        ValueError: times that 64 bits do not hold in the other unit.
    """
    here, there = PER_SECOND[unit], PER_SECOND[wanted]
    if there <= here:
        return times // (here // there)
    largest = int(np.abs(times).max(initial=0))
    if largest * (there // here) >= INTEGERS:
        raise ValueError(f"{name}: expected times that 64 bits hold in {wanted}, got {largest} in {unit}")
    return times * (there // here)


def expect_one_unit(name: str, held: np.ndarray, found: np.ndarray) -> None:
    """Refuse new times of another unit than those that are held, by the rule for one column.

    That rule lets pass what is in no unit's range, counters that are no dates; here such numbers are refused beside
    times of one unit that are all `FAR` times as large.

    Args:
        name: begins the error's sentence.
        held: `[N]` int64, in one unit.
        found: `[M]` int64, in one unit.

    Raises:
        ValueError: two units.
    """
    both = np.concatenate([held, found])
    sides = [times[~_is_placeholder(times)] for times in (held, found)]
    if any(side.size == 0 for side in sides):
        return
    small, large = sorted(sides, key=lambda side: float(np.median(side)))
    if _are_two_units(both, _in_bands(both)) or (
        large.min() >= BANDS[2][1] and float(large.min()) > FAR * float(np.abs(small.astype(np.float64)).max())
    ):
        said = [f"{_looks_like(times)} (such as {times[-1]})" for times in sides]
        raise ValueError(
            f"{name}: expected new times of the unit that the dataset's have, {said[0]}, got {said[1]}; bring them to "
            "one unit"
        )


def _looks_like(times: np.ndarray) -> str:
    counts = _in_bands(times)
    most = int(np.argmax(counts))
    return f"what looks like {BANDS[most][0]}" if 2 * counts[most] > times.size else "numbers of no known unit"


def _in_bands(times: np.ndarray) -> list[int]:
    """How many times lie in each of `BANDS`."""
    low, high = times.min(), times.max()
    return [
        int(((times >= bottom) & (times <= top)).sum()) if low <= top and high >= bottom else 0
        for _, bottom, top in BANDS
    ]


def _are_two_units(times: np.ndarray, counts: list[int]) -> bool:
    outside = times.size - sum(counts) - int(_is_placeholder(times).sum())
    return sum(count > 0 for count in counts) > 1 and outside <= OUTSIDE * times.size


def _is_placeholder(times: np.ndarray) -> np.ndarray:
    return (times == 0) | (times == -1)


def _sorts_as_dates(times: np.ndarray, *, day_first: bool) -> bool:
    """Whether all numbers are dates, YYYYMMDD, or DDMMYYYY and MMDDYYYY."""
    if times.dtype.kind == "f":
        return False
    if day_first:
        year, first, second = times % 10_000, times // 1_000_000, times // 10_000 % 100
    else:
        year, first, second = times // 10_000, times // 100 % 100, times % 100
    plausible = (year >= 1900) & (year <= 2100) & (first >= 1) & (first <= 31) & (second >= 1) & (second <= 31)
    return bool((plausible & ((first <= 12) | (second <= 12))).all())
