"""solid-ext similar: the items most like some items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from solid_ext.cli.recommend import show_items
from solid_ext.cli.sources import load_run
from solid_ext.cli.terminal import console, one_line, write_json


@dataclass(frozen=True)
class Similar:
    """The items whose vectors are most like those of given items, by the cosine.

    Example: solid-ext similar --run runs/first --items 50 172 --k 5
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    items: tuple[str, ...]
    """Item ids as the interactions had them."""
    k: int = 10
    """How many items for each."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        found = load_run(self.run_folder).similar_items(self.items, self.k)
        if self.json:
            write_json([[entry._asdict() for entry in entries] for entries in found], indent=None)
            return
        for item, entries in zip(self.items, found, strict=True):
            console.print(f"like {one_line(item)}", style="bold")
            show_items(entries, "cosine")
