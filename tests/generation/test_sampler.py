"""The kit's sampler against transformers' own generate, and its draws against the model's probabilities."""

from __future__ import annotations

import ast
import random
from collections import Counter
from typing import Any

import pytest
import torch
from mini_r1.generation.sampler import COMPACT_EVERY, PreallocatedCache, SamplingConfig, sample, step_seed, truncate
from mini_r1.training.from_scratch import build_model, build_tokenizer

from tests.conftest import REPO
from tests.generation.sampling_cases import byte_tokenizer, first_stop, truncated_softmax

pytestmark = pytest.mark.usefixtures("one_thread")

PAD = 0  # <|endoftext|> of the demo tokenizer
VLLM_SAMPLER = next(
    REPO.glob(".venv-vllm/lib/python3*/site-packages/vllm/model_executor/layers/sampler.py"), REPO / "-"
)
LENGTHS = (3, 17, 1, 9, 9, 30, 5, 12)


@pytest.fixture(scope="module", params=[1.0, 4.0], ids=["as built", "weights x 4"])
def model(request: pytest.FixtureRequest) -> Any:
    """The untrained demo model; with larger weights its choices are far from ties and vary more."""
    built = build_model(build_tokenizer(), seed=0).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "norm" not in name:
                parameter.mul_(request.param)
    return built


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, model.config.vocab_size) for _ in range(length)] for length in LENGTHS]


def greedy(
    model: Any, prompts: list[list[int]], eos: list[int], length: int = 40, tokenizer: Any = None, **options: Any
) -> list[list[int]]:
    config = SamplingConfig(max_new_tokens=length, temperature=0.0, **options)
    return sample(model, prompts, config, eos_token_ids=eos, pad_token_id=PAD, seed=0, tokenizer=tokenizer)


def generated(model: Any, prompt: list[int], eos: list[int], length: int = 40) -> list[int]:
    """One prompt alone through transformers: no padding, no batch."""
    ids = torch.tensor([prompt])
    output: torch.Tensor = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length,
        eos_token_id=eos or None, pad_token_id=PAD,
    )  # fmt: skip
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def frequent_ends(model: Any, prompts: list[list[int]]) -> list[int]:
    """End tokens that stop the greedy rows at many different places: tokens that these rows do produce."""
    free = greedy(model, prompts, [-1])
    return sorted({row[i] for i, row in zip((0, 2, 6, 7, 13, 25), free, strict=False)})


def test_greedy_is_transformers_greedy(model: Any, prompts: list[list[int]]) -> None:
    """Prompts of eight lengths; no row ends early, so every one runs to the limit."""
    ours = greedy(model, prompts, [-1])
    assert ours == [generated(model, prompt, [-1]) for prompt in prompts]
    assert {len(row) for row in ours} == {40}


def test_greedy_with_rows_that_end_at_different_times(model: Any, prompts: list[list[int]]) -> None:
    """Rows leave the batch at different steps, and what stays is not disturbed by it."""
    free = greedy(model, prompts, [-1])
    # A token of the greedy rows as the end: rows that hold it end there, the others continue. Every eighth only.
    for eos in sorted({token for row in free for token in row})[::8]:
        assert greedy(model, prompts, [eos]) == [row[: row.index(eos) + 1] if eos in row else row for row in free]
    ends = frequent_ends(model, prompts)
    assert greedy(model, prompts, ends) == [generated(model, prompt, ends) for prompt in prompts]


def test_greedy_does_not_depend_on_the_batch(model: Any, prompts: list[list[int]]) -> None:
    ends = frequent_ends(model, prompts)
    at_once = greedy(model, prompts, ends)
    for rows in (1, 2, 3, 7):
        assert greedy(model, prompts, ends, batch_rows=rows) == at_once
    assert greedy(model, prompts, ends, num_generations=3) == [row for row in at_once for _ in range(3)]
    assert greedy(model, prompts, ends, num_generations=3, batch_rows=2) == [row for row in at_once for _ in range(3)]
    assert greedy(model, prompts[::-1], ends) == at_once[::-1]


def test_one_prompt_and_one_token(model: Any, prompts: list[list[int]]) -> None:
    assert greedy(model, prompts[:1], [-1], 1) == [generated(model, prompts[0], [-1], 1)]
    assert [len(row) for row in greedy(model, prompts, [-1], 1)] == [1] * len(prompts)
    assert greedy(model, prompts[2:3], [-1]) == [generated(model, prompts[2], [-1])]
    assert greedy(model, [], [-1]) == []


@pytest.mark.parametrize("length", [COMPACT_EVERY - 1, COMPACT_EVERY, COMPACT_EVERY + 1, 2 * COMPACT_EVERY])
def test_limits_around_a_removal_of_rows(model: Any, prompts: list[list[int]], length: int) -> None:
    ends = frequent_ends(model, prompts)
    assert greedy(model, prompts, ends, length) == [row[:length] for row in greedy(model, prompts, ends)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_room_of_the_cache_is_never_attended_to(
    model: Any, prompts: list[list[int]], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large values where nothing has been written change no completion: padded prompts, and one without padding."""
    ends = frequent_ends(model, prompts)
    monkeypatch.setattr(model.config, "_attn_implementation", attention)

    def both() -> list[list[list[int]]]:
        return [greedy(model, prompts, ends), greedy(model, prompts[:1], [-1])]

    expected = both()
    spaces: list[int] = []

    def filled(cache: PreallocatedCache, rows: torch.Tensor, space: int) -> None:
        select(cache, rows, space)
        spaces.append(space)
        for states in (*cache.key_cache, *cache.value_cache):
            states[:, :, cache.get_seq_length() :] = 1e4

    select = PreallocatedCache.select
    monkeypatch.setattr(PreallocatedCache, "select", filled)
    assert both() == expected
    assert set(spaces) == {COMPACT_EVERY - 1, COMPACT_EVERY}


def test_no_end_token_at_all(model: Any, prompts: list[list[int]]) -> None:
    assert greedy(model, prompts, []) == greedy(model, prompts, [-1])


def test_the_same_seed_the_same_completions(model: Any, prompts: list[list[int]]) -> None:
    config = SamplingConfig(max_new_tokens=20, temperature=1.0, num_generations=4)

    def drawn(seed: int) -> list[list[int]]:
        return sample(model, prompts, config, eos_token_ids=[1, 2, 7, 50], pad_token_id=PAD, seed=seed)

    first = drawn(1)
    torch.manual_seed(99)
    assert drawn(1) == first
    assert drawn(2) != first
    assert len({tuple(row) for row in first}) > len(first) // 2  # the generations of a prompt differ
    for row in first:
        assert 1 <= len(row) <= 20
        assert not set(row[:-1]) & {1, 2, 7, 50}
        assert len(row) == 20 or row[-1] in {1, 2, 7, 50}


def test_the_global_random_state_is_left_alone(model: Any, prompts: list[list[int]]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sample(model, prompts, SamplingConfig(5, 1.0), eos_token_ids=[1], pad_token_id=PAD, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(model: Any, prompts: list[list[int]], training: bool) -> None:
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append((model.training, torch.is_grad_enabled())))
    try:
        model.train(training)
        greedy(model, prompts, [-1], 3)
        assert model.training is training
        with pytest.raises(IndexError):
            greedy(model, [[model.config.vocab_size]], [-1], 3)  # an error on the way must not change it either
        assert model.training is training
    finally:
        hook.remove()
        model.eval()
    assert set(seen) == {(False, False)}
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("keys", [{"top_k": 7}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.8}], ids="-".join)
def test_draws_follow_the_truncated_softmax(model: Any, prompts: list[list[int]], keys: dict[str, Any]) -> None:
    prompt = prompts[3]
    config = SamplingConfig(max_new_tokens=1, temperature=0.7, num_generations=3000, **keys)
    rows = sample(model, [prompt], config, eos_token_ids=[-1], pad_token_id=PAD, seed=1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    expected = truncated_softmax((logits / 0.7).tolist(), **keys)
    counts = Counter(row[0] for row in rows)
    assert all(expected[token] > 0 for token in counts)
    check_distribution(counts, expected)


def test_greedy_ignores_top_k_and_top_p(model: Any, prompts: list[list[int]]) -> None:
    assert greedy(model, prompts, [-1], 12, top_k=3, top_p=0.1) == greedy(model, prompts, [-1], 12)


@pytest.mark.parametrize(
    ("logits", "top_k", "top_p", "kept"),
    [
        ([3.0, 1.0, 2.0, 2.0], 2, 1.0, [0, 2, 3]),  # as likely as the second
        ([3.0, 1.0, 2.0, 0.0], 1, 0.01, [0]),
        ([3.0, 1.0, 2.0, 0.0], 9, 1.0, [0, 1, 2, 3]),  # more than there are
        ([0.5, 0.25, 0.25], None, 0.5, [0]),  # the first has exactly the share
        ([0.5, 0.25, 0.125, 0.125], None, 0.625, [0, 1]),
        ([0.5, 0.25, 0.125, 0.125], 2, 0.6, [0]),  # top_k first: of the two the first has 0.67
        ([0.5, 0.25, 0.125, 0.125], 2, 0.7, [0, 1]),
    ],
)
def test_edges_of_the_truncation(logits: list[float], top_k: int | None, top_p: float, kept: list[int]) -> None:
    given = torch.tensor([logits]).log() if sum(logits) == 1 else torch.tensor([logits])
    truncated = truncate(given, top_k, top_p)
    assert truncated[0].isfinite().nonzero().flatten().tolist() == kept
    assert torch.equal(truncated[0, kept], given[0, kept])


@pytest.mark.real
@pytest.mark.skipif(not VLLM_SAMPLER.exists(), reason="no .venv-vllm: `make vllm-cpu`")
def test_the_truncation_is_vllms_to_the_bit() -> None:
    """vLLM's own function, out of its file, because importing vLLM takes seconds: random logits, with many ties."""
    tree = ast.parse(VLLM_SAMPLER.read_text())
    (function,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_apply_top_k_top_p"
    )
    names: dict[str, Any] = {"torch": torch}
    exec(ast.unparse(function), names)
    generator = torch.Generator().manual_seed(0)
    for step in (0.5, 1e-6):
        logits = ((torch.randn(64, 300, generator=generator) * 3) / step).round() * step
        for top_k in (None, 1, 2, 50, 299, 300):
            for top_p in (1.0, 0.95, 0.5, 0.1, 1e-6):
                theirs = names["_apply_top_k_top_p"](
                    logits.clone(), torch.full((64,), top_p), torch.full((64,), top_k or 300)
                )
                assert torch.equal(truncate(logits, top_k, top_p), theirs)


@pytest.mark.parametrize("rows", [1024, 3])
def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(
    model: Any, prompts: list[list[int]], rows: int
) -> None:
    """As if each completion had been cut afterwards; the tokens are bytes and words."""
    tokenizer = byte_tokenizer()
    free = greedy(model, prompts, [-1], 37)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in free]
    strings = tuple({text[at : at + 2] for text, at in zip(texts, (0, 3, 9, 15, 20, 24, 28, 33), strict=True)})
    ends = [first_stop(tokenizer, ids, strings) for ids in free]
    assert len(set(ends)) > 3
    stopped = greedy(model, prompts, [-1], 37, stop=strings, batch_rows=rows, tokenizer=tokenizer)
    assert stopped == [ids[:end] for ids, end in zip(free, ends, strict=True)]


def test_an_end_token_before_a_stop_string_ends_a_completion(model: Any, prompts: list[list[int]]) -> None:
    tokenizer, prompt = byte_tokenizer(), prompts[3]
    (free,) = greedy(model, [prompt], [-1], 20)
    last = tokenizer.decode(free[:12], skip_special_tokens=True).replace("\ufffd", "")[-1:]
    end = first_stop(tokenizer, free, [last])
    assert end is not None
    for eos in free[:end:4]:
        ids = free[: free.index(eos) + 1]
        assert greedy(model, [prompt], [eos], 20, stop=(last,), tokenizer=tokenizer) == [ids]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(model: Any, prompts: list[list[int]], temperature: float) -> None:
    """Chi-square of 6,000 first tokens, and of second tokens given the most frequent first, at a fixed seed."""
    prompt, draws = prompts[3], 6000
    config = SamplingConfig(max_new_tokens=2, temperature=temperature, num_generations=draws)
    rows = sample(model, [prompt], config, eos_token_ids=[-1], pad_token_id=PAD, seed=1)
    first = Counter(row[0] for row in rows)
    token, _ = first.most_common(1)[0]
    second = Counter(row[1] for row in rows if row[0] == token)
    for counts, context in ((first, prompt), (second, [*prompt, token])):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
        check_distribution(counts, torch.softmax(logits / temperature, dim=0).tolist())


def check_distribution(counts: Counter[int], probabilities: list[float]) -> None:
    """Pearson's chi-square; tokens expected fewer than five times are pooled, as its approximation needs."""
    n = counts.total()
    bins = [(counts[token], n * p) for token, p in enumerate(probabilities) if n * p >= 5]
    rest = n - sum(expected for _, expected in bins)
    if rest >= 5:
        bins.append((n - sum(seen for seen, _ in bins), rest))
    if len(bins) < 2:
        return
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in bins)
    freedom = len(bins) - 1
    # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal. 4 standard deviations.
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < limit


def test_progress_counts_every_completion(model: Any, prompts: list[list[int]]) -> None:
    seen: list[int] = []
    config = SamplingConfig(2, 1.0, num_generations=3, batch_rows=7)
    sample(model, prompts, config, eos_token_ids=[-1], pad_token_id=PAD, seed=0, progress=seen.append)
    assert seen == [6, 6, 6, 6]


def test_step_seeds_differ_and_fit() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(20) for step in range(100) for rank in range(-1, 8)}
    assert len(seeds) == 20 * 100 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(3, 4, 5) == step_seed(3, 4, 5)
