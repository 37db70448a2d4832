"""Module 1 where the configuration leaves it open: the source that foretells validation rows best."""

from __future__ import annotations

from dataclasses import replace

from solid_ext.config import Config
from solid_ext.data import Dataset, Semantics, Split, make_semantics, semantics_source
from solid_ext.evaluate import Validation
from solid_ext.scorers import ItemKNN, WithNeighbours
from solid_ext.scorers.semantic_chain import DECAY, SemanticChain
from solid_ext.train.neighbourhood import NEIGHBOUR_ROWS, content_of

PROBED = ("text", "id+text", "id")  # of equally good ones the first is chosen
WEIGHTS, CONTENT = (4.0, 8.0, 16.0, 32.0), 0.4  # of the neighbours in the probe


def chosen_semantics(config: Config, dataset: Dataset, split: Split) -> Semantics:
    """The semantics as the configuration says; where it says "auto", text, ids or both as validation chooses.

    The probe of a source is what SOLID is made of without any training: a `SemanticChain` in place of the network, and
    neighbours with the content of the source's features, asked about at most 5,000 validation rows as the configuration
    validates. The neighbours stand for what ids tell by themselves: a source is worth what it adds to them. Where fewer
    than half of the items have a text there is no choice: ids. A source that cannot be made of the dataset is left out.

    Returns:
        The semantics; those that were chosen say in their report, under `probed`, how well each source did.

    Raises:
        ValueError: as `make_semantics` does.

    Source: docs/data.md#semantics.
    """

    def made(source: str) -> Semantics:
        of = config.replace(semantics=source).semantics
        return make_semantics(of, dataset, seed=config.train.seed, train_end=split.train_end)

    rule = semantics_source(config.semantics, dataset)
    if config.semantics.semantics != "auto" or rule != "text":
        return made(rule)
    found = {rule: made(rule)}
    for source in PROBED:
        if source not in found:
            try:
                found[source] = made(source)
            except ValueError:  # nobody had two items, or too few rows differ for so many clusters
                continue
    validate = Validation(config, dataset, split, most=NEIGHBOUR_ROWS)
    ids = ItemKNN(dataset, split.train_end, config.model.length)

    def probe(semantics: Semantics) -> float:
        chain, content = SemanticChain(dataset, split.train, semantics, ids.length), content_of(semantics.features)
        knn = ids if content is None else ItemKNN.of(ids.similarity + content * CONTENT, ids.length)
        return max(validate.of_each([WithNeighbours(chain, knn, weight, DECAY) for weight in WEIGHTS]))

    probed = {source: probe(semantics) for source, semantics in found.items()}
    best = found[max(probed, key=probed.__getitem__)]
    return replace(best, report={**best.report, "probed": probed})
