"""What the configuration asks of the protocols: one metric on the validation rows, both protocols on the test rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solid_ext.config import Config
from solid_ext.data import Dataset, Rows, Split
from solid_ext.evaluate.metrics import Metrics
from solid_ext.evaluate.protocols import (
    evaluate_full,
    evaluate_sampled,
    full_metrics,
    full_ranks_of_each,
    sampled_candidates,
    sampled_metrics,
    sampled_scores_of_each,
)
from solid_ext.evaluate.scorer import Scorer

VALIDATION_SEED = 1_000_003  # the test rows' negatives are drawn from the plain seed, so the two never coincide


class Validation:
    """The configuration's `validation` of a model: larger is better, against the same negatives every time.

    With `most`, on so many of them, spread evenly.
    """

    def __init__(self, config: Config, dataset: Dataset, split: Split, most: int | None = None) -> None:
        self.config, self.dataset, self.rows = config, dataset, split.valid
        if most is not None and len(self.rows) > most:
            self.rows = self.rows.take(np.linspace(0, len(self.rows) - 1, most).astype(np.int64))
        self.candidates = None
        if config.train.validation_protocol == "sampled":
            self.candidates = sampled_candidates(
                dataset, self.rows, negatives=config.evaluate.eval_negatives, seed=config.train.seed + VALIDATION_SEED
            )

    def __call__(self, model: Scorer) -> float:
        return self.of_each([model])[0]

    def of_each(self, models: Sequence[Scorer]) -> list[float]:
        """The metric of each model; all are asked about a batch before the next one, so that they can share work."""
        if self.candidates is None:
            exclude = self.config.evaluate.exclude_history
            ranks = full_ranks_of_each(models, self.dataset, self.rows, exclude_history=exclude)
            found = [full_metrics(of_model, self.rows) for of_model in ranks]
        else:
            scores = sampled_scores_of_each(models, self.dataset, self.rows, self.candidates)
            ranked = self.config.train.validation_metric != "user_auc"
            found = [sampled_metrics(of, self.rows, self.candidates, ranks_alone=ranked) for of in scores]
        return [metrics.values[self.config.train.validation_metric] for metrics in found]


def both_protocols(config: Config, scorer: Scorer, dataset: Dataset, rows: Rows) -> dict[str, Metrics]:
    """The rows by the sampled protocol, its negatives drawn from the seed, and by full ranking: `sampled`, `full`."""
    negatives, exclude = config.evaluate.eval_negatives, config.evaluate.exclude_history
    return {
        "sampled": evaluate_sampled(scorer, dataset, rows, negatives=negatives, seed=config.train.seed),
        "full": evaluate_full(scorer, dataset, rows, exclude_history=exclude),
    }
