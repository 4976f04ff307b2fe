"""Compute what a recipe needs on given devices: batch, memory, disk and time."""
