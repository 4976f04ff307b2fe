"""Secrets with a known name or form are removed, and other text stays readable."""

from __future__ import annotations

import json
import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.machine.redact import REDACTED, is_secret, redact, redact_environment

WANDB = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PASSWD",
     "githubToken", "GOOGLE_CREDENTIALS", "NPM_AUTH", "SESSION_COOKIE", "api-key", "DB_PASS", "SSH_PRIVATE_KEY",
     "OPENAI_APIKEY"],
)  # fmt: skip
def test_a_variable_with_a_secrets_name_is_secret(name: str) -> None:
    assert is_secret(name, "pineapple")
    assert redact("it is pineapple.", {name: "pineapple"}) == f"it is {REDACTED}."
    assert redact_environment({name: "pineapple"}) == {name: REDACTED}


@pytest.mark.parametrize(
    ("name", "value"),
    [("KEYBOARD", "german"), ("TOKENIZERS_PARALLELISM", "false"), ("HF_TOKEN_PATH", "/home/me/token"),
     ("MAX_TOKENS", "4096"), ("WANDB_API_KEY", ""), ("MY_KEY", "abc"), ("AUTHOR", "somebody"), ("PWD", "/home/me"),
     ("USE_AUTH", "true"), ("SSH_AUTH_SOCK", "/run/agent.1"), ("PATH", "/usr/bin:/bin"), ("MASTER_ADDR", "node-0"),
     ("COMPASS", "north")],
)  # fmt: skip
def test_other_variables_are_shown(name: str, value: str) -> None:
    assert not is_secret(name, value)
    assert redact_environment({name: value}) == {name: value}
    assert redact(f"with {value}", {name: value}) == f"with {value}"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("login with hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 done", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
        ("key sk-proj-abcdefghijklmnop0123", "sk-proj-abcdefghijklmnop0123"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123", "eyJzdWIiOiIxMjM0In0"),
        ("http://me:hunter22@proxy.example:3128/x", "hunter22"),
        ("https://gitsecret@host/repo", "gitsecret"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        (f"export WANDB_API_KEY={WANDB}", WANDB),
        (json.dumps({"wandb_api_key": WANDB, "x": 1}), WANDB),
        (json.dumps(json.dumps({"secret": "pine apple" "tree"})), "pine"),
        (repr({"password": "pineapple"}), "pineapple"),
        ("--hub-token pineapple --steps 4", "pineapple"),
        ("--password=pineapple", "pineapple"),
        (json.dumps(["x", "--hf_token", "pineapple"], indent=2), "pineapple"),
        ("https://host/file?api_key=pineapple&x=1", "pineapple"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\ndef\n-----END RSA PRIVATE KEY-----\nrest", "def"),
        ("-----BEGIN PRIVATE KEY-----\nabc\ncut off he", "cut off"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_removed(text: str, secret: str) -> None:
    clean = redact(text, {})
    assert secret not in clean
    assert REDACTED in clean
    assert redact(clean, {}) == clean


@pytest.mark.parametrize(
    "text",
    [
        "prompt tokens: 4096, completion_tokens=128, tokens per second: 12.5",
        "pad_token: <|endoftext|> eos_token='<|im_end|>'",
        "unknown key: learning_rates; did you mean learning_rate?",
        "KeyError: 'learning_rate'",
        "File \"hf_hub_download.py\", line 3, in hf_hub_download_to_cache_dir",
        "commit f2b6e12aa0123456789abcdef0123456789abcde at https://huggingface.co/Qwen/Qwen2.5-3B-Instruct",
        "task-abcdefghijklmnopqrstu risk-free desk-abcdefghijklmnop",
        '{"token": null, "password": true}',
        "user@host.example wrote to me@host",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert redact(text, {}) == text


def test_a_secret_is_found_in_the_spellings_of_json_python_and_urls() -> None:
    environment = {"DB_PASSWORD": 'a"b\\c d/é\n'}
    for text in (json.dumps(environment), repr([*environment.values()]), "http://h/?p=a%22b%5Cc%20d%2F%C3%A9%0A"):
        clean = redact(text, environment)
        assert "c d" not in clean
        assert "c%20d" not in clean


def test_json_stays_json() -> None:
    value = {"command": ["mini-r1", "--token", "pineapple"], "env": {"HF_TOKEN": "banana split", "n": 3}, "token": None}
    clean = json.loads(redact(json.dumps(value, indent=2), {"X_TOKEN": "banana split"}))
    assert clean == {"command": ["mini-r1", "--token", REDACTED], "env": {"HF_TOKEN": REDACTED, "n": 3}, "token": None}


LETTERS = st.text(string.ascii_uppercase + string.digits + "%+$ \\\"'", min_size=4, max_size=24).map(lambda s: f"Q{s}Q")


@given(secrets=st.lists(LETTERS, min_size=1, max_size=5), words=st.lists(st.text(), max_size=8), seed=st.randoms())
def test_no_value_of_a_secret_variable_survives_in_any_text(secrets: list[str], words: list[str], seed: object) -> None:
    environment = {f"NAME{i}_TOKEN": value for i, value in enumerate(secrets)}
    parts = [*secrets, *words]
    seed.shuffle(parts)  # type: ignore[attr-defined]
    for text in ("\n".join(parts), json.dumps(parts), repr(parts)):
        clean = redact(text, environment)
        assert not any(value in clean for value in secrets)


@given(st.text(), st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=4))
def test_any_text_and_any_environment_can_be_redacted_and_shown(text: str, environment: dict[str, str]) -> None:
    assert isinstance(redact(text, environment), str)
    assert list(redact_environment(environment)) == sorted(environment)


HOSTILE = [
    "a", "eyJ-", "eyJaaaaaaaaa.", "TOKEN_", "TOKEN=", "://", "--token ", "://aaaa:", "-----BEGIN PRIVATE KEY-----",
    "sk-", "hf_", '\\"', " ", "Bearer ", "-", "password:", "a-", "token:  ", "\n", "api_key='", "AKIA", "aaaaa",
]  # fmt: skip


@pytest.mark.parametrize(("size", "timeout_s"), [(2**17, 120), pytest.param(2**19, 600, marks=pytest.mark.exhaustive)])
def test_a_long_text_made_to_be_slow_is_not(size: int, timeout_s: int) -> None:
    """Quadratic work on one of these would take minutes, or hours; a separate process can be given up on."""
    code = f"""if True:
        import json, sys
        from mini_r1.machine.redact import redact
        for piece in json.load(sys.stdin):
            print(len(redact(piece * ({size} // len(piece)), {{"A_TOKEN": "aaaaab"}})))
            print(len(redact("token" + piece * ({size} // len(piece)), {{}})))
    """
    given = json.dumps(HOSTILE)
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * len(HOSTILE)
