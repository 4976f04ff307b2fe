"""The update, the sync and the newest TRL as text; see _report.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import _common as common
import sync as sync_bench
from _estimate import flops_share

GIB = 2**30


def update(name: str, result: dict[str, Any]) -> Iterator[str]:
    """The timed steps, the profile, and each variant with new shapes and again."""
    steps = result["steps"]
    timed = [step for step in steps if step["what"] == "timed"]
    count = len(steps[0]["lengths"])
    yield f"{name}: {result['side']}, torch {result['torch']}, {count} completions a step; seconds: reference + update"
    shown = [(step["what"], step) for step in steps if step["what"] in ("warm-up", "timed")]
    yield "  ".join(f"{what} {_pair(step)}" for what, step in shown)
    for step in timed[-1:]:
        tokens = sum(step["lengths"]) + common.PROMPT * len(step["lengths"])
        shape = common.SHAPES[result["shape"]]
        phases = {phase: common.mean([each["phases"].get(phase, 0.0) for each in timed]) for phase in PHASES}
        yield (
            f"timed: reference {phases['reference']:.2f} s, {flops_share(shape, tokens, phases['reference'], 2):.1%} "
            f"of an H100's peak; update {phases['update']:.2f} s, "
            f"{flops_share(shape, tokens, phases['update'], 6):.1%}; padding not counted"
        )
        calls = ", ".join(f"{count} with {how}" for how, count in step["attention"]["calls"].items())
        yield f"attention of a step: {calls}; {step['attention']['shapes']} shapes"
    if profile := result.get("profile"):
        waits = ", ".join(f"{what.removeprefix('aten::')} {count}" for what, count in profile["waits"].items())
        yield (
            f"profile of a step: {profile['operations']:,} operations called, {profile['launches']:,} kernels "
            f"launched; the host waits: {waits or 'never'}"
        )
        for row in profile["largest"]:
            share = row["seconds"] / profile["all_seconds"] if profile["all_seconds"] else 0.0
            yield f"  {row['seconds'] * 1e3:9.1f} ms {share:6.1%} {row['count']:7,} x {row['name'][:70]}"
    yield from _variants(steps)


PHASES = ("reference", "update")


def _pair(step: dict[str, Any]) -> str:
    return " + ".join(f"{step['phases'].get(phase, 0.0):.2f}" for phase in PHASES)


def _variants(steps: list[dict[str, Any]]) -> Iterator[str]:
    names = dict.fromkeys(step["what"] for step in steps if step["what"] not in ("warm-up", "timed", "profile"))
    if names:
        yield f"{'reference + update':40}{'new shapes':>16}{'again':>16}  attention"
    for name in names:
        new, *again = [step for step in steps if step["what"] == name]
        cells = f"{_pair(new):>16}{_pair(again[0]) if again else '-':>16}"
        yield f"{name:40}{cells}  {', '.join(new['attention']['calls'])}"


def sync(name: str, result: dict[str, Any]) -> Iterator[str]:
    """First and later syncs, and plain copies of as many bytes."""
    seen = sync_bench.figures(result)
    yield (
        f"{name}: {result['bytes'] / GIB:.2f} GiB in {result['tensors']} tensors, trainer and vLLM on "
        f"{'one GPU' if result['device'] == 'cuda' else 'the CPU'}; vLLM started in {result['start']:.0f} s"
    )
    yield (
        f"first {seen['first']:.2f} s, then {seen['later']:.2f} s, {seen['bytes_s'] / 1e9:.2f} GB/s; the bytes copied "
        f"twice in host memory {seen['copies']:.2f} s, so {seen['share']:.2f} of that speed"
    )


def peers(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Tokens a second of each side, and its share of the peak."""
    shape, count = common.SHAPES[result["shape"]], common.PROMPTS * common.GENERATIONS
    vllm = "a stand-in for vLLM" if result["tiny"] else "vLLM on the same GPU"
    yield f"{name}: {count} completions of {result['tokens']} tokens a step, {vllm}; one GPU"
    speeds = {}
    for side, seen in result["sides"].items():
        if "seconds" not in seen:
            yield f"{side}: NOT RUN: {seen['not_run']}" if "not_run" in seen else f"{side}: FAILED, {seen['failed']}"
            continue
        seconds = common.mean(seen["seconds"][1:])  # of two steps that are not counted the first has no beginning
        speeds[side] = count * seen["tokens"] / seconds
        share = flops_share(shape, count * (seen["tokens"] + common.PROMPT), seconds, 10)
        phases = ", ".join(f"{phase} {taken:.2f}" for phase, taken in seen.get("phases", {}).items())
        yield (
            f"{side}: {seconds:.2f} s a step, {speeds[side]:,.0f} tokens a second, {share:.1%} of an H100's peak; "
            f"{seen['tokens']:.0f} tokens in the mean{f'; seconds: {phases}' if phases else ''}"
        )
    if len(speeds) == 2:
        yield f"kit / trl: {speeds['kit'] / speeds['trl']:.2f} x"
