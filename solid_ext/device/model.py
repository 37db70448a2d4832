"""A model on a device: the static part of a folder, one person's layers, and the events that the device sees itself."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solid_ext.device.backbones import NAMES, STATES, Weights, din, linear
from solid_ext.device.tensors import digest_of, read_tensors, widened

STATIC, ITEMS, MANIFEST = "static.safetensors", "items.json", "manifest.json"
FORMAT, PERSONAL = "solid_ext device 2", "solid_ext personal 2"
MOST = 100  # items that are recommended at most: so many a personal blob has the neighbours' scores of


class Recommended(NamedTuple):
    """One recommended item."""

    item: Any  # the raw id
    title: str
    score: float


class DeviceModel:
    """A recommender for one person, of numpy alone.

    ```
    device = DeviceModel("exported").load(blob)
    device.observe("an item").recommend(10)
    ```

    `load` takes what `SOLID.personalize` made of the person's history: the weights of the last layers, the neighbours'
    scores that matter, and the history. Until the next `load`, `observe` adds what happens on the device, which the
    backbone reads at once, while layers and neighbours stay as they were made. Without a blob the layers are those of
    nobody in particular, and without any event the popular items are recommended.

    Args:
        folder: what `solid-ext export --for device` wrote.

    Attributes:
        version: of the static part; blobs of another one are refused.

    Raises:
        ValueError: no such folder, a file that is missing or changed, a backbone that no device computes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        content = _verified(folder)
        arrays, metadata = read_tensors(content[STATIC], "device")
        if metadata.get("format") != FORMAT:
            raise ValueError(f"device: expected {STATIC} of format {FORMAT!r}, got {metadata.get('format')!r:.40}")
        about = json.loads(metadata["about"])
        if about["backbone"] not in NAMES:
            raise ValueError(f"device: expected a backbone of {', '.join(NAMES)}, got {about['backbone']!r}")
        self.version, self._about, self._static = metadata["version"], about, widened(arrays)
        named = json.loads(content[ITEMS])
        self._ids, self._titles = named["items"], named["titles"]
        self._numbers = {str(raw): place for place, raw in enumerate(self._ids)}
        self._backbone = self._part("backbone.")
        self._keys = self._target(self._static["items"])
        self._forget()

    def load(self, personal: bytes | str | os.PathLike[str]) -> DeviceModel:
        """Take a person's blob, or the file that holds it, in place of the last one and of all that was observed since.

        Returns:
            The model itself.

        Raises:
            ValueError: a blob of another static part, one that was changed, bytes that are none, or no such file; the
                model is as before.
            TypeError: neither bytes nor a path.
        """
        content = _content(personal)
        arrays, metadata = read_tensors(content, "load")
        if metadata.get("format") != PERSONAL:
            raise ValueError(f"load: expected a blob of format {PERSONAL!r}, got {metadata.get('format')!r:.40}")
        version = str(metadata.get("static"))
        if metadata.get("sha256") != digest_of(content, version):
            raise ValueError("load: expected a blob as it was made, got another content than its sha256 says")
        if version != self.version:
            raise ValueError(
                f"load: expected a blob of the static part {self.version[:12]}, got one of "
                f"{version[:12]} (personalize again with the model that was exported)"
            )
        found = widened(arrays)
        self._check(found)
        self._forget()
        self._layers = [found[f"layers.{layer}"] for layer in range(self._about["generated"])]
        self._window = found["window"].tolist()
        self._seen = {*self._window, *found["seen"].tolist()}
        self._added = found["neighbours.items"], found["neighbours.scores"]
        return self

    def observe(self, item: Any) -> DeviceModel:
        """Add an event: the raw id of what the person interacted with just now.

        Returns:
            The model itself.

        Raises:
            ValueError: an item that the model does not know; the model is as before.
        """
        place = self._numbers.get(str(item))
        if place is None:
            raise ValueError(f"observe: expected an item of the model, got {item!r:.80}, which is none")
        self._window = [*self._window, place][-self._about["length"] :]
        self._seen.add(place)
        return self

    def recommend(self, k: int = 10, *, exclude_history: bool = True) -> list[Recommended]:
        """The k best items, best first, of equal ones the lower item; fewer where there are no more.

        Args:
            k: 1 .. 100.
            exclude_history: never recommend what the person had, as far as blob and events tell.

        Raises:
            ValueError: k out of range.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MOST:
            raise ValueError(f"recommend: expected k of 1 .. {MOST}, got {k!r:.40}")
        if not self._window:
            items, scores = self._static["popular.items"], self._static["popular.scores"]
            return self._entries(items[:k], scores)
        scores = self.scores()
        if exclude_history:
            scores[sorted(self._seen)] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        return self._entries(best[scores[best] > -np.inf], scores[best])

    def scores(self) -> np.ndarray:
        """The scores [V] float32 of all items, in the order of the export, after at least one event.

        The neighbours' are those of the 100 best items of the blob's moment.

        Raises:
            ValueError: no event yet.
        """
        if not self._window:
            raise ValueError("scores: expected at least one event, got none")
        embedded, about = self._static["items"][self._window], self._about
        if about["backbone"] == "din":
            states = self._personal(din(self._backbone, embedded, self._static["items"]))
            scores = (states * self._keys).sum(1)
        else:
            state = STATES[about["backbone"]](self._backbone, embedded, about["heads"], about["blocks"])
            scores = self._keys @ self._personal(state)
        items, added = self._added
        scores[items] += added
        return scores

    def _check(self, found: dict[str, np.ndarray]) -> None:
        """Refuse arrays of a blob that do not fit the static part; those that `personalize` made do."""
        layers = {f"layers.{layer}": self._static[f"anybody.{layer}"] for layer in range(self._about["generated"])}
        whole = ("window", "seen", "neighbours.items")
        names = {*layers, *whole, "neighbours.scores"}
        if found.keys() != names:
            raise ValueError(f"load: expected a blob with {', '.join(sorted(names))}, got {', '.join(sorted(found))}")
        for name, of_nobody in layers.items():
            if found[name].shape != of_nobody.shape:
                raise ValueError(f"load: expected {name} of shape {of_nobody.shape}, got {found[name].shape}")
        for name in whole:
            items = found[name]
            if items.ndim != 1 or items.dtype.kind != "i" or not ((items >= 0) & (items < len(self._ids))).all():
                raise ValueError(f"load: expected {name} as numbers of items below {len(self._ids)}, got others")
        sizes = len(found["window"]), found["neighbours.scores"].shape
        if sizes[0] > self._about["length"] or sizes[1] != found["neighbours.items"].shape:
            raise ValueError(
                f"load: expected a window of at most {self._about['length']} items and a score for each neighbour, got "
                f"{sizes[0]} and scores of shape {sizes[1]}"
            )
        if not all(np.isfinite(found[name]).all() for name in (*layers, "neighbours.scores")):
            raise ValueError("load: expected finite weights and scores, got NaN or infinity")

    def _forget(self) -> None:
        """Nobody's layers, and no event."""
        self._layers = [self._static[f"anybody.{layer}"] for layer in range(self._about["generated"])]
        self._window, self._seen = list[int](), set[int]()
        self._added = np.zeros(0, np.int32), np.zeros(0, np.float32)

    def _personal(self, state: np.ndarray) -> np.ndarray:
        """The last layers on states [.., d]."""
        made, kind = state, self._about["layers"]
        for layer in range(self._about["dynamic_layers"]):
            made = np.tanh(made) if layer else made
            if kind == "full":
                made = _affine(made, self._layers[layer])
            elif kind == "low_rank":
                made = made @ self._static[f"dynamic.enter.{layer}.weight"].T
                made = linear(self._static, f"dynamic.leave.{layer}", _affine(made, self._layers[layer]))
            else:
                made = linear(self._static, f"dynamic.{'layers.' if kind == 'bias' else ''}{2 * layer}", made)
        if kind == "bias":
            made = made + self._layers[0][0]
        return state + self._static["gate"] * made if "gate" in self._static else made

    def _target(self, embedded: np.ndarray) -> np.ndarray:
        """The target vectors [V, d] of embedded items."""
        if self._about["target"] == "item":
            return embedded
        return linear(self._static, "target.2", np.tanh(linear(self._static, "target.0", embedded)))

    def _part(self, prefix: str) -> Weights:
        return {name[len(prefix) :]: array for name, array in self._static.items() if name.startswith(prefix)}

    def _entries(self, items: np.ndarray, scores: np.ndarray) -> list[Recommended]:
        return [
            Recommended(self._ids[item], self._titles[item], score)
            for item, score in zip(items.tolist(), scores.tolist(), strict=False)
        ]


def _content(personal: Any) -> bytes:
    """The bytes of a blob, or of the file that holds it."""
    if isinstance(personal, (bytes, bytearray, memoryview)):
        return bytes(personal)
    if not isinstance(personal, (str, os.PathLike)):
        raise TypeError(f"load: expected a blob's bytes or the path of its file, got {type(personal).__name__}")
    try:
        return Path(personal).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"load: expected the file of a blob, got {personal} ({error})") from error


def _affine(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`x W + b` of generated weights [D + 1, O], whose last row is b."""
    return x @ weights[:-1] + weights[-1]


def _verified(folder: Path) -> dict[str, bytes]:
    """The files of an exported folder, each as its manifest says."""
    found = {}
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name in (STATIC, ITEMS):
            found[name], wanted = (folder / name).read_bytes(), files[name]["sha256"]
            if hashlib.sha256(found[name]).hexdigest() != wanted:
                raise ValueError(f"device: expected {folder / name} as it was written, got another content")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"device: expected a folder that `solid-ext export` wrote, got {folder} ({error})") from error
    return found
