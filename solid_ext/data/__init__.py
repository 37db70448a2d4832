"""Interactions, splits, sequences, negatives and item semantics; where data comes from."""

from solid_ext.data.catalogue import Catalogue
from solid_ext.data.dataset import Dataset, load_dataset
from solid_ext.data.growth import in_order_of
from solid_ext.data.interactions import read_interactions
from solid_ext.data.negatives import NegativeSampler
from solid_ext.data.recipes import RECIPES, Recipe, Statistics, compare_with_table1, prepare_raw
from solid_ext.data.semantics import (
    Semantics,
    check_semantics,
    concatenate_features,
    cooccurrence_features,
    image_features,
    make_semantics,
    read_features,
    semantics_from_categories,
    semantics_from_features,
    semantics_source,
    text_features,
)
from solid_ext.data.sequences import gather_sequences
from solid_ext.data.sources import MOVIELENS_100K_LICENCE, movielens_100k
from solid_ext.data.split import Rows, Split, everything, global_time, latest, leave_one_out, make_split, newest
from solid_ext.data.synthetic import SyntheticTruth, synthetic_dataset

__all__ = [
    "MOVIELENS_100K_LICENCE",
    "RECIPES",
    "Catalogue",
    "Dataset",
    "NegativeSampler",
    "Recipe",
    "Rows",
    "Semantics",
    "Split",
    "Statistics",
    "SyntheticTruth",
    "check_semantics",
    "compare_with_table1",
    "concatenate_features",
    "cooccurrence_features",
    "everything",
    "gather_sequences",
    "global_time",
    "image_features",
    "in_order_of",
    "latest",
    "leave_one_out",
    "load_dataset",
    "make_semantics",
    "make_split",
    "movielens_100k",
    "newest",
    "prepare_raw",
    "read_features",
    "read_interactions",
    "semantics_from_categories",
    "semantics_from_features",
    "semantics_source",
    "synthetic_dataset",
    "text_features",
]
