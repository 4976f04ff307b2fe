"""Experiment trackers of `report_to`: whether each can report from here, asked before anything is loaded.

No tracker is imported and no server is asked. Packages and switches are those of transformers 4.48.1's integrations
(SwanLab brings its own), keys, modes and files those of each tracker's own documentation (docs/trackers.md).
"""

import configparser
import importlib.util
import netrc
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError, first_line
from mini_r1.machine.findings import Finding, as_error, fail, ok
from mini_r1.machine.paths import expand_user

TRUE: Final = ("1", "true", "yes", "on", "y")


class Tracker(NamedTuple):
    """What a tracker needs: packages, and a key unless its mode needs none."""

    packages: dict[str, str]  # names on PyPI by the module that transformers imports
    keys: tuple[str, ...] = ()  # variables that together are its key
    files: tuple[str, ...] = ()  # files, and variables that name one, that may hold the key instead
    mode: str = ""  # variable of its mode
    modes: tuple[str, ...] = ()  # values of that variable; () are any
    offline: tuple[str, ...] = ()  # values with which it needs no key
    switch: str = ""  # variable that hides an installed package from transformers if it is true


TRACKERS: Final = {
    "azure_ml": Tracker({"azureml.core.run": "azureml-core"}),
    "clearml": Tracker(
        {"clearml": "clearml"},
        keys=("CLEARML_API_ACCESS_KEY", "CLEARML_API_SECRET_KEY"),
        files=("CLEARML_CONFIG_FILE", "~/clearml.conf"),
        mode="CLEARML_OFFLINE_MODE",
        offline=TRUE,
    ),
    "codecarbon": Tracker({"codecarbon": "codecarbon"}),
    "comet_ml": Tracker(
        {"comet_ml": "comet-ml"},
        keys=("COMET_API_KEY",),
        files=("COMET_CONFIG", "~/.comet.config", ".comet.config"),
        mode="COMET_MODE",
        modes=("get_or_create", "create", "get", "online", "offline", "disabled"),
        offline=("offline", "disabled"),
    ),
    # transformers splits the address, which names the repository.
    "dagshub": Tracker(
        {"dagshub": "dagshub", "mlflow": "mlflow"}, keys=("MLFLOW_TRACKING_URI",), switch="DISABLE_MLFLOW_INTEGRATION"
    ),
    "dvclive": Tracker({"dvclive": "dvclive"}),
    "flyte": Tracker({"flytekit": "flytekit"}),
    "mlflow": Tracker({"mlflow": "mlflow"}, switch="DISABLE_MLFLOW_INTEGRATION"),
    "neptune": Tracker(
        {"neptune": "neptune"},
        keys=("NEPTUNE_API_TOKEN", "NEPTUNE_PROJECT"),
        mode="NEPTUNE_MODE",
        modes=("async", "sync", "offline", "debug"),
        offline=("offline", "debug"),
    ),
    "swanlab": Tracker(
        {"swanlab": "swanlab==0.7.20"},  # the last that runs with the locked protobuf 5
        keys=("SWANLAB_API_KEY",),
        files=("~/.swanlab/.netrc",),
        mode="SWANLAB_MODE",
        modes=("cloud", "online", "offline", "local", "disabled"),
        offline=("offline", "local", "disabled"),
    ),
    "wandb": Tracker(
        {"wandb": "wandb"},
        keys=("WANDB_API_KEY",),
        files=("WANDB_IDENTITY_TOKEN_FILE",),
        mode="WANDB_MODE",
        modes=("online", "offline", "disabled", "shared", "dryrun", "run"),
        offline=("offline", "disabled", "dryrun"),
        switch="WANDB_DISABLED",
    ),
}
"""Trackers by their names in `report_to`; TensorBoard, which the kit always writes, needs nothing more."""


def check_trackers(names: Sequence[str], environment: Mapping[str, str], *, needs_key: bool = True) -> list[Finding]:
    """Return a finding for each tracker of `report_to`; `all` means those that can report.

    A key is needed by rank 0 of all nodes alone, a package by every worker.
    """
    if "all" in names:
        found = [_check(name, environment, needs_key) for name in TRACKERS]
        return [finding for finding in found if finding.status == "ok"]
    return [_check(name, environment, needs_key) for name in names if name in TRACKERS]


def refuse_trackers(names: Sequence[str], environment: Mapping[str, str], *, needs_key: bool = True) -> None:
    """Raise KitError for trackers that can't report."""
    unusable = [finding for finding in check_trackers(names, environment, needs_key=needs_key) if finding.cause]
    if unusable:
        raise as_error(unusable)


def tracker_error(error: BaseException) -> KitError | None:
    """Return what to do about an error that a tracker raised, None about another: most can't reach their server."""
    package = type(error).__module__.partition(".")[0]
    for name, tracker in TRACKERS.items():
        if package in {module.partition(".")[0] for module in tracker.packages}:
            offline = f"{tracker.mode}={tracker.offline[0]}, or " if tracker.offline else ""
            refused = re.search("auth|usage", type(error).__name__, re.IGNORECASE)
            return KitError(
                f"{name} cannot report: {first_line(error)}: check its server and its key, or set {offline}"
                "--set report_to=none",
                ExitCode.CONFIG if refused else ExitCode.RETRY,
            )
    return None


def _check(name: str, environment: Mapping[str, str], needs_key: bool) -> Finding:
    """Return a finding named by the tracker."""
    tracker, without = TRACKERS[name], f"take {name} out of report_to"
    missing = [package for module, package in tracker.packages.items() if not _is_installed(module)]
    if missing:
        image = " (the image has it)" if name == "wandb" else ""
        fix = f"`uv pip install --python {sys.executable} {' '.join(missing)}`{image}, or {without}"
        return fail(f"{' and '.join(missing)} is not installed", fix, "recipe").named(name)
    if environment.get(tracker.switch, "").lower() in TRUE:
        detail = f"{tracker.switch}={environment[tracker.switch]} hides the package from transformers"
        return fail(detail, f"unset it, or {without}", "recipe").named(name)
    if name == "wandb":
        environment = {**_read_wandb_settings(environment), **environment}
    problem, is_offline = _check_mode(name, tracker, environment)
    if problem is None and needs_key and not is_offline:
        problem = _check_key(name, tracker, environment)
    if problem is None:
        return ok(f"{name} without a server" if is_offline else name).named(name)
    return fail(problem[0], f"{problem[1]}, or {without}", "recipe").named(name)


def _check_mode(name: str, tracker: Tracker, environment: Mapping[str, str]) -> tuple[tuple[str, str] | None, bool]:
    """Return what is wrong with the mode, with a fix, if anything; and whether it needs no key."""
    given = environment.get(tracker.mode)
    if given is None or (not given and name != "wandb"):  # which refuses an empty one
        return None, False
    mode = given.lower() if name in ("clearml", "comet_ml") else given
    if tracker.modes and mode not in tracker.modes:
        fix = f"set it to {', '.join(tracker.modes)}, or unset it"
        return (f"{tracker.mode}={printable(given)} is no mode", fix), False
    return None, mode in tracker.offline


def _check_key(name: str, tracker: Tracker, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return what is missing, with a fix; None if there is a key or none is needed."""
    unset = [key for key in tracker.keys if not environment.get(key, "").strip()]
    places = [environment.get(file, "") if file.isupper() else file for file in tracker.files]
    if not unset or any(place and expand_user(place, environment).is_file() for place in places):
        return None
    found, fix = f"there is no {' or '.join(unset)}", f"set {' and '.join(unset)}"
    if name == "wandb":
        host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
        if host is None:
            return "WANDB_BASE_URL has no host", "write it as https://HOST"
        if _in_netrc(host, environment):
            return None
        found += f", and ~/.netrc has no key for {host}"
    if tracker.offline:
        fix += f", or {tracker.mode}={tracker.offline[0]} to report without a server"
    return found, fix


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is missing
        return False


def _in_netrc(host: str, environment: Mapping[str, str]) -> bool:
    """Return whether `wandb login` has left a key for this host, where requests looks for one."""
    for name in [environment["NETRC"]] if environment.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            return netrc.netrc(str(expand_user(name, environment))).authenticators(host) is not None
    return False


def _read_wandb_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what `wandb offline` and `wandb login --host` have written, as variables."""
    files = [
        expand_user("~/.config/wandb/settings", environment),
        Path(environment.get("WANDB_DIR") or ".", "wandb/settings"),
    ]
    parser = configparser.ConfigParser(interpolation=None)
    with suppress(OSError, configparser.Error, UnicodeDecodeError):
        parser.read(files)
    values = parser["default"] if parser.has_section("default") else {}
    return {f"WANDB_{key.upper()}": value for key, value in values.items()}
