"""Serving: recommendations of a trained model."""

from solid_ext.serve.recommend import Recommendation, recommend, top_items

__all__ = ["Recommendation", "recommend", "top_items"]
