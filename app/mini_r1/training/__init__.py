"""GRPO on Countdown: the trainer, what it saves, and the built-in models."""
