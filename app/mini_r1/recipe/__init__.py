"""What to train: the recipe, its keys and files, and the built-in models. No torch."""
