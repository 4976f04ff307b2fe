"""`mini-r1 publish` against a local stand-in of the hub, through huggingface_hub itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.manifest import MANIFEST
from mini_r1.publishing import publish as room
from mini_r1.rundir import RunDir

from tests.conftest import command
from tests.hub_upload import Fault, WritableHub
from tests.publishing.conftest import TOKEN, evaluation

Run = Callable[..., RunDir]


def publish(
    run: RunDir, repo: str = "anna/first", wanted: str | None = None, *, public: bool = False
) -> room.Published:
    """Without waiting between two tries."""
    return room.publish(run.path, repo, wanted, public=public, say=said.append, sleep=waited.append)


said: list[str] = []
waited: list[float] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    said.clear()
    waited.clear()


def refusal(run: RunDir, repo: str = "anna/first", wanted: str | None = None, **options: Any) -> KitError:
    with pytest.raises(KitError) as caught:
        publish(run, repo, wanted, **options)
    return caught.value


# --- what is sent ---


def test_every_snapshot_is_a_branch_and_main_has_the_best_and_the_logs(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    for step, success in ((2, 0.2), (4, 0.7), (6, 0.3)):
        evaluation(run, step, success)
    done = publish(run)
    assert done.plan.why == "of 6, the highest held-out success of the 3 snapshots measured, by evaluation/step-4.json"
    repo = hub.repos["anna/first"]
    assert (done.private, repo.private) == (True, True)
    assert sorted(repo.branches) == ["main", "step-2", "step-4", "step-6"]
    for step in (2, 4, 6):
        files = repo.files(f"step-{step}")
        weights = (run.snapshots / f"step-{step}" / "model.safetensors").read_bytes()
        assert files["model.safetensors"] == weights
        assert set(files) == {
            ".gitattributes", "README.md", "recipe.yaml", "mini-r1.json",
            *(p.name for p in (run.snapshots / f"step-{step}").iterdir() if p.name != MANIFEST),
        }  # fmt: skip
        assert f"after optimizer step {step}" in files["README.md"].decode()
    main = repo.files()
    assert main["model.safetensors"] == repo.files("step-4")["model.safetensors"]
    assert set(main) - set(repo.files("step-4")) == {
        "logs/metrics.jsonl", "logs/tensorboard/events.out.tfevents.1",
        "logs/evaluation/step-2.json", "logs/evaluation/step-4.json", "logs/evaluation/step-6.json",
    }  # fmt: skip
    rows = [json.loads(line) for line in main["logs/metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert len(hub.put) == len(set(hub.put)) == 4  # three models and the events: main's weights were there


def test_nothing_of_this_machine_goes_along(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    model = tmp_path / "secret-project" / "model"
    model.mkdir(parents=True)
    run = made_run(model_name_or_path=str(model), output_dir=str(tmp_path / "elsewhere"))
    evaluation(run, 2, 0.5)
    publish(run)
    for commit in hub.repos["anna/first"].commits.values():
        for name, body in commit.items():
            assert str(tmp_path).encode() not in body, name
            assert TOKEN.encode() not in body, name


def test_sending_again_sends_nothing_and_a_new_evaluation_alone_then(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    publish(run)
    puts, commits = len(hub.put), len(hub.repos["anna/first"].commits)
    assert publish(run).sent == ()
    assert (len(hub.put), len(hub.repos["anna/first"].commits)) == (puts, commits)
    evaluation(run, 4, 0.5)
    assert publish(run).sent == ("step-4", "main")  # the card of step 4 has figures now, and main has step 4
    assert len(hub.put) == puts


@pytest.mark.parametrize("wanted", ["4", "BEST", "best"])
def test_one_snapshot_goes_alone(hub: WritableHub, made_run: Run, wanted: str) -> None:
    run = made_run()
    evaluation(run, 4, 0.5)
    done = publish(run, wanted=wanted)
    assert sorted(hub.repos["anna/first"].branches) == ["main", "step-4"]
    assert ("the only snapshot measured, by" in done.plan.why) == (wanted != "4")
    assert "somewhat too high" not in done.plan.card  # nothing was chosen among several


def test_a_branch_begins_at_the_first_commit_and_has_nothing_of_main(hub: WritableHub, made_run: Run) -> None:
    publish(made_run(), wanted="2")
    publish(RunDir(made_run(name="again").path.parent / "first"), wanted="4")
    assert not any(name.startswith("logs/") for name in hub.repos["anna/first"].files("step-4"))


def test_a_name_alone_is_in_the_tokens_own_space_and_public_is_asked_for(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    done = publish(run, "second", public=True)
    assert done.address == f"{hub.address}/anna/second"
    assert hub.repos["anna/second"].private is False
    assert "is public on the hub: say --public" in refusal(run, "second").message


def test_a_large_file_goes_in_parts(made_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    run = made_run((2,))
    with WritableHub({TOKEN: "anna"}, multipart_from=100_000) as parts:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", parts.address)
        monkeypatch.setenv("HF_ENDPOINT", parts.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        publish(run)
        weights = (run.snapshots / "step-2" / "model.safetensors").read_bytes()
        assert parts.repos["anna/first"].files()["model.safetensors"] == weights
        assert len([line for line in parts.asked if line.startswith("PUT /store/part/")]) > 2
        assert parts.leaks == []


LOADED_BY_NAME = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
snapshots = sys.argv[1]
for revision, step in (("main", 6), ("step-2", 2)):
    ours = AutoModelForCausalLM.from_pretrained("anna/first", revision=revision)
    saved = AutoModelForCausalLM.from_pretrained(f"{snapshots}/step-{step}")
    pairs = list(zip(saved.named_parameters(), ours.parameters(), strict=True))
    assert len(pairs) > 10 and all(torch.equal(theirs, mine) for (_, theirs), mine in pairs)
tokenizer = AutoTokenizer.from_pretrained("anna/first")
assert tokenizer.chat_template == AutoTokenizer.from_pretrained(f"{snapshots}/step-6").chat_template
print("loaded", ours.config._commit_hash)
"""


def test_the_published_model_is_the_saved_one(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    """transformers fetches it by its name from the stand-in, through huggingface_hub, in a process of its own."""
    run = made_run()
    publish(run)
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    code = [sys.executable, "-c", LOADED_BY_NAME, str(run.snapshots)]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == hub.repos["anna/first"].branches["step-2"]


# --- what goes wrong on the way ---

PASSING = {
    "busy at the beginning": [Fault("POST", "/api/repos/create", 503, times=2)],
    "a commit that meets another": [Fault("POST", "/commit/step-2", 409), Fault("POST", "/commit/main", 412)],
    "a line that is cut in a commit": [Fault("POST", "/commit/step-4", -1)],
    "a line that is cut before an answer": [Fault("POST", "/preupload/", 0, times=2), Fault("GET", "/refs", 0)],
    "answers that are lost": [Fault("POST", "/commit/step-4", -3), Fault("POST", "/branch/step-2", -3)],
    "too many": [Fault("POST", "/objects/batch", 429, headers={"Retry-After": "7"})],
}


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_is_tried_again(hub: WritableHub, made_run: Run, what: str) -> None:
    hub.faults = [Fault(**vars(fault)) for fault in PASSING[what]]
    tries = sum(fault.times for fault in hub.faults)
    publish(made_run())
    assert sorted(hub.repos["anna/first"].branches) == ["main", "step-2", "step-4", "step-6"]
    assert all("model.safetensors" in hub.repos["anna/first"].files(name) for name in hub.repos["anna/first"].branches)
    assert len(waited) == tries
    assert waited == sorted(waited) or what == "too many" or len(hub.faults) > 1  # longer each time
    if what == "too many":
        assert waited == [7.0]


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


# --- what is refused ---


def test_no_token(hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    run = made_run()
    error = refusal(run)
    assert "there is no token for the hub: set HF_TOKEN" in error.message
    assert error.exit_code == ExitCode.CONFIG
    assert hub.asked == []
    (tmp_path / "token").write_text(f"{TOKEN}\n")  # as `huggingface-cli login` leaves it
    assert publish(run).sent


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_wrong", "anna/first", "the hub does not take this token"),
        ("hf_reads", "anna/first", "this token may not write to anna/first"),
        (TOKEN, "bert/first", 'this token may not write to bert/first (You don\'t have the rights to create a model'),
        (TOKEN, "no/such/name", "no/such/name is no name that the hub takes"),
    ],
)  # fmt: skip
def test_a_token_or_a_name_that_does_not_do(
    hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(made_run(), repo)
    assert words in error.message
    assert error.exit_code == ExitCode.CONFIG
    assert waited == []
    assert hub.repos == {}


def test_a_repository_of_another_run_is_left_alone(hub: WritableHub, made_run: Run) -> None:
    publish(made_run())
    before = dict(hub.repos["anna/first"].branches)
    assert "anna/first holds something else than this run" in refusal(made_run(name="second")).message
    hub.make("anna/mine", model__bin=b"weights")
    assert "anna/mine holds something else than this run" in refusal(made_run(name="third"), "anna/mine").message
    assert hub.repos["anna/first"].branches == before
    hub.make("anna/new", README__md=b"# made on the hub's pages")
    assert publish(made_run(name="fourth"), "anna/new").sent


def test_a_snapshot_that_is_not_there_or_not_whole(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    assert "has no complete snapshot of step 5; there are: 2, 4, 6" in refusal(run, wanted="5").message
    assert "--snapshot takes BEST or a step, not 'newest'" in refusal(run, wanted="newest").message
    assert "has no held-out success to choose the best snapshot by" in refusal(run, wanted="BEST").message
    (run.snapshots / "step-4" / MANIFEST).unlink()
    assert "the snapshot of step 4 of" in refusal(run, wanted="4").message
    assert "is not complete" in refusal(run, wanted="4").message
    weights = run.snapshots / "step-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert "model.safetensors does not have the hash of its manifest" in refusal(run, wanted="6").message
    weights.unlink()
    assert "is damaged (model.safetensors)" in refusal(run, wanted="6").message
    assert hub.put == []
    empty = made_run((), name="empty")
    assert "has no complete snapshot yet" in refusal(empty).message
    with pytest.raises(KitError, match="holds no run"):
        publish(RunDir(run.path / "nothing"))


def test_a_file_with_the_token_in_it_is_not_sent(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    (run.tensorboard / "events.out.tfevents.1").write_bytes(b"a tracker's own: " + TOKEN.encode())
    assert "the hub's token stands in logs/tensorboard/events.out.tfevents.1" in refusal(run).message
    assert "main" not in {line.rpartition("/")[2] for line in hub.asked if "/commit/" in line}


def test_an_offline_machine(made_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "HF_HUB_OFFLINE is set" in refusal(made_run()).message


# --- adapters ---


def adapter(run: RunDir, step: int, base: str | None) -> None:
    """Turn a snapshot into what peft saves."""
    folder = run.snapshots / f"step-{step}"
    (folder / MANIFEST).unlink()
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "README.md").write_text("peft's own")
    from mini_r1.manifest import seal

    seal(folder.rename(folder.with_name(f".step-{step}")), folder, run_id=run.run_id)


def test_an_adapter_names_its_base(hub: WritableHub, made_run: Run) -> None:
    run = made_run((2,), model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct", use_peft=True)
    adapter(run, 2, "Qwen/Qwen2.5-0.5B-Instruct")
    hub.make("Qwen/Qwen2.5-0.5B-Instruct", private=False)
    publish(run)
    files = hub.repos["anna/first"].files("step-2")
    card = files["README.md"].decode()
    assert "base_model: Qwen/Qwen2.5-0.5B-Instruct\n" in card
    assert "library_name: peft\n" in card
    assert "A LoRA adapter of [Qwen/Qwen2.5-0.5B-Instruct]" in card
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    ("recipe", "named"),
    [("builtin:demo", "/home/anna/.cache/demo"), ("/models/base", "/models/base"), ("Qwen/Qwen2.5-0.5B", None)],
)
def test_an_adapter_of_an_unknown_base(hub: WritableHub, made_run: Run, recipe: str, named: str | None) -> None:
    run = made_run((2,), model_name_or_path=recipe, use_peft=True)
    adapter(run, 2, named)
    assert f"step 2 is an adapter, and its base ({named or 'none is named'}) is on no hub" in refusal(run).message
    assert hub.repos == {}


# --- the command ---


def test_a_dry_run_shows_all_and_asks_nothing(
    mini_r1: Callable[..., subprocess.CompletedProcess[str]], made_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run()
    evaluation(run, 4, 0.71)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = mini_r1("publish", run.path, "--repo", "anna/first", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "main: the model of step 4" in done.stdout
    assert "logs/metrics.jsonl" in done.stdout
    assert "71.0% (61.0% - 81.0%)" in done.stdout
    assert "nothing was sent; there is no token for the hub" in done.stderr
    told = json.loads(mini_r1("publish", run.path, "--repo", "anna/first", "--dry-run", "--json").stdout)
    assert (told["repo"], told["step"]) == ("anna/first", 4)
    assert [branch["branch"] for branch in told["branches"]] == ["step-2", "step-4", "step-6", "main"]
    refused = mini_r1("publish", run.path, "--repo", "anna/first", "--snapshot", "5", "--dry-run", "--json")
    assert refused.returncode == 78
    assert "has no complete snapshot of step 5" in json.loads(refused.stdout)["error"]
