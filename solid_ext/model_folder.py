"""A model's folder: what it holds, written whole or not at all and checked before anything of it is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from solid_ext._native import build_info
from solid_ext.config import Config, SemanticsConfig
from solid_ext.data import Catalogue
from solid_ext.files import (
    MANIFEST,
    check_new_folder,
    checked_path,
    describe_folder,
    elsewhere,
    foreign_to,
    read_whole,
    verify_folder,
    write_text,
    written_folder,
)
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import WithNeighbours
from solid_ext.scorers.finetune import fine_tuned
from solid_ext.train import load_checkpoint, restore_model, save_checkpoint
from solid_ext.train.checks import check_device

FORMAT = "solid_ext model"
SOURCES = get_args(get_type_hints(SemanticsConfig)["semantics"])
FORMAT_VERSION = 2
WEIGHTS, CONFIG, ITEMS, NEIGHBOURS = "model.safetensors", "config.yaml", "items.parquet", "neighbours.safetensors"


@dataclass(frozen=True)
class Trained:
    """What a model has been trained on, for who updates it.

    Attributes:
        first_items: of its items, how many it was first trained with; None for all of them.
        until: the latest time of an interaction that it was trained on; None where there are no times.
        unit: of that time, as the dataset's report has it; None where it is not known.
        everything: it was trained on all interactions, so that none can measure it.
        updated: `update` made it, and not both stages of a training.
        semantics: the source of its semantics that `fit` chose; None where there was nothing to choose, or the rule of
            thumb of earlier versions has chosen.
    """

    first_items: int | None = None
    until: int | None = None
    unit: str | None = None
    everything: bool = False
    updated: bool = False
    semantics: str | None = None


@dataclass(frozen=True)
class SavedModel:
    """What `SOLID.save` writes and `SOLID.load` reads.

    Attributes:
        version: the sha256 of the manifest that it was read with; None for what has not been read.
    """

    config: Config
    model: DynamicRecommender
    catalogue: Catalogue
    neighbours: WithNeighbours | None
    fingerprint: str | None
    trained: Trained
    version: str | None = None


def write_model(folder: Path, saved: SavedModel, *, overwrite: bool) -> Path:
    """Write a model's folder; see `SOLID.save`."""
    with written_folder(folder, "save", overwrite=overwrite, ours=foreign_model) as fresh:
        state = {"num_items": saved.model.num_items, "dataset": saved.fingerprint, "trained": asdict(saved.trained)}
        save_checkpoint(fresh / WEIGHTS, saved.model.state_dict(), state)
        write_text(fresh / CONFIG, saved.config.to_yaml())
        saved.catalogue.save(fresh / ITEMS)
        if saved.neighbours is not None:
            saved.neighbours.save(fresh / NEIGHBOURS)
        described = {"format": FORMAT, "format_version": FORMAT_VERSION, "solid_ext": build_info()["version"]}
        describe_folder(fresh, MANIFEST, described)
    return folder


def read_model(folder: str | Path, device: str, backend: str | None) -> SavedModel:
    """Read a model's folder, or the model of a run's, all of it of one model; see `SOLID.load`."""
    asked = {"device": device, "tf32": False} | ({} if backend is None else {"backend": backend})
    try:
        Config().replace(**asked)
        check_device(device)
    except (ValueError, TypeError) as error:
        raise type(error)(f"load: {error}") from error
    path = checked_path(folder, "load")
    saved, version = read_whole("load", lambda: manifest_of(path), lambda: _read(manifest_of(path).parent, asked))
    return replace(saved, version=version)


def manifest_of(folder: Path) -> Path:
    """Where the manifest of a model's folder, or of a run's model, is."""
    if not (folder / MANIFEST).exists() and (folder / "model").is_dir():
        folder = folder / "model"
    return folder / MANIFEST


def _read(folder: Path, asked: dict[str, Any]) -> SavedModel:
    """`read_model` of a folder that nobody replaces."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"load: expected a folder with {WEIGHTS}, got {folder}{elsewhere(folder)}")
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"load: expected {MANIFEST} with the checksums of {folder}, got none (a model of an earlier version: "
            "train it again)"
        )
    manifest = verify_folder(folder, MANIFEST, "load")
    if (manifest.get("format"), manifest.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"load: expected {MANIFEST} of a {FORMAT}, version {FORMAT_VERSION}, in {folder}, "
            f"got {manifest.get('format')!r}, version {manifest.get('format_version')!r}"
        )
    config = Config.from_yaml(folder / CONFIG)
    wanted = {WEIGHTS, CONFIG, ITEMS} | ({NEIGHBOURS} if config.model.item.neighbours else set())
    if wanted - manifest["files"].keys():
        absent = min(wanted - manifest["files"].keys())
        raise ValueError(f"load: expected {absent} among the files of {folder / MANIFEST}, got none")
    tensors, state = load_checkpoint(folder / WEIGHTS)
    num_items, catalogue = state.get("num_items"), Catalogue.load(folder / ITEMS)
    ids = catalogue.table["item_id"]
    if ids.len() != num_items or ids.null_count() or ids.n_unique() != num_items:
        raise ValueError(
            f"load: expected {num_items} different items in {folder / ITEMS}, as the model has, got {ids.len()} "
            f"rows with {ids.drop_nulls().n_unique()} different ids"
        )
    model = restore_model(config.replace(**asked), ids.len(), tensors, folder / WEIGHTS)
    neighbours = None
    if config.model.item.neighbours:
        neighbours = WithNeighbours.load(folder / NEIGHBOURS, fine_tuned(model))
    trained = _trained(state.get("trained"), ids.len(), folder / WEIGHTS)
    return SavedModel(config, model, catalogue, neighbours, state.get("dataset"), trained)


def check_model_place(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place where `write_model` could not write, before the model has been made.

    Raises:
        ValueError: as `write_model`.
    """
    check_new_folder(folder, "save", overwrite=overwrite, ours=foreign_model)


def foreign_model(folder: Path) -> str | None:
    """What keeps a folder from being replaced by `save`; None for one that it wrote."""
    return foreign_to(folder, MANIFEST, FORMAT)


def _trained(saved: Any, num_items: int, path: Path) -> Trained:
    """What a model's weights say that they were trained on; those of earlier versions say nothing."""
    if saved is None:
        return Trained()
    if isinstance(saved, dict):
        saved = {"updated": False, "semantics": None, "unit": None, **saved}  # which models of before do not say
    number, text = (int, type(None)), (str, type(None))
    kinds: dict[str, tuple[type, ...]] = {
        "first_items": number,
        "until": number,
        "unit": text,
        "everything": (bool,),
        "updated": (bool,),
        "semantics": text,
    }
    fits = isinstance(saved, dict) and saved.keys() == kinds.keys()
    if not fits or any(type(saved[name]) not in kind for name, kind in kinds.items()):
        raise ValueError(f"load: expected what the model was trained on in {path}, got {saved!r:.80}")
    if not 0 < (saved["first_items"] or num_items) <= num_items:
        raise ValueError(f"load: expected first_items in 1 .. {num_items} in {path}, got {saved['first_items']}")
    if saved["semantics"] not in (None, *SOURCES):
        raise ValueError(
            f"load: expected semantics of one of {', '.join(SOURCES)} in {path}, got {saved['semantics']!r:.80}"
        )
    return Trained(**saved)
