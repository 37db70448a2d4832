"""solid-ext vectors: a file of the item vectors, for an index of one's own."""

from __future__ import annotations

from dataclasses import dataclass
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

    The product of a user's and an item's vector is the network's logit. Neighbours are in no vector. Users are computed
    and written 4,096 at a time.
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
        from solid_ext.serve.users import USERS, checked_out, user_histories, users_with_vectors, write_vectors

        if self.dataset is None and self.unknown != "error":
            raise ValueError("vectors: expected --unknown beside --dataset, whose histories it is about, got it alone")
        out = checked_out(self.out, overwrite=self.overwrite, endings=(".parquet",))
        solid = load_run(self.run_folder)
        assert solid.catalogue is not None
        if self.dataset is None:
            ids, vectors = solid.catalogue.table["item_id"], solid.item_vectors()[1]
            width = write_vectors(out, "item_id", ids, [vectors])
        else:
            dataset = open_dataset(self.dataset)
            rows = users_with_vectors(dataset, solid.catalogue, self.unknown)
            if left_out := dataset.num_users - len(rows):
                complain(
                    f"note: left out {left_out:,} of {dataset.num_users:,} users, with no item that the model knows"
                )
            ids = dataset.user_ids.gather(rows)
            histories = (user_histories(dataset, rows[at : at + USERS]) for at in range(0, max(len(rows), 1), USERS))
            width = write_vectors(
                out, "user_id", ids, (solid.user_vectors(block, unknown=self.unknown) for block in histories)
            )
        console.print(f"{len(ids):,} vectors of {width} numbers in {out}")
