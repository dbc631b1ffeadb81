"""The stages of a model's life that run from a recipe, each read top to bottom; ``demo`` strings them together."""
