"""Paths of this user's caches and of huggingface_hub, as the environment names them."""

from collections.abc import Mapping
from pathlib import Path


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Return the folder in which huggingface_hub keeps models and data."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return expand_user(environment[variable], environment)
    return hub_home(environment) / "hub"


def hub_home(environment: Mapping[str, str]) -> Path:
    """Return the folder in which huggingface_hub keeps its own files, such as a token."""
    return expand_user(environment.get("HF_HOME") or f"{cache_home(environment)}/huggingface", environment)


def cache_home(environment: Mapping[str, str]) -> str:
    """Return the folder of this user's caches; it may begin with a `~`."""
    return environment.get("XDG_CACHE_HOME") or "~/.cache"


def is_offline(environment: Mapping[str, str]) -> bool:
    """Return whether huggingface_hub must not use the network."""
    return any(
        environment.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def in_pod(environment: Mapping[str, str]) -> bool:
    """Return whether this process is in a pod: the kubelet gives every container the API server's address."""
    return "KUBERNETES_SERVICE_HOST" in environment


def expand_user(path: str, environment: Mapping[str, str]) -> Path:
    """Return a path with its `~` replaced by HOME, else by the user's entry; unchanged for a user with neither."""
    home = environment.get("HOME", "")
    try:
        return Path(home + path[1:] if home and (path == "~" or path.startswith("~/")) else path).expanduser()
    except RuntimeError:
        return Path(path)
