"""Stop strings in the text of tokens: where a completion ends for any tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from mini_r1.generation.stop_strings import StopStringSearch, is_truncated, saved_tokenizer
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.generation.sampling_cases import byte_tokenizer, first_stop

PROMPT = [40, 60, 13, 9]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def tokens_of(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert None not in ids
    return ids


def search(tokenizer: PreTrainedTokenizerFast, ids: list[int], strings: list[str], at_once: int) -> int | None:
    """Feed `at_once` tokens a time, as a sampler does."""
    found = StopStringSearch(tokenizer, strings, PROMPT)
    for start in range(0, len(ids), at_once):
        kept = found.feed(ids[start : start + at_once])
        if kept is not None:
            return start + kept
    return None


@pytest.mark.parametrize(
    ("tokens", "string", "kept"),
    [
        (["x", "</answer>", "x"], "</answer>", 2),
        (["x", "</", "answer", ">", "x"], "</answer>", 4),
        (["</", "answer", ">Ċ", "x"], "</answer>", 3),  # the token has a line break after it, which stays
        (["</", "answer", "<|im_start|>", ">", "x"], "</answer>", 4),  # a special token has no text
        (["</", "answer", "x", ">"], "</answer>", None),
        (["a", "Ã", "©", "b"], "é", 3),  # one character, two tokens
        (["a", "Ã", "©", "b"], "aé", 3),
        (["a", "Ġâ", "Ģ", "ľ", "b"], "a ", 4),  # as vLLM: not before the character that follows in the token is whole
        (["a", "Ġâ", "b"], "a ", 3),  # nor before it is known to be none
        (["a", "Ġâ"], "a ", None),
        (["a", "Ġâ", *["Ģ", "Ġâ"] * 20, "b"], "a ", 43),
        (["a", "a", "a", "a"], "aaa", 3),
    ],
)
@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
def test_the_token_that_completes_a_stop_string_is_the_last(
    tokenizer: PreTrainedTokenizerFast, tokens: list[str], string: str, kept: int | None, at_once: int
) -> None:
    ids = tokens_of(tokenizer, *tokens)
    assert search(tokenizer, ids, [string], at_once) == kept == first_stop(tokenizer, ids, [string])


def test_any_tokens_and_strings_end_where_the_whole_text_says(tokenizer: PreTrainedTokenizerFast) -> None:
    rng, ends = random.Random(0), set()
    few = tokens_of(tokenizer, "a", "b", "Ã", "©", "â", "Ģ", "</", ">", "Ġâ", "<|im_start|>", "er")
    for _ in range(150):
        ids = [rng.choice(few) for _ in range(40)]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        places = [rng.randrange(len(text) - 4) for _ in range(2)]
        strings = [s for at in places if "\ufffd" not in (s := text[at : at + rng.randint(1, 4)])] or ["aé</"]
        found = search(tokenizer, ids, strings, rng.choice([1, 3, 8]))
        assert found == first_stop(tokenizer, ids, strings)
        ends.add(found)
    assert len(ends) > 20


def test_a_string_in_the_prompt_or_across_its_end_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, ids = tokens_of(tokenizer, "</", "answer"), tokens_of(tokenizer, ">", "x")
    assert StopStringSearch(tokenizer, ["</answer>", "</"], prompt).feed(ids) is None


def test_an_id_without_a_token_has_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Models have more embeddings than their tokenizer has tokens."""
    ids = [*tokens_of(tokenizer, "</", "answer"), 100_000, *tokens_of(tokenizer, ">")]
    assert search(tokenizer, ids, ["</answer>"], 8) == 4


def test_an_answer_that_a_stop_string_ended_keeps_its_format(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "3 + 5</think>\n<answer>3 + 5</answer> and more"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = ids[: search(tokenizer, ids, ["</answer>"], 8)]
    ended = tokenizer.decode(kept)
    assert ended == text.removesuffix(" and more")
    verdict = judge(ended, Problem((3, 5), 8))
    assert verdict.format
    assert verdict.right
    assert verdict.rewards["format_original"] == verdict.rewards["equation_original"] == 1


def test_cut_or_ended() -> None:
    assert is_truncated([5, 6], "ab", [2], ["c"])
    assert is_truncated([5, 6], "ab", [2], [])
    assert not is_truncated([5, 2], "a", [2], ["c"])
    assert not is_truncated([5, 6], "abc", [2], ["c"])


def test_vllms_process_gets_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    with saved_tokenizer(tokenizer, ["</answer>"]) as directory:
        assert directory is not None
        other = AutoTokenizer.from_pretrained(directory)
        assert json.loads(other.backend_tokenizer.to_str()) == json.loads(tokenizer.backend_tokenizer.to_str())
        assert other.all_special_ids == tokenizer.all_special_ids
    assert not Path(directory).exists()
    with saved_tokenizer(tokenizer, []) as directory:
        assert directory is None
