"""`mini-r1 bundle`: a support bundle, one archive with what explains a run, without secrets.

No weights, no data, and the model's text only on request. Every file is redacted; links are not followed. Names of
hosts, users and paths stay: problems of a cluster are often about them.
"""

import gzip
import importlib.metadata
import io
import json
import os
import platform
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mini_r1 import __version__
from mini_r1.doctor.node_checks import examine_node
from mini_r1.errors import KitError
from mini_r1.machine.devices import Devices, given_devices
from mini_r1.machine.provenance import code_revision
from mini_r1.machine.redact import redact, redact_environment
from mini_r1.run.files import replacing
from mini_r1.run.manifest import MANIFEST
from mini_r1.run.run_dir import RunDir, open_run

TAIL = 2 * 2**20
"""Bytes kept of each file: its end, where the errors are."""
CUT_IN = 8_192
"""Bytes left out where a file without line breaks is cut: half a secret would not be recognized."""
_LOG = re.compile(r"[\w.-]{1,100}\.(?:log|out|stack)|metrics\.jsonl")
COMPLETIONS = "completions.jsonl"


def bundle(run: RunDir, out: Path, *, completions: int, environment: Mapping[str, str]) -> dict[str, int]:
    """Write the archive, whole or not at all, and return the size of each file in it, in bytes.

    It has the last `completions` of the run's completions.

    Raises:
        KitError: there is no run.
        OSError: the archive cannot be written.
    """
    open_run(run.path, begun=False)
    if out.is_dir():
        raise KitError(f"{out} is a directory: name a file with --out")
    texts = {**_read_run(run, completions), **_describe_machine(run, environment)}
    files = {name: redact(text, environment).encode("utf-8", "replace") for name, text in sorted(texts.items())}
    folder = re.sub(r"[^\w.-]", "_", f"mini-r1-{run.path.absolute().name}")
    _write(out, {f"{folder}/{name}": content for name, content in files.items()})
    return {name: len(content) for name, content in files.items()}


def _read_run(run: RunDir, completions: int) -> dict[str, str]:
    """Return the texts of the run's files by their path in the run directory."""
    found = {path: _read_tail(path) for path in (run.recipe_file, run.run_file, run.state_file)}
    for parent in (run.checkpoints, run.snapshots):
        found |= {folder / MANIFEST: _read_tail(folder / MANIFEST) for folder in _folders(parent)}
    for attempt in _folders(run.attempts):
        found |= {path: _read_tail(path) for path in _entries(attempt) if _LOG.fullmatch(path.name)}
        if completions:
            rows = (_read_tail(attempt / COMPLETIONS) or "").splitlines()[-completions:]
            found[attempt / COMPLETIONS] = "".join(f"{row}\n" for row in rows) or None
    return {path.relative_to(run.path).as_posix(): text for path, text in found.items() if text is not None}


def _describe_machine(run: RunDir, environment: Mapping[str, str]) -> dict[str, str]:
    """Return versions, the doctor's report and the environment as JSON files."""
    packages = {
        (dist.metadata["Name"] or "unknown").lower(): dist.version for dist in importlib.metadata.distributions()
    }
    versions = {
        "mini-r1": __version__,
        "code_revision": code_revision(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }
    try:
        devices = given_devices(environment)
    except KitError as error:
        devices = Devices((), on_cpu=True, source=error.message)
    # Without the recipe: the hub would be asked for its model.
    report = examine_node(None, devices=devices, run_dir=run.path, environment=environment).to_dict()
    facts = {"versions": versions, "doctor": report, "environment": redact_environment(environment)}
    return {f"{name}.json": json.dumps(value, indent=2) + "\n" for name, value in facts.items()}


def _folders(parent: Path) -> list[Path]:
    """Return the folders in a folder, without links."""
    return [path for path in _entries(parent) if stat.S_ISDIR(path.lstat().st_mode)]


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder by name; nothing for a link."""
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(folder.iterdir())


def _read_tail(path: Path) -> str | None:
    """Return the end of a regular file; None for anything else. No link is followed, no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as handle:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return None
        cut = max(facts.st_size - TAIL, 0)
        handle.seek(cut)
        content = handle.read(TAIL)
    if cut:
        _, line_break, rest = content.partition(b"\n")
        content = rest if line_break else content[CUT_IN:]
        content = f"[the first {facts.st_size - len(content):,} bytes are left out]\n".encode() + content
    return content.decode("utf-8", "replace")


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a .tar.gz, the same bytes for the same contents."""
    with (
        replacing(out) as scratch,
        scratch.open("xb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
