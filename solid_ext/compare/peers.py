"""What users would take instead of SOLID, as methods of a comparison; none of them has a backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from solid_ext.config import Config
from solid_ext.data import Dataset, Split
from solid_ext.evaluate import Scorer, evaluate_full
from solid_ext.models import SASRecSoftmax
from solid_ext.scorers import ItemKNN, Markov, NoNetwork, Popularity
from solid_ext.train import Reporter, Stage, train_stage
from solid_ext.train.algorithm import seeded
from solid_ext.train.neighbourhood import best_neighbours
from solid_ext.train.semantics import chosen_semantics


class PeerTask(NamedTuple):
    """What a peer is built from."""

    config: Config
    dataset: Dataset
    split: Split
    folder: Path
    reporter: Reporter


PeerResult = tuple[Scorer, list[Stage]]


def popularity(task: PeerTask) -> PeerResult:
    """The counts of the training part."""
    return Popularity.of_split(task.dataset, task.split), []


def markov(task: PeerTask) -> PeerResult:
    """The steps of the training part."""
    return Markov(task.dataset, task.split.train_end), []


def itemknn(task: PeerTask) -> PeerResult:
    """Cosines of the training part, summed over all of a user's history."""
    return ItemKNN(task.dataset, task.split.train_end), []


def neighbours(task: PeerTask) -> PeerResult:
    """The neighbourhood that SOLID adds to its network, without any: its settings are chosen by the same code."""
    config, dataset, split = task.config, task.dataset, task.split
    features = chosen_semantics(config, dataset, split).features
    return best_neighbours(config, NoNetwork(config.model.encoder_length), dataset, split, features), []


def sasrec_softmax(task: PeerTask) -> PeerResult:
    """SASRec at its usual size, its epoch chosen by full ranking of the validation items."""
    config, dataset, split = task.config, task.dataset, task.split
    with seeded(config):
        model = SASRecSoftmax(dataset.num_items, config.model.length, backend=config.model.backend).to(
            config.train.device
        )

    def validate(scorer: Scorer) -> float:
        exclude = config.evaluate.exclude_history
        return evaluate_full(scorer, dataset, split.valid, exclude_history=exclude)["ndcg@10"]

    train = replace(config.train, loss="full_softmax", learning_rate=0.001, weight_decay=0.0, batch_size=2048)
    folder = task.folder / "sasrec"
    fields = replace(config, train=train).flat()
    stage = train_stage(
        "sasrec", model, dataset, split, train, validate, fields=fields, folder=folder, reporter=task.reporter
    )
    return model, [stage]


PEERS: dict[str, Callable[[PeerTask], PeerResult]] = {
    "popularity": popularity,
    "markov": markov,
    "itemknn": itemknn,
    "neighbours": neighbours,
    "sasrec-softmax": sasrec_softmax,
}


def peer_config(config: Config) -> Config:
    """What a peer takes from a comparison's configuration; its own settings are fixed, whatever the preset."""
    train, default = config.train, Config()
    shared = replace(
        default.train,
        epochs=train.epochs,
        patience=train.patience,
        seed=train.seed,
        threads=train.threads,
        device=train.device,
    )
    model = replace(default.model, length=config.model.length, generator_length=config.model.generator_length)
    return Config(semantics=config.semantics, model=model, train=shared, evaluate=config.evaluate)
