"""The tiny random model of `mini-r1 doctor --smoke`, written by a process of its own: the doctor does without torch.

python -m mini_r1.training.smoke_model DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from mini_r1.training.demo_model import save_untrained

HEADS = 2
"""Of 32 numbers each: vLLM 0.7.0 has no attention kernel for the demo's heads of 16."""

if __name__ == "__main__":
    save_untrained(Path(sys.argv[1]), heads=HEADS)
