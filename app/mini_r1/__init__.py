"""Mini-R1 Kit: GRPO on the Countdown game, on a laptop, a workstation or a cluster."""

__version__ = "0.1.0"
