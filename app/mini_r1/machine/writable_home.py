"""Caches of libraries where HOME can't be written: a private folder in the temporary directory.

DeepSpeed, Triton, matplotlib, vLLM, datasets and others make folders in HOME when they are imported or used.
"""

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.paths import expand_user, hub_cache, hub_home

CACHES: Final = {
    "XDG_CACHE_HOME": ".cache",  # the hub, vLLM, torch's extensions, the kit's warm start and others
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": ".triton/cache",  # DeepSpeed's too
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm-config",
    "CUDA_CACHE_PATH": "nv",
    "WANDB_CONFIG_DIR": "wandb",
}
"""Variables of caches, and their place in the private folder."""


def move_caches(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return variables that move caches out of a HOME that can't be written, and a sentence; {} and "" if it can.

    A place outside of HOME stays, and so do a hub cache and a token that are there to be read. Raise KitError if the
    temporary directory can't be written either.
    """
    home = expand_user("~", environment)
    inside = [
        name
        for name in CACHES
        if not environment.get(name) or expand_user(environment[name], environment).is_relative_to(home)
    ]
    if not inside or _can_write(home):
        return {}, ""
    folder = _private_folder(home)
    changes = {name: str(folder / CACHES[name]) for name in inside}
    kept = {"HF_HUB_CACHE": str(hub_cache(environment)), "HF_TOKEN_PATH": str(hub_home(environment) / "token")}
    if "XDG_CACHE_HOME" in changes:
        changes |= {name: place for name, place in kept.items() if not environment.get(name) and os.path.exists(place)}
    return changes, f"HOME ({printable(str(home))}) can't be written, so libraries have their caches in {folder}"


def _can_write(folder: Path) -> bool:
    """Return whether a file can be made there; asking for the right is not enough on a read-only or a network disk."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _private_folder(home: Path) -> Path:
    """Return a folder of this user that no other user can write to, the same for every process."""
    try:
        folder = Path(tempfile.gettempdir(), f"mini-r1-home-{os.getuid()}")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077:
            return folder
        return Path(tempfile.mkdtemp(prefix="mini-r1-home-"))  # somebody else has made that one
    except OSError as error:
        raise KitError(
            f"neither HOME ({home}) nor the temporary directory can be written ({error.strerror}): set HOME or TMPDIR "
            "to a folder that this user can write",
            ExitCode.RETRY,
        ) from error
