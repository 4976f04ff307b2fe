"""Where the hub's library and this user's caches are, as the environment says it, and whether there is a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models and data."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return expand_user(environment[variable], environment)
    return hub_home(environment) / "hub"


def hub_home(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what is its own, a token for one."""
    return expand_user(environment.get("HF_HOME") or f"{cache_home(environment)}/huggingface", environment)


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether huggingface_hub is told to leave the network alone."""
    return any(
        environment.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def in_pod(environment: Mapping[str, str]) -> bool:
    """Whether this process is in a pod: the kubelet tells every container where the API server is."""
    return "KUBERNETES_SERVICE_HOST" in environment


def cache_home(environment: Mapping[str, str]) -> str:
    """Where this user's caches are; it may begin with a `~`."""
    return environment.get("XDG_CACHE_HOME") or "~/.cache"


def expand_user(path: str, environment: Mapping[str, str]) -> Path:
    """A path with its `~` as HOME, else as the user's entry has it; as it is for a user with neither."""
    home = environment.get("HOME", "")
    try:
        return Path(home + path[1:] if home and (path == "~" or path.startswith("~/")) else path).expanduser()
    except RuntimeError:
        return Path(path)
