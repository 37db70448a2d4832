"""The methods that are compared: each is a few fields of the configuration, over any backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from solid_ext.config import Config, nearest


@dataclass(frozen=True)
class Method:
    """A method: what it sets in the configuration, and what it is."""

    fields: Mapping[str, Any]
    description: str


_STATIC = {
    "semantic_trunk": False,
    "item_branch": False,
    "personal_bias": False,
    "semantic_start": False,
    "finetune_steps": 0,
}
_ITEM_ALONE = {
    "semantic_trunk": False,
    "use_codebook": False,
    "shared_items": True,
    "delta": math.inf,
    "low_rank": False,
    "personal_bias": False,
}

METHODS: dict[str, Method] = {
    "static": Method(_STATIC, "an MLP in place of the dynamic layers"),
    "static-semantic-start": Method(
        {**_STATIC, "semantic_start": True}, "static, started from SOLID's stage 1: the control for Algorithm 1"
    ),
    "finetune": Method(
        {**_STATIC, "finetune_steps": 3},
        "static, its last layers fine-tuned on each user's own history when it scores; its epoch is chosen without",
    ),
    "duet": Method(_ITEM_ALONE, "layers generated from the backbone's item embeddings, unbounded, without codebook"),
    "apg": Method({**_ITEM_ALONE, "low_rank": True}, "a low-rank core generated from the backbone's item embeddings"),
    "solid": Method({}, "semantic trunk, bounded item branch, codebook, alignment"),
    "solid-trunk-only": Method({"item_branch": False}, "Module 2 alone: the semantic trunk"),
    "solid-item-only": Method({"semantic_trunk": False}, "Modules 3 and 4 without 2: the bounded item branch"),
    "solid-no-codebook": Method({"use_codebook": False}, "without Module 4: the item branch reads its embeddings"),
    "solid-no-alignment": Method({"alignment": 0.0}, "without the alignment loss of Eq. 13"),
    "solid-apg": Method({"low_rank": True}, "SOLID on APG's low-rank generator"),
    "solid-id": Method({"semantics": "id"}, "SOLID on ids alone: it reads no text, as static, DUET and APG read none"),
    "solid-bias": Method(
        {"personal_bias": True}, "a personal bias in place of the layers: the control for what they are worth"
    ),
    "solid-cold": Method({"stage2_start": "cold"}, "stage 2 from random parameters but for the codebook"),
}


def method_config(config: Config, name: str) -> Config:
    """The configuration with the method's fields set.

    Raises:
        ValueError: no such method.
    """
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}{nearest(name, METHODS)}")
    return config.replace(**METHODS[name].fields)
