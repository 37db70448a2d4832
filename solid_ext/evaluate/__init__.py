"""Evaluation: what is asked of a model, the metrics, the two protocols, beyond accuracy, what a difference means."""

from __future__ import annotations

from solid_ext.evaluate.beyond import beyond_accuracy
from solid_ext.evaluate.known import ranks_of_known
from solid_ext.evaluate.metrics import (
    Metrics,
    areas_of_first,
    auc,
    auc_per_user,
    hr,
    hr_per_row,
    log_loss,
    mean_per_user,
    mrr,
    mrr_per_row,
    ndcg,
    ndcg_per_row,
    ranking_metrics,
    ranks_of_first,
    user_auc,
)
from solid_ext.evaluate.protocols import (
    evaluate_full,
    evaluate_sampled,
    full_ranks,
    sampled_candidates,
    sampled_scores,
)
from solid_ext.evaluate.rows import row_table
from solid_ext.evaluate.scorer import Scorer
from solid_ext.evaluate.significance import Difference, holm, in_words, paired_differences, seed_differences
from solid_ext.evaluate.validation import Validation, both_protocols

__all__ = [
    "Difference",
    "Metrics",
    "Scorer",
    "Validation",
    "areas_of_first",
    "auc",
    "auc_per_user",
    "beyond_accuracy",
    "both_protocols",
    "evaluate_full",
    "evaluate_sampled",
    "full_ranks",
    "holm",
    "hr",
    "hr_per_row",
    "in_words",
    "log_loss",
    "mean_per_user",
    "mrr",
    "mrr_per_row",
    "ndcg",
    "ndcg_per_row",
    "paired_differences",
    "ranking_metrics",
    "ranks_of_first",
    "ranks_of_known",
    "row_table",
    "sampled_candidates",
    "sampled_scores",
    "seed_differences",
    "user_auc",
]
