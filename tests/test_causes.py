"""The table of mini_r1.errors.Cause, walked through the commands: the same cause has the same exit code in each."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import Cause, ExitCode, KitError
from mini_r1.hub_outages import hub_outage
from mini_r1.machine.schedulers import Patience, is_scheduled
from mini_r1.recipe.recipe_file import dump_recipe, load_recipe
from mini_r1.run.run_dir import RunDir

from tests.conftest import REPO, command
from tests.hub import Hub, Repo

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "MINI_R1_JOB_ID": "job", "MINI_R1_WAIT_MINUTES": "0"}
ON_CPU = {"MINI_R1_ACCELERATOR": "cpu"}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*words: str | Path, stdout: int = subprocess.PIPE, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        own = {"HF_HOME": str(tmp_path / "hub"), "MINI_R1_CACHE": str(tmp_path / "cache"), "HF_TOKEN": "nobodys"}
        return subprocess.run(
            [*command(), *map(str, words)], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**environment, **own, **changes}, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip

    return run


def test_the_docs_list_every_cause_with_its_code() -> None:
    page = (REPO / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    text = page.partition("## Causes")[2].partition("## Limits")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]+ \|$", text, re.MULTILINE)
    assert [(cause.strip(), int(code)) for cause, code in rows] == [
        (cause.text[0].upper() + cause.text[1:], int(cause.exit_code)) for cause in Cause
    ]


# ---- wrong: 78, everywhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "train nothing.yaml", "launch nothing.yaml", "prefetch nothing.yaml", "doctor nothing.yaml",
        "plan nothing.yaml", "evaluate ./nothing", "play nothing", "report nothing", "samples nothing",
        "data inspect nothing.jsonl", "publish nothing --repo me/first", "recipes show nothing",
    ],
)  # fmt: skip
def test_what_is_wrong_is_78_also_in_a_job(run: Run, words: str) -> None:
    done = run(*words.split(), **POD)
    assert done.returncode == Cause.WRONG.exit_code, done.stderr
    assert "Traceback" not in done.stderr


# ---- a hub that is down: 150 in every command ------------------------------------------------------------------------


def closed_port() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def use_hub(words: str, small_recipe: Callable[..., Path], tmp_path: Path) -> list[str | Path]:
    """A command that needs the hub: for a model, for data, or to publish."""
    first, *others = words.split()
    if first == "evaluate":
        return ["evaluate", "nobody/tiny", "--problems", REPO / "tests" / "assets" / "countdown_rows.jsonl"]
    model = {"model_name_or_path": "nobody/tiny"} if others == ["model"] else {"dataset_id_or_path": "nobody/games"}
    return [first, small_recipe("hub", **model)]


# The commands that import torch first take 10 s each: one of them is enough every time.
SLOW = [pytest.param(words, marks=pytest.mark.exhaustive) for words in ("train data", "doctor model", "evaluate")]
FROM_HUB = ("train model", "launch model", "launch data", "prefetch model", *SLOW)


@pytest.mark.parametrize("words", FROM_HUB)
def test_a_hub_that_does_not_answer_is_150(
    run: Run, small_recipe: Callable[..., Path], tmp_path: Path, words: str
) -> None:
    done = run(*use_hub(words, small_recipe, tmp_path), HF_ENDPOINT=closed_port(), **ON_CPU)
    assert done.returncode == Cause.HUB_DOWN.exit_code, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "the hub does not answer for" in " ".join(said.split())
    assert "Traceback" not in said
    assert "  ..." not in said
    assert "couldn't find it in the cached files" not in said  # a message that was cut off


@pytest.mark.parametrize("words", ["train model", SLOW[0]])
def test_a_hub_that_answers_503_is_150(run: Run, small_recipe: Callable[..., Path], tmp_path: Path, words: str) -> None:
    with Hub(Repo("nobody/tiny", {}, status=503), Repo("nobody/games", {}, is_data=True, status=503)) as hub:
        done = run(*use_hub(words, small_recipe, tmp_path), HF_ENDPOINT=hub.address, **ON_CPU)
    assert done.returncode == 150, done.stderr
    assert "the hub does not answer for the" in " ".join(done.stderr.split())


@pytest.mark.parametrize("words", ["train model", SLOW[0]])
def test_what_the_hub_does_not_have_or_the_cache_lacks_stays_78(
    run: Run, small_recipe: Callable[..., Path], tmp_path: Path, words: str
) -> None:
    words_of = use_hub(words, small_recipe, tmp_path)
    with Hub() as hub:
        assert run(*words_of, HF_ENDPOINT=hub.address, **ON_CPU).returncode == 78
    assert run(*words_of, HF_HUB_OFFLINE="1", **ON_CPU).returncode == 78


def test_the_chain_of_an_error_is_searched() -> None:
    class Response:
        status_code = 502

    class Answer(OSError):
        response = Response()

    try:
        try:
            raise Answer("bad gateway")
        except OSError as inner:
            raise ValueError("no such file") from inner
    except ValueError as error:
        found = hub_outage(error, "the model x")
    assert found is not None
    assert (found.exit_code, "it answers 502" in found.message) == (ExitCode.RETRY, True)
    Response.status_code = 404
    assert hub_outage(Answer(), "x") is None
    assert hub_outage(ConnectionError("of a socket, not of requests"), "x") is None
    Response.status_code = 429
    assert hub_outage(Answer(), "x") is not None


# ---- a run directory that another process holds ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "launch"])
@pytest.mark.parametrize(("scheduler", "code"), [({}, 78), (POD, 150), ({"SLURM_JOB_ID": "7"}, 150)])
def test_a_held_run_directory_is_78_on_a_workstation_and_150_in_a_job(
    run: Run, small_recipe: Callable[..., Path], tmp_path: Path, name: str, scheduler: dict[str, str], code: int
) -> None:
    held = RunDir(tmp_path / "run")
    held.path.mkdir()
    recipe = small_recipe()
    held.recipe_file.write_text(dump_recipe(load_recipe(recipe)))
    with held.claim():
        done = run(name, recipe, "--run-dir", held.path, **{"MINI_R1_WAIT_MINUTES": "0", **scheduler, **ON_CPU})
    assert done.returncode == code, done.stderr
    assert f"another process is training in {held.path}" in " ".join(done.stderr.split()).replace(" /", " /")
    written = list((held.path / "jobs").glob("*")) if (held.path / "jobs").exists() else []
    # In a job the attempt is counted while the other process holds the run.
    assert [path.name for path in written] == (["job-0.jsonl"] if name == "launch" and scheduler == POD else [])


def test_a_job_waits_for_the_process_that_leaves(tmp_path: Path) -> None:
    held, said = RunDir(tmp_path / "run"), list[str]()
    held.path.mkdir()
    held.state_file.write_text("{}")
    code = f"""
import time
from pathlib import Path
from mini_r1.run.run_dir import RunDir
with RunDir(Path({str(held.path)!r})).claim():
    print("held", flush=True)
    time.sleep(3)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with held.claim(Patience({**POD, "MINI_R1_WAIT_MINUTES": "5"}, said.append)):
            assert other.wait(30) == 0
    assert len(said) == 1
    assert said[0].startswith("waiting up to 5 minutes (MINI_R1_WAIT_MINUTES): another process is training in")


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    held = RunDir(tmp_path / "run")
    began = time.monotonic()
    patience = Patience({**POD, "MINI_R1_WAIT_MINUTES": "10"}, lambda text: None, lambda: True)
    with held.claim(), pytest.raises(KitError) as raised, held.claim(patience):
        pass
    assert raised.value.exit_code == Cause.STOPPED.exit_code
    assert time.monotonic() - began < 60


def test_a_job_that_slurm_says_trains_there_counts_as_a_holder(tmp_path: Path) -> None:
    """The batch script waits for it, and not every filesystem has locks."""
    environment = {"SLURM_JOB_ID": "8", "MINI_R1_RUN_HELD_BY": "7"}
    with pytest.raises(KitError, match="job 7 is training in") as raised, RunDir(tmp_path).claim(Patience(environment)):
        pass
    assert raised.value.exit_code == Cause.RUN_HELD.exit_code


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_wait_that_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(KitError, match=f"MINI_R1_WAIT_MINUTES={text}: must be a number from 0"):
        Patience({**POD, "MINI_R1_WAIT_MINUTES": text}).wait_until(lambda: False, "held", Cause.RUN_HELD)


def test_what_a_job_is() -> None:
    assert not is_scheduled({"PATH": "/bin", "MINI_R1_JOB_ID": ""})
    assert all(map(is_scheduled, ({"SLURM_JOB_ID": "7"}, {"KUBERNETES_SERVICE_HOST": "x"}, {"MINI_R1_JOB_ID": "x"})))


# ---- done, the node, the disk, a stop --------------------------------------------------------------------------------


def test_a_missing_gpu_is_150(run: Run, small_recipe: Callable[..., Path]) -> None:
    for words in (["launch", small_recipe()], ["doctor", small_recipe()]):
        done = run(*words, MINI_R1_ACCELERATOR="cuda", CUDA_VISIBLE_DEVICES="")
        assert done.returncode == Cause.NODE.exit_code, done.stdout + done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", ["plan demo-cpu", "recipes reference", "doctor", "version", "data inspect ROWS"])
def test_a_full_disk_is_150(run: Run, words: str) -> None:
    rows = REPO / "tests" / "assets" / "countdown_rows.jsonl"
    with open("/dev/full", "w") as full:
        done = run(*words.replace("ROWS", str(rows)).split(), stdout=full.fileno(), **ON_CPU)
    assert done.returncode == Cause.DISK.exit_code, done.stderr


def test_a_finished_run_is_0_and_a_stop_143(small_recipe: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    finished = RunDir(tmp_path / "run")
    finished.path.mkdir()
    recipe = small_recipe()
    finished.recipe_file.write_text(dump_recipe(load_recipe(recipe)))
    finished.state_file.write_text(json.dumps({"state": "finished", "step": 4}))
    assert run("train", recipe, "--run-dir", finished.path).returncode == Cause.DONE.exit_code
    words = [*command(), "launch", recipe, "--nodes", "2", "--node-index", "0", "--address", "127.0.0.1"]
    with subprocess.Popen(
        list(map(str, words)), stderr=subprocess.PIPE, text=True, env={**os.environ, **ON_CPU}, cwd=tmp_path
    ) as waiting:
        assert waiting.stderr is not None
        while "waiting for node 1" not in waiting.stderr.readline():
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(60) == Cause.STOPPED.exit_code
