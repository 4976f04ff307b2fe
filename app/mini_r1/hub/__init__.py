"""Fetch models and data from the Hugging Face hub, and publish a run to it."""
