"""From a recipe to workers that are started, watched and ended together, on one node or many."""
