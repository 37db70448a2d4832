"""What could not be answered: a status and one sentence, the same that Python's callers get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import Response

from solid_ext.data.tables import shown


class Problem(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        sentence: name, expectation and what was got.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def problem_response(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """The sentence as JSON: `{"detail": ".."}`."""
    return Response(json.dumps({"detail": sentence}), status, headers, "application/json")


def sentence_of(what: str, errors: Sequence[Any], content_type: str | None = None) -> str:
    """The first of pydantic's errors as a sentence of the function `what`.

    Args:
        content_type: of the request; a body that another header says is no JSON is not read as such.
    """
    error = errors[0]
    name, context, kind = _place(error["loc"]), error.get("ctx", {}), error["type"]
    got = shown(error.get("input"))
    if kind == "json_invalid":
        return f"{what}: expected a body of JSON, got text that is none ({context.get('error', 'not JSON')})"
    if kind == "missing":
        return f"{what}: expected {name}, got none"
    if kind == "extra_forbidden":
        return f"{what}: expected fields of its own, got {name!r}"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = f"least {context['ge']}" if "ge" in context else f"most {context['le']}"
        return f"{what}: expected {name} of at {bound}, got {got}"
    if kind in ("int_type", "int_parsing", "int_from_float", "int_parsing_size"):
        return f"{what}: expected {name} as an integer, got {got}"
    if kind in ("bool_type", "bool_parsing"):
        return f"{what}: expected {name} True or False, got {got}"
    if kind == "list_type":
        return f"{what}: expected {name} as a list of item ids, got {got}"
    if kind in ("too_long", "string_too_long", "string_too_short"):
        value = error.get("input")
        unit = "ids" if kind == "too_long" else "characters"
        bound = f"most {context['max_length']:,}" if "max_length" in context else f"least {context['min_length']:,}"
        length = f"{len(value):,}" if isinstance(value, (list, str)) else f"more: {got}"
        return f"{what}: expected {name} of at {bound} {unit}, got {length}"
    if kind == "literal_error":
        return f"{what}: expected {name} {context['expected']}, got {got}"
    if kind in ("string_type", "float_type", "finite_number", "float_parsing") and name != "session":
        return f"{what}: expected {name} as an item id, text or a number, got {got}"
    if kind == "string_type":
        return f"{what}: expected {name} as text, got {got}"
    if kind.startswith(("model", "dict")) and isinstance(error.get("input"), bytes):
        got = "none" if content_type is None else shown(content_type)
        return f"{what}: expected the header Content-Type: application/json, got {got}"
    if kind.startswith(("model", "dict")):
        return f"{what}: expected an object of JSON, got {got}"
    return f"{what}: expected {name} as its description says, got {got}"


def _place(location: Sequence[Any]) -> str:
    """`history[3]` of ("body", "history", 3, "str")."""
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not name:
            name = str(part)
    return name or "a body"
