"""Module 1: one semantic per item, from a category column or from clusters of id, text and image features."""

from solid_ext.data.semantics.category import semantics_from_categories
from solid_ext.data.semantics.clusters import concatenate_features, semantics_from_features
from solid_ext.data.semantics.cooccurrence import cooccurrence_features
from solid_ext.data.semantics.files import read_features
from solid_ext.data.semantics.image import image_features
from solid_ext.data.semantics.make import check_semantics, make_semantics, semantics_source
from solid_ext.data.semantics.more import Added, more_semantics
from solid_ext.data.semantics.table import Semantics
from solid_ext.data.semantics.text import text_features

__all__ = [
    "Added",
    "Semantics",
    "check_semantics",
    "concatenate_features",
    "cooccurrence_features",
    "image_features",
    "make_semantics",
    "more_semantics",
    "read_features",
    "semantics_from_categories",
    "semantics_from_features",
    "semantics_source",
    "text_features",
]
