"""Training: the same space, data and model objects as inference."""

from vlakern.train.config import RECIPES, Recipe, TrainConfig, recipe

__all__ = ["RECIPES", "Recipe", "TrainConfig", "recipe"]
