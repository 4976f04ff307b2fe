"""A person's own problems, answered by a run's untrained and trained model side by side."""
