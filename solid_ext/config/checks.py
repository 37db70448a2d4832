"""What a configuration must be: each value of its type and in its range, and together something that exists."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from solid_ext.config.names import nearest

if TYPE_CHECKING:
    from solid_ext.config.config import Config

MOST_LAYERS = 1_000  # of a kind: a module each, so that a typing error would make millions before anything is said
MOST_DIM = 65_536
MOST_THREADS = 1_024


def check_types(section: Any) -> None:
    """Refuse a value of another type than its field declares, in this section and in those inside it.

    Raises:
        ValueError: none of a field's choices.
        TypeError: another type.
    """
    for name, value in vars(section).items():
        if dataclasses.is_dataclass(value):
            check_types(value)
        else:
            _check_type(type(section), name, value)


def check_values(config: Config) -> None:
    """Refuse the first value that is out of its range, or that does not go with another.

    Raises:
        ValueError: with the field's name, what is expected and what it is.
    """
    semantics, model, train, evaluate = config.semantics, config.model, config.train, config.evaluate
    item, codebook = model.item, model.item.codebook
    at_least_one = {
        "category_min_items": semantics.category_min_items,
        "length": model.length,
        "dim": model.dim,
        "dynamic_layers": model.dynamic_layers,
        "heads": model.heads,
        "blocks": model.blocks,
        "codebook_hidden": codebook.codebook_hidden,
        "rank": model.rank,
        "negatives": train.negatives,
        "batch_size": train.batch_size,
        "epochs": train.epochs,
        "patience": train.patience,
        "eval_negatives": evaluate.eval_negatives,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    at_most = {
        "blocks": MOST_LAYERS,
        "dynamic_layers": MOST_LAYERS,
        "dim": MOST_DIM,
        "generator_dim": MOST_DIM,
        "length": MOST_DIM,
        "generator_length": MOST_DIM,
        "codebook_hidden": MOST_DIM,
        "rank": MOST_DIM,
    }
    sizes = at_least_one | {"generator_dim": model.generator_dim, "generator_length": model.generator_length}
    for name, most in at_most.items():
        if sizes[name] > most:
            raise ValueError(f"{name}: expected at most {most:,}, got {sizes[name]:,}")
    for name, number in {
        "generator_dim": model.generator_dim,
        "generator_length": model.generator_length,
        "finetune_steps": model.finetune_steps,
        "threads": train.threads,
        "shared_negatives": train.shared_negatives,
    }.items():
        if number < 0:
            raise ValueError(f"{name}: expected 0 or more, got {number}")
    if train.shared_negatives > 0 and train.loss not in ("auto", "sampled_softmax_log_q"):
        raise ValueError(
            f"shared_negatives: expected 0 with loss={train.loss} (they are for sampled_softmax_log_q), got "
            f"{train.shared_negatives}"
        )
    if train.shared_negatives > 0 and model.backbone == "din":
        raise ValueError(
            f"shared_negatives: expected 0 with backbone din (a state a pair), got {train.shared_negatives}"
        )
    if train.threads > MOST_THREADS:
        raise ValueError(f"threads: expected at most {MOST_THREADS:,}, got {train.threads:,}")
    if not 0 <= train.seed < 2**63:
        raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {train.seed}")
    if semantics.num_semantics < -1:
        raise ValueError(f"num_semantics: expected a number, 0 or -1, got {semantics.num_semantics}")
    if model.dim % model.heads:
        raise ValueError(f"heads: expected a divisor of dim={model.dim}, got {model.heads}")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", train.device):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {train.device!r}")
    if train.tf32 and train.device == "cpu":
        raise ValueError("tf32: expected device cuda, got cpu")
    if model.finetune_steps and model.generates:
        raise ValueError("finetune_steps: expected 0 with dynamic layers (only static ones are fine-tuned)")
    if model.personal_bias and not model.generates:
        raise ValueError("personal_bias: expected False without semantic_trunk and item_branch, which generate it")
    if train.loss == "full_softmax" and model.backbone == "din":
        raise ValueError("loss: expected bce or a sampled softmax with backbone din, got full_softmax (a state a pair)")
    if not item.delta > 0:
        raise ValueError(f"delta: expected a positive number or inf, got {item.delta}")
    if not 0 <= model.dropout < 1:
        raise ValueError(f"dropout: expected 0 <= dropout < 1, got {model.dropout}")
    if not (train.learning_rate > 0 and math.isfinite(train.learning_rate)):
        raise ValueError(f"learning_rate: expected a positive number, got {train.learning_rate}")
    for name, rate in {
        "clip_gradient": train.clip_gradient,
        "alignment": train.stage2.alignment,
        "weight_decay": train.weight_decay,
        "finetune_rate": model.finetune_rate,
    }.items():
        if not (rate >= 0 and math.isfinite(rate)):
            raise ValueError(f"{name}: expected a number of 0 or more, got {rate}")


_hints = cache(get_type_hints)


def _check_type(section: type, name: str, value: Any) -> None:
    """A field's value has its declared type (an int will do for a float)."""
    hint = _hints(section)[name]
    choices = getattr(hint, "__args__", None)
    if choices is not None:
        if value not in choices:
            spelt = nearest(value, map(str, choices))
            raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}{spelt}")
        return
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return
    if type(value) is not hint:
        raise TypeError(f"{name}: expected {hint.__name__}, got {value!r}")
