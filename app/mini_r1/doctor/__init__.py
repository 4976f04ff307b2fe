"""Checks of a machine and a recipe before a run, and the smoke run."""
