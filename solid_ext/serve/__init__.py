"""Serving: recommendations of a trained model."""

from solid_ext.serve.item_table import ItemTable
from solid_ext.serve.recommend import Recommendation, recommend
from solid_ext.serve.top_items import Rules, top_items
from solid_ext.serve.users import UserQuery, user_query, write_users

__all__ = ["ItemTable", "Recommendation", "Rules", "UserQuery", "recommend", "top_items", "user_query", "write_users"]
