"""What is said of a name that is no field: what became of it, or which one it is spelt like."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

S = TypeVar("S", bound="Section")

CODEBOOK = "gone: no way of learning the codebook did better than its gradient, and the layer Codebook has the others"
OLD_NAMES = {
    "adaptive_layers": "now dynamic_layers",
    "residual": "now dynamic_residual",
    "generator": "now low_rank, True or False",
    **dict.fromkeys(("gradient", "codebook_gradient", "update", "codebook_update", "revive_after"), CODEBOOK),
    "candidates": "now eval_negatives",
    "monitor": "now a part of validation, as in sampled:user_auc",
    "log_q": "now a loss, sampled_softmax_log_q",
    "semantic_levels": "gone: no model read further levels",
    "id_encoder": "gone: id_features takes a trained model's embeddings, and without them co-occurrence is factored",
    "codebook_learns": "gone: the codebook starts from the semantics and is tied to them by alignment",
}
"""Fields of earlier versions, by name: what became of each."""


class _Signature:
    """The fields, which the catch-all of `Section.__new__` would hide from `help` and the reference."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        own = inspect.signature(owner.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


class Section:
    """A dataclass of the configuration, whose constructor says of a foreign field where that lies."""

    __signature__ = _Signature()

    def __new__(cls: type[S], *values: Any, **fields: Any) -> S:
        own = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name, value in fields.items():
            if name not in own:
                raise TypeError(f"{cls.__name__}: expected one of {', '.join(own)}, got {_elsewhere(name, value)}")
        return super().__new__(cls)


def _elsewhere(name: str, value: Any) -> str:
    """A name that is no field of a section: which section it is a field of, or which field is spelt like it."""
    homes = {field.name: kind for kind in Section.__subclasses__() for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if name in homes:
        return f"{name}, a field of {homes[name].__name__} (Config().replace({name}={value!r:.40}) sets it)"
    if name in OLD_NAMES:
        return f"{name!r}, which is {OLD_NAMES[name]}"
    return f"{name!r}{nearest(name, homes)}"


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
