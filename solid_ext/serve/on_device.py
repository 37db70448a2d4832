"""A model for a device: what everybody's device holds, and the few kilobytes that make it one person's."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from solid_ext.data import Catalogue
from solid_ext.device.backbones import NAMES
from solid_ext.device.model import FORMAT, ITEMS, MOST, PERSONAL, STATIC
from solid_ext.device.tensors import SCALE, digest_of, widened
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.scorer import inference
from solid_ext.files import MANIFEST, describe_folder, foreign_to, write_text, written_folder
from solid_ext.models import DynamicRecommender
from solid_ext.models.personal_bias import PersonalBias
from solid_ext.models.recommender import Conditions
from solid_ext.nn import LowRankMLP
from solid_ext.ops.reference import generated_weights
from solid_ext.scorers import WithNeighbours
from solid_ext.scorers.popularity import log_odds
from solid_ext.serve.histories import flattened
from solid_ext.train.checkpoint import tensor_bytes

Rounding = Literal["float32", "float16", "int8"]
ANYBODY = 4096  # most popular items whose histories of one make nobody's layers
TYPICAL = 256  # of them, by whose histories of one the loss of rounding is measured
NO_VERSION = "0" * 64  # of a blob whose size alone is asked for
GENERATES = ("semantic_map", "semantic_offset", "item_map", "item_offset")


class DeviceBytes(NamedTuple):
    """What a device holds for everybody, in float32, and what it receives for a person, in bytes."""

    static: int
    person: int


class OnDevice:
    """A model as devices have it; one that has changed since wants another of these.

    The static part is the item vectors, the backbone, the target tower, what the dynamic layers share, and the layers
    of nobody in particular; generators and neighbourhood stay here. What makes it one person's are the weights that
    `personalize` generates. The item vectors, V d numbers, are copied when they are first asked for; `sizes` does not.

    Args:
        model: without fine-tuning.
        neighbours: the same with neighbours; None for none.
        catalogue: of its items; counts tell which are popular.

    Attributes:
        about: what a device has to know to compute with the arrays.
        everybody: the arrays that are not weights of the model: nobody's layers, and the popular items.

    Raises:
        ValueError: a model with fine-tuned layers.

    Source: docs/device.md#on-a-device.
    """

    def __init__(self, model: DynamicRecommender, neighbours: WithNeighbours | None, catalogue: Catalogue) -> None:
        if model.config.finetune_steps:
            raise ValueError(
                "personalize: expected a model whose layers are generated or everybody's, got one that is fine-tuned "
                "on each history (finetune_steps)"
            )
        self.model, self.neighbours, self.catalogue = model, neighbours, catalogue
        with inference(model) as asked:
            self.about = _about(asked)
            layers = generated_layers(asked, conditions_of_nobody(asked, catalogue))
        self.everybody = {f"anybody.{layer}": _array(weights[0]) for layer, weights in enumerate(layers)}
        popular, counts = popular_items(catalogue, MOST), _counts(catalogue)
        scores = log_odds(torch.from_numpy(counts)).numpy() if catalogue.counts is not None else np.zeros(len(counts))
        self.everybody["popular.items"] = popular.astype(np.int32)
        self.everybody["popular.scores"] = scores[popular].astype(np.float32)

    @cached_property
    def static(self) -> dict[str, np.ndarray]:
        """The arrays of the static part in float32."""
        with inference(self.model) as asked:
            return {name: _array(tensor) for name, tensor in shared_tensors(asked).items()} | self.everybody

    @cached_property
    def version(self) -> str:
        """The sha256 of the weights that the static part is computed of, which its blobs carry.

        It is not that of the static part: another processor, or batch, may compute another last bit of an item vector.
        """
        items = {f"items.{name}": tensor for name, tensor in self.model.item_embedding.state_dict().items()}
        return _digest(items | shared_layers(self.model), self.about)

    def personalize(self, history: Tensor, dtype: Literal["float32", "float16"] = "float32") -> bytes:
        """What makes the static part one person's: safetensors of weights, history and the neighbours that matter.

        The neighbours of the history raise the scores of many items. Those of the 100 that score best with them, and
        of as many more as the history has items, are sent: whatever else they raise is not among the 100 best without
        them either, as they lower no score.

        Args:
            history: [n] int64 items, oldest first, any number; none leaves the layers of nobody in particular.
            dtype: of weights and scores.

        Raises:
            ValueError: another dtype.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(f"personalize: expected dtype float32 or float16, got {dtype!r:.40}")
        return self._blob(history, dtype, self.version)

    def _blob(self, history: Tensor, dtype: Literal["float32", "float16"], version: str) -> bytes:
        arrays = {f"layers.{layer}": self.everybody[f"anybody.{layer}"] for layer in range(self.about["generated"])}
        items, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if len(history):
            sequence = flattened([history], self.model.length)[2]
            with inference(self.model) as asked:
                for layer, weights in enumerate(generated_layers(asked, asked._conditions(sequence.to(asked.device)))):
                    arrays[f"layers.{layer}"] = _array(weights[0])
            items, scores = self._neighbours(sequence, MOST + len(history.unique()))
        rounded = {name: array.astype(dtype) for name, array in {**arrays, "neighbours.scores": scores}.items()}
        window = history[-self.about["length"] :]
        seen = history.unique()
        numbers = {
            "neighbours.items": items,
            "window": window.numpy() - 1,
            "seen": seen[~torch.isin(seen, window)].numpy() - 1,
        }
        whole = rounded | {name: array.astype(np.int32) for name, array in numbers.items()}
        digest = digest_of(save(whole), version)
        return save(whole, {"format": PERSONAL, "static": version, "sha256": digest})

    def _neighbours(self, sequence: Tensor, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The places of the best `most` items by all scores, of those that the neighbours raise, and by how much."""
        if self.neighbours is None:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        with inference(self.neighbours) as asked:
            state = asked.encode(sequence.to(asked.device))
            scores = asked.score(state, torch.arange(1, self.catalogue.num_items + 1, device=asked.device))[0].cpu()
            added = state.added.toarray()[0, 1:].astype(np.float32)
        best = np.argsort(-scores.numpy(), kind="stable")[:most]
        best = np.sort(best[added[best] > 0])
        return best, added[best]

    def sizes(self) -> DeviceBytes:
        """The bytes of the static part's arrays in float32, and of a blob for a history of the popular items."""
        popular = torch.from_numpy(popular_items(self.catalogue, self.about["length"]) + 1)
        vectors = self.catalogue.num_items * self.model.config.dim
        weights = vectors + sum(tensor.numel() for tensor in shared_layers(self.model).values())
        everybody = sum(array.nbytes for array in self.everybody.values())
        return DeviceBytes(4 * weights + everybody, len(self._blob(popular, "float32", NO_VERSION)))

    def content(self, dtype: Rounding = "float32") -> dict[str, bytes]:
        """The files of the static part by their names.

        Raises:
            ValueError: another dtype; a backbone that no device computes.
        """
        if dtype not in get_args(Rounding):
            raise ValueError(f"export: expected dtype one of {', '.join(get_args(Rounding))}, got {dtype!r:.40}")
        if self.about["backbone"] not in NAMES:
            raise ValueError(
                f"export: expected a backbone that a device computes ({', '.join(NAMES)}), got "
                f"{self.about['backbone']!r}"
            )
        metadata = {"format": FORMAT, "version": self.version, "about": json.dumps(self.about)}
        everything = np.arange(1, self.catalogue.num_items + 1)
        ids = [raw if isinstance(raw, (str, int, float)) else str(raw) for raw in self.catalogue.raw_items(everything)]
        named = {"items": ids, "titles": self.catalogue.titles(everything)}
        return {
            STATIC: save(_rounded(self.static, dtype), metadata),
            ITEMS: json.dumps(named, ensure_ascii=False).encode(),
        }

    def write(self, folder: Path, dtype: Rounding = "float32", *, overwrite: bool = False) -> dict[str, Any]:
        """Write the static part as a folder, whole or not at all.

        Returns:
            What its manifest says besides the checksums: format, version, dtype, bytes, and the loss of rounding.

        Raises:
            ValueError: as `content`; the folder exists, or cannot be written.
        """
        content = self.content(dtype)
        described = {
            "format": FORMAT,
            "version": self.version,
            "dtype": dtype,
            "bytes": len(content[STATIC]),
            "bytes_a_person": self.sizes().person,
            "loss": self.loss(dtype),
        }
        with written_folder(folder, "export", overwrite=overwrite, ours=foreign_device) as fresh:
            (fresh / STATIC).write_bytes(content[STATIC])
            write_text(fresh / ITEMS, content[ITEMS].decode())
            describe_folder(fresh, MANIFEST, described)
        return described

    def rounded(self, dtype: Rounding) -> Scorer:
        """The scorer that a device with the rounded static part is, by layers that are generated afresh."""
        arrays = widened(_rounded(self.static, dtype))
        model = copy.deepcopy(self.model)
        table = model.item_embedding
        table.feature_map, table.features = None, None
        with torch.no_grad():
            table.weight[1:] = torch.from_numpy(arrays["items"]).to(table.weight)
            for name, tensor in shared_tensors(model).items():
                if name != "items":
                    tensor.copy_(torch.from_numpy(arrays[name]))
        known = self.neighbours
        return model if known is None else WithNeighbours(model, known.knn, known.weight, known.decay, known.content)

    def loss(self, dtype: Rounding) -> dict[str, float]:
        """What rounding changes, over histories of one popular item each.

        Returns:
            {"score": the largest difference of any score, "top10": the share of the ten best items that stay so}.
        """
        histories = torch.from_numpy(popular_items(self.catalogue, TYPICAL) + 1).unsqueeze(1)
        every = torch.arange(1, self.catalogue.num_items + 1, device="cpu")
        found = []
        scorers: tuple[Scorer, Scorer] = (self.neighbours or self.model, self.rounded(dtype))
        for scorer in scorers:
            with inference(scorer) as asked:
                device = self.model.device
                found.append(asked.score(asked.encode(histories.to(device)), every.to(device)).cpu())
        best = [scores.topk(min(10, len(every)), dim=1).indices for scores in found]
        kept = (best[0].unsqueeze(2) == best[1].unsqueeze(1)).any(2)
        return {"score": float((found[0] - found[1]).abs().max()), "top10": float(kept.double().mean())}


def shared_tensors(model: DynamicRecommender) -> dict[str, Tensor]:
    """What of a model is everybody's: the item vectors e(v) [V, d], and `shared_layers`."""
    return {"items": model.item_embedding.table()[1:]} | shared_layers(model)


def shared_layers(model: DynamicRecommender) -> dict[str, Tensor]:
    """What of a model is everybody's besides the item vectors: backbone, target, what the dynamic layers share."""
    found: dict[str, Tensor] = {}
    for name, module in (("backbone", model.backbone), ("target", model.target), ("dynamic", model.dynamic)):
        tensors = module.state_dict()
        found |= {f"{name}.{own}": t for own, t in tensors.items() if own.rpartition(".")[2] not in GENERATES}
    return found if model.gate is None else found | {"gate": model.gate.detach()}


def generated_layers(model: DynamicRecommender, conditions: Conditions) -> list[Tensor]:
    """The weights that conditions generate, [B, D + 1, O] a layer, whose last row is the bias; none of a static model.

    Of layers of low rank they are the cores, and of `PersonalBias` they are the bias alone, [B, 1, d].
    """
    dynamic = model.dynamic
    if isinstance(dynamic, nn.Sequential):
        return []
    if isinstance(dynamic, PersonalBias):
        return [dynamic.bias(conditions.item, conditions.semantic).unsqueeze(1)]
    layers: Any = dynamic.core if isinstance(dynamic, LowRankMLP) else dynamic.layers
    return [
        generated_weights(
            conditions.item,
            conditions.semantic,
            layer.item_map,
            layer.item_offset,
            layer.semantic_map,
            layer.semantic_offset,
            layer.delta,
        )
        for layer in layers
    ]


def conditions_of_nobody(model: DynamicRecommender, catalogue: Catalogue) -> Conditions:
    """The conditions [1, k] of nobody in particular: the mean of those of histories of one item, by how often it was
    had."""
    items = popular_items(catalogue, ANYBODY)
    share = torch.from_numpy(_counts(catalogue)[items]).clamp(min=1).to(model.item_embedding.weight)
    parts = []
    for some in torch.from_numpy(items + 1).unsqueeze(1).to(model.device).split(1024):
        given = model._conditions(some)
        parts.append((given.item, given.semantic))
    item, semantic = (
        None if z[0] is None else (share / share.sum()).unsqueeze(0) @ torch.cat(z) for z in zip(*parts, strict=True)
    )
    return Conditions(item, semantic, None, None)


def popular_items(catalogue: Catalogue, most: int) -> np.ndarray:
    """The places, from 0, of the most popular items, the most popular first."""
    return np.argsort(-_counts(catalogue), kind="stable")[:most]


def _counts(catalogue: Catalogue) -> np.ndarray:
    return np.ones(catalogue.num_items, np.int64) if catalogue.counts is None else catalogue.counts


def _about(model: DynamicRecommender) -> dict[str, Any]:
    """What a device has to know to compute with the arrays."""
    kinds = {nn.Sequential: "static", PersonalBias: "bias", LowRankMLP: "low_rank"}
    kind, config = kinds.get(type(model.dynamic), "full"), model.config
    layers = config.dynamic_layers
    return {
        "backbone": config.backbone,
        "length": config.length,
        "heads": config.heads,
        "blocks": config.blocks,
        "target": config.target,
        "layers": kind,
        "dynamic_layers": layers,
        "generated": {"static": 0, "bias": 1}.get(kind, layers),
    }


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().copy()


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(f"{name} {list(tensors[name].shape)}".encode())
        found.update(tensor_bytes(tensors[name]))
    return found.hexdigest()


def _rounded(arrays: Mapping[str, np.ndarray], dtype: Rounding) -> dict[str, np.ndarray]:
    """The arrays in a dtype: with int8 the matrices, a scale a column beside each, and all else in float32."""
    found = {}
    for name, array in arrays.items():
        if array.dtype != np.float32 or dtype == "float32":
            found[name] = array
        elif dtype == "float16":
            found[name] = array.astype(np.float16)
        elif array.ndim < 2 or name.startswith("anybody."):
            found[name] = array
        else:
            scale = np.abs(array).max(axis=0, initial=0, keepdims=True).clip(1e-30) / 127
            found[name] = np.round(array / scale).astype(np.int8)
            found[name + SCALE] = scale.astype(np.float32)
    return found


def foreign_device(folder: Path) -> str | None:
    """What keeps a folder from being replaced; None for one that `OnDevice.write` wrote."""
    return foreign_to(folder, MANIFEST, FORMAT)
