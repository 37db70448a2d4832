"""SOLID as one object: fit, evaluate, recommend, save, load."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from rich.console import Console

from solid_ext import distributed
from solid_ext.config import Config
from solid_ext.data import (
    Catalogue,
    Dataset,
    Semantics,
    Split,
    gather_sequences,
    in_order_of,
    latest,
    load_dataset,
    make_split,
    newest,
)
from solid_ext.data.growth import expect_ids_like
from solid_ext.data.split import later_than
from solid_ext.data.tables import shown
from solid_ext.data.times import PER_SECOND, expect_one_unit, in_other_unit
from solid_ext.evaluate import Scorer, Validation, both_protocols
from solid_ext.evaluate.scorer import inference
from solid_ext.files import (
    checked_path,
    owned,
)
from solid_ext.forked import check_not_forked
from solid_ext.model_folder import SavedModel, Trained, read_model, write_model
from solid_ext.models import DynamicRecommender
from solid_ext.models.backbones import check_backbone
from solid_ext.nn.padding import valid_mask
from solid_ext.scorers import Popularity, WithNeighbours, WithNewcomers
from solid_ext.scorers.finetune import fine_tuned
from solid_ext.serve import (
    Explanation,
    ItemTable,
    OnDevice,
    Recommendation,
    Session,
    UserQuery,
    evaluate_beyond,
    explain,
    explain_items,
    item_vectors,
    recommend,
    score,
    similar_items,
    user_query,
    user_vectors,
)
from solid_ext.serve.histories import check_unknown, checked_list, known_items
from solid_ext.serve.on_device import Rounding
from solid_ext.threads import set_threads
from solid_ext.train import (
    ProgressBar,
    Reporter,
    Stage,
    check_training,
    train_solid,
)
from solid_ext.train.algorithm import check_memory
from solid_ext.train.callbacks import Calling, check_callbacks
from solid_ext.train.checks import check_device
from solid_ext.train.isolation import isolated
from solid_ext.train.neighbourhood import chosen_neighbours
from solid_ext.train.progress import check_reporter
from solid_ext.train.refit import refit_solid, semantics_of_everything
from solid_ext.train.semantics import chosen_semantics
from solid_ext.train.update import EPOCHS, add_items, more_of, update_solid

REFIT = "refit"  # the folder of its stages beside those of the fit


@dataclass(frozen=True, repr=False)
class Training:
    """What `fit` worked on and what it left besides the model."""

    dataset: Dataset
    split: Split
    semantics: Semantics
    stages: list[Stage]  # one log a stage, in order
    made: bool = True  # the semantics were, as the configuration says
    seconds: dict[str, float] = field(default_factory=dict)  # of each part of `fit`
    measured: Scorer | None = None  # of a model that was trained on all: what was not, and the split's rows can measure

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.name} {len(stage.history)} epochs" for stage in self.stages)
        return f"Training(on {self.dataset.name!r}, {self.split!r}, {self.semantics!r}; {stages})"


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
        ValueError, TypeError: an unknown field, a value outside its range, or a configuration that is none.

    Attributes:
        version: tells one saved model from another: the sha256 of the manifest that this one was loaded with; None for
            a model that was fitted here.

    Source: paper, Algorithm 1; docs/method.md#algorithm-1.
    """

    def __init__(self, config: Config | None = None, **fields: Any) -> None:
        if config is not None and not isinstance(config, Config):
            raise TypeError(
                f"SOLID: expected a Config, got {type(config).__name__} (SOLID(**fields) takes fields by name, "
                "Config.from_yaml reads a file)"
            )
        self.config = (config or Config()).replace(**fields)
        check_backbone(self.config.model.backbone)
        self.model: DynamicRecommender | None = None
        self.neighbours: WithNeighbours | None = None
        self.catalogue: Catalogue | None = None
        self.fingerprint: str | None = None
        self.trained = Trained()
        self.version: str | None = None
        self._training: Training | None = None
        self._table = ItemTable()
        self._device: tuple[Any, OnDevice] | None = None

    @property
    def training(self) -> Training:
        """What `fit` worked on. Raises: ValueError for a model that was loaded or given items, or not fitted yet."""
        if self._training is None:
            raise ValueError(f"SOLID: expected a model that fit() trained here, got {self._made()}")
        return self._training

    def fit(
        self,
        data: Any,
        *,
        semantics: Semantics | None = None,
        folder: str | Path | None = None,
        reporter: Reporter | None = None,
        callbacks: Sequence[Any] = (),
    ) -> SOLID:
        """Train both stages to convergence on validation rows, and leave the model at its best epoch.

        The model is the seed's, whatever the process has set: torch's generators, default dtype and grad mode are
        neither read nor changed. Fits of several threads follow one another. A fit that does not end leaves what was
        fitted before.

        Args:
            data: a `Dataset`, or whatever `load_dataset` takes (a path, a frame, arrays).
            semantics: of the items, where they have been made before; None makes them as the configuration says.
            folder: where each stage keeps its checkpoints and log; a folder with those is resumed, if they are of this
                configuration (more epochs or patience are allowed) and dataset.
            reporter: told of every step and epoch; None shows a progress bar where stderr is a terminal, and nothing
                elsewhere; `solid_ext.train.Silent()` shows nothing anywhere.
            callbacks: told too, see `solid_ext.train.Callback`.

        Returns:
            self, in eval mode.

        Raises:
            ValueError: data that cannot be read or split; a folder of another training, or in use by one; a process
                forked from one that had worked on data.
            TypeError: semantics, a reporter or callbacks that are none.
            FloatingPointError: a training that diverges.
            StopTraining: as the reporter or a callback raised it.
        """
        check_not_forked("fit")
        check_reporter("fit", reporter)
        check_callbacks("fit", callbacks)
        if semantics is not None and not isinstance(semantics, Semantics):
            raise TypeError(
                "fit: expected semantics None or those that solid_ext.data.make_semantics makes, got "
                f"{shown(semantics)}"
            )
        if reporter is None and sys.stderr.isatty() and distributed.is_writer():
            with ProgressBar(Console(stderr=True), self.config.train.validation_metric) as bar:
                return self.fit(data, semantics=semantics, folder=folder, reporter=bar, callbacks=callbacks)
        dataset = data if isinstance(data, Dataset) else load_dataset(data)
        if semantics is not None and semantics.table.size != dataset.num_items + 1:
            raise ValueError(
                f"fit: expected semantics of the dataset's {dataset.num_items:,} items, got those of "
                f"{semantics.table.size - 1:,}"
            )
        config = self.config.resolved(dataset.num_users, dataset.num_items)
        folder = None if folder is None else checked_path(folder, "fit")
        check_training(config, dataset)
        calling = Calling(callbacks, reporter)
        with _claimed(folder, "fit"), isolated():
            self._fit(config, dataset, semantics, folder, calling)
        calling.finish(self.training.stages)
        return self

    def _fit(
        self,
        config: Config,
        dataset: Dataset,
        semantics: Semantics | None,
        folder: Path | None,
        reporter: Reporter | None,
    ) -> None:
        set_threads(config.train.threads)
        split = make_split(config.evaluate.split, dataset)
        validate = Validation(config, dataset, split)
        made = semantics is None
        start = time.perf_counter()
        if semantics is None:
            semantics = chosen_semantics(config, dataset, split)
        seconds = {"semantics": time.perf_counter() - start}
        features = None if semantics.features is None else torch.from_numpy(semantics.features)
        # Items of a semantic tie in stage 1, and in full ranking each tie counts as ranked above: that tells nothing.
        sampled = config
        if config.train.validation_protocol == "full":
            sampled = config.replace(validation=f"sampled:{config.train.validation_metric}")
        model, stages = train_solid(
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
        seconds |= {stage.name: sum(epoch.seconds for epoch in stage.history) for stage in stages}
        start = time.perf_counter()
        neighbours = chosen_neighbours(config, model, dataset, split, semantics.features)
        seconds["neighbours"] = time.perf_counter() - start
        training = Training(dataset, split, semantics, stages, made, seconds=seconds)
        catalogue = _counted(dataset, split.train_end)
        source = semantics.source if made and config.semantics.semantics == "auto" else None
        trained = Trained(dataset.num_items, latest(dataset, split.train_end), dataset.timestamp_unit, semantics=source)
        # All of it at the end: a fit that is stopped leaves the model that was fitted before, whole.
        self.model, self.neighbours, self.catalogue = model, neighbours, catalogue
        self.fingerprint, self.trained, self._training = dataset.fingerprint, trained, training
        self.version = None
        self._table.forget()

    def refit(self, *, folder: str | Path | None = None, reporter: Reporter | None = None) -> SOLID:
        """The model for use: trained again on all interactions, test rows and all, for the epochs that were best here.

        Neighbours keep the settings that validation chose. This model is left as it is, for it is the one that can be
        measured. The result is the seed's, as that of `fit` is.

        Args:
            folder: that of `fit`; its folder `refit` keeps checkpoints in the same way.
            reporter: as in `fit`, but that None shows nothing.

        Returns:
            A new model, in eval mode, whose `evaluate` refuses.

        Raises:
            ValueError: a model that was not fitted here, or that `update` made; a folder in use.

        Source: docs/keeping_up.md#the-model-for-use.
        """
        check_not_forked("refit")
        check_reporter("refit", reporter)
        if self.trained.updated:
            raise ValueError("refit: expected a model that fit() trained, got one that update() made")
        training = self.training
        dataset, config = training.dataset, self.config.resolved(training.dataset.num_users, training.dataset.num_items)
        folder = None if folder is None else checked_path(folder, "refit") / REFIT
        with _claimed(folder, "refit"), isolated():
            set_threads(config.train.threads)
            semantics = training.semantics
            if training.made:
                semantics = semantics_of_everything(config, dataset, semantics)
            model, neighbours, stages = refit_solid(
                config, dataset, semantics, training.stages, self.neighbours, folder=folder, reporter=reporter
            )
        ends = dataset.offsets[1:]
        made = self._other(model, neighbours, _counted(dataset, ends))
        made.trained = replace(self.trained, until=latest(dataset, ends), unit=dataset.timestamp_unit, everything=True)
        made._training = replace(training, semantics=semantics, stages=stages, measured=self.scorer)
        return made

    def update(self, data: Any, *, epochs: int = EPOCHS, reporter: Reporter | None = None) -> SOLID:
        """A model that goes on from this one with more interactions, users and items, trained on those that are new.

        Ids are kept. Rows of new items start from their semantic and features; a new item's semantic is the nearest,
        and none is clustered again. Items that the data no longer has stay. New are the interactions later than all
        that this model was trained on (without times nothing tells, and all are trained on); the epochs and the
        neighbours are chosen on the newest fifth of them, and the model is then trained on that too. Neighbours are
        counted in all interactions. This model is left as it is.

        Args:
            data: a `Dataset`, or whatever `load_dataset` takes, that holds the old interactions and the new ones.
            epochs: at most so many.
            reporter: as in `refit`.

        Returns:
            A new model, in eval mode, whose `evaluate` refuses; its `training` has the split and both logs. The split's
            report counts, as `older_not_trained_on`, the interactions that this model had not and the new one is not
            trained on either, as they are no later than the latest that this one was trained on.

        Raises:
            ValueError: fewer interactions with the model's items than it was trained on, as where only the new ones are
                given; none that is new, or too few of them; the id of a new item of another kind than those of the
                model; data that cannot be read or split.
            FloatingPointError: a training that diverges.

        Source: docs/keeping_up.md#updates.
        """
        check_not_forked("update")
        check_reporter("update", reporter)
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"update: expected epochs as a whole number of 1 or more, got {epochs!r}")
        model, catalogue, trained = self._fitted(), self.catalogue, self.trained
        assert catalogue is not None
        first = trained.first_items or catalogue.num_items
        given = data if isinstance(data, Dataset) else load_dataset(data)
        expect_ids_like("update", catalogue.table["item_id"], _new_ids(catalogue, given))
        dataset = in_order_of(catalogue, given)
        config = self._as_made().resolved(dataset.num_users, dataset.num_items)
        check_device(config.train.device)
        until = _until(dataset, trained)
        split = _newest_of(dataset, catalogue, until)
        check_memory(config, dataset.num_items, dataset.num_interactions)
        with isolated():
            set_threads(config.train.threads)
            semantics, fresh = more_of(config, model, catalogue, dataset, given, first)
            found = update_solid(
                config, model, dataset, split, semantics, fresh, after=until, epochs=epochs, reporter=reporter
            )
        made = self._other(found.model, found.neighbours, _counted(dataset, dataset.offsets[1:]))
        made.fingerprint = given.fingerprint
        made.trained = replace(
            trained,
            first_items=first,
            until=latest(dataset, dataset.offsets[1:]),
            unit=dataset.timestamp_unit,
            everything=True,
            updated=True,
        )
        made._training = Training(dataset, split, semantics, found.stages, measured=found.validated)
        return made

    def add_items(self, items: Any, *, title: str | None = None, categories: str | None = None) -> SOLID:
        """A model that can recommend items which nobody has had, by their titles and categories, without training.

        Each starts from the mean of its semantic's items and its own features, and resembles others by its features
        where the neighbourhood reads any. This model is left as it is.

        Args:
            items: a path, frame or mapping with a column `item_id`, and `title` and `categories` ("a|b|c") where there
                are any; items that the model has are left as they are.
            title: name of the column of titles; by default "title".
            categories: name of the column of categories; by default "categories".

        Returns:
            A new model, in eval mode, whose `evaluate` refuses: added items would be among the negatives.

        Raises:
            ValueError: no such column, no item that is new, or an id of another kind than those of the model.
            TypeError: True or False as an id.

        Source: docs/keeping_up.md#updates.
        """
        check_not_forked("add_items")
        model, catalogue = self._fitted(), self.catalogue
        assert catalogue is not None
        first = self.trained.first_items or catalogue.num_items
        with isolated():
            named = {"title": title, "categories": categories}
            made = self._other(*add_items(self._as_made(), model, self.neighbours, catalogue, items, first, named))
        made.trained = replace(self.trained, first_items=first)
        return made

    def _as_made(self) -> Config:
        """The configuration with the source of semantics that `fit` chose, where it did."""
        source = self.trained.semantics
        return self.config if source is None else self.config.replace(semantics=source)

    def _other(self, model: DynamicRecommender, neighbours: WithNeighbours | None, catalogue: Catalogue) -> SOLID:
        made = SOLID(self.config)
        made.model, made.neighbours, made.catalogue = model, neighbours, catalogue
        made.fingerprint = self.fingerprint
        return made

    def evaluate(self, data: Any = None) -> dict[str, dict[str, float]]:
        """Metrics on the test rows: by the sampled protocol, by full ranking, and beyond accuracy.

        Args:
            data: the dataset the model was fitted on; may be left out right after `fit`.

        Returns:
            {"sampled": {"user_auc": ..}, "full": {"ndcg@10": ..}, "beyond": {"coverage@10": ..}}.

        Raises:
            ValueError: a model that was trained on its test rows too, by `refit` or `update`; another dataset.

        Source: docs/evaluation.md#evaluation.
        """
        if self.trained.everything:
            hint = (
                "before refit() it can be measured; a run keeps that model in its folder `measured`"
                if not self.trained.updated
                else "what update() gained is measured on the newest interactions; `metrics.json` of its folder says it"
            )
            raise ValueError(
                "evaluate: expected a model whose test rows it was not trained on, got one that was trained on all "
                f"interactions ({hint})"
            )
        return self.evaluate_scorer(self.scorer, data)

    def evaluate_scorer(self, scorer: Scorer, data: Any = None) -> dict[str, dict[str, float]]:
        """The same metrics, on the same rows and negatives, of any other scorer."""
        dataset, split = self._data(data)
        found = both_protocols(self.config, scorer, dataset, split.test)
        values = {protocol: metrics.values for protocol, metrics in found.items()}
        return values | {"beyond": evaluate_beyond(scorer, dataset, split)}

    def recommend(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        exclude_history: bool = True,
        exclude: Sequence[Any] | None = None,
        include: Sequence[Any] | None = None,
        unknown: str = "error",
    ) -> list[list[Recommendation]]:
        """The k best items for each history of raw item ids; see `solid_ext.serve.recommend`."""
        return recommend(
            self.scorer,
            self._items,
            histories,
            k,
            exclude_history=exclude_history,
            exclude=exclude,
            include=include,
            unknown=unknown,
            table=self._table,
        )

    def session(self, history: Sequence[Any] = (), *, unknown: str = "error") -> Session:
        """A user's history that grows by an event at a time, for recommendations after each; see `Session`.

        It stays with the model that this is now: after another `fit`, make another one.
        """
        scorer = self.scorer
        assert self.catalogue is not None
        return Session(scorer, self.catalogue, history, unknown=unknown, table=self._table)

    def recommend_users(
        self,
        data: Any,
        users: Sequence[Any] | None = None,
        k: int = 10,
        *,
        exclude_history: bool = True,
        exclude: Sequence[Any] | None = None,
        include: Sequence[Any] | None = None,
        unknown: str = "error",
    ) -> pl.DataFrame:
        """The k best items for users of a dataset, by their histories in it; see `solid_ext.serve.user_query`.

        Returns:
            A frame with the columns `user_id`, `rank` (from 1), `item_id`, `title` and `score`, k rows a user, fewer
            where there are no more items.
        """
        query = self.user_query(
            data, users, k, exclude_history=exclude_history, exclude=exclude, include=include, unknown=unknown
        )
        return pl.concat([query.schema.to_frame(), *query])

    def user_query(self, data: Any, users: Sequence[Any] | None = None, k: int = 10, **rules: Any) -> UserQuery:
        """What `recommend_users` computes, checked and not computed yet: `solid_ext.serve.write_users` streams it."""
        return user_query(self.scorer, self._items, data, users, k, **rules, table=self._table, stacklevel=4)

    def score(self, histories: Sequence[Sequence[Any]], items: Sequence[Any], *, unknown: str = "error") -> np.ndarray:
        """The scores [B, T] of items for each history, those that `evaluate` ranks by; see `solid_ext.serve.score`."""
        return score(self.scorer, self._items, histories, items, unknown=unknown)

    def explain(self, history: Sequence[Any], item: Any, *, unknown: str = "error") -> Explanation:
        """What each part of the model gave to an item's score; see `solid_ext.serve.Explanation`."""
        return explain(self.scorer, self._items, history, item, unknown=unknown)

    def explain_items(
        self, history: Sequence[Any], items: Sequence[Any], *, unknown: str = "error"
    ) -> list[Explanation]:
        """`explain` for several items and one history, in little more time than for one.

        Args:
            history: raw ids, oldest first.
            items: raw ids of the explained items, any number of them.
            unknown: of an item in the history: "error" refuses it, "ignore" reads the history without it.

        Returns:
            An explanation for each item, in their order: what `explain` says of it, up to rounding.

        Raises:
            ValueError: an unknown item; a model that is not fitted yet.
            TypeError: a history or items that are no list of ids.
        """
        return explain_items(self.scorer, self._items, history, items, unknown=unknown)

    def similar_items(self, items: Sequence[Any], k: int = 10) -> list[list[Recommendation]]:
        """The k items most like each item, by the cosine of item vectors; see `solid_ext.serve.similar_items`."""
        return similar_items(self._fitted(), self._items, items, k, table=self._table)

    def item_vectors(self) -> tuple[list[Any], np.ndarray]:
        """The raw ids [V] of all items and their vectors [V, d], a copy; see `solid_ext.serve.item_vectors`."""
        vectors = item_vectors(self._fitted(), self._table).cpu().numpy().copy()
        return self._items.raw_items(np.arange(1, len(vectors) + 1)), vectors

    def user_vectors(self, histories: Sequence[Sequence[Any]], *, unknown: str = "error") -> np.ndarray:
        """The vectors [B, d] of histories, whose products with `item_vectors` are the network's logits; neighbours are
        not in them. See `solid_ext.serve.user_vectors`."""
        return user_vectors(fine_tuned(self._fitted()), self._items, histories, unknown=unknown)

    def personalize(
        self, history: Sequence[Any], *, dtype: Literal["float32", "float16"] = "float32", unknown: str = "error"
    ) -> bytes:
        """What makes a device's static part one person's, as one safetensors blob for `DeviceModel.load`.

        It holds the weights that the history generates, the neighbours' scores that matter, and the history. Who
        personalizes often keeps `on_device()`.

        Args:
            history: raw ids, oldest first, any number of them.
            dtype: of weights and scores, "float32" or "float16".
            unknown: of an item in the history: "error" refuses it, "ignore" reads the history without it.

        Raises:
            ValueError: an unknown item, another dtype, a model that is fine-tuned on each history.
            TypeError: a history that is no list of ids.

        Source: docs/device.md#on-a-device.
        """
        check_unknown("personalize", unknown)
        self._fitted()
        asked = checked_list("personalize", "history", history)
        known = known_items("personalize", "history", self._items, [asked], unknown)[0]
        return self.on_device().personalize(known, dtype)

    def on_device(self) -> OnDevice:
        """The model as devices have it: static part, its version, and what personalizes it. See `OnDevice`."""
        model = self._fitted()
        stamp = [(tensor.data_ptr(), tensor._version) for tensor in model.state_dict().values()]
        if self._device is None or self._device[0] != (id(model), stamp):
            self._device = (id(model), stamp), OnDevice(model, self.neighbours, self._items)
        return self._device[1]

    def export_device(
        self, folder: str | Path, *, dtype: Rounding = "float32", overwrite: bool = False
    ) -> dict[str, Any]:
        """Write the static part for devices to a new folder, whole or not at all.

        Args:
            dtype: "float32", "float16" or "int8", whose matrices have a scale a column.
            overwrite: replace the folder if it is one that this wrote, and holds nothing else.

        Returns:
            Its `version`, `bytes`, `bytes_a_person`, and under `loss` what rounding changed: see `OnDevice.loss`.

        Raises:
            ValueError: not fitted yet, fine-tuned on each history, another dtype, a backbone that no device computes;
                the folder exists or cannot be written.

        Source: docs/device.md#on-a-device.
        """
        check_not_forked("export")
        return self.on_device().write(checked_path(folder, "export"), dtype, overwrite=overwrite)

    def code_usage(self, data: Any = None) -> np.ndarray | None:
        """How often each codebook entry is looked up over the test sequences: [C] int64; None without a codebook."""
        model = self._fitted()
        dataset, split = self._data(data)
        if not (model.config.item.item_branch and model.config.item.codebook.use_codebook):
            return None
        usage = torch.zeros(model.num_semantics, dtype=torch.int64, device="cpu")
        rows = np.arange(len(split.test.users))
        with inference(model) as asked:
            for batch in np.array_split(rows, -(-len(rows) // self.config.train.batch_size)):
                sequences = torch.from_numpy(gather_sequences(dataset, split.test.take(batch), model.length))
                code = asked(sequences.to(model.device)).codebook_index
                if code is not None:
                    usage += torch.bincount(code[valid_mask(sequences)].cpu(), minlength=model.num_semantics)
        return usage.numpy()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model, its configuration, catalogue and neighbours to a new folder, whole or not at all.

        `manifest.json` holds size and sha256 of each file, and ties them together.

        Args:
            overwrite: replace the folder if it is one that this wrote, and holds nothing else.

        Raises:
            ValueError: not fitted yet; the folder exists, or is something else; it cannot be written.
        """
        check_not_forked("save")
        saved = SavedModel(self.config, self._fitted(), self._items, self.neighbours, self.fingerprint, self.trained)
        return write_model(checked_path(folder, "save"), saved, overwrite=overwrite)

    @property
    def scorer(self) -> Scorer:
        """What evaluates and recommends: the model, fine-tuned and with its neighbours where the configuration says so,
        and popularity for empty histories, as no model is trained on one."""
        scorer = fine_tuned(self._fitted()) if self.neighbours is None else self.neighbours
        if self.catalogue is None or self.catalogue.counts is None:
            return scorer
        return WithNewcomers(scorer, torch.from_numpy(self.catalogue.counts))

    @staticmethod
    def load(folder: str | Path, *, device: str = "cpu", backend: str | None = None) -> SOLID:
        """Read what `save` wrote, or the model of a run's folder.

        Every file is checked against the manifest before anything of it is used. A folder that is replaced meanwhile is
        read again, so that all of the model is of one and the same; `version` tells which.

        Args:
            device: where the model computes: cpu, cuda or cuda:N. The configuration stays that of the training.
            backend: who computes the operations, "native" or "reference"; None for the configuration's.

        Raises:
            ValueError: another device or backend, a device that is not there; no such folder; a file that is missing,
                torn or changed; another format version; tensors that do not fit the configuration or the catalogue, NaN
                weights; a folder that is replaced faster than it can be read.
            TypeError: a device or backend that is no text.
        """
        check_not_forked("load")
        saved = read_model(folder, device, backend)
        solid = SOLID(saved.config)
        solid.model, solid.catalogue, solid.neighbours = saved.model, saved.catalogue, saved.neighbours
        solid.fingerprint, solid.trained, solid.version = saved.fingerprint, saved.trained, saved.version
        return solid

    @property
    def _items(self) -> Catalogue:
        assert self.catalogue is not None  # a fitted model has one
        return self.catalogue

    def _made(self) -> str:
        """Of a model without a training: what it is, in the words of an error."""
        return "one before fit()" if self.model is None else "one that load() or add_items() made"

    def _fitted(self) -> DynamicRecommender:
        if self.model is None:
            raise ValueError("SOLID: expected a fitted model, got one before fit() or load()")
        return self.model

    def _data(self, data: Any) -> tuple[Dataset, Split]:
        if data is None:
            if self.model is not None and self._training is None:
                raise ValueError(
                    "evaluate: expected the dataset that the model was fitted on, as in evaluate(data), got none "
                    "(a model that load() or add_items() made does not hold it)"
                )
            return self._measurable(self.training.dataset, self.training.split)
        dataset = data if isinstance(data, Dataset) else load_dataset(data)
        if dataset.fingerprint != self.fingerprint:
            raise ValueError(
                f"evaluate: expected the dataset the model was fitted on ({str(self.fingerprint)[:12]}), "
                f"got {dataset.name} ({dataset.fingerprint[:12]})"
            )
        assert self.catalogue is not None
        added = self.catalogue.num_items - dataset.num_items
        if added:  # negatives would be drawn among them, and every rank counts them: other metrics than the dataset's
            raise ValueError(
                f"evaluate: expected a model of the dataset's {dataset.num_items:,} items, got one with {added:,} more "
                "(the model before add_items() can be measured)"
            )
        dataset = in_order_of(self.catalogue, dataset)
        return self._measurable(dataset, make_split(self.config.evaluate.split, dataset))

    @staticmethod
    def _measurable(dataset: Dataset, split: Split) -> tuple[Dataset, Split]:
        if not len(split.test.users):
            raise ValueError(
                f"evaluate: expected test rows in {dataset.name!r}, got none in the split {split.name!r} (update() "
                "holds out validation rows alone)"
            )
        return dataset, split


@contextmanager
def _claimed(folder: Path | None, what: str) -> Iterator[None]:
    """The folder of checkpoints, if there is one, as this training's alone."""
    with ExitStack() as held:
        if folder is not None:
            distributed.by_writer(lambda: held.enter_context(owned(folder, what)))
        yield


def _new_ids(catalogue: Catalogue, dataset: Dataset) -> pl.Series:
    """The ids of the dataset's items that the catalogue has not."""
    return dataset.item_ids.filter(pl.Series(catalogue.item_index(dataset.item_ids) == 0))


def _until(dataset: Dataset, trained: Trained) -> int | None:
    """The latest time that the model was trained on, in the unit of the dataset's times; None for no time.

    Raises:
        ValueError: a dataset without times, or with numbers that look like another unit.
    """
    until, wanted = trained.until, dataset.timestamp_unit
    if until is None:
        return None
    if dataset.timestamps is None:
        raise ValueError("update: expected a dataset with timestamps, as that of the model had, got one without")
    if trained.unit in PER_SECOND and wanted in PER_SECOND:
        return int(in_other_unit("update", np.array([until]), trained.unit, wanted)[0])
    ends = [dataset.timestamps.min(), dataset.timestamps.max()]
    expect_one_unit("update", np.array([until]), np.array(ends))
    return until


def _newest_of(dataset: Dataset, catalogue: Catalogue, until: int | None) -> Split:
    """The split of an update; refused where the dataset has not what the model was trained on, and more."""
    had = 0 if catalogue.counts is None else int(catalogue.counts.sum())
    now = int((dataset.items <= catalogue.num_items).sum())
    if now < had:
        raise ValueError(
            f"update: expected the old interactions and the new ones, at least {had:,} with the model's items, got "
            f"{now:,} (`solid-ext prepare interactions --append` adds new ones to a dataset folder)"
        )
    split = newest(dataset, until)
    # Of the others, which are no later, those that came late, share the latest time, or were held out in a fit.
    left_out = max(dataset.num_interactions - int(later_than(dataset, until).sum()) - had, 0)
    return replace(split, report={**split.report, "older_not_trained_on": left_out})


def _counted(dataset: Dataset, train_end: np.ndarray) -> Catalogue:
    """The dataset's catalogue with the counts of the training part, which newcomers are recommended by."""
    return replace(dataset.catalogue, counts=Popularity(dataset, train_end).counts.numpy()[1:])
