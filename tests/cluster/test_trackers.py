"""Trackers of `report_to` are checked before anything is loaded: package, switch, mode and key."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.machine import trackers
from mini_r1.machine.findings import Finding
from mini_r1.machine.trackers import TRACKERS, check_trackers

from tests.conftest import REPO

Kit = Callable[..., subprocess.CompletedProcess[str]]
NETRC = "machine api.wandb.ai login user password key\n"


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_is_installed", lambda module: True)


def check(name: str, environment: dict[str, str], *, needs_key: bool = True) -> Finding:
    (finding,) = check_trackers([name], environment, needs_key=needs_key)
    return finding


# --- packages ---


def test_every_tracker_of_transformers_is_known() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert {*TRACKERS, "tensorboard"} - {"swanlab"} == set(INTEGRATION_TO_CALLBACK)  # SwanLab's package has it


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("azure_ml", "azureml-core"),
        ("clearml", "clearml"),
        ("codecarbon", "codecarbon"),
        ("comet_ml", "comet-ml"),
        ("dagshub", "dagshub mlflow"),
        ("dvclive", "dvclive"),
        ("flyte", "flytekit"),
        ("mlflow", "mlflow"),
        ("neptune", "neptune"),
        ("swanlab", "swanlab==0.7.20"),
        ("wandb", "wandb"),
    ],
)
def test_a_missing_package_is_named_as_the_registry_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(trackers, "_is_installed", lambda module: False)
    finding = check(name, {})
    assert (finding.status, finding.cause) == ("fail", "recipe")
    assert f"`uv pip install --python {sys.executable} {package}`" in finding.fix
    assert finding.fix.endswith(f"take {name} out of report_to")


def test_packages_are_looked_for_without_importing_them() -> None:
    assert trackers._is_installed("mini_r1")
    for module in ("no_such_package", "no_such_package.below.it", "json.no_such_module"):
        assert not trackers._is_installed(module)


# --- modes, switches and keys ---

GOOD = [
    ("wandb", {"WANDB_API_KEY": "k"}),
    ("wandb", {"WANDB_MODE": "offline"}),
    ("wandb", {"WANDB_MODE": "disabled"}),
    ("wandb", {"WANDB_MODE": "dryrun"}),
    ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": "k"}),
    ("wandb", {"WANDB_DISABLED": "false", "WANDB_API_KEY": "k"}),
    ("comet_ml", {"COMET_API_KEY": "k"}),
    ("comet_ml", {"COMET_MODE": "OFFLINE"}),
    ("neptune", {"NEPTUNE_API_TOKEN": "k", "NEPTUNE_PROJECT": "a/b"}),
    ("neptune", {"NEPTUNE_MODE": "debug"}),
    ("swanlab", {"SWANLAB_API_KEY": "k"}),
    ("swanlab", {"SWANLAB_MODE": "local"}),
    ("clearml", {"CLEARML_API_ACCESS_KEY": "a", "CLEARML_API_SECRET_KEY": "b"}),
    ("clearml", {"CLEARML_OFFLINE_MODE": "True"}),
    ("dagshub", {"MLFLOW_TRACKING_URI": "https://dagshub.com/a/b.mlflow"}),
    *((name, {}) for name in ("azure_ml", "codecarbon", "dvclive", "flyte", "mlflow")),
]
BAD = [
    ("wandb", {}, "there is no WANDB_API_KEY, and ~/.netrc has no key for api.wandb.ai"),
    ("wandb", {"WANDB_API_KEY": " "}, "there is no WANDB_API_KEY"),
    ("wandb", {"WANDB_MODE": "online"}, "there is no WANDB_API_KEY"),
    ("wandb", {"WANDB_BASE_URL": "https://wandb.example.org:8080"}, "no key for wandb.example.org"),
    ("wandb", {"WANDB_BASE_URL": "wandb.example.org"}, "WANDB_BASE_URL has no host"),
    ("wandb", {"WANDB_MODE": "OFFLINE"}, "WANDB_MODE=OFFLINE is no mode"),
    ("wandb", {"WANDB_MODE": "offlin", "WANDB_API_KEY": "k"}, "WANDB_MODE=offlin is no mode"),
    ("wandb", {"WANDB_MODE": "", "WANDB_API_KEY": "k"}, "WANDB_MODE= is no mode"),
    ("wandb", {"WANDB_DISABLED": "true", "WANDB_API_KEY": "k"}, "WANDB_DISABLED=true hides the package"),
    ("comet_ml", {}, "there is no COMET_API_KEY"),
    ("comet_ml", {"COMET_MODE": "off", "COMET_API_KEY": "k"}, "COMET_MODE=off is no mode"),
    ("neptune", {"NEPTUNE_API_TOKEN": "k"}, "there is no NEPTUNE_PROJECT"),
    ("neptune", {"NEPTUNE_MODE": "read-only"}, "NEPTUNE_MODE=read-only is no mode"),
    ("swanlab", {}, "there is no SWANLAB_API_KEY"),
    ("swanlab", {"SWANLAB_MODE": "cloud"}, "there is no SWANLAB_API_KEY"),
    ("swanlab", {"SWANLAB_MODE": "Offline"}, "SWANLAB_MODE=Offline is no mode"),
    ("clearml", {"CLEARML_API_ACCESS_KEY": "a"}, "there is no CLEARML_API_SECRET_KEY"),
    ("clearml", {"CLEARML_OFFLINE_MODE": "0"}, "there is no CLEARML_API_ACCESS_KEY or CLEARML_API_SECRET_KEY"),
    ("dagshub", {}, "there is no MLFLOW_TRACKING_URI"),
    ("mlflow", {"DISABLE_MLFLOW_INTEGRATION": "TRUE"}, "DISABLE_MLFLOW_INTEGRATION=TRUE hides the package"),
]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(("name", "environment"), GOOD)
def test_a_tracker_that_can_report_passes(tmp_path: Path, name: str, environment: dict[str, str]) -> None:
    assert check(name, {"HOME": str(tmp_path), **environment}).status == "ok"


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(("name", "environment", "detail"), BAD)
def test_a_tracker_that_cannot_report_is_a_failure(
    tmp_path: Path, name: str, environment: dict[str, str], detail: str
) -> None:
    finding = check(name, {"HOME": str(tmp_path), **environment})
    assert (finding.status, finding.cause) == ("fail", "recipe")
    assert detail in finding.detail
    assert finding.fix


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("name", "file", "text", "environment"),
    [
        ("wandb", ".netrc", NETRC, {}),
        ("wandb", "_netrc", NETRC, {}),
        ("wandb", "keys", NETRC, {"NETRC": "~/keys"}),
        ("wandb", ".netrc", "machine w.org login u password k\n", {"WANDB_BASE_URL": "http://w.org:80/"}),
        ("wandb", "token", "jwt", {"WANDB_IDENTITY_TOKEN_FILE": "~/token"}),
        ("wandb", ".config/wandb/settings", "[default]\nmode = offline\n", {}),
        ("wandb", ".config/wandb/settings", "[default]\napi_key = k\n", {}),
        ("swanlab", ".swanlab/.netrc", NETRC, {}),
        ("comet_ml", ".comet.config", "[comet]\napi_key=k\n", {}),
        ("clearml", "clearml.conf", "api {}\n", {}),
        ("clearml", "c.conf", "api {}\n", {"CLEARML_CONFIG_FILE": "~/c.conf"}),
    ],
)
def test_a_key_or_a_mode_may_be_in_a_file(
    tmp_path: Path, name: str, file: str, text: str, environment: dict[str, str]
) -> None:
    environment = {"HOME": str(tmp_path), **environment}
    assert check(name, environment).status == "fail"
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert check(name, environment).status == "ok"


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".netrc", "machine api.wandb.ai login user passw"),
        (".netrc", "machine other.org login u password k\n"),
        (".config/wandb/settings", "mode = offline"),
    ],
)
def test_a_file_that_helps_no_one_is_passed_over(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert check("wandb", {"HOME": str(tmp_path)}).status == "fail"


@pytest.mark.usefixtures("_installed")
def test_only_rank_0_of_all_nodes_needs_the_key(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    assert check("wandb", environment, needs_key=False).status == "ok"
    assert check("wandb", {**environment, "WANDB_MODE": "x"}, needs_key=False).status == "fail"


@pytest.mark.usefixtures("_installed")
def test_all_means_those_that_can_report(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "COMET_API_KEY": "k", "DISABLE_MLFLOW_INTEGRATION": "true"}
    found = [finding.check for finding in check_trackers(["all"], environment)]
    assert found == ["azure_ml", "codecarbon", "comet_ml", "dvclive", "flyte"]
    assert check_trackers(["tensorboard"], environment) == check_trackers([], environment) == []


@pytest.mark.parametrize(("kind", "code"), [("CommError", 150), ("AuthenticationError", 78), ("UsageError", 78)])
def test_an_error_that_a_tracker_raises_is_a_sentence(kind: str, code: int) -> None:
    error = type(kind, (Exception,), {"__module__": "wandb.errors.errors"})("timed out\nafter 90 s")
    described = trackers.tracker_error(error)
    assert described is not None
    assert described.exit_code == code
    assert described.message.startswith("wandb cannot report: timed out: check its server and its key")
    assert "WANDB_MODE=offline" in described.message
    assert trackers.tracker_error(ValueError("x")) is None


# --- the commands ---


@pytest.mark.parametrize("command", ["doctor", "train", "launch"])
def test_a_tracker_without_its_package_is_refused_before_torch(
    mini_r1: Kit, small_recipe: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    recipe = small_recipe(report_to=["neptune"])
    done = mini_r1(command, recipe, "--run-dir", tmp_path / "run", *(["--json"] if command == "doctor" else []))
    assert done.returncode == 78, done.stderr
    assert "neptune is not installed" in (done.stdout if command == "doctor" else done.stderr)
    assert "Traceback" not in done.stderr
    assert command == "doctor" or "loading torch" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_demo_refuses_them_too(mini_r1: Kit, tmp_path: Path) -> None:
    done = mini_r1("demo", "--set", "report_to=[clearml]", "--run-dir", tmp_path / "run")
    assert done.returncode == 78
    assert "clearml is not installed" in done.stderr
    assert "loading torch" not in done.stderr


def test_wandb_without_a_key_is_refused(
    mini_r1: Kit, small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package: nothing of it may be imported."""
    (tmp_path / "site/wandb").mkdir(parents=True)
    (tmp_path / "site/wandb/__init__.py").write_text("raise SystemExit('wandb was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = small_recipe(report_to=["wandb"])
    for command in ("train", "launch"):
        done = mini_r1(command, recipe, "--run-dir", tmp_path / "run")
        assert done.returncode == 78
        assert "there is no WANDB_API_KEY" in done.stderr
        assert "WANDB_MODE=offline" in done.stderr
    found = json.loads(mini_r1("doctor", recipe, "--run-dir", tmp_path / "run", "--json").stdout)["findings"]
    assert [one["cause"] for one in found if one["check"] == "trackers"] == ["recipe"]


def test_the_documentation_names_every_tracker_and_package() -> None:
    page = (REPO / "docs" / "trackers.md").read_text()
    for name, tracker in TRACKERS.items():
        assert f"| `{name}` |" in page
        for text in (*tracker.packages.values(), *tracker.keys, *filter(None, (tracker.mode, tracker.switch))):
            assert text in page, text
