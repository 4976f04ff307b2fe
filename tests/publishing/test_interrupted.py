"""What goes wrong on the way to the hub, a local stand-in: cut lines, busy answers, a killed process; it goes on."""

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
from tests.hub_upload import Fault, WritableHub
from tests.publishing.conftest import TOKEN, Run, publish, refusal, said, waited

PASSING = {
    "busy at the beginning": [Fault("POST", "/api/repos/create", 503, times=2)],
    "a commit that meets another": [Fault("POST", "/commit/step-2", 409), Fault("POST", "/commit/main", 412)],
    "a line that is cut in a commit": [Fault("POST", "/commit/step-4", -1)],
    "a line that is cut before an answer": [Fault("POST", "/preupload/", 0, times=2), Fault("GET", "/refs", 0)],
    "answers that are lost": [Fault("POST", "/commit/step-4", -3), Fault("POST", "/branch/step-2", -3)],
    "too many": [Fault("POST", "/objects/batch", 429, headers={"Retry-After": "7"})],
}


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_is_tried_again(
    hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("mini_r1.hub.upload_errors.random", lambda: 0.5)
    hub.faults = [Fault(**vars(fault)) for fault in PASSING[what]]
    tries = sum(fault.times for fault in hub.faults)
    publish(made_run())
    assert sorted(hub.repos["anna/first"].branches) == ["main", "step-2", "step-4", "step-6"]
    assert all("model.safetensors" in hub.repos["anna/first"].files(name) for name in hub.repos["anna/first"].branches)
    assert len(waited) == tries
    if what == "busy at the beginning":
        assert waited == [1.0, 2.0]  # twice as long each time, but for what chance makes of it
    if what == "too many":
        assert waited == [7.0]


def test_a_line_that_is_cut_in_the_middle_of_a_file(hub: WritableHub, made_run: Run) -> None:
    """huggingface_hub itself asks again; the file begins anew, and no other does."""
    run = made_run()
    hub.faults = [Fault("PUT", "/store/whole/", -1, after=1)]
    publish(run)
    for step in (2, 4, 6):
        weights = (run.snapshots / f"step-{step}" / "model.safetensors").read_bytes()
        assert hub.repos["anna/first"].files(f"step-{step}")["model.safetensors"] == weights
    assert len([line for line in hub.asked if line.startswith("PUT")]) == len(hub.put) + 1 == 5


def test_one_that_goes_on_failing_ends_with_150_and_the_same_command_goes_on(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    hub.faults = [Fault("POST", "/commit/step-4", 500, times=100)]
    error = refusal(run)
    assert error.exit_code == ExitCode.RETRY
    assert error.message == "the hub answers 500 (planted); the same command again sends only what is missing"
    assert "model.safetensors" in hub.repos["anna/first"].files("step-2")
    assert "model.safetensors" not in hub.repos["anna/first"].files("step-4")  # nobody sees half of it
    puts = list(hub.put)
    hub.faults = []
    assert publish(run).sent == ("step-4", "step-6", "main")
    assert hub.put[: len(puts)] == puts
    assert len(hub.put) == len(set(hub.put))  # the weights of step 4 were stored before its commit failed


def test_an_upload_that_is_refused_tells_no_signed_address(
    hub: WritableHub, made_run: Run, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault("PUT", "/store/whole/", 400, times=100, body="<Error>Signature</Error>")]
    error = refusal(made_run())
    shown = "".join([error.message, *said, caplog.text, *capfd.readouterr()])
    assert "with 400" in error.message
    assert "X-Amz-Signature" not in shown
    assert "/store/" not in shown


def test_the_hubs_words_do_not_bring_the_token_back(hub: WritableHub, made_run: Run) -> None:
    hub.faults = [Fault("POST", "/api/repos/create", 403, body=json.dumps({"error": f"{TOKEN} may not\x1b[31m"}))]
    hub.faults += [Fault("POST", "/api/repos/create", 500, body=json.dumps({"error": f"no {TOKEN}"}), after=0)]
    run = made_run()
    assert "([token] may not\\x1b[31m)" in refusal(run).message
    assert publish(run).sent
    assert said[0].startswith("the hub answers 500 (no [token]); trying again in")


def test_a_killed_upload_goes_on(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    """As a user's process, killed while the second snapshot's commit waits for the hub."""
    run = made_run()
    hub.faults = [Fault("POST", "/commit/step-4", 503, times=1000)]
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
    hub.faults = []
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sent"] == ["step-4", "step-6", "main"]
    assert hub.put[:2] == first
    assert len(hub.put) == len(set(hub.put)) == 4
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(TOKEN.encode() in text for text in [*texts, done.stdout.encode(), done.stderr.encode()])


def test_nothing_waits_for_ever(hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has a time limit, also those that huggingface_hub 0.28 sends without one."""
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
