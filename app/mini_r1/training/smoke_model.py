"""The tiny random model of `mini-r1 doctor --smoke`, written by a process of its own: the doctor does without torch.

python -m mini_r1.training.smoke_model DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from mini_r1.training.from_scratch import DEMO_FOR_VLLM, save_untrained

if __name__ == "__main__":
    save_untrained(Path(sys.argv[1]), kind=DEMO_FOR_VLLM)
