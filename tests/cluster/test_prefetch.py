"""`mini-r1 prefetch` as a user runs it, with huggingface_hub's client against a stand-in of the hub."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mini_r1.console import ProgressLine
from mini_r1.errors import KitError
from mini_r1.hub import prefetch
from mini_r1.hub.hub_access import MODEL
from mini_r1.hub.hub_errors import fetch_errors
from mini_r1.hub.prefetch import HubFile, Part
from rich.console import Console
from safetensors.torch import load, save

from tests.cluster.real_stack import Launch, needs_vllm, random_model, write_recipe
from tests.conftest import ASSETS, command, rows
from tests.hub import Hub, Repo, files_of
from tests.small_disk import small_disk

MODEL_COMMIT, DATA_COMMIT, WORDS_COMMIT = "a" * 40, "b" * 40, "c" * 40
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TABLES = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
TOKEN = "hf_planted0123456789planted"
UNWANTED = ("pytorch_model.bin", "training_args.pt", "original/consolidated.00.pth", "consolidated.safetensors",
            "tiny.Q4_K_M.gguf", "onnx/model.onnx", "onnx/config.json", "flax_model.msgpack", "tf_model.h5",
            "pytorch_model.bin.index.json", "modeling_tiny.py", "README.md", ".gitattributes")  # fmt: skip
Recipe = Callable[..., Path]
Fetch = Callable[..., subprocess.CompletedProcess[str]]


def sharded(weights: bytes) -> dict[str, bytes]:
    """Return the same weights in two files and an index."""
    tensors = sorted(load(weights).items())
    halves = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    weight_map = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name, _ in half}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    parts = {shard: save(dict(half), {"format": "pt"}) for shard, half in zip(SHARDS, halves, strict=True)}
    return {**parts, INDEX: index}


def tables() -> dict[str, bytes]:
    """Return the real rows in two Parquet files."""
    every, files = rows(ASSETS / "countdown_rows.jsonl"), {}
    for number, name in enumerate(TABLES):
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(every[number::2]), table)
        files[name] = table.getvalue()
    return files


@pytest.fixture
def tiny(untrained: Path) -> Repo:
    """Make the model nobody/tiny: sharded, with a tokenizer, and with unwanted files."""
    files = files_of(untrained)
    files.update(sharded(files.pop("model.safetensors")))
    return Repo("nobody/tiny", {**files, **dict.fromkeys(UNWANTED, b"{}")}, MODEL_COMMIT)


@pytest.fixture
def words(untrained: Path) -> Repo:
    """Make the tokenizer nobody/words."""
    files = {name: body for name, body in files_of(untrained).items() if not name.endswith(".safetensors")}
    return Repo("nobody/words", {**files, "README.md": b"#"}, WORDS_COMMIT)


@pytest.fixture
def games() -> Repo:
    """Make the data set nobody/rows."""
    return Repo("nobody/rows", {**tables(), "README.md": b"#", "script.py": b""}, DATA_COMMIT, is_data=True)


@pytest.fixture
def recipe(small_recipe: Recipe) -> Path:
    return small_recipe("air", model_name_or_path="nobody/tiny", dataset_id_or_path="nobody/rows", max_steps=1,
                        save_steps=1, tokenizer_name_or_path="nobody/words")  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


@pytest.fixture
def fetch(home: Path) -> Fetch:
    """Run `mini-r1 prefetch ARGS` against a hub."""

    def run(hub: Hub | str, *args: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command(), "prefetch", *map(str, args)], env=online(hub, home, **changes),
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


def online(hub: Hub | str, home: Path, **changes: str) -> dict[str, str]:
    address = hub if isinstance(hub, str) else hub.address
    ours = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    return {**os.environ, **ours, **changes}


def offline(home: Path) -> dict[str, str]:
    """Return an environment without a network, and with a closed port as the hub."""
    return online("http://127.0.0.1:9", home, HF_HUB_OFFLINE="1")


def refused(done: subprocess.CompletedProcess[str], code: int, *messages: str) -> None:
    """Assert the exit code and the messages, on standard error and as --json, without the token."""
    assert done.returncode == code, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == code
    for message in messages:
        assert message in answer["error"]
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr


# --- what is fetched, and that a run needs no more ---


@pytest.mark.exhaustive
def test_what_was_fetched_trains_and_evaluates_without_a_network(
    tiny: Repo, words: Repo, games: Repo, recipe: Path, fetch: Fetch, home: Path, tmp_path: Path
) -> None:
    with Hub(tiny, words, games) as hub:
        done = fetch(hub, recipe, "--json")
        assert done.returncode == 0, done.stderr
        fetched = set(hub.fetched)
        again = fetch(hub, recipe)
        assert set(hub.fetched) == fetched
    record = json.loads(done.stdout)
    kept = {
        "model": ("nobody/tiny", "main", MODEL_COMMIT, tiny.files.keys() - set(UNWANTED)),
        "tokenizer": ("nobody/words", None, WORDS_COMMIT, words.files.keys() - {"README.md"}),
        "data": ("nobody/rows", None, DATA_COMMIT, {*TABLES, "README.md"}),
    }
    assert {part["kind"]: (part["name"], part["revision"], part["commit"], set(part["files"]))
            for part in record["parts"]} == kept  # fmt: skip
    assert fetched == {f"{name}/{file}" for name, _, _, files in kept.values() for file in files}
    sizes = [sum(len(repo.files[file]) for file in kept[part][3])
             for part, repo in (("model", tiny), ("tokenizer", words), ("data", games))]  # fmt: skip
    assert [part["bytes"] for part in record["parts"]] == [part["fetched"] for part in record["parts"]] == sizes

    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already in the cache") == 3
    recorded = json.loads((home / "mini-r1" / "prefetched" / "air.json").read_text())
    assert recorded["parts"][0] == {**record["parts"][0], "fetched": 0, "note": "already in the cache"}

    def kit(*args: str | Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*command(), *map(str, args)], env=offline(home), capture_output=True, text=True,
                              timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run = tmp_path / "run"
    found = {f["check"]: f for f in json.loads(kit("doctor", recipe, "--run-dir", run, "--json").stdout)["findings"]}
    assert {name: found[name]["status"] for name in ("model", "data", "architecture", "tokenizer", "problems")} == {
        "model": "ok", "data": "ok", "architecture": "ok", "tokenizer": "ok", "problems": "ok"
    }  # fmt: skip
    kit("launch", recipe, "--run-dir", run)
    facts = json.loads((run / "run.json").read_text())
    assert facts["data"]["revision"] == DATA_COMMIT
    assert facts["attempts"][0]["model"]["revision"] == MODEL_COMMIT
    kit("evaluate", run, "--samples", "1", "--limit", "2")
    problems = ASSETS / "countdown_rows.jsonl"
    kit("evaluate", "nobody/tiny", "--problems", problems, "--samples", "1", "--limit", "1")

    everything = [path for folder in (home, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in everything if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr


@pytest.mark.real
@needs_vllm
def test_what_was_fetched_is_enough_for_the_real_vllm(games: Repo, fetch: Fetch, home: Path, tmp_path: Path) -> None:
    files = files_of(random_model(tmp_path / "model"))
    files.update(sharded(files.pop("model.safetensors")))
    recipe = write_recipe(tmp_path / "vllm.yaml", "nobody/larger", dataset_id_or_path="nobody/rows", max_steps=2)
    with Hub(Repo("nobody/larger", files, MODEL_COMMIT), games) as hub:
        done = fetch(hub, recipe)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    with Launch(recipe, "--run-dir", run, "--gpus", "2", log=tmp_path / "log.txt", environment=offline(home)) as launch:
        assert launch.wait() == 0, launch.said
    (attempt,) = json.loads((run / "run.json").read_text())["attempts"]
    assert (attempt["vllm_device"], attempt["model"]["revision"]) == ("cpu", MODEL_COMMIT)


def test_one_file_of_weights_needs_no_index_and_the_tokenizer_is_the_models(
    untrained: Path, games: Repo, small_recipe: Recipe, fetch: Fetch, home: Path
) -> None:
    files = files_of(untrained)
    surplus = {INDEX: json.dumps({"weight_map": {"x": SHARDS[0]}}).encode(), SHARDS[0]: b""}
    recipe = small_recipe("whole", model_name_or_path="nobody/tiny", model_revision=MODEL_COMMIT,
                          dataset_id_or_path=str(ASSETS / "countdown_rows.jsonl"))  # fmt: skip
    with Hub(
        Repo("nobody/tiny", {**files, **surplus}, MODEL_COMMIT, token=TOKEN)
    ) as hub:  # gated, and open to this token
        done = fetch(hub, recipe, "--json")
    assert done.returncode == 0, done.stderr
    model, tokenizer, data = json.loads(done.stdout)["parts"]
    assert set(model["files"]) == set(files)
    assert (model["revision"], model["commit"]) == (MODEL_COMMIT, MODEL_COMMIT)
    assert tokenizer["files"] == data["files"] == []
    assert "the model's own" in tokenizer["note"]
    assert "a path" in data["note"]
    loading = subprocess.run([sys.executable, "-c", "import transformers.utils.hub"], env=offline(home),
                             capture_output=True, text=True, timeout=300)  # fmt: skip
    assert loading.returncode == 0
    assert "You are offline" not in loading.stderr  # transformers' warning for a cache that it takes for an old one


def test_a_recipe_without_a_hub_id_needs_nothing_even_offline(small_recipe: Recipe, fetch: Fetch, home: Path) -> None:
    recipe = small_recipe(model_name_or_path="builtin:demo", dataset_id_or_path="generated", dataset_rows=20)
    done = fetch("http://127.0.0.1:9", recipe, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "builtin:demo: made by the kit" in done.stdout
    assert "generated: made by the kit" in done.stdout
    assert "runs without a network as it is" in done.stdout
    assert not home.exists()
    elsewhere = fetch("http://127.0.0.1:9", recipe, "--set", "model_name_or_path=/models/x", "--json")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert json.loads(elsewhere.stdout)["record"] is None
    assert "not on this machine" in json.loads(elsewhere.stdout)["parts"][0]["note"]


# --- refusals ---


def of_tiny(files: dict[str, bytes], **changes: Any) -> Repo:
    return Repo("nobody/tiny", {"config.json": b'{"model_type": "qwen2"}', "tokenizer.json": b"{}", **files}, **changes)


WEIGHTS = {"model.safetensors": b"0" * 1000}


@pytest.mark.parametrize(
    ("repo", "code", "message"),
    [
        (of_tiny(WEIGHTS, token="hf_anothersaccount"), 78, "nobody/tiny is gated: accept its terms"),
        (of_tiny(WEIGHTS, status=401), 78, "check HF_TOKEN, or unset it"),
        (of_tiny(WEIGHTS, status=403), 78, "check HF_TOKEN, or unset it"),
        (of_tiny(WEIGHTS, status=503), 150, "the hub does not answer for nobody/tiny"),
        (of_tiny(WEIGHTS, status=429), 150, "the hub does not answer for nobody/tiny"),
        (of_tiny({"pytorch_model.bin": b""}), 78, "no safetensors weights: pickled ones are not read"),
        (of_tiny({"adapter_config.json": b"{}"}), 78, "is an adapter"),
        (of_tiny({**WEIGHTS, "config.json": b'{"model_type": "qwen3"}'}), 78, "transformers 4.51.0 was the first"),
        (of_tiny({**WEIGHTS, "config.json": b"<html>"}), 78, "config.json of nobody/tiny is not JSON"),
        (of_tiny({INDEX: b'{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}', "a.safetensors": b""}), 78,
         "weights: 1 of 2 files are missing, such as b.safetensors"),
        (of_tiny({INDEX: b'{"weight_map": {"x": "a.bin"}}', "a.bin": b""}), 78, "weights: 1 of 1 files are missing"),
    ],
)  # fmt: skip
def test_an_unusable_model_is_refused_before_its_weights_are_fetched(
    repo: Repo, code: int, message: str, small_recipe: Recipe, fetch: Fetch
) -> None:
    recipe = small_recipe(model_name_or_path="nobody/tiny")
    with Hub(repo) as hub:
        refused(fetch(hub, recipe, "--json"), code, message)
    assert not [name for name in hub.fetched if not name.endswith(".json")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model_name_or_path=nobody/tinny", "the hub has no model nobody/tinny"),
        ("model_revision=v9", "nobody/tiny has no revision v9"),
        ("model_name_or_path=no body/ti..ny", "is not a valid name on the hub"),
        ("model_name_or_path=Qwen/Qwen3-1.7B", "qwen3"),
        ("tokenizer_name_or_path=nobody/wrods", "check tokenizer_name_or_path"),
        ("dataset_id_or_path=nobody/games", "the hub has no dataset nobody/games"),
        (
            "dataset_id_or_path=nobody/prose",
            "nobody/prose: no data here; .parquet, .jsonl, .json, .csv files can be read",
        ),
        (
            "dataset_id_or_path=nobody/half",
            "the hub lacks 1 files of nobody/half, such as train-00001-of-00002.parquet",
        ),
        ("dataset_id_or_path=nobody/gated", "nobody/gated is gated"),
        ("dataset_revision=v9", "nobody/rows has no revision v9"),
    ],
)
def test_every_part_is_looked_up_before_anything_large_is_fetched(
    override: str, message: str, tiny: Repo, games: Repo, small_recipe: Recipe, fetch: Fetch
) -> None:
    prose = Repo("nobody/prose", {"rows.txt": b""}, is_data=True)
    half = Repo("nobody/half", {TABLES[0]: b""}, is_data=True)
    gated = replace(games, name="nobody/gated", token="hf_anothersaccount")
    recipe = small_recipe(model_name_or_path="nobody/tiny", dataset_id_or_path="nobody/rows")
    with Hub(tiny, games, prose, half, gated) as hub:
        refused(fetch(hub, recipe, "--set", override, "--json"), 78, message)
    assert not [name for name in hub.fetched if not name.endswith(".json")]


SPLITS = {
    "README.md": b"---\nconfigs:\n- {config_name: a, data_files: [{split: train, path: a/tr.csv}, "
    b"{split: test, path: a/te.csv}]}\n- {config_name: b, data_files: b.jsonl}\n---\n",
    "a/tr.csv": b"nums,target\n1 2,3\n2 2,4\n",
    "a/te.csv": b"nums,target\n1 3,4\n",
    "b.jsonl": b'{"nums": [1, 4], "target": 5}\n',
    "c.parquet": b"",
}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"dataset_config": "a"}, ["a/tr.csv"]),
        ({"dataset_config": "a", "dataset_test_split": "test"}, ["a/te.csv", "a/tr.csv"]),
        ({"dataset_config": "a", "dataset_split": "test"}, ["a/te.csv"]),
        ({"dataset_config": "b"}, ["b.jsonl"]),
        (
            {},
            "nobody/splits has several configurations: choose one with dataset_config (`data inspect`: --config), a, b",
        ),
        ({"dataset_config": "c"}, "nobody/splits has no configuration 'c'; there are: a, b"),
        (
            {"dataset_config": "a", "dataset_test_split": "dev"},
            "nobody/splits has no split 'dev'; there are: train, test",
        ),
    ],
)
def test_only_the_configuration_and_splits_of_the_recipe_are_fetched(
    keys: dict[str, str], expected: list[str] | str, small_recipe: Recipe, fetch: Fetch, home: Path
) -> None:
    recipe = small_recipe(model_name_or_path="builtin:demo", dataset_id_or_path="nobody/splits", **keys)
    with Hub(Repo("nobody/splits", SPLITS, DATA_COMMIT, is_data=True)) as hub:
        done = fetch(hub, recipe, "--json")
    if isinstance(expected, str):
        refused(done, 78, expected)
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"][2]["files"] == ["README.md", *expected]
    assert set(hub.fetched) == {f"nobody/splits/{name}" for name in ("README.md", *expected)}
    splits = [keys.get("dataset_split"), *filter(None, [keys.get("dataset_test_split")])]
    code = "import sys; from mini_r1.tasks.task_data import fetch_hub; print(fetch_hub('nobody/splits', None, "
    code += f"{keys['dataset_config']!r}, {splits!r})[1])"
    read = subprocess.run([sys.executable, "-c", code], env=offline(home), capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert read.stdout == f"{DATA_COMMIT}\n", read.stderr


def test_auto_an_offline_switch_and_another_cache_are_refused(recipe: Path, fetch: Fetch, home: Path) -> None:
    closed = "http://127.0.0.1:9"
    refused(fetch(closed, "auto", "--json"), 78, "name the recipe")
    refused(fetch(closed, recipe, "--json", HF_HUB_OFFLINE="1"), 78, "HF_HUB_OFFLINE", "nobody/words", "unset it")
    refused(fetch(closed, recipe, "--json", TRANSFORMERS_CACHE="/x"), 78, "TRANSFORMERS_CACHE is set", "HF_HOME")
    assert not home.exists()


# --- the network ---


def test_an_unreachable_hub_is_worth_a_retry(recipe: Path, fetch: Fetch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    refused(fetch(f"http://127.0.0.1:{port}", recipe, "--json"), 150, "the hub does not answer", "HTTPS_PROXY",
            "run the same command again")  # fmt: skip


def test_an_interrupted_file_is_resumed(small_recipe: Recipe, fetch: Fetch, home: Path) -> None:
    body, chunk = os.urandom(12 << 20), 10 << 20  # huggingface_hub writes pieces of this size
    repo = of_tiny({"model.safetensors": body}, cut={"model.safetensors": 11 << 20})
    recipe = small_recipe("long", model_name_or_path="nobody/tiny")
    with Hub(repo) as hub:
        refused(fetch(hub, recipe, "--json"), 150, "nobody/tiny", "run the same command again")
        assert not (home / "mini-r1" / "prefetched" / "long.json").exists()
        done = fetch(hub, recipe)
    assert done.returncode == 0, done.stderr
    assert f"model: fetching {(len(body) - chunk) / 2**20:.1f} MiB" in done.stderr
    weights = [name for name in hub.fetched if "safetensors" in name]
    assert weights == ["nobody/tiny/model.safetensors", f"nobody/tiny/model.safetensors from {chunk}"]
    assert next((home / "hub").glob("models--nobody--tiny/snapshots/*/model.safetensors")).read_bytes() == body


def test_a_damaged_file_is_fetched_again(
    tiny: Repo, words: Repo, games: Repo, recipe: Path, fetch: Fetch, home: Path
) -> None:
    with Hub(tiny, words, games) as hub:
        assert fetch(hub, recipe).returncode == 0
        (shard,) = (home / "hub").glob(f"models--nobody--tiny/snapshots/*/{SHARDS[0]}")
        shard.resolve().write_bytes(b"short")
        begun = shard.resolve().parent / f"{shard.resolve().name}.incomplete"
        begun.write_bytes(b"0" * (len(tiny.files[SHARDS[0]]) + 1))
        done = fetch(hub, recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"][0]["fetched"] == len(tiny.files[SHARDS[0]])
    assert shard.read_bytes() == tiny.files[SHARDS[0]]
    assert hub.fetched.count(f"nobody/tiny/{SHARDS[0]}") == 2
    assert hub.fetched.count(f"nobody/tiny/{SHARDS[1]}") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_exits_at_once_and_keeps_what_has_arrived(
    tiny: Repo, words: Repo, games: Repo, recipe: Path, home: Path, number: signal.Signals
) -> None:
    tiny.hanging.add(SHARDS[1])
    with Hub(tiny, words, games) as hub:
        process = subprocess.Popen([*command(), "prefetch", str(recipe)], env=online(hub, home), text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        deadline = time.monotonic() + 120
        # Not a search of the whole cache, which would fail on scratch folders that are removed meanwhile.
        arriving = home / "hub" / "models--nobody--tiny" / "blobs"
        while not any(arriving.glob("*.incomplete")) or f"nobody/tiny/{SHARDS[1]}" not in hub.fetched:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "run the same command again to resume" in errors
    assert not (home / "mini-r1" / "prefetched" / "air.json").exists()


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(
    tiny: Repo, words: Repo, games: Repo, recipe: Path, fetch: Fetch, tmp_path: Path
) -> None:
    with Hub(tiny, words, games) as hub:
        done = fetch(hub, recipe)
        assert done.returncode == 0, done.stderr
        assert "━" not in done.stderr
        assert "B/s" not in done.stderr  # huggingface_hub's own bars
        assert "model: fetching" in done.stderr
        near, far = pty.openpty()
        shown = subprocess.run(
            [*command(), "prefetch", str(recipe)], env=online(hub, tmp_path / "other", TERM="xterm"),
            stdout=subprocess.PIPE, stderr=far, timeout=300,
        )  # fmt: skip
        os.close(far)
        drawn = os.read(near, 1 << 20)
        os.close(near)
    assert shown.returncode == 0, drawn
    assert "━".encode() in drawn
    assert "━".encode() not in shown.stdout


def test_a_long_download_shows_its_progress_in_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prefetch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(ProgressLine, "PLAIN_EVERY", 0.01)
    part = Part(MODEL, "a/b", on_hub=True, commit=MODEL_COMMIT, files=(HubFile("x.safetensors", 3 << 20, "b" * 64),))
    begun = part.folders(tmp_path)[0] / f"{'b' * 64}.incomplete"
    begun.parent.mkdir(parents=True)
    log = io.StringIO()

    def download(part: Part, cache: Path, names: list[str]) -> Path:
        begun.write_bytes(b"0" * (2 << 20))
        deadline = time.monotonic() + 60
        while "model, MiB: 2/3" not in log.getvalue():
            assert time.monotonic() < deadline, log.getvalue()
            time.sleep(0.01)
        (folder := cache / MODEL_COMMIT).mkdir()
        (folder / names[0]).write_bytes(b"0" * (3 << 20))
        return folder

    monkeypatch.setattr(Part, "download", download)
    assert prefetch._fetch(part, tmp_path, Console(file=log)).files == part.files
    shown = log.getvalue()
    time.sleep(0.05)
    assert log.getvalue() == shown


# --- the disk ---


def test_a_small_disk_is_refused_before_the_weights_are_fetched(
    tiny: Repo, words: Repo, games: Repo, recipe: Path, fetch: Fetch
) -> None:
    tiny.announced[SHARDS[1]] = 1 << 60
    with Hub(tiny, words, games) as hub:
        done = fetch(hub, recipe, "--json")
    refused(done, 150, f"{(1 << 60) / 2**30:.1f} GiB are to be fetched", "free: free some", "HF_HOME")
    assert not [name for name in hub.fetched if name.endswith((".safetensors", ".parquet"))]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Make a filesystem of 1 MiB."""
    with small_disk(tmp_path / "small", "1m") as folder:
        yield folder


def test_a_disk_that_fills_up_is_worth_a_retry(small_recipe: Recipe, fetch: Fetch, disk: Path) -> None:
    repo = of_tiny({"model.safetensors": os.urandom(3 << 20)}, announced={"model.safetensors": 1000})
    with Hub(repo) as hub:
        done = fetch(hub, small_recipe(model_name_or_path="nobody/tiny"), "--json", HF_HOME=str(disk))
    refused(done, 150, "No space left on device", str(disk), "run the same command again")


def test_a_cache_that_cannot_be_written_is_refused_before_any_request(
    tiny: Repo, words: Repo, games: Repo, recipe: Path, fetch: Fetch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with Hub(tiny, words, games) as hub:
        refused(fetch(hub, recipe, "--json", HF_HOME="/sys/hf"), 150, "cannot write /sys/hf/hub", "HF_HOME")
        refused(fetch(hub, recipe, "--json", HF_HOME=str(file)), 78, f"{file}/hub or a folder above it is a file")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (NotImplementedError("FileSystem does not appear to support flock"), 150, "/hf/hub has no locks"),
        (RuntimeError("An error occurred while downloading using `hf_transfer`."), 150, "HF_HUB_ENABLE_HF_TRANSFER"),
        (ValueError("'hf_transfer' package is not available"), 78, "HF_HUB_ENABLE_HF_TRANSFER"),
        (OSError("Consistency check failed: file should be of size 9"), 150, "a/b did not arrive whole"),
        (OSError(errno.EIO, "Input/output error"), 150, "cannot use /hf/hub: Input/output error"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 150, "cannot write /hf/hub: Disk quota exceeded"),
    ],
)
def test_an_error_of_huggingface_hub_becomes_a_sentence(raised: Exception, code: int, message: str) -> None:
    with pytest.raises(KitError) as caught, fetch_errors(Path("/hf/hub"), MODEL, "a/b", None):
        raise raised
    assert caught.value.exit_code == code
    assert message in caught.value.message


def test_another_error_is_not_caught() -> None:
    with pytest.raises(RuntimeError, match="can't start new thread"), fetch_errors(Path("/hf/hub"), MODEL, "a/b", None):
        raise RuntimeError("can't start new thread")
