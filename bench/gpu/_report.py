"""The results of the GPU benches as text: what `run.py` prints and appends to bench/RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import _common as common
import _report_training as training
from _estimate import flops_share, vllm_rollout
from mini_r1.tasks.countdown.data import read_problems
from mini_r1.tasks.countdown.solver import signed_sums

GIB, MIB = 2**30, 2**20
PHASES = ("rollout", "score", "reference", "update", "optimizer", "rest")

Results = Mapping[str, dict[str, Any]]


def lines(results: Results) -> list[str]:
    """One block for each unit that has a result."""
    found: list[str] = []
    for name, result in sorted(results.items(), key=lambda pair: list(PARTS).index(_part(pair[0]))):
        part = _part(name)
        if found:
            found.append("")
        if result.get("error"):
            found += [f"{name}: FAILED, {result['error'].splitlines()[0]}"]
            found += [] if result.get("output") else result["error"].splitlines()[-8:]
        if result.get("not_run"):
            found += [f"{name}: NOT RUN: {result['not_run']}"]
        elif any(result.get(key) for key in CONTENT):
            found += PARTS[part](name, result)
    return found


CONTENT = ("rounds", "items", "variants", "measured", "output", "steps", "syncs", "sides")
"""Keys of the units' results, one of which each has as soon as there is something to print."""


def _part(name: str) -> str:
    return next(part for part in PARTS if name.startswith(part))


def bars(results: Results) -> list[tuple[str, bool]]:
    """What is demanded, and whether it holds; of the units at full scale."""
    found = []
    for name, result in results.items():
        if {"tiny", "small"} & set(name.split("-")):
            continue
        if result.get("rounds"):
            ratio = speed_up(result["rounds"])
            found.append((f"{name}: stock / kit >= {result['bar']:g} ({ratio:.2f})", ratio >= result["bar"]))
        if result.get("items"):
            error, bar = result["largest"]["planned"] / result["largest"]["measured"] - 1, result["bar"]
            found.append((f"{name}: the plan within {bar:.0%} of the peak ({error:+.1%})", abs(error) <= bar))
        if result.get("measured"):
            found += [(f"{name}: {bar}", met) for bar, met in scratch_bars(result)]
        for bar, met in result.get("met", {}).items():
            found.append((f"{name}: {bar}", met))
    return found


# --- step time


def speed_up(rounds: Sequence[Mapping[str, Any]]) -> float:
    """Stock's seconds over the kit's, all rounds together."""
    stock, kit = (sum(each[side]["seconds"] for each in rounds) for side in ("stock", "kit"))
    return float(stock / kit)


def step_time(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Seconds of a step on both sides, where they go, and what vLLM would change by estimate."""
    rounds, shape = result["rounds"], common.SHAPES[result["shape"]]
    lengths = [n for each in rounds for n in each["kit"]["lengths"]]
    same = all(each["kit"]["lengths"] == each["stock"]["lengths"] for each in rounds)
    yield (
        f"{name}: {len(rounds)} timed steps of 64 completions a side; {common.mean(lengths):.0f} tokens in the mean, "
        f"longest {max(lengths)}, {'the same lengths' if same else 'OTHER LENGTHS'} on both sides"
    )
    yield f"{'seconds a step':14} {'all':>8}" + "".join(f"{phase:>11}" for phase in PHASES) + "   peak GiB (reserved)"
    for side in ("kit", "stock"):
        seen = [each[side] for each in rounds]
        parts = "".join(f"{common.mean([s['phases'].get(phase, 0) for s in seen]):11.2f}" for phase in PHASES)
        memory = ""
        if all("peak" in s for s in seen):
            memory = f"   {max(s['peak'] for s in seen) / GIB:.1f} ({max(s['reserved'] for s in seen) / GIB:.1f})"
        yield f"{side:14} {common.mean([s['seconds'] for s in seen]):8.2f}{parts}{memory}"
    each_round = ", ".join(f"{each['stock']['seconds'] / each['kit']['seconds']:.2f}" for each in rounds)
    yield f"stock / kit: {speed_up(rounds):.2f} x (by round {each_round})"
    kit = rounds[-1]["kit"]
    token = kit["phases"]["rollout"] / max(kit["lengths"])
    groups = [kit["lengths"][i : i + 8] for i in range(0, len(kit["lengths"]), 8)]
    stock_token = rounds[-1]["stock"]["phases"]["rollout"] / sum(max(group) for group in groups)
    yield (
        f"a decoding step: kit {token * 1e3:.1f} ms ({token * 1e3 / shape.layers:.2f} a layer) for up to 64 rows, "
        f"stock {stock_token * 1e3:.1f} ms for 8; decoding steps: kit {max(kit['lengths'])}, "
        f"stock {sum(max(group) for group in groups)}"
    )
    tokens = sum(kit["lengths"]) + common.PROMPT * len(kit["lengths"])
    yield (
        f"kit's update at {flops_share(shape, tokens, kit['phases']['update'], 6):.0%} of an H100's dense bfloat16 "
        f"peak, reference at {flops_share(shape, tokens, kit['phases']['reference'], 2):.0%}, padding not counted"
    )
    yield from _with_vllm(shape, rounds)
    if cacheless := result.get("cacheless"):
        seconds = cacheless["seconds_a_token"]
        yield (
            f"stock with gradient_checkpointing generates without a cache: {seconds['without_cache'] * 1e3:.1f} ms a "
            f"token of {cacheless['rows']} rows after {cacheless['context']}, {seconds['with_cache'] * 1e3:.1f} with"
        )


def _with_vllm(shape: Any, rounds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rollout by the plan's figures for vLLM, everything else as measured."""
    steps: dict[str, list[tuple[float, float]]] = {"kit": [], "stock": []}
    for each in rounds:
        lengths = each["kit"]["lengths"]
        calls = {"kit": [lengths], "stock": [lengths[i : i + 8] for i in range(0, len(lengths), 8)]}
        for side, groups in calls.items():
            rollout = sum(vllm_rollout(shape, group, common.PROMPT) for group in groups)
            steps[side].append((rollout, each[side]["seconds"] - each[side]["phases"]["rollout"]))
    means = {side: [common.mean(column) for column in zip(*rows, strict=True)] for side, rows in steps.items()}
    step = {side: sum(pair) for side, pair in means.items()}
    yield (
        f"ESTIMATE, vLLM on a second such GPU: rollout kit {means['kit'][0]:.1f} s in 1 call, stock "
        f"{means['stock'][0]:.1f} s in 8; a step kit {step['kit']:.1f} s, stock {step['stock']:.1f} s, "
        f"{step['stock'] / step['kit']:.1f} x (the sync of the weights left out)"
    )


# --- memory


def memory(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Planned against measured: items, moments, what is outside of the allocator."""
    batch = result["batch"]
    yield (
        f"{name}: {batch['prompts']} x {batch['accumulation']} prompts x {batch['generations']}, "
        f"{batch['prompt_tokens']} + {batch['completion_tokens']} tokens; {result['meter']}; during other units "
        + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in result["seconds"].items())
    )
    yield f"{'MiB':34}{'planned':>10}{'measured':>10}{'error':>9}"
    for label, pair in [*result["items"].items(), *((f"= {k}", v) for k, v in result["moments"].items())]:
        yield _row(label, pair["planned"], pair["measured"])
    yield _row("= largest moment", result["largest"]["planned"], result["largest"]["measured"])
    parts = result["parts"]
    yield "above the states: " + ", ".join(f"{part} {size / MIB:,.0f}" for part, size in parts.items())
    yield "in the formula:   " + ", ".join(f"{k} {size / MIB:,.0f}" for k, size in result["planned_parts"].items())
    over = result["overhead"]
    context = "unknown" if over["context"] is None else f"{over['context'] / MIB:,.0f}"
    yield (
        f"outside: context {context}, reserved and not allocated {over['fragmentation'] / MIB:,.0f} "
        f"(planned together {over['planned'] / MIB:,.0f}); reserved {over['reserved'] / MIB:,.0f}; "
        f"allocator settings: {over['allocator'] or 'none'}"
    )


def _row(label: str, planned: float | None, measured: float) -> str:
    if planned is None:
        return f"{label:34}{'-':>10}{measured / MIB:10,.0f}"
    error = f"{planned / measured - 1:+9.1%}" if measured else ""
    return f"{label:34}{planned / MIB:10,.0f}{measured / MIB:10,.0f}{error}"


# --- fixes of TRL, smoke


def trl_fixes(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Each variant against its truth."""
    batch = result["batch"]
    yield (
        f"{name}: {len(batch['completion_tokens'])} completions of {min(batch['completion_tokens'])}-"
        f"{max(batch['completion_tokens'])} tokens, prompts of {' and '.join(map(str, batch['prompt_tokens']))}"
    )
    yield f"{'':44}{'log-prob. error, nats':>22}{'KL':>10}{'error':>9}{'gradient: cosine':>18}{'norm':>8}{'apart':>8}"
    for variant, seen in result["variants"].items():
        yield (
            f"{variant:44}{seen['logp_mean_error']:12.2e} {seen['logp_max_error']:9.2e}{seen['kl']:10.5f}"
            f"{seen['kl_error']:+9.2%}{seen['cosine']:18.6f}{seen['norm_ratio']:8.4f}{seen['gradient_error']:8.4f}"
        )


def smoke(name: str, result: dict[str, Any]) -> list[str]:
    """What it said."""
    return [f"{name}: exit code {result['exit_code']} after {result['seconds']:.0f} s", *result["output"].splitlines()]


# --- scratch

NEEDS = "needs_multiply_or_divide"
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "sampled": lambda seen: f"{seen['sampled']:.1%}",
    "         95 %": lambda seen: f"{seen['ci95'][0]:.1%}-{seen['ci95'][1]:.1%}",
    "greedy": lambda seen: f"{seen['greedy']:.1%}",
    "needs × ÷": lambda seen: f"{seen['by_operators'][NEEDS]['sampled']:.1%}",
    "O/E sums": lambda seen: _over(seen, "signed_sums"),
    "O/E random": lambda seen: _over(seen, "random_solver"),
    "O/E patient": lambda seen: _over(seen, "patient"),
    "format": lambda seen: f"{seen['format']:.1%}",
    "tries": lambda seen: f"{seen['tries']:.2f}",
    "repeated": lambda seen: f"{seen['repeated']:.1%}",
    "right steps": lambda seen: f"{seen['arithmetic']:.1%}",
    "false yes": lambda seen: f"{seen['false_claims']:.1%}",
    "tokens": lambda seen: f"{seen['completion_tokens']:.0f}",
    "  cut": lambda seen: f"{seen['truncated']:.1%}",
}
"""Figures of one model on one set of problems; cells are as wide as their heading."""
LEAST_BEFORE, MOST_BEFORE, LEAST_AFTER, LEAST_RISE, LEAST_NEEDS = 0.15, 0.40, 0.55, 0.20, 0.15


def scratch(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Before and after, on both sets of problems."""
    seconds = ", ".join(f"{what} {taken:.0f} s" for what, taken in result["seconds"].items())
    yield (
        f"{name}: seed {result['seed']}, {result['steps']} steps{' with ' if result['sets'] else ''}"
        f"{' '.join(result['sets'])}; arithmetic after the warm start {result['arithmetic']:.1%}; "
        f"{seconds}"
    )
    yield " " * 18 + "".join(f"  {heading}" for heading in COLUMNS)
    for problems, (when, seen) in _seen(result):
        cells = (f"  {shown(seen):>{len(heading)}}" for heading, shown in COLUMNS.items())
        yield f"{problems + ', ' + when:18}" + "".join(cells)
    counts = ", ".join(f"{sets['after']['problems']} {problems}" for problems, sets in result["measured"].items())
    yield "O/E: right answers over those expected if each try were the solver's; patient: the imitated one"
    for problems, sets in result["measured"].items():
        for name, figures in sets["after"]["solvers"].items():
            shares = ", ".join(f"{tries}: {share:.1%}" for tries, share in figures["success_at_tries"].items())
            yield f"{problems}, {name}, success by number of tries: {shares}"
    yield f"problems: {counts}; {result['hub_rows_seen_in_training']} hub rows left out, which training had"
    rows = read_problems(common.HUB_ROWS)
    solved = sum(abs(row.target) in signed_sums(row.nums) for row in rows)
    yield f"all signed sums, at most 8, solve {solved / len(rows):.1%} of the {len(rows)} hub rows"


def _over(seen: dict[str, Any], solver: str) -> str:
    ratio = seen["solvers"][solver]["observed_over_expected"]
    return "-" if ratio is None else f"{ratio:.2f}"


def _seen(result: dict[str, Any]) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    for problems, sets in result["measured"].items():
        for pair in sets.items():
            yield problems, pair


def scratch_bars(result: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What the recipe has to show, on each set of problems."""
    for problems, sets in result["measured"].items():
        before, after = sets["before"], sets["after"]
        rise, needs = after["sampled"] - before["sampled"], after["by_operators"][NEEDS]["sampled"]
        over = {
            name: after["solvers"][name]["observed_over_expected_ci95"] for name in ("signed_sums", "random_solver")
        }
        least = min(limits[0] if limits else 0.0 for limits in over.values())
        apart = before["ci95"][1] < after["ci95"][0]
        yield (
            f"{problems}: warm start {LEAST_BEFORE:.0%} to {MOST_BEFORE:.0%} ({before['sampled']:.1%})",
            LEAST_BEFORE <= before["sampled"] <= MOST_BEFORE,
        )
        yield f"{problems}: after >= {LEAST_AFTER:.0%} ({after['sampled']:.1%})", after["sampled"] >= LEAST_AFTER
        yield (f"{problems}: rise >= {LEAST_RISE:.0%} with intervals apart ({rise:+.1%})", rise >= LEAST_RISE and apart)
        yield f"{problems}: where × or ÷ is needed >= {LEAST_NEEDS:.0%} ({needs:.1%})", needs >= LEAST_NEEDS
        yield f"{problems}: above signed sums and the random solver, try by try (O/E from {least:.2f})", least > 1


PARTS: dict[str, Callable[[str, dict[str, Any]], Iterable[str]]] = {
    "update": training.update, "sync": training.sync, "step-time": step_time, "memory": memory,
    "trl-fixes": trl_fixes, "scratch": scratch, "smoke": smoke, "peers": training.peers,
}  # fmt: skip
