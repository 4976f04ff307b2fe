"""`mini-r1 publish` with huggingface_hub against a stand-in of the hub: what is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.hub import publish as publishing
from mini_r1.run.files import write_json, write_jsonl
from mini_r1.run.manifest import MANIFEST
from mini_r1.run.run_dir import RunDir

from tests.hub_upload import BadAnswer, WritableHub
from tests.publishing.conftest import TOKEN, Run, evaluation, progress, publish, refusal, resave

# --- what is sent ---


def test_every_snapshot_is_a_branch_and_main_has_the_best_and_the_logs(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    for step, success in ((2, 0.2), (4, 0.7), (6, 0.3)):
        evaluation(run, step, success)
    done = publish(run)
    assert done.why == "of 6, the highest held-out success of the 3 snapshots measured, by evaluation/step-4.json"
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


def test_nothing_of_this_machine_is_sent(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    model = tmp_path / "secret-project" / "model"
    model.mkdir(parents=True)
    run = made_run(model_name_or_path=str(model), output_dir=str(tmp_path / "elsewhere"))
    config = json.loads((run.snapshots / "step-4" / "config.json").read_text())
    resave(run, 4, config__json=json.dumps({**config, "_name_or_path": str(model)}).encode())
    settings = {"weights": f"{model}@None", "operators": "+-*/"}
    evaluation(run, 2, 0.5, provenance={"source": "runs/first", "settings": settings, "written_to": str(tmp_path)})
    (run.tensorboard / "events.out.tfevents.1").rename(
        run.tensorboard / "events.out.tfevents.1795722551.node7.cluster.org.27036.0"
    )
    publish(run)
    for commit in hub.repos["anna/first"].commits.values():
        for name, body in commit.items():
            for ours in (str(tmp_path), "secret-project", "node7", TOKEN):
                assert ours.encode() not in name.encode() + body, name
    files = hub.repos["anna/first"].files()
    assert "logs/tensorboard/events.out.tfevents.1795722551.27036.0" in files
    evaluated = json.loads(files["logs/evaluation/step-2.json"])["provenance"]
    assert (evaluated["source"], evaluated["settings"]) == ("first", {"weights": "model@None", "operators": "+-*/"})
    sent = json.loads(hub.repos["anna/first"].files("step-4")["config.json"])
    assert sent == {key: value for key, value in config.items() if key != "_name_or_path"}


def test_a_link_out_of_the_run_is_not_followed(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    run = made_run()
    keys = tmp_path / "keys.json"
    keys.write_text('{"auths": "of mine"}')
    evaluation(run, 4, 0.5)
    (run.evaluation / "step-6.json").symlink_to(keys)
    (run.evaluation / "again.json").symlink_to(run.evaluation / "step-4.json")  # a link inside of the run
    (run.tensorboard / "tfevents.2").symlink_to(keys)
    (run.path / ".env").write_text("KEY=of mine")
    done = publish(run)
    for commit in hub.repos["anna/first"].commits.values():
        assert not any(b"of mine" in body for body in commit.values())
    assert "logs/evaluation/again.json" in hub.repos["anna/first"].files()
    left = [f"left out: {name} is a link that leads out of the run directory" for name in
            ("tensorboard/tfevents.2", "evaluation/step-6.json")]  # fmt: skip
    assert [line for line in progress if line.startswith("left out")] == left
    assert left[0] in done.lines()


def test_a_snapshot_that_was_saved_again_is_sent_again(hub: WritableHub, made_run: Run) -> None:
    """A run that resumed from an older checkpoint saves a step a second time."""
    run = made_run()
    publish(run)
    other = (run.snapshots / "step-2" / "model.safetensors").read_bytes()[::-1]
    resave(run, 4, model__safetensors=other)
    assert publish(run).sent == ("step-4",)
    assert hub.repos["anna/first"].files("step-4")["model.safetensors"] == other


def test_publishing_again_sends_only_a_new_evaluation(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    publish(run)
    puts, commits = len(hub.put), len(hub.repos["anna/first"].commits)
    assert publish(run).sent == ()
    assert (len(hub.put), len(hub.repos["anna/first"].commits)) == (puts, commits)
    evaluation(run, 4, 0.5)
    assert publish(run).sent == ("step-4", "main")  # the card of step 4 has figures now, and main has step 4
    assert len(hub.put) == puts


def test_figures_of_some_problems_are_on_the_card_and_marked(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    for step, success in ((2, 0.2), (4, 0.7)):
        selection = {"selection": "first 100 of 500 problems by a shuffle with seed 42"}
        evaluation(run, step, success, f"step-{step}-limit-100.json", problems=100, provenance=selection)
    done = publish(run)
    assert done.why.endswith("of the 2 snapshots measured, by evaluation/step-4-limit-100.json (100 problems)")
    assert "On problems that training never used: first 100 of 500 problems" in done.main.card
    assert "name: Countdown, 100 of the run's held-out problems" in done.main.card
    assert "| all | 100 | 50.0% (40.0% - 60.0%) | 70.0% (60.0% - 80.0%) |" in done.main.card


@pytest.mark.parametrize("wanted", ["4", "BEST", "best"])
def test_one_snapshot_is_sent_alone(hub: WritableHub, made_run: Run, wanted: str) -> None:
    run = made_run()
    evaluation(run, 4, 0.5)
    done = publish(run, wanted=wanted)
    assert sorted(hub.repos["anna/first"].branches) == ["main", "step-4"]
    assert ("the only snapshot measured, by" in done.why) == (wanted != "4")
    assert "slightly too high" not in done.main.card  # it was not chosen from several


def test_a_branch_begins_at_the_first_commit_and_has_nothing_of_main(hub: WritableHub, made_run: Run) -> None:
    publish(made_run(), wanted="2")
    publish(RunDir(made_run(name="again").path.parent / "first"), wanted="4")
    assert not any(name.startswith("logs/") for name in hub.repos["anna/first"].files("step-4"))


def test_a_name_without_owner_is_in_the_tokens_own_space_and_private(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    done = publish(run, "second", public=True)
    assert done.address == f"{hub.address}/anna/second"
    assert hub.repos["anna/second"].private is False
    assert "is public on the hub: pass --public" in refusal(run, "second").message
    publish(run, "third")
    assert publish(run, "third", public=True).private is True
    assert "anna/third is private and stays private: make it public on its page" in progress


def test_a_large_file_is_sent_in_parts(made_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    run = made_run((2,))
    with WritableHub({TOKEN: "anna"}, multipart_from=100_000) as parts:
        parts.errors = [BadAnswer("PUT", "/store/part/.*/2", -1)]  # the connection is lost in the middle of one
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "ENDPOINT", parts.address)
        monkeypatch.setenv("HF_ENDPOINT", parts.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        publish(run)
        weights = (run.snapshots / "step-2" / "model.safetensors").read_bytes()
        assert parts.repos["anna/first"].files()["model.safetensors"] == weights
        sent = [line for line in parts.asked if line.startswith("PUT /store/part/")]
        assert len(sent) == len(set(sent)) + 1 > 3
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
from huggingface_hub import hf_hub_download
card = open(hf_hub_download("anna/first", "README.md")).read()
exec(card.split("```python")[1].split("```")[0])
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.generation.prompts import (render, token_ids)
assert ids.tolist() == token_ids(tokenizer, render(CountdownTask(), tokenizer, [Problem((4, 6), 24)], "script"))
assert revision == "step-6" and out.shape[1] > ids.shape[1]
print("loaded", ours.config._commit_hash)
"""


def test_the_published_model_is_the_saved_one(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    """transformers fetches it by its name from the stand-in, with huggingface_hub, in another process.

    The card's code runs there too: it asks a problem of the run with the exact tokens of its training.
    """
    run = made_run(max_completion_length=8)
    write_jsonl(run.held_out_file, [{"nums": [4, 6], "target": 24}])
    publish(run)
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    code = [sys.executable, "-c", LOADED_BY_NAME, str(run.snapshots)]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == hub.repos["anna/first"].branches["step-2"]


# --- the command ---


def test_a_dry_run_shows_everything_and_makes_no_request(
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
    shown = json.loads(mini_r1("publish", run.path, "--repo", "anna/first", "--dry-run", "--json").stdout)
    assert (shown["repo"], shown["step"]) == ("anna/first", 4)
    assert [branch["branch"] for branch in shown["branches"]] == ["step-2", "step-4", "step-6", "main"]
    refused = mini_r1("publish", run.path, "--repo", "anna/first", "--snapshot", "5", "--dry-run", "--json")
    assert refused.returncode == 78
    assert "has no complete snapshot of step 5" in json.loads(refused.stdout)["error"]


def test_a_dry_run_asks_for_the_licence_of_the_base_and_sends_nothing(hub: WritableHub, made_run: Run) -> None:
    hub.make("Qwen/Qwen2.5-0.5B-Instruct", private=False)
    run = made_run(model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct")
    asked: list[str] = []
    made = publishing.dry_run(run.path, "anna/first", None, asked.append)
    assert hub.asked == ["GET /api/models/Qwen/Qwen2.5-0.5B-Instruct"]
    assert asked == ["nothing was sent"]
    assert "base_model: Qwen/Qwen2.5-0.5B-Instruct\n" in made.main.card


@pytest.mark.parametrize("attempts", [[{"model": {"revision": None}}], [], {"1": {}}, [3], None])
def test_a_folder_that_looks_like_a_hub_id_is_not_one(hub: WritableHub, made_run: Run, attempts: object) -> None:
    """Publish from another directory than the run's; a model from the hub has a commit in run.json."""
    run = made_run(model_name_or_path="models/mine")
    record = run.read_record()
    assert "base_model: models/mine" in publishing.dry_run(run.path, "anna/first", None, progress.append).main.card
    write_json(run.run_file, {**record, "attempts": attempts})
    hub.asked.clear()
    card = publishing.dry_run(run.path, "anna/first", None, progress.append).main.card
    assert "base_model" not in card
    assert "Made from mine, a folder of the machine that it was trained on." in card
    assert hub.asked == []
