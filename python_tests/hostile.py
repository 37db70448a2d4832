"""Files that somebody made up, given to everything that reads one: hypothesis tries some, `bench/fuzz.py` very many.

A target takes bytes and reads them as a file of its kind: they are refused with a `ValueError` or `TypeError` that says
what was expected, or they are whole.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from python_tests.untrained import untrained
from solid_ext import SOLID
from solid_ext.config import Config
from solid_ext.data import Dataset, Semantics, leave_one_out, load_dataset, synthetic_dataset
from solid_ext.data.storage import ARRAYS, METADATA
from solid_ext.files import MANIFEST, describe_folder, read_json, verify_folder
from solid_ext.scorers import WithNeighbours
from solid_ext.train import build_model, load_checkpoint, save_checkpoint, train_stage
from solid_ext.train.fault import replay
from solid_ext.train.stage_folder import save_fault

ITEMS = 40
CONFIG = Config().replace(
    length=5, dim=8, heads=2, codebook_hidden=8, epochs=1, batch_size=256, eval_negatives=20,
    item_branch=False, semantic_trunk=False, loss="full_softmax", validation="full:ndcg@10",
)  # fmt: skip


class Hostile:
    """A valid file of each kind, and what reads it.

    Attributes:
        seeds: the bytes of a valid file by the name of its target.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.dataset, truth = synthetic_dataset(60, ITEMS, 4, seed=0, min_length=5)
        self.semantics = truth.semantics
        self.solid = untrained(ITEMS)
        self.solid.save(place / "model")
        self._train(place / "stage")
        Semantics(self.semantics, 4, "category").save(place / "semantics.safetensors")
        self._fault(place / "fault.safetensors")
        self.dataset.save(place / "dataset")
        csv = "user_id,item_id,timestamp\n" + "".join(f"u{row % 9},i{row % 7},{row}\n" for row in range(60))
        files = {
            "config": (place / "model" / "config.yaml").read_bytes(),
            "manifest": (place / "model" / MANIFEST).read_bytes(),
            "checkpoint": (place / "stage" / "last.safetensors").read_bytes(),
            "weights": (place / "model" / "model.safetensors").read_bytes(),
            "items": (place / "model" / "items.parquet").read_bytes(),
            "neighbours": (place / "model" / "neighbours.safetensors").read_bytes(),
            "semantics": (place / "semantics.safetensors").read_bytes(),
            "fault": (place / "fault.safetensors").read_bytes(),
            "interactions": csv.encode(),
            "arrays": (place / "dataset" / ARRAYS).read_bytes(),
        }
        # What a checkpoint says of itself, given a right checksum whatever it says.
        state = load_checkpoint(place / "stage" / "last.safetensors")[1]
        fault = load_checkpoint(place / "fault.safetensors")[1]
        self.seeds = files | {"state": json.dumps(state).encode(), "fault state": json.dumps(fault).encode()}

    def _train(self, folder: Path) -> None:
        model = build_model(CONFIG, CONFIG.model, ITEMS, self.semantics)
        train_stage("s", model, self.dataset, leave_one_out(self.dataset), CONFIG.train, lambda _: 0.0, folder=folder)

    def _fault(self, path: Path) -> None:
        model = build_model(CONFIG, CONFIG.model, ITEMS, self.semantics)
        batch = torch.ones(3, 5, dtype=torch.int64), torch.tensor([1, 2, 3])
        described = {"stage": "s", "epoch": 1, "step": 1, "said": "a finite loss", "config": CONFIG.flat()}
        save_fault(path, model, batch, {"cpu": torch.default_generator.get_state()}, described)

    def read(self, target: str, content: bytes) -> None:
        """Read the content as a file of the target's kind."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            READERS[target](self, content)

    def _written(self, name: str, content: bytes) -> Path:
        path = self.place / "tried" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def config(self, content: bytes) -> None:
        Config.from_yaml(self._written("config.yaml", content))

    def manifest(self, content: bytes) -> None:
        folder = self.place / "manifests"
        if not folder.exists():
            shutil.copytree(self.place / "model", folder) if (self.place / "model").exists() else folder.mkdir()
        (folder / MANIFEST).write_bytes(content)
        verify_folder(folder, MANIFEST, "load")

    def checkpoint(self, content: bytes) -> None:
        load_checkpoint(self._written("last.safetensors", content))

    def of_model(self, name: str, content: bytes) -> None:
        """A model whose manifest is right, whatever its file holds."""
        with self._made_up("model", MANIFEST, name, content) as folder:
            SOLID.load(folder).recommend([[0, 10]], k=3)

    def arrays(self, content: bytes) -> None:
        """A dataset whose manifest is right, whatever its arrays are."""
        with self._made_up("dataset", METADATA, ARRAYS, content) as folder:
            leave_one_out(Dataset.load(folder))

    @contextmanager
    def _made_up(self, kind: str, manifest: str, name: str, content: bytes) -> Iterator[Path]:
        """A copy of the folder of that kind with another content of one file, and the manifest that fits it."""
        folder = self.place / f"made up {kind}"
        if not folder.exists():
            shutil.copytree(self.place / kind, folder)
        whole = (folder / name).read_bytes()
        (folder / name).unlink()  # which may be mapped: it is another file that takes its name
        (folder / name).write_bytes(content)
        described = read_json(folder / manifest, "test")
        (folder / manifest).unlink()
        describe_folder(folder, manifest, {key: value for key, value in described.items() if key != "files"})
        try:
            yield folder
        finally:
            (folder / name).unlink()
            (folder / name).write_bytes(whole)

    def neighbours(self, content: bytes) -> None:
        WithNeighbours.load(self._written("neighbours.safetensors", content), self.solid.model)

    def semantics_file(self, content: bytes) -> None:
        Semantics.load(self._written("semantics.safetensors", content))

    def fault(self, content: bytes) -> None:
        replay(self._written("fault.safetensors", content))

    def interactions(self, content: bytes) -> None:
        load_dataset(self._written("interactions.csv", content))

    def state(self, content: bytes) -> None:
        state = _json(content)
        folder = self.place / "made up stage"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.place / "stage", folder)
        tensors, _ = load_checkpoint(self.place / "stage" / "last.safetensors")
        state.pop("version", None)
        save_checkpoint(folder / "last.safetensors", tensors, state)
        self._train(folder)

    def fault_state(self, content: bytes) -> None:
        state = _json(content)
        tensors, _ = load_checkpoint(self.place / "fault.safetensors")
        state.pop("version", None)
        path = self._written("fault.safetensors", b"")
        save_checkpoint(path, tensors, state)
        replay(path)


def _json(content: bytes) -> dict[str, Any]:
    """Bytes as a JSON object; what is none is refused here, as this is not what is tried."""
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested") from error
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


READERS: dict[str, Callable[[Hostile, bytes], None]] = {
    "config": Hostile.config,
    "manifest": Hostile.manifest,
    "checkpoint": Hostile.checkpoint,
    "state": Hostile.state,
    "weights": lambda hostile, content: hostile.of_model("model.safetensors", content),
    "items": lambda hostile, content: hostile.of_model("items.parquet", content),
    "neighbours": Hostile.neighbours,
    "semantics": Hostile.semantics_file,
    "fault": Hostile.fault,
    "fault state": Hostile.fault_state,
    "interactions": Hostile.interactions,
    "arrays": Hostile.arrays,
}
