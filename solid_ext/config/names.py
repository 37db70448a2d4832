"""What is said of a name that is no field: what became of it, or which one it is spelt like."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

OLD_NAMES = {
    "adaptive_layers": "now dynamic_layers",
    "residual": "now dynamic_residual",
    "generator": "now low_rank, True or False",
    "gradient": "now codebook_gradient",
    "update": "now codebook_update",
    "candidates": "now eval_negatives",
    "monitor": "now a part of validation, as in sampled:user_auc",
    "log_q": "now a loss, sampled_softmax_log_q",
    "semantic_levels": "gone: no model read further levels",
    "id_encoder": "gone: id_features takes a trained model's embeddings, and without them co-occurrence is factored",
    "codebook_learns": "gone: the codebook starts from the semantics and is tied to them by alignment",
}
"""Fields of earlier versions, by name: what became of each."""


def nearest(name: Any, known: Iterable[str]) -> str:
    """`; did you mean ..?` with the known name that is spelt most like this one; nothing where none is."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def unknown_field(name: Any, known: Iterable[str]) -> str:
    """`expected .., got ..` for a name that is none of the known fields."""
    if name in OLD_NAMES:
        return f"expected a field of this version, got {name!r}, which is {OLD_NAMES[name]}"
    known = list(known)
    return f"expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
