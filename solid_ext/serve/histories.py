"""What is asked, in raw ids: histories, items and how many, checked and as the numbers of the catalogue."""

from __future__ import annotations

import operator
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solid_ext.data import Catalogue
from solid_ext.data.catalogue import listed
from solid_ext.data.tables import shown
from solid_ext.evaluate import Scorer
from solid_ext.scorers import WithNewcomers


class Items(NamedTuple):
    """Lists of raw ids that a caller gave for all histories, or for each of them.

    Attributes:
        lists: one list where it is for all, else as many as there are histories.
        shared: whether it is for all.
    """

    lists: list[list[Any]]
    shared: bool


def checked_count(name: str, k: Any) -> int:
    """The k of a call as an int.

    Raises:
        TypeError: no integer.
        ValueError: below 1.
    """
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"{name}: expected k as an integer, got {shown(k)}")
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"{name}: expected k of at least 1, got {shown(k)}")
    return k


def check_unknown(name: str, unknown: Any) -> None:
    """Refuse another word than "error" or "ignore".

    Raises:
        ValueError: anything else.
    """
    if not isinstance(unknown, str) or unknown not in ("error", "ignore"):
        raise ValueError(f"{name}: expected unknown 'error' or 'ignore', got {shown(unknown)}")


def checked_flag(name: str, what: str, value: Any) -> bool:
    """A True or False of a call.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected {what} True or False, got {shown(value)}")
    return bool(value)


def checked_list(name: str, what: str, values: Any) -> list[Any]:
    """One list of raw ids.

    Raises:
        TypeError: anything else than a list, array or series, or one whose entries are lists.
    """
    found = listed(values)
    if found is None or any(listed(value) is not None for value in found):
        raise TypeError(f"{name}: expected {what} as a list of item ids, got {shown(values)}")
    return found


def checked_histories(histories: Any, name: str = "recommend") -> list[list[Any]]:
    """The histories as a list of lists.

    Raises:
        TypeError: anything else than a list, array or series of such.
    """
    rows = listed(histories)
    if rows is None:
        raise TypeError(f"{name}: expected a list of histories, each a list of item ids, got {shown(histories)}")
    found = []
    for number, row in enumerate(rows):
        history = listed(row)
        if history is None:
            raise TypeError(
                f"{name}: expected each history to be a list of item ids, got {shown(row)} as history {number} "
                "(one history is a list in a list: [[a, b]])"
            )
        found.append(history)
    return found


def for_all_or_each(name: str, what: str, items: Any, histories: int) -> Items:
    """Tell a list of ids, which is for all histories, from a list of lists, one for each of them.

    Raises:
        TypeError: neither, or a list in which only some entries are lists.
        ValueError: another number of lists than of histories.
    """
    values = listed(items)
    parts = [] if values is None else [listed(value) for value in values]
    each = [part for part in parts if part is not None]
    if values is None or (each and len(each) != len(parts)):
        got = shown(items) if values is None else f"a list in which {len(each)} of {len(parts)} entries are lists"
        raise TypeError(
            f"{name}: expected {what} as a list of item ids for all histories, or as a list of lists, one for each of "
            f"them, got {got}"
        )
    if not each:
        return Items([values], True)
    if len(each) != histories:
        raise ValueError(f"{name}: expected {what} for all histories or for each of {histories}, got {len(each)} lists")
    return Items(each, False)


def known_items(name: str, what: str, catalogue: Catalogue, lists: list[list[Any]], unknown: str) -> list[Tensor]:
    """The items of each list that the catalogue has, `[n] int64` each.

    Args:
        what: holds the lists, in the words of the error: "histories".
        unknown: "ignore" reads the lists without an id that the catalogue lacks, and all other words refuse it:
            "error" with the hint at "ignore", "session" with the hint at a session of "ignore", "refuse" with none.

    Raises:
        ValueError: such an id, unless it is ignored.
        TypeError: ids that are neither numbers nor text nor times.
    """
    if not lists:
        return []
    flat = [item for items in lists for item in items]
    index = catalogue.item_index(flat)
    if unknown != "ignore" and (index == 0).any():
        place = int((index == 0).argmax())
        of = "" if what == "histories" else f" in {what}"
        reader = {"error": "unknown='ignore'", "session": "a session made with unknown='ignore'"}.get(unknown)
        hint = "" if reader is None else f" ({reader} reads {what} without such items)"
        raise ValueError(
            f"{name}: expected items of the catalogue{of}, got {shown(flat[place])}, which is not in it{hint}"
        )
    ends = np.cumsum([len(items) for items in lists], dtype=np.int64)
    return [torch.from_numpy(part[part > 0]) for part in np.split(index, ends[:-1])]


def known_histories(name: str, catalogue: Catalogue, histories: Any, unknown: Any) -> list[Tensor]:
    """`known_items` of the histories of a call.

    Raises:
        TypeError: histories that are no list of lists, ids that cannot be any.
        ValueError: an unknown item with unknown "error"; another word for `unknown`.
    """
    check_unknown(name, unknown)
    return known_items(name, "histories", catalogue, checked_histories(histories, name), unknown)


def warn_of_newcomers(name: str, scorer: Scorer, new: int, histories: int, *, stacklevel: int) -> None:
    """Say how many histories hold nothing that the model knows, where there are any."""
    if new:
        popular = ", the most popular items of the training part" if isinstance(scorer, WithNewcomers) else ""
        warnings.warn(
            f"{name}: histories without an item that the model knows: {new} of {histories}; "
            f"they get what a newcomer gets{popular}",
            stacklevel=stacklevel + 1,
        )


def flattened(histories: list[Tensor], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """All items of the histories [N], the row of each one [N], and the last `length` of each history [B, L]."""
    owned, owner = pairs(histories)
    sizes = torch.tensor([len(history) for history in histories], dtype=torch.int64, device="cpu")
    ends = sizes.cumsum(0)
    kept = sizes.clamp(max=length)
    place = torch.arange(len(owned), device="cpu") - (ends - kept)[owner]  # in its sequence; below 0: too long ago
    sequences = torch.zeros(len(histories), length, dtype=torch.int64, device="cpu")
    sequences[owner[place >= 0], place[place >= 0]] = owned[place >= 0]
    return owned, owner, sequences


def pairs(lists: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All items of the lists [N], and which list each one is of [N]."""
    sizes = torch.tensor([len(items) for items in lists], dtype=torch.int64, device="cpu")
    return torch.cat(lists), torch.repeat_interleave(torch.arange(len(lists), device="cpu"), sizes)
