"""solid-ext score: the scores of given items for a history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from solid_ext.cli.sources import load_run
from solid_ext.cli.terminal import console, notes, one_line, write_json


@dataclass(frozen=True)
class Score:
    """The scores of given items for a history of raw item ids, oldest first: those that evaluation ranks by.

    Example: solid-ext score --run runs/first --items 50 172 --history 181 7

    Everything after "--" belongs to the history, ids that begin with "-" too.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    history: tuple[str, ...]
    """Item ids as the interactions had them, oldest first; none for a newcomer."""
    items: tuple[str, ...]
    """Ids of the items to score."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id of the history that the model has never seen."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        solid = load_run(self.run_folder)
        with notes():
            scores = solid.score([self.history], self.items, unknown=self.unknown)[0].tolist()
        if self.json:
            write_json([{"item": item, "score": score} for item, score in zip(self.items, scores, strict=True)])
            return
        table = Table("item", "score")
        for item, score in zip(self.items, scores, strict=True):
            table.add_row(one_line(item), f"{score:.3f}")
        console.print(table)
