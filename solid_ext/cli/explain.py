"""solid-ext explain: why an item has its score."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from solid_ext.cli.sources import load_run
from solid_ext.cli.terminal import console, one_line, write_json


@dataclass(frozen=True)
class Explain:
    """What each part of the model gave to an item's score for a history, and which items of the history mattered.

    Example: solid-ext explain --run runs/first --item 50 --history 172 181

    Everything after "--" belongs to the history, ids that begin with "-" too.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    history: tuple[str, ...]
    """Item ids as the interactions had them, oldest first; none for a newcomer."""
    item: str
    """The id of the item whose score is explained."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id of the history that the model has never seen."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        found = load_run(self.run_folder).explain(self.history, self.item, unknown=self.unknown)
        if self.json:
            write_json(asdict(found))
            return
        parts = Table("part", "of the score", title=f"{one_line(str(found.item))}: {one_line(found.title)}")
        for name, value in found.parts.items():
            parts.add_row(name, f"{value:+.3f}")
        parts.add_row("score", f"{found.score:.3f}", style="bold")
        console.print(parts)
        if not found.history:
            return
        history = Table("history", "title", "semantic", "neighbours", "score less that without it")
        for own in found.history:
            effect = "" if own.effect is None else f"{own.effect:+.3f}"
            named = (one_line(str(own.item)), one_line(own.title))
            history.add_row(*named, str(own.semantic), f"{own.neighbours:+.3f}", effect)
        console.print(history)
        for semantic in found.by_semantic:
            items = ", ".join(one_line(str(item)) for item in semantic.items)
            console.print(f"semantic {semantic.semantic} ({items}): {semantic.effect:+.3f} of the semantics' part")
