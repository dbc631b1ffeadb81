"""What may stand in a recipe, and how one is read."""
