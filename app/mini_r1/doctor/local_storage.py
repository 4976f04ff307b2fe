"""Disks: the run directory and the caches, what filesystem they are on, and what is free."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from mini_r1.console import shown_bytes
from mini_r1.disk_errors import existing
from mini_r1.doctor.case import GIB, Case
from mini_r1.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.machine.paths import cache_home, expand_user, hub_cache, is_offline
from mini_r1.run.files import SCRATCH, folder_bytes
from mini_r1.run.run_dir import STARTUP_FILES, RunDir

NETWORK = frozenset({"nfs", "nfs4", "lustre", "beegfs", "gpfs", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "9p"})
"""Filesystem types of /proc/self/mountinfo that are shared over a network; fuse.* are looked at apart."""
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.portal"})
NODE_CACHES = {
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "TORCHINDUCTOR_CACHE_DIR": "",
    "TORCH_EXTENSIONS_DIR": "{XDG_CACHE_HOME}/torch_extensions",
    "VLLM_CACHE_ROOT": "{XDG_CACHE_HOME}/vllm",
}
"""Caches of compiled code and where they are without the variable; each node needs its own (Triton's hangs on NFS)."""


def run_directory(case: Case) -> Finding:
    """The run directory is a run's or can become one, can be written, and its filesystem has locks."""
    path = case.run_dir
    if path is None:
        return skip("no run directory given")
    try:
        if path.exists() and not path.is_dir():
            return fail(f"{path} is a file", "choose another --run-dir", "recipe")
        if path.is_dir() and not RunDir(path).is_run():
            ours = {*STARTUP_FILES, *(entry.name for entry in path.glob(SCRATCH))}
            if any(entry.name not in ours for entry in path.iterdir()):
                return fail(f"{path} is not empty and holds no run", "choose another --run-dir", "recipe")
        locks = _try_writing(existing(path))
    except NotADirectoryError:
        return fail(f"{path}: something above it is a file", "choose another --run-dir", "recipe")
    except OSError as error:
        return fail(
            f"{path} cannot be written here: {error.strerror}",
            f"give this user ({os.getuid()}) the right to, mount the volume, or choose another --run-dir; in Kubernetes"
            " the pod's fsGroup gives the right, and readOnly on claim or mount takes it",
            "node",
        )
    kind = filesystem(case, path)
    if not locks:
        return warn(
            f"{path} ({kind}) can be written, but its filesystem has no locks",
            "two runs in one directory would not notice each other: take care, or mount it with locks",
        )
    return ok(f"{path} ({kind}) can be written")


def _try_writing(folder: Path) -> bool:
    """Write a file, wait for the disk, and remove it; whether it could be locked.

    Its name is one that a run's own tidying up knows, should this process be killed in between.

    Raises:
        OSError: it cannot be written.
    """
    probe = folder / f".doctor-{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        with probe.open("wb") as handle:
            handle.write(b"mini-r1 doctor: this file may be deleted\n")
            handle.flush()
            os.fsync(handle.fileno())
            return _lockable(handle.fileno())
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _lockable(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def disk(case: Case) -> Finding:
    """The disk of the run directory has room for the checkpoints and snapshots of the whole run."""
    if case.run_dir is None:
        return skip("no run directory given")
    free = shutil.disk_usage(existing(case.run_dir)).free
    found = f"{shown_bytes(free)} free for {case.run_dir}"
    if case.needs is None:
        return ok(found)
    there = folder_bytes(case.run_dir)
    need = max(case.needs.disk * GIB - there, 0.0)
    if free < need:
        already = f" beside the {shown_bytes(there)} that are there" if there else ""
        return fail(
            f"{found}, the plan needs {shown_bytes(need)}{already}",
            "free some, enlarge the volume, choose another --run-dir, or save less often (save_steps)",
            "node",
        )
    return ok(f"{found}, the plan needs {shown_bytes(need)}")


def caches(case: Case) -> Finding:
    """Model files and compiled code are cached where it is safe and can be written."""
    findings = [_hub_cache(case, hub_cache(case.environment))]
    for variable, path in node_caches(case.environment).items():
        kind = filesystem(case, path)
        if is_network(kind):
            findings.append(
                warn(
                    f"{variable}: {path} is on {kind}, where several nodes compiling at once can hang",
                    f"set {variable} to a folder on the node's own disk",
                )
            )
        elif not os.access(existing(path), os.W_OK):
            findings.append(
                warn(f"{variable}: {path} cannot be written", f"set {variable} to a folder that this user can write")
            )
    return worst(findings)


def _hub_cache(case: Case, path: Path) -> Finding:
    kind = filesystem(case, path)
    if is_network(kind) and not is_offline(case.environment):
        return warn(
            f"the hub's cache {path} is on {kind}, where its locks can silently do nothing",
            "run `mini-r1 prefetch RECIPE` before the job and set HF_HUB_OFFLINE=1 in it, or set HF_HOME to a folder "
            "of this node's own",
        )
    if not os.access(existing(path), os.W_OK) and not is_offline(case.environment):
        return warn(f"the hub's cache {path} cannot be written", "set HF_HOME to a folder that this user can write")
    return ok(f"the hub's cache {path} ({kind})")


def node_caches(environment: Mapping[str, str]) -> dict[str, Path]:
    """The caches of compiled code, by their variable; those without one whose place nobody set are not looked at."""
    places = {variable: environment.get(variable) or default for variable, default in NODE_CACHES.items()}
    return {
        variable: expand_user(place.replace("{XDG_CACHE_HOME}", cache_home(environment)), environment)
        for variable, place in places.items()
        if place
    }


def filesystem(case: Case, path: Path) -> str:
    """The type of the filesystem that a path is or will be on, as /proc/self/mountinfo names it."""
    place = os.path.realpath(path)
    found, best = "unknown", -1
    for line in (case.read("proc/self/mountinfo") or "").splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])  # a space is \040 there
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= best:  # of two on one place the later one covers the earlier
            found, best = after.split(" ")[0], len(mount)
    return found


def is_network(kind: str) -> bool:
    """Whether a filesystem of this type is shared over a network."""
    return kind in NETWORK or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
