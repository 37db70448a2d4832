"""solid-ext recommend: the best items for a history."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from solid_ext.cli.sources import load_run
from solid_ext.cli.terminal import complain, console, one_line, write_json


@dataclass(frozen=True)
class Recommend:
    """The best items for a history of raw item ids, oldest first.

    Example: solid-ext recommend --run runs/first --history 50 172 181 --k 5
    Example: solid-ext recommend --run runs/first --k 5 --history -- -a5 --b6

    Everything after "--" belongs to the history, ids that begin with "-" too.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    history: tuple[str, ...]
    """Item ids as the interactions had them, oldest first; none for a newcomer. Those that begin with "-" follow
    "--"."""
    k: int = 10
    """How many items."""
    keep_history: bool = False
    """Also recommend what is in the history."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id that the model has never seen."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        solid = load_run(self.run_folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = solid.recommend(
                [self.history], self.k, exclude_history=not self.keep_history, unknown=self.unknown
            )[0]
        for warning in caught:
            complain(f"note: {warning.message}")
        if self.json:
            write_json([entry._asdict() for entry in found], indent=None)
            return
        table = Table("item", "title", "score")
        for entry in found:
            table.add_row(one_line(str(entry.item)), one_line(entry.title), f"{entry.score:.3f}")
        console.print(table)
        if len(found) < self.k:
            console.print(f"{len(found)} of the {self.k} asked for: the catalogue has no more", style="dim")


def before_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What the parser reads of recommend's arguments, and the ids after `--`, which it would take for flags."""
    if arguments[:1] != ["recommend"] or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    before, after = arguments[:place], arguments[place + 1 :]
    named = any(argument.partition("=")[0] == "--history" for argument in before)
    return before if named else [*before, "--history"], after
