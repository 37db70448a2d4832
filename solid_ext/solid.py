"""SOLID as one object: fit, evaluate, recommend, save, load."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solid_ext._native import build_info
from solid_ext.config import Config
from solid_ext.data import (
    Catalogue,
    Dataset,
    Semantics,
    Split,
    cooccurrence_features,
    gather_sequences,
    global_time,
    leave_one_out,
    load_dataset,
    make_semantics,
)
from solid_ext.evaluate import Scorer, evaluate_full, evaluate_sampled, sampled_candidates
from solid_ext.evaluate.scorer import inference
from solid_ext.models import (
    DynamicRecommender,
    ItemKNN,
    WithNeighbours,
    choose_neighbours,
    content_similarity,
    valid_mask,
)
from solid_ext.models.backbones import check_backbone
from solid_ext.models.content import MOST_ITEMS
from solid_ext.serve.recommend import Recommendation, recommend
from solid_ext.train import (
    Reporter,
    Stage,
    load_checkpoint,
    restore_model,
    save_checkpoint,
    train_solid,
    train_static,
)

NEIGHBOURS = "neighbours.safetensors"
NEIGHBOUR_ROWS = 5_000  # of the validation, on which the neighbours' settings are chosen
VALIDATION_SEED = 1_000_003  # the test rows' negatives are drawn from the plain seed, so the two never coincide


@dataclass(frozen=True)
class Training:
    """What `fit` worked on and what it left besides the model."""

    dataset: Dataset
    split: Split
    semantics: Semantics
    static: Scorer | None  # the static backbone, where one was trained, with neighbours where the model has them
    stages: list[Stage]  # one log a stage, in order


class SOLID:
    """The SOLID recommender: Algorithm 1 around one network, from interactions to recommendations.

    ```
    model = SOLID(epochs=20).fit("interactions.tsv.gz")
    model.evaluate()
    model.recommend([["item a", "item b"]], k=10)
    ```

    Args:
        config: the whole configuration; fields override single values by name (`SOLID(dim=64, seed=1)`).

    Raises:
        ValueError, TypeError: an unknown field, or a value outside its range.

    Source: paper, Algorithm 1; docs/method.md#algorithm-1.
    """

    def __init__(self, config: Config | None = None, **fields: Any) -> None:
        self.config = (config or Config()).replace(**fields)
        self.model: DynamicRecommender | None = None
        self.neighbours: WithNeighbours | None = None
        self.catalogue: Catalogue | None = None
        self.fingerprint: str | None = None
        self._training: Training | None = None

    @property
    def training(self) -> Training:
        """What `fit` worked on. Raises: ValueError for a model that was loaded, or not fitted yet."""
        if self._training is None:
            raise ValueError("SOLID: expected a model fitted here, got one before fit() or after load()")
        return self._training

    def fit(
        self,
        data: Any,
        *,
        baseline: bool = False,
        folder: str | Path | None = None,
        reporter: Reporter | None = None,
    ) -> SOLID:
        """Train both stages to convergence on validation rows, and leave the model at its best epoch.

        Args:
            data: a `Dataset`, or whatever `load_dataset` takes (a path, a frame, arrays).
            baseline: also train the static backbone, as `self.training.static` (done anyway for id_encoder model, then
                without item features, which are made from it).
            folder: where each stage keeps its checkpoints and log; a folder with those is resumed.

        Returns:
            self.

        Raises:
            ValueError: data that cannot be read or split.
        """
        dataset = data if isinstance(data, Dataset) else load_dataset(data)
        config = self.config.resolved(dataset.num_users, dataset.num_items)
        folder = None if folder is None else Path(folder)
        check_device(config.train.device)
        check_backbone(config.model.backbone)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        split = make_split(config, dataset)
        validate = Validation(config, dataset, split)
        stages: list[Stage] = []
        static: list[DynamicRecommender] = []  # none or one

        def trained_static(features: Tensor | None) -> DynamicRecommender:
            where = None if folder is None else folder / "static"
            model, stage = train_static(
                config, dataset, split, validate, features=features, folder=where, reporter=reporter
            )
            static.append(model)
            stages.append(stage)
            return model

        def id_features() -> np.ndarray:
            if config.semantics.id_encoder == "cooccurrence":
                return cooccurrence_features(dataset, split.train_end, seed=config.train.seed)
            return trained_static(None).item_embedding.weight.detach().float().cpu().numpy()

        semantics = make_semantics(config.semantics, dataset, seed=config.train.seed, id_features=id_features)
        features = None if semantics.features is None else torch.from_numpy(semantics.features)
        if baseline and not static:
            trained_static(features)
        # Items of a semantic tie in stage 1, and in full ranking each tie counts as ranked above: that tells nothing.
        sampled = config.replace(validation="sampled")
        self.model, both = train_solid(
            config,
            dataset,
            split,
            semantics.table,
            validate,
            features=features,
            validate_stage1=Validation(sampled, dataset, split) if sampled != config else None,
            folder=folder,
            reporter=reporter,
        )
        self.neighbours, baselines = None, list[Scorer](static)
        if config.model.neighbours:
            validate = Validation(config, dataset, split, most=NEIGHBOUR_ROWS)  # of many settings
            knn = ItemKNN(dataset, split.train_end, self.model.length)
            content = None
            if semantics.features is not None and dataset.num_items <= MOST_ITEMS:
                content = content_similarity(semantics.features)
            self.neighbours = choose_neighbours(self.model, knn, validate, content)
            baselines = [choose_neighbours(model, knn, validate, content) for model in static]
        self.catalogue, self.fingerprint = dataset.catalogue, dataset.fingerprint
        self._training = Training(dataset, split, semantics, next(iter(baselines), None), stages + both)
        return self

    def evaluate(self, data: Any = None) -> dict[str, dict[str, float]]:
        """Metrics on the test rows, by the sampled protocol and by full ranking.

        Args:
            data: the dataset the model was fitted on; may be left out right after `fit`.

        Returns:
            {"sampled": {"user_auc": ..}, "full": {"ndcg@10": ..}}.

        Source: docs/evaluation.md#evaluation.
        """
        return self.evaluate_scorer(self.scorer, data)

    def evaluate_scorer(self, scorer: Scorer, data: Any = None) -> dict[str, dict[str, float]]:
        """The same metrics, on the same rows and negatives, of any other scorer."""
        dataset, split = self._data(data)
        config = self.config
        sampled = evaluate_sampled(
            scorer, dataset, split.test, negatives=config.evaluate.candidates, seed=config.train.seed
        )
        full = evaluate_full(scorer, dataset, split.test, exclude_history=config.evaluate.exclude_history)
        return {"sampled": sampled.values, "full": full.values}

    def recommend(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        exclude_history: bool = True,
        unknown: str = "error",
    ) -> list[list[Recommendation]]:
        """The k best items for each history of raw item ids; see `solid_ext.serve.recommend`."""
        scorer = self.scorer
        assert self.catalogue is not None
        return recommend(scorer, self.catalogue, histories, k, exclude_history=exclude_history, unknown=unknown)

    def code_usage(self, data: Any = None) -> np.ndarray | None:
        """How often each codebook entry is looked up over the test sequences: [C] int64; None without a codebook."""
        model = self._fitted()
        dataset, split = self._data(data)
        if not (model.config.item_branch and model.config.use_codebook):
            return None
        usage = torch.zeros(model.num_semantics, dtype=torch.int64)
        rows = np.arange(len(split.test.users))
        with inference(model):
            for batch in np.array_split(rows, -(-len(rows) // self.config.train.batch_size)):
                sequences = torch.from_numpy(gather_sequences(dataset, split.test.take(batch), model.length))
                code = model(sequences.to(model.device)).code
                if code is not None:
                    usage += torch.bincount(code[valid_mask(sequences)].cpu(), minlength=model.num_semantics)
        return usage.numpy()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model, its configuration and its catalogue to a new folder, whole or not at all."""
        model, folder = self._fitted(), Path(folder)
        assert self.catalogue is not None
        if folder.exists() and not overwrite:
            raise ValueError(f"save: expected a folder that does not exist yet, got {folder}")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = {
            "num_items": model.num_items,
            "dataset": self.fingerprint,
            "solid_ext": build_info()["version"],
        }
        save_checkpoint(partial / "model.safetensors", model.state_dict(), state)
        (partial / "config.yaml").write_text(self.config.to_yaml(), encoding="utf-8")
        self.catalogue.save(partial / "items.parquet")
        if self.neighbours is not None:
            self.neighbours.save(partial / NEIGHBOURS)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return folder

    @property
    def scorer(self) -> Scorer:
        """What evaluates and recommends: the model, with its neighbours where the configuration has them."""
        return self.neighbours or self._fitted()

    @staticmethod
    def load(folder: str | Path) -> SOLID:
        """Read what `save` wrote.

        Raises:
            ValueError: no such folder, another format version, tensors that do not fit the configuration, NaN weights.
        """
        folder = Path(folder)
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"load: expected a folder with model.safetensors, got {folder}")
        solid = SOLID(Config.from_yaml(folder / "config.yaml"))
        tensors, state = load_checkpoint(folder / "model.safetensors")
        if "semantics" not in tensors:
            raise ValueError(f"load: expected a tensor `semantics` in {folder}, got none")
        on_cpu = solid.config.replace(device="cpu", cuda_graph=False)
        solid.model = restore_model(on_cpu, state["num_items"], tensors, folder / "model.safetensors")
        solid.fingerprint = state["dataset"]
        solid.catalogue = Catalogue.load(folder / "items.parquet")
        if solid.config.model.neighbours:
            solid.neighbours = WithNeighbours.load(folder / NEIGHBOURS, solid.model)
        return solid

    def _fitted(self) -> DynamicRecommender:
        if self.model is None:
            raise ValueError("SOLID: expected a fitted model, got one before fit() or load()")
        return self.model

    def _data(self, data: Any) -> tuple[Dataset, Split]:
        if data is None:
            return self.training.dataset, self.training.split
        dataset = data if isinstance(data, Dataset) else load_dataset(data)
        if dataset.fingerprint != self.fingerprint:
            raise ValueError(
                f"evaluate: expected the dataset the model was fitted on ({str(self.fingerprint)[:12]}), "
                f"got {dataset.name} ({dataset.fingerprint[:12]})"
            )
        return dataset, make_split(self.config, dataset)


class Validation:
    """The monitored metric of a model on the validation rows, against the same negatives every time.

    With `most`, on so many of them, spread evenly.
    """

    def __init__(self, config: Config, dataset: Dataset, split: Split, most: int | None = None) -> None:
        self.config, self.dataset, self.rows = config, dataset, split.valid
        if most is not None and len(self.rows) > most:
            self.rows = self.rows.take(np.linspace(0, len(self.rows) - 1, most).astype(np.int64))
        self.candidates = None
        if config.train.validation == "sampled":
            self.candidates = sampled_candidates(
                dataset, self.rows, negatives=config.evaluate.candidates, seed=config.train.seed + VALIDATION_SEED
            )

    def __call__(self, model: Scorer) -> float:
        if self.candidates is None:
            exclude = self.config.evaluate.exclude_history
            metrics = evaluate_full(model, self.dataset, self.rows, exclude_history=exclude)
        else:
            metrics = evaluate_sampled(model, self.dataset, self.rows, candidates=self.candidates)
        return metrics.values[self.config.train.monitor]


def check_device(device: str) -> None:
    """Refuse a device that torch does not see.

    Raises:
        ValueError: no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and (torch.device(device).index or 0) >= count:
        raise ValueError(f"device: expected cpu or one of the {count} CUDA devices that torch sees, got {device}")


def make_split(config: Config, dataset: Dataset) -> Split:
    """The split that the configuration names."""
    return {"leave_one_out": leave_one_out, "global_time": global_time}[config.evaluate.split](dataset)
