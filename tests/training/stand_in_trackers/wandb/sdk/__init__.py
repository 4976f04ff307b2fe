"""A stand-in: see wandb/__init__.py."""
