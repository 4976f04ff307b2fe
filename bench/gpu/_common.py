"""What the GPU benches share: random models of real shapes, a tokenizer that fits them, recipe, lengths, JSON files.

Nothing is fetched: a model is its shape (`plan/shapes.py`) with random weights, made on the device, and its
tokenizer is made here, with as many tokens as the model has embeddings.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
# For trainer_speed.py and _record.py; and for the kit, where it is not installed.
sys.path[:0] = [str(BENCH), str(BENCH.parent / "app")]

from mini_r1.plan.shapes import KNOWN, ModelShape  # noqa: E402
from mini_r1.recipe.fields import Recipe  # noqa: E402
from mini_r1.recipe.recipe_file import find_recipe, load_recipe  # noqa: E402

SHAPES: dict[str, ModelShape] = {
    "0.5b": KNOWN["Qwen/Qwen2.5-0.5B-Instruct"],
    "1.5b": KNOWN["Qwen/Qwen2.5-1.5B-Instruct"],
    "tiny": ModelShape(
        name="tiny", kind="qwen2", hidden=64, layers=2, heads=2, kv_heads=1, head_size=32, intermediate=192,
        vocabulary=4096, tied=True, max_positions=2048,
    ),
}  # fmt: skip
"""`tiny` is for a CPU: it shows that the bench works, and measures nothing. vLLM on a CPU needs heads of 32 or more."""

MEDIAN, SIGMA, LIMIT = 345, 0.51, 1024
"""Completion lengths in tokens: log-normal, cut at LIMIT, the original's max_completion_length.

The original published the mean over its run: 480 tokens at first, 350 at step 100, 450 at step 130, 310 at step 450; by
straight lines between them 389 over the 450 steps. It published no distribution. The tail is an assumption: one
completion in 64, a step of one worker, runs into the limit of 1,024. The two give median and sigma."""
PROMPTS, GENERATIONS = 8, 8
"""Prompts of a step of one worker, and completions of each: the published recipe."""
PROMPT = 177
"""Tokens of a prompt with `make_tokenizer`'s tokenizer, in the mean; Qwen's own takes about as many."""
WARM_UP = 8
"""The first step of a side is for kernels and allocators to warm up: its completions have an eighth of the length."""
SEED = 9
HUB_ROWS = Path(__file__).with_name("hub_rows.jsonl")
"""The first 200 of the hub's data set."""


# --- model and tokenizer


def words(count: int) -> dict[str, int]:
    """A vocabulary of `count` words: Qwen's marks, the prompt's words, printable characters, and made-up words."""
    import re
    import string

    from mini_r1.tasks.countdown.prompt import PREFILL, SYSTEM_MESSAGE, USER_MESSAGES

    text = "\n".join([SYSTEM_MESSAGE, *USER_MESSAGES.values(), PREFILL, "system\nuser\nassistant\n"])
    known = dict.fromkeys(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>", *sorted(string.printable)])
    known.update(dict.fromkeys(re.findall(PIECE, text)))
    letters, number = string.ascii_lowercase, 0
    while len(known) < count:
        made, rest = "", number
        for _ in range(4):
            rest, letter = divmod(rest, 26)
            made += letters[letter]
        known.setdefault(f" {made}", None)
        number += 1
    return {word: i for i, word in enumerate(list(known)[:count])}


PIECE = r" ?[A-Za-z]+|[\s\S]"
"""A word with the space before it, or one character: a prompt then has about as many tokens as with Qwen's own."""


def make_tokenizer(vocabulary: int) -> Any:
    """A word-level tokenizer with a token for every id that a model of this vocabulary can sample."""
    from mini_r1.training.from_scratch import CHAT_TEMPLATE
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(words(vocabulary), unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<|unknown|>",
        additional_special_tokens=["<|im_start|>"], padding_side="left", clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def made_model(name: str, scratch: Path) -> Path:
    """The folder of a random bfloat16 model of a shape; made on first use, by a separate process.

    What it takes of the GPU is then given back before anything is measured.
    """
    folder = scratch / f"model-{name}"
    if not folder.is_dir():
        # DeepSpeed logs to standard output, which --json needs.
        subprocess.run([sys.executable, __file__, name, str(scratch)], check=True, stdout=sys.stderr)
    return folder


def make_model(name: str, scratch: Path) -> None:
    """Weights on the device, then on disk; the folder is there only when it is whole."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = SHAPES[name]
    tokenizer = make_tokenizer(shape.vocabulary)
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_positions, tie_word_embeddings=shape.tied, rms_norm_eps=1e-6,
        rope_theta=1e6, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    half = scratch / f".model-{name}-{os.getpid()}"
    model.to("cpu").save_pretrained(half)
    tokenizer.save_pretrained(half)
    try:
        half.rename(scratch / f"model-{name}")
    except OSError:  # another process was faster
        shutil.rmtree(half)


def bench_recipe(folder: Path, **changes: Any) -> Recipe:
    """The published recipe on one worker that generates for itself: 8 prompts x 8 completions a step.

    Generated problems, sdpa by default, nothing saved. A random model is never right, so random rewards make the groups
    differ.
    """
    return load_recipe(find_recipe("mini-r1-3b"), [f"{k}={v}" for k, v in bench_changes(folder, **changes).items()])


def bench_changes(folder: Path, **changes: Any) -> dict[str, Any]:
    """What `bench_recipe` changes in the published recipe, by key."""
    return {
        "model_name_or_path": folder, "attn_implementation": "sdpa", "use_vllm": "false", "tf32": "null",
        "dataset_id_or_path": "generated", "dataset_rows": 400, "logging_steps": 1, "save_strategy": "no",
        "rewards": "{format: 1, equation: 1, random: 1}", **changes,
    }  # fmt: skip


# --- machine


def gpu() -> str:
    """Name, memory and driver of the first GPU; empty without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).total
        return f"{name}, {memory / 2**30:.1f} GiB, driver {pynvml.nvmlSystemGetDriverVersion()}; "
    except pynvml.NVMLError:
        return ""


# --- lengths


def wait_for_gpu() -> None:
    """Wait until the GPU has done its work; return at once without a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def drawn_lengths(row: int, limit: int, attempt: int = 0) -> list[int]:
    """Lengths of a prompt's completions, end token included.

    The completions of a step have the distribution's 64 quantiles between them, so that each step has its mean and its
    tail, and a draw without replacement says which completion has which.

    Args:
        row: of the run's ordered problems.
        limit: the longest, in tokens; median and limit of the distribution are scaled to it.
        attempt: another draw for a bench that is resumed.
    """
    step, position = divmod(row, PROMPTS)
    count = PROMPTS * GENERATIONS
    normal = statistics.NormalDist(math.log(MEDIAN / LIMIT * limit), SIGMA)
    lengths = [max(2, min(limit, round(math.exp(normal.inv_cdf((i + 0.5) / count))))) for i in range(count)]
    random.Random(f"{SEED}/{attempt}/{step}").shuffle(lengths)
    return lengths[GENERATIONS * position :][:GENERATIONS]


def table_of_lengths(rows: Any, tokenizer: Any, lengths: Any) -> dict[tuple[int, ...], list[int]]:
    """For each prompt, as token ids, the lengths that its completions are to have.

    Args:
        rows: the run's ordered data set.
        tokenizer: of the model.
        lengths: a function of the row's number; a prompt that comes twice keeps its first.
    """
    from mini_r1.generation.prompts import token_ids

    table: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(token_ids(tokenizer, rows["prompt"])):
        table.setdefault(tuple(ids), lengths(row))
    return table


class DrawnLengths:
    """Makes completions end at given lengths: a random model never writes the end token at the right moment.

    The end token cannot be drawn before, and is what is drawn then. Both trainers pay for it with the same two small
    operations a token.

    Args:
        table: see `table_of_lengths`.
        eos: the end token.
    """

    def __init__(self, table: dict[tuple[int, ...], list[int]], eos: int) -> None:
        self._table = table
        self._eos = eos

    def of(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """For all completions of some prompts, those of one prompt next to one another."""
        return [length for prompt in prompts for length in self._table[tuple(prompt)]]

    def into_the_kit(self) -> None:
        """Replace the sampler's draw, for the rest of the process.

        `next_token` does not know which completions its rows are; it follows from the lengths, because the sampler
        drops the finished ones every COMPACT_EVERY tokens.
        """
        import torch
        from mini_r1.generation import sampler

        batch, draw = sampler._sample_batch, sampler.next_token
        state: dict[str, Any] = {}

        def sample_batch(model: Any, prompts: Any, *rest: Any) -> Any:
            state.update(all=self.of(prompts), step=0)
            return batch(model, prompts, *rest)

        def next_token(logits: Any, config: Any, generator: Any) -> Any:
            step = state["step"]
            if step % sampler.COMPACT_EVERY == 0:
                left = [length for length in state["all"] if length > step]
                state["left"] = torch.tensor(left, device=logits.device)
            state["step"] = step + 1
            assert len(state["left"]) == len(logits)
            logits[:, self._eos] = -torch.inf
            return torch.where(state["left"] == step + 1, self._eos, draw(logits, config, generator))

        sampler._sample_batch, sampler.next_token = sample_batch, next_token

    def into_stock(self, model: Any) -> None:
        """Give `model.generate` a logits processor."""
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        drawn, generate = self, model.generate

        class Ends(LogitsProcessor):  # type: ignore[misc]
            def __init__(self, lengths: list[int], width: int, device: Any) -> None:
                self.lengths = torch.tensor(lengths, device=device)
                self.width = width

            def __call__(self, input_ids: Any, scores: Any) -> Any:
                scores[:, drawn._eos] = -torch.inf
                ends = self.lengths == input_ids.shape[1] - self.width + 1
                only = torch.full_like(scores[:1], -torch.inf)
                only[:, drawn._eos] = 0
                return torch.where(ends.unsqueeze(1), only, scores)

        def ending(input_ids: Any, attention_mask: Any, **options: Any) -> Any:
            prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
            ends = Ends(drawn.of(prompts), input_ids.shape[1], input_ids.device)
            return generate(
                input_ids=input_ids, attention_mask=attention_mask, logits_processor=LogitsProcessorList([ends]),
                **options,
            )  # fmt: skip

        model.generate = ending


def mean(values: Sequence[float]) -> float:
    """0 of none."""
    return statistics.mean(values) if values else 0.0


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]))
