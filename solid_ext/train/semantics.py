"""Module 1 where the configuration leaves it open: the source that foretells validation rows best."""

from __future__ import annotations

from dataclasses import replace

from solid_ext.config import Config
from solid_ext.data import Dataset, Semantics, Split, make_semantics, semantics_source
from solid_ext.evaluate import Validation
from solid_ext.scorers.semantic_chain import SemanticChain

PROBED = ("text", "id+text", "id")  # of equally good ones the first is chosen
PROBE_ROWS = 5_000  # of the validation


def chosen_semantics(config: Config, dataset: Dataset, split: Split) -> Semantics:
    """The semantics as the configuration says; where it says "auto", text, ids or both as validation chooses.

    A `SemanticChain` of each is asked about at most 5,000 validation rows by the sampled protocol, as stage 1 is
    validated. Where fewer than half of the items have a text there is no choice: ids. A source that cannot be made of
    this dataset is left out.

    Returns:
        The semantics; those that were chosen say in their report, under `probed`, how well each source did.

    Raises:
        ValueError: as `make_semantics` does.

    Source: docs/data.md#semantics.
    """

    def made(source: str) -> Semantics:
        of = replace(config.semantics, semantics=source)
        return make_semantics(of, dataset, seed=config.train.seed, train_end=split.train_end)

    rule = semantics_source(config.semantics, dataset)
    if config.semantics.semantics != "auto" or rule != "text":
        return made(rule)
    sampled = config.replace(validation=f"sampled:{config.train.validation_metric}")
    validate = Validation(sampled, dataset, split, most=PROBE_ROWS)
    found = {rule: made(rule)}
    for source in PROBED:
        if source not in found:
            try:
                found[source] = made(source)
            except ValueError:  # nobody had two items, or too few rows differ for so many clusters
                continue
    chains = [SemanticChain(dataset, split.train, each, config.model.length) for each in found.values()]
    probed = dict(zip(found, validate.of_each(chains), strict=True))
    best = found[max(probed, key=probed.__getitem__)]
    return replace(best, report={**best.report, "probed": probed})
