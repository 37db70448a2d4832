"""solid-ext add-items: a trained model gets items that nobody has had, without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from solid_ext.cli.sources import load_run
from solid_ext.cli.terminal import console, notes


@dataclass(frozen=True)
class AddItems:
    """Write a model that can also recommend items which nobody has had, by their titles and categories.

    Example: solid-ext add-items --run runs/monday --items new.csv --out models/with-new

    Each starts from the mean of its semantic's items and its own features. Nothing is trained, and items that the model
    has are left as they are.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved; it is left as it is."""
    items: Path
    """A file with a column item_id, and title and categories (a|b|c) where there are any."""
    out: Path
    """The folder of the model to make."""
    title: str | None = None
    """Name of the column of titles; by default "title"."""
    categories: str | None = None
    """Name of the column of categories; by default "categories"."""
    overwrite: bool = False
    """Replace the folder if it is a model's."""

    def run(self) -> None:
        import polars as pl

        from solid_ext.model_folder import check_model_place

        check_model_place(self.out, overwrite=self.overwrite)
        solid = load_run(self.run_folder)
        with notes():
            grown = solid.add_items(self.items, title=self.title, categories=self.categories)
        grown.save(self.out, overwrite=self.overwrite)
        assert solid.catalogue is not None
        assert grown.catalogue is not None
        before, now = solid.catalogue.num_items, grown.catalogue.num_items
        added = grown.catalogue.table.tail(now - before)
        texts = added.select(name for name in ("title", "categories") if name in added.columns)
        bare = now - before if not texts.columns else texts.filter(pl.all_horizontal(pl.all().is_null())).height
        console.print(f"{now - before:,} new items beside {before:,}, in the model {self.out}")
        if bare:
            console.print(f"{bare:,} of them have neither title nor categories")
