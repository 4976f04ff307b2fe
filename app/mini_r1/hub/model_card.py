"""The model card: what the model is, how often it is right and how sure that is, what it cannot do, what it is made of.

Every figure comes from a file of the run; one that is not there is left out, or said to be missing. Text from a run is
written so that it stays text: no heading, tag or hidden link comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

import mini_r1
from mini_r1.console import as_markdown, printable
from mini_r1.hub.branch_contents import Base, public_recipe
from mini_r1.hub.card_figures import Figure
from mini_r1.recipe.fields import DEFAULT_REWARDS, GENERATED, GeneratorRecipe, Recipe, WarmStartRecipe
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.prompt import messages
from mini_r1.values import interval, mapping, number

SHOWN_FAILURES = 6
"""Reasons why answers failed; the evaluation's file has all of them."""
_SOLVERS = {"random_solver": "a random solver", "signed_sums": "sums and differences in random order"}
_OPERATORS = {
    "add_subtract_suffice": "solvable with + and - alone",
    "needs_multiply_or_divide": "needs × or ÷",
}


def card(
    *,
    repo: str,
    step: int,
    is_adapter: bool,
    recipe: Recipe,
    base: Base,
    record: Mapping[str, Any],
    figure: Figure | None,
    branches: Sequence[int],
    example: Problem,
    why: str = "",
    is_best: bool = False,
) -> str:
    """README.md of a branch.

    Args:
        repo: `owner/name`.
        step: of the snapshot in the branch.
        is_adapter: whether it is an adapter alone.
        recipe: of the run.
        base: what the run began with.
        record: run.json.
        figure: the snapshot's held-out success, None where nothing was measured.
        branches: steps that have a branch of their own.
        example: the problem that is asked where the card shows how.
        why: why this snapshot is here, for main; empty elsewhere.
        is_best: whether it was chosen by the very figures that are shown.
    """
    parts = [
        _metadata(repo, is_adapter, recipe, base, record, figure),
        f"# {as_markdown(repo.rpartition('/')[2])}",
        _what(step, is_adapter, recipe, base, why),
        "## Held-out success",
        *_success(step, figure, is_best=is_best),
        "## Use",
        _use(repo, step, is_adapter, recipe, example),
        "## Training",
        *_training(recipe, record, branches),
        "## Limits",
        _limits(is_adapter, recipe, figure),
        "## Licence",
        _licence(recipe, base),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(
    repo: str, is_adapter: bool, recipe: Recipe, base: Base, record: Mapping[str, Any], figure: Figure | None
) -> str:
    """The YAML at the top, which the hub's search reads."""
    from huggingface_hub import ModelCardData

    values: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "language": "en",
        "tags": ["grpo", "countdown", "mini-r1", "trl"],
        **base.licence,
    }
    if base.name is not None:
        values["base_model"] = base.name
    if recipe.data_on_hub:
        values["datasets"] = [recipe.dataset_id_or_path]
    if recipe.built_in:
        values["license"] = "apache-2.0"
    data = ModelCardData(**values).to_dict()
    if figure is not None:
        # By hand: huggingface_hub's EvalResult has no place for the interval's limits.
        data["model-index"] = [{"name": repo.rpartition("/")[2], "results": [_result(recipe, figure)]}]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()}\n---"


def _result(recipe: Recipe, figure: Figure) -> dict[str, Any]:
    source = recipe.dataset_id_or_path if recipe.data_on_hub else "countdown"
    metric: dict[str, Any] = {"type": "pass@1", "name": "sampled pass@1", "value": round(figure.success, 4)}
    if limits := interval(figure.evaluation.get("ci95")):
        metric["args"] = {"ci95": [round(limit, 4) for limit in limits]}
    return {
        "task": {"type": "text-generation", "name": "Countdown"},
        "dataset": {"type": source, "name": "Countdown, the run's held-out problems"},
        "metrics": [metric],
    }


def _what(step: int, is_adapter: bool, recipe: Recipe, base: Base, why: str) -> str:
    kind = "A LoRA adapter of" if is_adapter else "Made from"
    commit = f" at commit `{base.commit}`" if base.commit and re.fullmatch(r"[0-9a-f]{7,64}", base.commit) else ""
    shown = f"[{base.name}](https://huggingface.co/{base.name})" if base.name else as_markdown(base.shown)
    rewards = recipe.resolved_rewards()
    paid = "format and right equations, alike"
    if rewards != DEFAULT_REWARDS:
        paid = ", ".join(f"`{name}` (weight {weight:g})" for name, weight in rewards.items())
    return (
        f"{kind} {shown}{commit}. It was trained with GRPO on the Countdown game: given {_numbers(recipe)} and a "
        "target, it writes its thought, and an equation that uses each number once. Rules rewarded "
        f"{paid}; {_solutions(recipe)}. This is the snapshot after optimizer step {step}{why}."
    )


def _numbers(recipe: Recipe) -> str:
    """How many numbers the problems have, as far as the recipe says it."""
    source = recipe.dataset_id_or_path
    generator = recipe.generator or GeneratorRecipe()  # which is the hub set's
    if source not in (GENERATED, Recipe.model_fields["dataset_id_or_path"].default):
        return "some numbers"
    *others, last = [str(size) for size in sorted(set(generator.sizes))]
    return f"{', '.join(others)}{' or ' if others else ''}{last} numbers"


def _solutions(recipe: Recipe) -> str:
    """Whether anybody showed it how the game is played."""
    if recipe.built_in is None:
        return "no solutions were shown"
    imitated = recipe.warm_start or WarmStartRecipe()
    return f"before that it imitated {imitated.traces:,} solutions written by a program (the warm start)"


# --- success ---


def _success(step: int, figure: Figure | None, *, is_best: bool) -> Iterator[str]:
    if figure is None:
        yield (
            f"Not measured at step {step}. The training reward in `logs/metrics.jsonl` is not held out: do not read it "
            "as success."
        )
        return
    if not figure.evaluation:
        count = f" of {figure.problems} held-out problems" if figure.problems else ""
        yield (
            f"{figure.success:.1%}{count}, one sampled answer each, measured by the run itself at this step; no "
            "interval was computed. `mini-r1 evaluate` gives one."
        )
        return
    values = figure.evaluation
    yield _asked(values)
    rows = list(_rows(values))
    yield "| | problems | greedy | sampled pass@1 |\n|---|---|---|---|\n" + "\n".join(rows)
    more = [*_more(values)]
    if more:
        yield "\n".join(f"- {line}" for line in more)
    notes = []
    if any("%)" in row for row in rows):
        notes.append(
            "Intervals are 95 %, over groups of problems with the same numbers (Korn and Graubard 1998). They hold no "
            "luck of training: another seed may differ by more."
        )
    if is_best:
        notes.append("This snapshot was chosen as the best on these very problems, so its figure is somewhat too high.")
    if notes:
        yield " ".join(notes)


def _asked(values: dict[str, Any]) -> str:
    provenance = mapping(values.get("provenance"))
    samples, temperature = number(values.get("samples")), number(values.get("temperature"))
    asked = [as_markdown(provenance["selection"])] if isinstance(provenance.get("selection"), str) else []
    if samples is not None and temperature is not None:
        asked.append(f"{samples:.0f} sampled answers each at temperature {temperature:g}, and a greedy one")
    if isinstance(provenance.get("date"), str):
        asked.append(f"measured {as_markdown(provenance['date'])} with Mini-R1 Kit's exact scorer")
    return ("On problems that training never saw: " + "; ".join(asked) + ".") if asked else ""


def _rows(values: dict[str, Any]) -> Iterator[str]:
    yield _row("all", values, values.get("problems"))
    for size, figures in sorted(mapping(values.get("by_size") or mapping(values.get("by")).get("numbers")).items()):
        yield _row(f"{as_markdown(size)} numbers", mapping(figures))
    for kind, figures in mapping(values.get("by_operators") or mapping(values.get("by")).get("operators")).items():
        yield _row(_OPERATORS.get(kind, as_markdown(kind)), mapping(figures))
    if untrained := mapping(mapping(values.get("baselines")).get("untrained")):
        yield _row("for comparison: the untrained model", untrained)


def _row(name: str, figures: dict[str, Any], problems: object = None) -> str:
    count = number(figures.get("problems", figures.get("n")) if problems is None else problems)
    at_1 = mapping(mapping(figures.get("pass_at_k")).get("1"))
    sampled = figures.get("sampled", at_1.get("value"))
    greedy = _share(figures.get("greedy"), figures.get("greedy_ci95"))
    shown = _share(sampled, figures.get("ci95", at_1.get("ci95")))
    return f"| {name} | {'' if count is None else f'{count:.0f}'} | {greedy} | {shown} |"


def _share(value: object, limits: object = None) -> str:
    share, ends = number(value), interval(limits)
    if share is None:
        return ""
    return f"{share:.1%}" + (f" ({ends[0]:.1%} - {ends[1]:.1%})" if ends else "")


def _more(values: dict[str, Any]) -> Iterator[str]:
    for k, figures in mapping(values.get("pass_at_k")).items():
        shown = _share(mapping(figures).get("value"), mapping(figures).get("ci95"))
        if k != "1" and shown:
            yield f"pass@{as_markdown(k)}: {shown}"
    for key, words in (("format", "format kept"), ("truncated", "cut short")):
        if shown := _share(values.get(key)):
            yield f"{words}: {shown}"
    if (tries := number(values.get("tries"))) is not None:
        yield f"tries per answer: {tries:.1f}"
    for name, words in _SOLVERS.items():
        yield from _search(words, mapping(mapping(values.get("baselines")).get(name)))
    failures = mapping(values.get("failures") or values.get("reasons"))
    known = sorted(((count, reason) for reason, n in failures.items() if (count := number(n))), reverse=True)
    if known:
        shown = "; ".join(f"{as_markdown(reason)} ({count:.0f})" for count, reason in known[:SHOWN_FAILURES])
        yield f"why answers failed: {shown}"


def _search(words: str, figures: dict[str, Any]) -> Iterator[str]:
    """What search alone achieves, and how the model's tries compare with it."""
    at_tries = {as_markdown(k): number(v) for k, v in mapping(figures.get("success_at_tries")).items()}
    shares = [f"{share:.1%} ({tries})" for tries, share in at_tries.items() if share is not None]
    if shares:
        yield f"for comparison: {words}, success by number of tries: {', '.join(shares)}"
    ratio, limits = number(figures.get("observed_over_expected")), interval(figures.get("observed_over_expected_ci95"))
    if ratio is not None:
        shown = f" ({limits[0]:.2f} - {limits[1]:.2f})" if limits else ""
        yield f"right answers over those expected of {words}, try by try in the model's place: {ratio:.2f}{shown}"


# --- the rest ---


def _use(repo: str, step: int, is_adapter: bool, recipe: Recipe, example: Problem) -> str:
    kind = ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
    chat = messages(example, recipe.prompt_style)
    lines = [
        f"from {kind[0]} import {kind[1]}",
        "from transformers import AutoTokenizer",
        "",
        f'repo, revision = "{repo}", "step-{step}"',
        "tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision)",
        f"model = {kind[1]}.from_pretrained(repo, revision=revision)",
        "chat = [",
        *(f"    {message!r}," for message in chat),
        "]",
        "ids = tokenizer.apply_chat_template(chat, continue_final_message=True, return_tensors='pt')",
        f"out = model.generate(ids, max_new_tokens={recipe.max_completion_length}, do_sample=False)",
        "print(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))",
    ]
    note = (
        "The answer continues the assistant's turn, which begins with `<think>`: but for numbers and target the prompt "
        "must be this one, word for word."
    )
    return _fenced("\n".join(lines), "python") + "\n\n" + note


def _training(recipe: Recipe, record: Mapping[str, Any], branches: Sequence[int]) -> Iterator[str]:
    data = mapping(record.get("data"))
    held = number(data.get("held_out_rows"))
    trained = number(data.get("train_rows"))
    words = (
        f"Data: {as_markdown(recipe.dataset_id_or_path if recipe.data_on_hub else data.get('kind', 'a local file'))}"
    )
    if isinstance(data.get("revision"), str):
        words += f" at commit `{as_markdown(data['revision'])}`"
    if trained is not None and held is not None:
        words += (
            f"; {trained:,.0f} problems to train on, {held:,.0f} held out by {as_markdown(data.get('split_by', 'key'))}"
        )
    yield words + "."
    told = record.get("attempts")
    attempts = told if isinstance(told, list) else []
    last = mapping(attempts[-1]) if attempts else {}
    versions = ", ".join(
        f"{as_markdown(name)} {as_markdown(version)}"
        for name, version in mapping(last.get("versions")).items()
        if version
    )
    devices = last.get("devices")
    where = ", ".join(as_markdown(device) for device in devices) if isinstance(devices, list) else ""
    made = f"Made with Mini-R1 Kit {mini_r1.__version__}"
    made += f" on {where}" if where else ""
    made += f", in {len(attempts)} starts" if len(attempts) > 1 else ""
    yield made + (f"; {versions}." if versions else ".")
    if branches:
        names = ", ".join(f"`step-{step}`" for step in sorted(branches))
        yield f"Snapshots are branches: {names}. Metrics, TensorBoard events and evaluations: `logs/` on `main`."
    yield "What its recipe sets; all of it is in `recipe.yaml`:"
    defaults = Recipe.model_construct().model_dump()  # without the model, which has none
    written = public_recipe(recipe).model_dump()
    changed = {name: value for name, value in written.items() if name not in defaults or value != defaults[name]}
    yield _fenced(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).strip(), "yaml")


def _limits(is_adapter: bool, recipe: Recipe, figure: Figure | None) -> str:
    values = figure.evaluation if figure else {}
    rows = mapping(values.get("by_operators") or mapping(values.get("by")).get("operators"))
    lines = [
        f"It was trained on one game, with {_numbers(recipe)}. It is no better at mathematics in general for that, and "
        "may be worse at everything else than what it was made from.",
        "The thought is not an explanation: it can claim a result that is wrong, and a right answer can follow a "
        "thought that does not lead to it. Phrases such as 'wait' say that they were written, not that anything was "
        "reconsidered.",
        "Where + and - alone suffice, trying sums in order solves many problems"
        + (": look at the row 'needs × or ÷'." if rows else ", and no thought is needed for it."),
        "It has the base model's biases and knows nothing new. Check an equation before you use it.",
    ]
    if is_adapter:
        lines.append("It is an adapter: without the very base that is named above it is nothing.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(recipe: Recipe, base: Base) -> str:
    if base.name is None:
        if recipe.built_in:
            return "Apache-2.0, as the kit that made it."
        return "That of the model that it was trained from, which is not on the hub: its owner has to say."
    known = base.licence.get("license_name") or base.licence.get("license")
    link = f"[{base.name}](https://huggingface.co/{base.name})"
    if known is None:
        return f"That of {link}, which could not be asked: read it there before you use this."
    return f"That of {link}: {as_markdown(known)}."


def _fenced(text: str, language: str) -> str:
    """A block of code that no line of the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"
