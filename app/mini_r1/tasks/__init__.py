"""The tasks a model is trained on. Pure Python."""
