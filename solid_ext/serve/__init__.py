"""Serving: what a trained model is asked."""

from solid_ext.serve.explain import Explanation, HistoryPart, SemanticPart, explain, explain_items
from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.lists import evaluate_beyond, recommended_lists
from solid_ext.serve.on_device import DeviceBytes, OnDevice
from solid_ext.serve.recommend import Recommendation, recommend
from solid_ext.serve.scores import score
from solid_ext.serve.session import Session
from solid_ext.serve.top_items import Rules, top_items
from solid_ext.serve.users import UserQuery, user_query, write_users
from solid_ext.serve.vectors import item_vectors, similar_items, user_vectors

__all__ = [
    "DeviceBytes",
    "Explanation",
    "HistoryPart",
    "ItemTable",
    "OnDevice",
    "Recommendation",
    "Rules",
    "SemanticPart",
    "Session",
    "UserQuery",
    "evaluate_beyond",
    "explain",
    "explain_items",
    "item_vectors",
    "recommend",
    "recommended_lists",
    "score",
    "similar_items",
    "top_items",
    "user_query",
    "user_vectors",
    "write_users",
]
