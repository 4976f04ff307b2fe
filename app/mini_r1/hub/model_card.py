"""The model card: what the model is, its held-out success and how certain that is, its limits, how it was made.

Every figure comes from a file of the run; a missing one is left out or reported as missing. Text from a run is escaped,
so that no heading, tag or hidden link comes of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

import mini_r1
from mini_r1.console import as_markdown, printable
from mini_r1.hub.branch_contents import Base, public_recipe
from mini_r1.hub.card_figures import CURVE
from mini_r1.recipe.fields import GENERATED, GeneratorRecipe, Recipe, WarmStartRecipe
from mini_r1.run.reader import Evaluated
from mini_r1.tasks.answer_tags import THINK
from mini_r1.tasks.registry import find_task
from mini_r1.tasks.task import CardText
from mini_r1.values import interval, mapping, number

SHOWN_FAILURES = 6
"""Reasons why answers failed that are shown; the evaluation's file has all of them."""
_SOLVERS = {"random_solver": "a random solver", "signed_sums": "sums and differences in random order"}


def card(
    *,
    repo: str,
    step: int,
    is_adapter: bool,
    recipe: Recipe,
    base: Base,
    record: Mapping[str, Any],
    measured: Evaluated | None,
    branches: Sequence[int],
    example: Any,
    why: str = "",
    is_best: bool = False,
) -> str:
    """Return README.md of a branch.

    `record` is run.json, `measured` the snapshot's held-out success, `branches` the steps that have
    one, `example` the problem of the code example, `why` why main has this snapshot, and `is_best` whether it was
    chosen by the figures that are shown.
    """
    parts = [
        _metadata(repo, is_adapter, recipe, base, measured),
        f"# {as_markdown(repo.rpartition('/')[2])}",
        _description(step, is_adapter, recipe, base, why),
        "## Held-out success",
        *_success(step, recipe.task, measured, is_best=is_best),
        "## Use",
        _use(repo, step, is_adapter, recipe, example),
        "## Training",
        *_training(recipe, record, branches),
        "## Limits",
        _limits(is_adapter, recipe, measured),
        "## Licence",
        _licence(recipe, base),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(repo: str, is_adapter: bool, recipe: Recipe, base: Base, measured: Evaluated | None) -> str:
    """Return the YAML that the hub's search reads."""
    data = [recipe.dataset_id_or_path] if recipe.data_on_hub else []
    values: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "language": "en",
        "tags": ["grpo", recipe.task, "mini-r1", "trl"],
        **({"license": "apache-2.0"} if recipe.built_in else base.licence),
        **({"base_model": base.name} if base.name else {}),
        **({"datasets": data} if data else {}),
    }
    if measured is not None:
        success = round(measured.figure("sampled") or 0.0, 4)
        metric: dict[str, Any] = {"type": "pass@1", "name": "sampled pass@1", "value": success}
        if limits := measured.interval("ci95"):
            metric["args"] = {"ci95": [round(limit, 4) for limit in limits]}
        title = find_task(recipe.task).title
        some = f"{measured.limit} of " if measured.limit else ""
        result = {
            "task": {"type": "text-generation", "name": title},
            "dataset": {"type": (data or [recipe.task])[0], "name": f"{title}, {some}the run's held-out problems"},
            "metrics": [metric],
        }
        values["model-index"] = [{"name": repo.rpartition("/")[2], "results": [result]}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()}\n---"


def _description(step: int, is_adapter: bool, recipe: Recipe, base: Base, why: str) -> str:
    kind = "A LoRA adapter of" if is_adapter else "Made from"
    commit = f" at commit `{base.commit}`" if base.commit and re.fullmatch(r"[0-9a-f]{7,64}", base.commit) else ""
    shown = _link(base.name) if base.name else as_markdown(base.shown)
    text = _card_text(recipe)
    rewards = text.rewards
    if recipe.resolved_rewards() != find_task(recipe.task).default_rewards():
        rewards = ", ".join(f"`{name}` (weight {weight:g})" for name, weight in recipe.resolved_rewards().items())
    shown_solutions = "no solutions were shown"
    if recipe.built_in:
        traces = (recipe.warm_start or WarmStartRecipe()).traces
        shown_solutions = f"before that it imitated {traces:,} solutions written by a program (the warm start)"
    return (
        f"{kind} {shown}{commit}. It was trained with GRPO on {text.game}. Rules rewarded "
        f"{rewards}; {shown_solutions}. This is the snapshot after optimizer step {step}{why}."
    )


def _link(model: str) -> str:
    return f"[{model}](https://huggingface.co/{model})"


def _card_text(recipe: Recipe, *, measured: bool = False) -> CardText:
    """Return what the task says, with the problems' distribution if the recipe determines it."""
    known = recipe.dataset_id_or_path in (GENERATED, Recipe.model_fields["dataset_id_or_path"].default)
    generator = recipe.generator or GeneratorRecipe()  # its defaults are those of the hub's data set
    return find_task(recipe.task).card(generator.model_dump() if known else None, measured=measured)


# --- success ---


def _success(step: int, task: str, measured: Evaluated | None, *, is_best: bool) -> Iterator[str]:
    if measured is None:
        yield (
            f"Not measured at step {step}. The training reward in `logs/metrics.jsonl` is not held out: do not read it "
            "as success."
        )
        return
    values = measured.values
    if measured.file == CURVE:
        count = f" of {measured.problems} held-out problems" if measured.problems else ""
        yield (
            f"{_share(values['sampled'])}{count}, one sampled answer each, measured by the run itself at this step, "
            "without an interval. `mini-r1 evaluate` computes one."
        )
        return
    yield _conditions(values)
    table = "\n".join(["| | problems | greedy | sampled pass@1 |", "|---|---|---|---|", *_rows(task, values)])
    yield table
    yield "\n".join(f"- {line}" for line in _more(values))
    if "%)" in table:
        yield (
            "Intervals are 95 %, over groups of problems with the same numbers (Korn and Graubard 1998). They don't "
            "cover the variance of training: another random seed may differ by more."
        )
    if is_best:
        yield "This snapshot was chosen as the best on these same problems, so its figure is slightly too high."


def _conditions(values: dict[str, Any]) -> str:
    provenance = mapping(values.get("provenance"))
    samples, temperature = number(values.get("samples")), number(values.get("temperature"))
    parts = [as_markdown(provenance["selection"])] if provenance.get("selection") else []
    if samples is not None and temperature is not None:
        keys = ((key, number(provenance.get(key))) for key in ("top_p", "top_k"))
        cut = "".join(f", {key} {value:g}" for key, value in keys if value and (key, value) != ("top_p", 1))
        parts.append(f"{samples:.0f} sampled answers each at temperature {temperature:g}{cut}, and a greedy one")
    if provenance.get("date"):
        parts.append(f"measured {as_markdown(provenance['date'])} with Mini-R1 Kit's exact scorer")
    return f"On problems that training never used: {'; '.join(parts)}." if parts else ""


def _rows(task: str, values: dict[str, Any]) -> Iterator[str]:
    yield _row("all", values)
    for by in [key for key in values if key.startswith("by_")]:
        for key, figures in sorted(mapping(values[by]).items()):
            name = find_task(task).describe_stratum(by.removeprefix("by_"), key)
            yield _row(as_markdown(name), mapping(figures))
    if untrained := mapping(mapping(values.get("baselines")).get("untrained")):
        yield _row("for comparison: the untrained model", untrained)


def _row(name: str, figures: dict[str, Any]) -> str:
    count = number(figures.get("problems"))
    greedy = _share(figures.get("greedy"), figures.get("greedy_ci95"))
    sampled = _share(figures.get("sampled"), figures.get("ci95"))
    return f"| {name} | {'' if count is None else f'{count:.0f}'} | {greedy} | {sampled} |"


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
    for key, label in (("format", "correct format"), ("truncated", "truncated")):
        if shown := _share(values.get(key)):
            yield f"{label}: {shown}"
    if (tries := number(values.get("tries"))) is not None:
        yield f"tries per answer: {tries:.1f}"
    baselines = mapping(values.get("baselines"))
    for name, solver in _SOLVERS.items():
        yield from _solver(solver, mapping(baselines.get(name)))
    failures = [(count, reason) for reason, n in mapping(values.get("failures")).items() if (count := number(n))]
    if reasons := [f"{as_markdown(reason)} ({count:.0f})" for count, reason in sorted(failures, reverse=True)]:
        yield f"why answers failed: {'; '.join(reasons[:SHOWN_FAILURES])}"


def _solver(name: str, figures: dict[str, Any]) -> Iterator[str]:
    """Yield what search without a model achieves, and how the model's tries compare with it."""
    at_tries = {as_markdown(k): number(v) for k, v in mapping(figures.get("success_at_tries")).items()}
    shares = [f"{share:.1%} ({tries})" for tries, share in at_tries.items() if share is not None]
    if shares:
        yield f"for comparison: {name}, success by number of tries: {', '.join(shares)}"
    ratio, limits = number(figures.get("observed_over_expected")), interval(figures.get("observed_over_expected_ci95"))
    if ratio is not None:
        shown = f" ({limits[0]:.2f} - {limits[1]:.2f})" if limits else ""
        yield f"right answers over those expected of {name} with the same number of tries: {ratio:.2f}{shown}"


# --- use, training, limits, licence ---


def _use(repo: str, step: int, is_adapter: bool, recipe: Recipe, example: Any) -> str:
    library, loader = ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
    task = find_task(recipe.task)
    prefill = task.prompt(recipe.prompt_style).prefill
    chat = "".join(f"    {message!r},\n" for message in task.messages(example, recipe.prompt_style))
    ending = "continue_final_message" if prefill else "add_generation_prompt"
    code = f"""from {library} import {loader}
from transformers import AutoTokenizer

repo, revision = "{repo}", "step-{step}"
tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision)
model = {loader}.from_pretrained(repo, revision=revision)
chat = [
{chat}]
ids = tokenizer.apply_chat_template(chat, {ending}=True, return_tensors='pt')
out = model.generate(ids, max_new_tokens={recipe.max_completion_length}, do_sample=False)
print(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))"""
    begins = f", which begins with `{THINK}`" if prefill.endswith(THINK) else ""
    return (
        f"{_fenced(code, 'python')}\n\nThe answer continues the assistant's turn{begins}. Use this"
        f" exact prompt, with {_card_text(recipe).change}."
    )


def _training(recipe: Recipe, record: Mapping[str, Any], branches: Sequence[int]) -> Iterator[str]:
    data = mapping(record.get("data"))
    held, trained = number(data.get("held_out_rows")), number(data.get("train_rows"))
    line = f"Data: {as_markdown(recipe.dataset_id_or_path if recipe.data_on_hub else data.get('kind', 'a local file'))}"
    if isinstance(data.get("revision"), str):
        line += f" at commit `{as_markdown(data['revision'])}`"
    if trained is not None and held is not None:
        split = as_markdown(data.get("split_by", "key"))
        test_split = recipe.dataset_test_split
        held_out_by = f"of the split {as_markdown(test_split)} held out" if test_split else f"held out by {split}"
        line += f"; {trained:,.0f} problems to train on, {held:,.0f} {held_out_by}"
    yield line + "."
    attempts = record.get("attempts")
    attempts = attempts if isinstance(attempts, list) else []
    last = mapping(attempts[-1]) if attempts else {}
    made = f"Made with Mini-R1 Kit {mini_r1.__version__}"
    if isinstance(last.get("devices"), list) and last["devices"]:
        made += f" on {', '.join(map(as_markdown, last['devices']))}"
    made += f", in {len(attempts)} attempts" if len(attempts) > 1 else ""
    versions = [f"{as_markdown(name)} {as_markdown(of)}" for name, of in mapping(last.get("versions")).items() if of]
    yield made + (f"; {', '.join(versions)}." if versions else ".")
    if branches:
        names = ", ".join(f"`step-{step}`" for step in sorted(branches))
        yield f"Snapshots are branches: {names}. Metrics, TensorBoard events and evaluations: `logs/` on `main`."
    yield "What its recipe changes; the whole recipe is in `recipe.yaml`:"
    defaults = Recipe.model_construct().model_dump()  # without the model, which has no default
    written = public_recipe(recipe).model_dump()
    changed = {name: value for name, value in written.items() if name not in defaults or value != defaults[name]}
    yield _fenced(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).strip(), "yaml")


def _limits(is_adapter: bool, recipe: Recipe, measured: Evaluated | None) -> str:
    has_rows = measured is not None and any(key.startswith("by_") and rows for key, rows in measured.values.items())
    about, *others = _card_text(recipe, measured=has_rows).limits
    lines = [
        about,
        "The reasoning is not an explanation: it can claim a wrong result, and a right answer can follow reasoning "
        "that does not lead to it. A phrase such as 'wait' doesn't show that anything was reconsidered.",
        *others,
        "It has the base model's biases and knows nothing new. Check an answer before you use it.",
    ]
    if is_adapter:
        lines.append("It is an adapter and needs the base model named above.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(recipe: Recipe, base: Base) -> str:
    if base.name is None:
        if recipe.built_in:
            return "Apache-2.0, like the kit that made it."
        return "That of the model that it was trained from, which is not on the hub: ask its owner."
    known = base.licence.get("license_name") or base.licence.get("license")
    if known is None:
        return f"That of {_link(base.name)}, which could not be looked up: read it there before you use this."
    return f"That of {_link(base.name)}: {as_markdown(known)}."


def _fenced(text: str, language: str) -> str:
    """Return a block of code that no line of the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"
