"""`mini-r1 doctor` as a user runs it: findings, fixes, exit codes, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mini_r1.doctor import node_checks
from mini_r1.doctor.case import Case
from mini_r1.doctor.node_checks import CHECKS, Report, examine_node, run_torch_checks
from mini_r1.machine.devices import Devices
from mini_r1.machine.findings import Finding, exit_code, fail, ok, skip, warn, worst
from mini_r1.machine.nodes import Nodes
from mini_r1.recipe.fields import Recipe

from tests.conftest import REPO
from tests.hub import Hub, Repo

Kit = Callable[..., subprocess.CompletedProcess[str]]
CPU, SLOT = Devices((), True, "a test"), Devices(("0",), True, "a test")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither a scheduler nor the user's own settings."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PET_", "NCCL_", "GLOO_", "CUDA_", "MINI_R1_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))


def failures(findings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in findings if finding["status"] == "fail"}


def by_name(report: Report) -> dict[str, Finding]:
    return {finding.check: finding for finding in report.findings}


# --- the command ---


def test_a_recipe_that_can_run_here_gets_0_and_nothing_is_left(mini_r1: Kit, tmp_path: Path) -> None:
    done = mini_r1("doctor", "demo-cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == 0
    assert {finding["check"] for finding in report["findings"]} >= {*CHECKS, *probe_names()}
    assert not failures(report["findings"])
    assert list(tmp_path.iterdir()) == []


def test_the_node_alone_is_a_table_with_a_line_for_each_check(mini_r1: Kit, tmp_path: Path) -> None:
    done = mini_r1("doctor", "--all", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for name in CHECKS:
        assert name in done.stdout
    assert "torch" not in re.findall(r"│ (\w+) +│", done.stdout)  # the probe needs a recipe


def test_all_errors_of_a_recipe_are_reported_together_with_their_fixes(
    mini_r1: Kit, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"nums": [1, 2], "target": 99}\n{"nums": [1, 3], "target": 98}\n' * 2)
    recipe = small_recipe(
        max_prompt_length=8, attn_implementation="flash_attention_2", bf16=True, dataset_id_or_path=str(rows)
    )
    done = mini_r1("doctor", recipe, "--json", "--run-dir", tmp_path / "run")
    assert done.returncode == 78, done.stderr
    found = failures(json.loads(done.stdout)["findings"])
    assert set(found) == {"plan", "attention", "problems", "prompts"}
    assert {finding["cause"] for finding in found.values()} == {"recipe"}
    assert "raise it to at least" in found["prompts"]["detail"]
    assert "has a solution" in found["problems"]["detail"]
    assert "sdpa" in found["attention"]["fix"]
    assert not (tmp_path / "run").exists()


def test_a_later_kind_of_model_is_reported_once(
    mini_r1: Kit, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    done = mini_r1("doctor", small_recipe(model_name_or_path=str(folder)), "--json")
    assert done.returncode == 78
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "transformers 4.51.0 was the first that does" in findings["model"]["detail"]
    assert findings["architecture"]["status"] == findings["tokenizer"]["status"] == "skip"
    assert findings["architecture"]["detail"] == "see model"


def test_a_missing_vllm_is_reported_once_with_what_brings_it(
    mini_r1: Kit, small_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("this environment has vLLM")
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cpu")
    done = mini_r1("doctor", small_recipe(use_vllm=True), "--gpus", "2", "--json")
    assert done.returncode == 78
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["vLLM engine"]["fix"].startswith("`make vllm-cpu`")
    assert findings["vLLM"]["detail"] == "see vLLM engine"
    assert "versions" not in failures(list(findings.values()))


def test_a_recipe_that_cannot_be_read_is_an_error(mini_r1: Kit) -> None:
    done = mini_r1("doctor", "demo-cpu", "--set", "num_generations=1", "--json")
    assert done.returncode == 78
    assert "num_generations" in json.loads(done.stdout)["error"]
    assert mini_r1("doctor", "--set", "seed=1").returncode == 78


def test_a_gpu_that_is_granted_and_not_there_ends_in_150(mini_r1: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    from mini_r1.machine.nvidia import list_gpus

    if list_gpus():
        pytest.skip("this machine has GPUs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    done = mini_r1("doctor", "--json")
    assert done.returncode == 150
    (finding,) = failures(json.loads(done.stdout)["findings"]).values()
    assert (finding["check"], finding["cause"]) == ("driver", "node")


# --- the report ---


def test_vllm_without_a_device_is_an_error_of_the_recipe(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    none = Devices((), True, "a test")
    report = examine_node(small_recipe(use_vllm=True), devices=none, run_dir=tmp_path / "run", with_torch=False)
    assert report.exit_code == 78
    assert "use_vllm: true, but there is no GPU" in by_name(report)["plan"].detail
    assert report.error is not None
    assert "plan: use_vllm: true" in report.error.message


def test_another_node_than_the_first_may_have_one_device(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    nodes = Nodes(2, 1, "n0", 29_500, "a test", None)
    report = examine_node(small_recipe(use_vllm=True), devices=SLOT, nodes=nodes,
                     run_dir=tmp_path / "run", with_torch=False)  # fmt: skip
    assert "vLLM needs a device" not in by_name(report)["plan"].detail
    assert by_name(report)["ports"].status == "skip"


def test_a_taken_port_is_found_on_node_0_of_several(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        nodes = Nodes(2, 0, "n0", taken.getsockname()[1] - 1, "a test", None)  # the launchers' own, the next one
        report = examine_node(small_recipe(), devices=SLOT, nodes=nodes, run_dir=tmp_path / "run", with_torch=False)
    assert report.exit_code == 150
    assert by_name(report)["ports"].status == "fail"


def test_a_failure_of_the_recipe_outweighs_one_of_the_node() -> None:
    node, recipe = fail("a", "b", "node").named("x"), fail("c", "d", "recipe").named("y")
    assert exit_code([ok("fine"), warn("hm", "do")]) == 0
    assert exit_code([node]) == 150
    assert exit_code([node, recipe]) == 78
    report = Report("host", "none", None, (node, recipe))
    assert report.error is not None
    assert report.error.message == "x: a: b\ny: c: d"
    assert report.error.exit_code == 78


def test_the_worst_of_several_findings_includes_all_that_are_as_bad() -> None:
    finding = worst([ok("one"), fail("two", "repair", "node"), fail("three", "repair", "recipe"), warn("four", "look")])
    assert (finding.status, finding.detail, finding.fix, finding.cause) == ("fail", "two; three", "repair", "recipe")


def test_text_of_a_device_or_an_environment_is_escaped() -> None:
    from rich.console import Console

    report = Report("host", "none", None, (warn("\x1b[2J[red]x[/red]", "\x07").named("driver"),))
    console = Console(record=True, width=80, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.table(with_skipped=False))
    text = console.export_text()
    assert "\x1b" not in text
    assert "\\x1b[2J[red]x[/red]" in text


def test_skipped_checks_are_hidden_and_the_last_line_counts_all() -> None:
    from rich.console import Console

    found = (ok("a").named("one"), ok("b").named("two"), skip("c").named("three"), fail("d", "e", "node").named("four"))
    report = Report("host", "none", None, found)
    for with_skipped in (False, True):
        console = Console(record=True, width=80, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(report.table(with_skipped=with_skipped))
        text = console.export_text()
        assert ("three" in text) == with_skipped
        assert "four" in text
    assert report.summary == "4 checks: 2 ok, 0 warnings, 1 failure (exit code 150), 1 skipped"


def test_the_command_ends_with_the_summary(mini_r1: Kit, tmp_path: Path) -> None:
    last = mini_r1("doctor", cwd=tmp_path).stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ checks: \d+ ok, \d+ warnings?, 0 failures, \d+ skipped \(--all shows them\)", last), last
    assert " skip " not in mini_r1("doctor", cwd=tmp_path).stdout
    assert mini_r1("doctor", "--all", cwd=tmp_path).stdout.splitlines()[-1].endswith("skipped")
    assert mini_r1("doctor", "--all", "--smoke", cwd=tmp_path).returncode == 78


# --- the hub ---

ASK = """if True:
    import json, sys
    from dataclasses import asdict
    from mini_r1.doctor import inputs
    from mini_r1.doctor.case import Case
    from mini_r1.machine.devices import Devices
    from mini_r1.recipe.fields import Recipe
    import os
    for name in sys.argv[1:]:
        recipe = Recipe(model_name_or_path=name, max_steps=1)
        case = Case(os.environ, Devices((), True, ""), None, recipe=recipe)
        print(json.dumps(asdict(inputs.model(case))))
"""


def asked(endpoint: str, names: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Return the findings about each model, from one process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(folder)}
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    whole = {"config.json": b"{}", "model.safetensors": b""}
    repos = [
        Repo("a/whole", whole, "f" * 40),
        Repo("a/gated", whole, token="hf_somebodys"),
        Repo("a/pickled", {"config.json": b"{}", "pytorch_model.bin": b""}),
        Repo("a/busy", whole, status=503),
        Repo("a/others", whole, status=401),
    ]
    with Hub(*repos) as serving:
        yield serving.address


ANSWERS = {
    "a/whole": (None, "on the hub at ffffffffffff"),
    "a/mispelt": ("recipe", "the hub has no model a/mispelt"),
    "a/gated": ("recipe", "gated"),
    "a/pickled": ("recipe", "no safetensors weights"),
    "a/others": ("recipe", "gives this user no access to"),
    "a/busy": ("node", "the hub does not answer"),
}


def test_the_hubs_answer_about_a_model(hub: str, tmp_path: Path) -> None:
    for finding, (name, (cause, message)) in zip(asked(hub, list(ANSWERS), tmp_path), ANSWERS.items(), strict=True):
        assert finding["cause"] == cause, name
        assert message in finding["detail"]


def test_a_hub_that_cannot_be_reached_is_a_failure_of_the_node(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    (finding,) = asked(f"http://127.0.0.1:{port}", ["a/whole"], tmp_path)
    assert finding["cause"] == "node"
    assert "HF_HUB_OFFLINE=1" in finding["fix"]


# --- the process with torch ---


@pytest.mark.parametrize(
    ("script", "cause", "message"),
    [
        ("echo to HF_TOKEN=pineapple >&2; exit 3", "recipe", "exit code 3"),
        ("echo not JSON", "recipe", "exit code 0"),
        ("kill -9 $$", "node", "signal 9"),
        ("exec sleep 60", "node", "more than 2 s"),
    ],
)
def test_a_process_that_dies_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cause: str, message: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(node_checks, "TORCH_TIMEOUT_S", 2.0 if "sleep" in script else 60.0)
    (finding,) = run_torch_checks(Path("x.yaml"), [], Case(dict(os.environ), CPU, None))
    assert (finding.check, finding.status, finding.cause) == ("probe", "fail", cause)
    assert message in finding.detail
    assert "pineapple" not in finding.detail


def test_the_process_sees_the_devices_that_were_given_and_no_other_launchers_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    names = "CUDA_VISIBLE_DEVICES MINI_R1_ACCELERATOR RANK"
    python.write_text(f"#!/bin/sh\nfor n in {names}; do eval echo $n=\\$$n >&2; done; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    given = {**os.environ, "RANK": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    for devices, seen in ((Devices(("2", "3"), False, ""), "CUDA_VISIBLE_DEVICES=2,3 / MINI_R1_ACCELERATOR= / RANK="),
                          (CPU, "CUDA_VISIBLE_DEVICES= / MINI_R1_ACCELERATOR=cpu / RANK=")):  # fmt: skip
        (finding,) = run_torch_checks(Path("x"), [], Case(given, devices, None))
        assert finding.detail.endswith(seen)


# --- documentation ---


def probe_names() -> set[str]:
    from mini_r1.training.probe import Probe

    return set(Probe(Recipe(model_name_or_path="builtin:demo", max_steps=1), deepspeed=False).checks())


def test_the_documentation_names_every_check_and_no_other() -> None:
    page, _, _ = (REPO / "docs" / "doctor.md").read_text().partition("## On a login node")
    names = {row.split("|")[1].strip() for row in page.splitlines() if row.startswith("| ")} - {"Check", "---"}
    assert names == {*CHECKS, *probe_names(), "plan", "probe"}
