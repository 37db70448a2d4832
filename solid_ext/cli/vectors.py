"""solid-ext vectors: a file of the item vectors, for an index of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal

import tyro

from solid_ext.cli.sources import Dataset, load_run, open_dataset
from solid_ext.cli.terminal import complain, console


@dataclass(frozen=True)
class Vectors:
    """Write the vectors of all items, or of a dataset's users, as a Parquet file of ids and vectors.

    Example: solid-ext vectors --run runs/first --out items.parquet
    Example: solid-ext vectors --run runs/first --dataset data/ratings --out users.parquet

    The product of a user's and an item's vector is the network's logit. Neighbours are in no vector.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    out: Path
    """The file to write, .parquet."""
    dataset: Dataset | None = None
    """Write the vectors of this dataset's users instead, by their histories."""
    overwrite: bool = False
    """Replace the file if it exists."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an item of a history that the model has never seen; with ignore, users with no other are left
    out."""

    def run(self) -> None:
        from solid_ext.serve.users import checked_out, newcomers, user_histories, write_vectors

        if self.dataset is None and self.unknown != "error":
            raise ValueError("vectors: expected --unknown beside --dataset, whose histories it is about, got it alone")
        out = checked_out(self.out, overwrite=self.overwrite, endings=(".parquet",))
        solid = load_run(self.run_folder)
        if self.dataset is None:
            name, (ids, vectors) = "item_id", solid.item_vectors()
        else:
            dataset = open_dataset(self.dataset)
            name, ids, histories = "user_id", dataset.user_ids.to_list(), user_histories(dataset)
            if self.unknown == "ignore":
                assert solid.catalogue is not None
                new = newcomers(dataset, solid.catalogue)
                ids, histories = list(compress(ids, ~new)), list(compress(histories, ~new))
                if new.any():
                    complain(f"note: left out {new.sum():,} of {len(new):,} users, with no item that the model knows")
            vectors = solid.user_vectors(histories, unknown=self.unknown)
        write_vectors(out, name, ids, vectors)
        console.print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers in {out}")
