"""Checks of disks: the run directory and the caches, their filesystems, and the free space."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
from pathlib import Path

from mini_r1.console import shown_bytes
from mini_r1.disk_errors import existing
from mini_r1.doctor.case import Case
from mini_r1.machine.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.machine.paths import cache_home, expand_user, hub_cache, is_offline
from mini_r1.machine.writable_home import move_caches
from mini_r1.run.files import folder_bytes
from mini_r1.run.run_dir import RunDir
from mini_r1.values import GIB

NETWORK = frozenset(
    """nfs nfs4 lustre beegfs gpfs cifs smb3 smbfs ceph glusterfs 9p afs dvs gfs2 ocfs2 panfs pvfs2 virtiofs
    wekafs""".split()
)
"""Filesystem types of /proc/self/mounts that several machines share; all fuse.* but LOCAL_FUSE count too. Cray's
compute nodes see dvs, virtual machines virtiofs."""
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.portal"})
HUB_HARM = "its locks can silently do nothing (after `mini-r1 prefetch RECIPE`, HF_HUB_OFFLINE=1 needs none)"
NODE_CACHES = {
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "TORCHINDUCTOR_CACHE_DIR": "",
    "TORCH_EXTENSIONS_DIR": "{XDG_CACHE_HOME}/torch_extensions",
    "VLLM_CACHE_ROOT": "{XDG_CACHE_HOME}/vllm",
}
"""Variables of the caches of compiled code, with their defaults ("": none, not checked). Each node needs its own:
Triton's hangs on NFS."""


def run_directory(case: Case) -> Finding:
    """The run directory is a run's or can become one, can be written, and its filesystem has locks."""
    path = case.run_dir
    if path is None:
        return skip("no run directory given")
    try:
        if path.is_dir() and RunDir(path).holds_other_files():
            return fail(f"{path} is not empty and holds no run", "choose another --run-dir", "recipe")
        has_locks = _try_writing(existing(path))
    except NotADirectoryError:
        return fail(f"{path} or a folder above it is a file", "choose another --run-dir", "recipe")
    except OSError as error:
        fix = f"give this user ({os.getuid()}) the right to write there, mount the volume, or choose another --run-dir"
        fix += "; in Kubernetes the pod's fsGroup gives the right, and readOnly on claim or mount takes it"
        return fail(f"{path} cannot be written here: {error.strerror}", fix, "node")
    found = f"{path} ({filesystem(case, path)}) can be written"
    if not has_locks:
        fix = "mount it with locks, or make sure that no two runs use one directory: they would not notice each other"
        return warn(f"{found}, but its filesystem has no locks", fix)
    return ok(found)


def _try_writing(folder: Path) -> bool:
    """Write a file, wait for the disk, and remove it; return whether it could be locked.

    A run removes files of this name too, should this process be killed in between.
    """
    probe = folder / f".doctor-{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        with probe.open("wb", buffering=0) as handle:
            handle.write(b"mini-r1 doctor: this file may be deleted\n")
            os.fsync(handle.fileno())
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def disk(case: Case) -> Finding:
    """The disk of the run directory can hold the checkpoints and snapshots of the whole run."""
    if case.run_dir is None:
        return skip("no run directory given")
    free = shutil.disk_usage(existing(case.run_dir)).free
    found = f"{shown_bytes(free)} free for {case.run_dir}"
    if case.disk_gib is None:
        return ok(found)
    there = folder_bytes(case.run_dir)
    need = max(case.disk_gib * GIB - there, 0.0)
    found += f", the plan needs {shown_bytes(need)}"
    if free < need:
        fix = "free some, enlarge the volume, choose another --run-dir, or save less often (save_steps)"
        return fail(f"{found} more than the {shown_bytes(there)} in it" if there else found, fix, "node")
    return ok(found)


def caches(case: Case) -> Finding:
    """Model files and compiled code are cached where it is safe and can be written."""
    changes, moved = move_caches(case.environment)
    environment = {**case.environment, **changes}
    hub = hub_cache(environment)
    findings = [ok(moved)] if moved else []
    findings.append(ok(f"the hub's cache {hub} ({filesystem(case, hub)})"))
    places = {} if is_offline(environment) else {"HF_HOME": (hub, HUB_HARM)}
    for variable, default in NODE_CACHES.items():
        given = environment.get(variable) or default.format(XDG_CACHE_HOME=cache_home(environment))
        if given:
            places[variable] = expand_user(given, environment), "several compiling nodes can hang"
    for variable, (path, harm) in places.items():
        kind, fix = (
            filesystem(case, path),
            f"set {variable} to a folder that this user can write, on the node's own disk",
        )
        if is_network(kind):
            findings.append(warn(f"{variable}: {path} is on {kind}, where {harm}", fix))
        elif not os.access(existing(path), os.W_OK):
            findings.append(warn(f"{variable}: {path} cannot be written", fix))
    return worst(findings)


def filesystem(case: Case, path: Path) -> str:
    """Return the type of the filesystem that a path is or will be on, as /proc/self/mounts names it."""
    place = os.path.realpath(path)
    found, longest = "unknown", -1
    for line in (case.read("proc/self/mounts") or "").splitlines():
        _, mount, kind, *_ = line.split(" ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount)  # a space is \040 there
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= longest:  # of two mounts on one folder the later one covers the earlier
            found, longest = kind, len(mount)
    return found


def is_network(kind: str) -> bool:
    """Return whether several machines share a filesystem of this type."""
    return kind in NETWORK or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
