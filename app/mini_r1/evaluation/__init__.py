"""Success on held-out problems."""
