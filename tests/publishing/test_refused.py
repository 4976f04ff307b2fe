"""What `mini-r1 publish` refuses: tokens, names, damaged snapshots, adapters without a base."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub import publish as publishing
from mini_r1.run.manifest import MANIFEST
from mini_r1.run.run_dir import RunDir

from tests.hub_upload import BadAnswer, WritableHub
from tests.publishing.conftest import TOKEN, Run, progress, publish, refusal, waited


def test_a_missing_token_is_refused(
    hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    ("token", "repo", "message"),
    [
        ("hf_wrong", "anna/first", "the hub doesn't accept this token"),
        ("hf_reads", "anna/first", "this token can't write to anna/first"),
        (TOKEN, "bert/first", 'this token can\'t write to bert/first (You don\'t have the rights to create a model'),
        (TOKEN, "no/such/name", "no/such/name is not a valid name on the hub"),
    ],
)  # fmt: skip
def test_a_wrong_token_or_name_is_refused(
    hub: WritableHub, made_run: Run, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(made_run(), repo)
    assert message in error.message
    assert error.exit_code == ExitCode.CONFIG
    assert waited == []
    assert hub.repos == {}


def test_a_repository_of_another_run_is_refused(hub: WritableHub, made_run: Run) -> None:
    publish(made_run())
    before = dict(hub.repos["anna/first"].branches)
    assert "anna/first holds something else than this run" in refusal(made_run(name="second")).message
    hub.make("anna/mine", model__bin=b"weights")
    assert "anna/mine holds something else than this run" in refusal(made_run(name="third"), "anna/mine").message
    assert hub.repos["anna/first"].branches == before
    hub.make("anna/new", README__md=b"# made on the hub's pages")
    assert publish(made_run(name="fourth"), "anna/new").sent


def test_a_repository_that_another_run_has_begun_to_fill_is_refused(hub: WritableHub, made_run: Run) -> None:
    """main is filled last, and names its run from the beginning."""
    hub.errors = [BadAnswer("POST", "/commit/step-4", 403)]
    assert "can't write to" in refusal(made_run()).message
    assert "model.safetensors" not in hub.repos["anna/first"].files()
    assert "anna/first holds something else than this run" in refusal(made_run(name="second")).message


def test_a_run_without_an_id_is_refused(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    run.run_file.write_text("{")
    assert "run.json is missing or cannot be read" in refusal(run).message
    assert hub.asked == []


@pytest.mark.parametrize("name", ["no/such/name", "a name", "", "-x", "a..b", 'x"; import os; "'])
def test_a_dry_run_refuses_an_invalid_name_too(hub: WritableHub, made_run: Run, name: str) -> None:
    with pytest.raises(KitError, match="is not a valid name on the hub") as caught:
        publishing.dry_run(made_run().path, name, None, progress.append)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert hub.asked == []


def test_a_link_in_a_published_snapshot_is_refused(hub: WritableHub, made_run: Run, tmp_path: Path) -> None:
    run = made_run((2,))
    publish(run)
    file = run.snapshots / "step-2" / "tokenizer.json"
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * file.stat().st_size)
    file.unlink()
    file.symlink_to(secret)
    assert "tokenizer.json is a link" in refusal(run).message
    assert not any(b"xxx" in body for body in hub.repos["anna/first"].files("step-2").values())


def test_a_missing_or_damaged_snapshot_is_refused(hub: WritableHub, made_run: Run) -> None:
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
    assert "is damaged (model.safetensors is missing)" in refusal(run, wanted="6").message
    assert hub.put == []
    empty = made_run((), name="empty")
    assert "has no complete snapshot yet" in refusal(empty).message
    with pytest.raises(KitError, match="holds no run"):
        publish(RunDir(run.path / "nothing"))


def test_a_file_with_the_token_in_it_is_not_sent(hub: WritableHub, made_run: Run) -> None:
    run = made_run()
    (run.tensorboard / "events.out.tfevents.1").write_bytes(b"a tracker's own: " + TOKEN.encode())
    assert "the hub's token is in logs/tensorboard/events.out.tfevents.1" in refusal(run).message
    assert not any(name.startswith("logs/") for name in hub.repos["anna/first"].files())


def test_publishing_offline_is_refused(made_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in refusal(made_run()).message
