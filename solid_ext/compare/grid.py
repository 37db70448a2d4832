"""A grid of runs: datasets x backbones x methods x seeds, checked as a whole before any of it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solid_ext.compare.peers import PEERS, peer_config
from solid_ext.config import PRESETS, Config
from solid_ext.data import Dataset
from solid_ext.files import read_json, write_json
from solid_ext.methods import METHODS, method_config
from solid_ext.models.backbones import BACKBONES

NO_BACKBONE = "-"
VERSION = 3

# A method's switches are its own; these a method may set, and a file may for the methods that do not.
_TUNED = {"delta", "alignment", "low_rank", "semantics"}
_OF_THE_GRID = {"backbone", "seed", "threads"} | {
    name for method in METHODS.values() for name in method.fields if name not in _TUNED
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid; `backbone` is "-" for a peer."""

    dataset: str
    backbone: str
    method: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """As people read it, and the run's folder."""
        parts = (self.dataset, self.backbone, self.method, str(self.seed))
        return "/".join(part for part in parts if part != NO_BACKBONE)


@dataclass(frozen=True)
class Grid:
    """What a comparison runs.

    Attributes:
        datasets: fingerprints by name.
        backbones: combined with every method but the peers, which have none.
        methods: of METHODS and PEERS.
        seeds: a run each.
        preset: a name of PRESETS.
        fields: of the configuration, by name, over the preset's. The grid sets backbone, seed and threads, and a method
            its switches, whatever the fields say.
    """

    datasets: dict[str, str]
    backbones: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    fields: dict[str, Any]

    def plan(self) -> list[PlannedRun]:
        """Every run, a dataset and a seed after the other, so that early results compare all methods.

        Raises:
            ValueError, TypeError: a combination that the methods or the configuration do not allow.
        """
        peers = [method for method in self.methods if method in PEERS]
        others = [method for method in self.methods if method not in PEERS]
        plan = []
        for dataset in self.datasets:
            for seed in self.seeds:
                own = {"seed": seed, "threads": 1}
                for peer in peers:
                    config = peer_config(base_config(self.preset, "sasrec", self.fields).replace(**own))
                    plan.append(PlannedRun(dataset, NO_BACKBONE, peer, seed, config))
                for backbone in self.backbones:
                    base = base_config(self.preset, backbone, self.fields).replace(**own)
                    for method in others:
                        plan.append(PlannedRun(dataset, backbone, method, seed, method_config(base, method)))
        return plan

    def save(self, path: Path) -> None:
        """Write the grid as JSON."""
        write_json(path, {"version": VERSION, **asdict(self)})

    @staticmethod
    def load(path: Path) -> Grid:
        """Read what `save` wrote."""
        try:
            saved = read_json(path, "out")
            if saved.pop("version") != VERSION:
                raise ValueError("another format version")
            lists: dict[str, Any] = {name: tuple(saved.pop(name)) for name in ("backbones", "methods", "seeds")}
            return Grid(**lists, **saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"out: expected a comparison's grid of this version in {path}, got {error} (another version's, or a "
                "damaged one, needs a new folder)"
            ) from error


def base_config(preset: str, backbone: str, fields: Mapping[str, Any]) -> Config:
    """A preset's configuration for a backbone, with fields over it but those that the grid or a method sets."""
    free = {name: value for name, value in fields.items() if name not in _OF_THE_GRID}
    return Config().replace(**{**PRESETS[preset], **free, "backbone": backbone})


def make_grid(
    datasets: Sequence[Dataset],
    backbones: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    preset: str,
    fields: Mapping[str, Any],
) -> Grid:
    """A grid, refused with one sentence unless every run of it can be started.

    Raises:
        ValueError, TypeError: an empty list, a duplicate, an unknown name, a combination that does not exist.
    """
    names = [dataset.name for dataset in datasets]
    _check("datasets", names, None)
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"datasets: expected names that can name a folder, got {name!r}")
    _check("backbones", backbones, list(BACKBONES))
    _check("methods", methods, [*METHODS, *PEERS])
    _check("seeds", seeds, None)
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    grid = Grid(
        {dataset.name: dataset.fingerprint for dataset in datasets},
        tuple(backbones),
        tuple(methods),
        tuple(seeds),
        preset,
        dict(fields),
    )
    grid.plan()
    return grid


def _check(name: str, values: Sequence[Any], known: Sequence[str] | None) -> None:
    if not values:
        raise ValueError(f"{name}: expected at least one, got none")
    for value in values:
        if known is not None and value not in known:
            raise ValueError(f"{name}: expected some of {', '.join(known)}, got {value!r}")
        if list(values).count(value) > 1:
            raise ValueError(f"{name}: expected different ones, got {value!r} twice")
