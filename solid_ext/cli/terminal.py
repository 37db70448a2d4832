"""What is printed: text that comes from data is made harmless, JSON is for other programs, a complaint is one line."""

from __future__ import annotations

import json
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text


class Terminal(Console):
    """Where everything is printed: text is text, whatever it holds.

    Titles, ids, names and paths come from data: no markup or emoji codes are read in them, and what a terminal would
    obey (escapes, control characters, changed directions of writing) is shown, not sent. Colours are `style`.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self.shown(text), **options)

    def shown(self, text: str) -> str:
        """The text as it can be printed here: harmless, and what the encoding lacks as an escape."""
        return harmless(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def harmless(text: str, keep: str = "\n\t") -> str:
    """The text with every control character, lone surrogate and bidirectional control as its escape: `\\x1b`."""
    return "".join(char if char in keep or not _obeyed(char) else ascii(char)[1:-1] for char in text)


def _obeyed(char: str) -> bool:
    return (
        unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or char in "\u061c\u200e\u200f"
        or ("\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069")
    )


def one_line(text: str) -> str:
    """The text with line breaks and other runs of white space as one space."""
    return " ".join(text.split())


def short(title: str, width: int = 34) -> str:
    """The title on one line of so many characters."""
    title = console.shown(one_line(title))
    return title if len(title) <= width else title[: width - 3] + "..."


def write_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON as it is, for other programs; ids that are times are text."""
    sys.stdout.write(json.dumps(value, indent=indent, default=str) + "\n")


def complain(sentence: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(f"solid-ext: {harmless(one_line(sentence))}\n")


console = Terminal()


@contextmanager
def notes() -> Iterator[None]:
    """Print the body's warnings as notes, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        complain(f"note: {warning.message}")
