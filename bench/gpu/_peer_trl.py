"""TRL's side of peers.py, run by the Python of TRL's own environment: a job's file in, a result's file out."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH.parent / "app")]


def main() -> None:
    job_file, result_file, folder = sys.argv[1:]
    import datasets
    import torch
    from _sides import reward_function
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    job = json.loads(Path(job_file).read_text())
    ended: list[float] = []

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ended.append(time.time())

    settings = job["settings"]
    dtype = torch.bfloat16 if settings["bf16"] else torch.float32
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa"),
        [reward_function(name) for name in job["rewards"]],
        GRPOConfig(**settings, output_dir=folder),
        datasets.Dataset.from_list(json.loads(Path(job["rows"]).read_text())),
        # AutoTokenizer of transformers 5 takes the model's kind for the tokenizer's.
        processing_class=PreTrainedTokenizerFast.from_pretrained(job["model"], padding_side="left"),
        callbacks=[Ends()],
    )
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "reward" in row]
    seconds = [later - earlier for earlier, later in pairwise(ended)]
    Path(result_file).write_text(json.dumps({"seconds": seconds, "tokens": sum(lengths) / len(lengths)}))


if __name__ == "__main__":
    main()
