"""What commands read: datasets by name or path, models by their folder, fields by a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from solid_ext.cli.terminal import console
from solid_ext.config import Config, read_yaml

if TYPE_CHECKING:
    from solid_ext import SOLID
    from solid_ext import Dataset as Interactions

NAMED_DATASETS = ("movielens-100k", "synthetic")
Dataset = Annotated[str, tyro.conf.arg(metavar="NAME|PATH")]


def open_dataset(name: str) -> Interactions:
    """A named dataset, or the dataset at a path."""
    from solid_ext.data import MOVIELENS_100K_LICENCE, load_dataset, movielens_100k, synthetic_dataset

    if name == "movielens-100k":
        dataset = movielens_100k()
        console.print(MOVIELENS_100K_LICENCE, style="dim")
        return dataset
    if name == "synthetic":
        return synthetic_dataset(2000, 500, 20, predictability=0.8, seed=0)[0]
    from solid_ext.files import expect_local

    expect_local(name, "dataset")
    if not Path(name).exists():
        from solid_ext.data.files import nearest_file

        hint = nearest_file(Path(name))
        raise ValueError(f"dataset: expected {', '.join(NAMED_DATASETS)} or a path that exists, got {name}{hint}")
    return load_dataset(Path(name))


def separated(names: str) -> list[str]:
    """The words of a list with commas; one in double quotes may hold commas itself."""
    words = next(csv.reader([names], skipinitialspace=True), [])
    return [name.strip() for name in words if name.strip()]


def read_fields(path: Path | None) -> dict[str, Any]:
    """The fields that a YAML file sets, checked; none without a file."""
    if path is None:
        return {}
    Config.from_yaml(path)
    return read_yaml(path)


def load_run(folder: Path) -> SOLID:
    """The model of a run's folder, or of one that `save` wrote."""
    from solid_ext.solid import SOLID

    return SOLID.load(folder)
