"""Errors on the way to a stand-in of the hub: lost connections, busy answers, a killed process; publishing resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode

from tests.conftest import command
from tests.hub_upload import BadAnswer, WritableHub
from tests.publishing.conftest import TOKEN, Run, progress, publish, refusal, waited

PASSING = {
    "busy at the beginning": [BadAnswer("POST", "/api/repos/create", 503, times=2)],
    "a commit that meets another": [
        BadAnswer("POST", "/commit/step-2", 409),
        BadAnswer("POST", "/commit/main", 412),
    ],
    "a connection lost in a commit": [BadAnswer("POST", "/commit/step-4", -1)],
    "a connection lost before an answer": [
        BadAnswer("POST", "/preupload/", 0, times=2),
        BadAnswer("GET", "/refs", 0),
    ],
    "lost answers": [BadAnswer("POST", "/commit/step-4", -3), BadAnswer("POST", "/branch/step-2", -3)],
    "too many requests": [BadAnswer("POST", "/objects/batch", 429, headers={"Retry-After": "7"})],
}


@pytest.mark.parametrize("what", PASSING)
def test_a_passing_error_is_retried(
    hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    hub.errors = [BadAnswer(**vars(error)) for error in PASSING[what]]
    attempts = sum(error.times for error in hub.errors)
    publish(made_run())
    assert sorted(hub.repos["anna/first"].branches) == ["main", "step-2", "step-4", "step-6"]
    assert all("model.safetensors" in hub.repos["anna/first"].files(name) for name in hub.repos["anna/first"].branches)
    assert len(waited) == attempts
    if what == "busy at the beginning":
        assert waited == [1.0, 2.0]  # doubled each time, plus a random part
    if what == "too many requests":
        assert waited == [7.0]


def test_a_connection_lost_in_the_middle_of_a_file(hub: WritableHub, made_run: Run) -> None:
    """huggingface_hub itself retries; only this file is sent from its start."""
    run = made_run()
    hub.errors = [BadAnswer("PUT", "/store/whole/", -1, after=1)]
    publish(run)
    for step in (2, 4, 6):
        weights = (run.snapshots / f"step-{step}" / "model.safetensors").read_bytes()
        assert hub.repos["anna/first"].files(f"step-{step}")["model.safetensors"] == weights
    assert len([line for line in hub.asked if line.startswith("PUT")]) == len(hub.put) + 1 == 5


def test_a_lasting_error_exits_with_150_and_the_same_command_resumes(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    hub.errors = [BadAnswer("POST", "/commit/step-4", 500, times=100)]
    error = refusal(run)
    assert error.exit_code == ExitCode.RETRY
    assert error.message == "the hub answers 500 (planted): run the same command again to resume"
    assert "model.safetensors" in hub.repos["anna/first"].files("step-2")
    assert "model.safetensors" not in hub.repos["anna/first"].files("step-4")  # no branch is half filled
    puts = list(hub.put)
    hub.errors = []
    assert publish(run).sent == ("step-4", "step-6", "main")
    assert hub.put[: len(puts)] == puts
    assert len(hub.put) == len(set(hub.put))  # the weights of step 4 were stored before its commit failed


def test_a_refused_upload_shows_no_signed_address(
    hub: WritableHub, made_run: Run, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.errors = [BadAnswer("PUT", "/store/whole/", 400, times=100, body="<Error>Signature</Error>")]
    error = refusal(made_run())
    shown = "".join([error.message, *progress, caplog.text, *capfd.readouterr()])
    assert "with 400" in error.message
    assert "X-Amz-Signature" not in shown
    assert "/store/" not in shown


def test_the_token_is_removed_from_the_hubs_messages(hub: WritableHub, made_run: Run) -> None:
    hub.errors = [BadAnswer("POST", "/api/repos/create", 403, body=json.dumps({"error": f"{TOKEN} may not\x1b[31m"}))]
    hub.errors += [BadAnswer("POST", "/api/repos/create", 500, body=json.dumps({"error": f"no {TOKEN}"}), after=0)]
    run = made_run()
    assert "([token] may not\\x1b[31m)" in refusal(run).message
    assert publish(run).sent
    assert progress[0].startswith("the hub answers 500 (no [token]); trying again in")


@pytest.mark.exhaustive
def test_a_killed_upload_is_resumed(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    """Kill the command while the second snapshot's commit waits for the hub."""
    run = made_run()
    hub.errors = [BadAnswer("POST", "/commit/step-4", 503, times=1000)]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    arguments = [*command(), "publish", str(run.path), "--repo", "first", "--json"]
    log = (tmp_path / "log").open("w+")
    killed = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
    while not any("/commit/step-4" in line for line in hub.asked) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    first = list(hub.put)
    assert len(first) == 2
    hub.errors = []
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sent"] == ["step-4", "step-6", "main"]
    assert hub.put[:2] == first
    assert len(hub.put) == len(set(hub.put)) == 4
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(TOKEN.encode() in text for text in [*texts, done.stdout.encode(), done.stderr.encode()])


def test_every_request_has_a_timeout(hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that huggingface_hub 0.28 sends without one."""
    import requests

    limits = []
    send = requests.adapters.HTTPAdapter.send

    def watched(self: Any, request: Any, **options: Any) -> Any:
        limits.append(options.get("timeout"))
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", watched)
    publish(made_run())
    assert len(limits) > 20
    assert all(limits)
