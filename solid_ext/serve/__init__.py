"""Serving: recommendations of a trained model."""

from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.recommend import Recommendation, recommend
from solid_ext.serve.session import Session
from solid_ext.serve.top_items import top_items

__all__ = ["ItemTable", "Recommendation", "Session", "recommend", "top_items"]
