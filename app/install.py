"""Make or update `.venv` from the hashed locks: what `make install` runs. Standard library only.

    python3 app/install.py                 training and the development tools
    python3 app/install.py --only train    training alone: what `make demo` needs
    python3 app/install.py --only uv       uv alone: what `make lock` needs

`--only train` never removes development tools: it updates a `.venv` that has them to the full environment.

The one choice it makes is which build of PyTorch to take, because they differ by 4 GB: a machine with an NVIDIA
driver gets the package registry's build (CUDA); a Linux x86_64 machine without one gets PyTorch's own CPU build,
when its index answers; everywhere else the registry's build already is a CPU build.
MINI_R1_TORCH_CPU_INDEX names a mirror of the CPU index.

A stamp in `.venv`, written last, holds a digest of everything the result depends on: a second call reads it and is
done in a moment. An installation that was cut short leaves the stamp marked unfinished, and the next call starts over
(uv's cache makes that quick).
"""

# No `from __future__ import annotations`, and newer annotations in quotes: Python 3.6, still the system's on some
# clusters, must reach the message that says what is wrong with it.
import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCKS = Path("app/locks")
STAMP = ".mini-r1-install.json"

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_TIMEOUT_S = 5.0

EXIT_FAILED = 1
EXIT_CONFIG = 78  # as in mini_r1.errors, which is not installed yet


class Unusable(Exception):
    """This machine cannot hold the installation; the message says why and what to do."""


DEVELOPMENT, TRAINING = "dev", "train"
"""The locks in app/locks that `.venv` can be made from; each goes with a torch lock."""


class Choice(NamedTuple):
    """The lock that provides PyTorch, and the reason."""

    lock: str
    why: str


# ---- is this machine one that can be served? -------------------------------------------------------------------------


def python_error(version: "tuple[int, ...]") -> "str | None":
    """What is wrong with this Python, or None. vLLM 0.7.0 and torch 2.5.1 have wheels for 3.10 to 3.12 together."""
    if (3, 10) <= version[:2] <= (3, 12):
        return None
    found = ".".join(str(part) for part in version[:2])
    return f"Python {found} cannot install this: it needs 3.10, 3.11 or 3.12. Try: make install PYTHON=python3.11"


def platform_error(system: str, machine: str) -> "str | None":
    """What is wrong with this operating system, or None."""
    if system == "Linux" and machine in ("x86_64", "aarch64"):
        return None
    if system == "Darwin" and machine == "arm64":
        return None
    if system == "Darwin":
        return "PyTorch 2.5.1 has no build for Intel Macs: use the container image, or a Linux machine."
    if system == "Windows":
        return "Windows is not supported directly: run this inside WSL 2 (Linux)."
    return f"PyTorch 2.5.1 has no build for {system} on {machine}."


def venv_error(python: str) -> "str | None":
    """What keeps this Python from making virtual environments, or None (Debian and Ubuntu package that apart)."""
    probe = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False)  # noqa: S603
    if probe.returncode == 0:
        return None
    return (
        "This Python cannot make virtual environments (no ensurepip). "
        "On Debian and Ubuntu: apt-get install python3-venv; then run this again."
    )


# ---- which PyTorch? --------------------------------------------------------------------------------------------------


def has_nvidia_driver(
    proc: Path = Path("/proc/driver/nvidia/version"), which: "Callable[[str], str | None]" = shutil.which
) -> bool:
    """True when the kernel module is loaded, or its tool is on PATH (as in WSL 2 and some containers)."""
    return proc.exists() or which("nvidia-smi") is not None


def choose_torch(system: str, machine: str, driver: bool, index_answers: "Callable[[], bool]") -> Choice:
    """The lock that provides PyTorch here. The index is asked only where its answer matters."""
    if driver:
        return Choice("torch", "the registry's CUDA build, because an NVIDIA driver is present")
    if (system, machine) != ("Linux", "x86_64"):
        return Choice("torch", f"the registry's build, which for {system} on {machine} is a CPU build")
    if index_answers():
        return Choice("torch-cpu", "PyTorch's own CPU build, because there is no NVIDIA driver and its index answers")
    return Choice(
        "torch",
        "the registry's CUDA build (about 4 GB), because there is no NVIDIA driver but PyTorch's CPU index does not "
        "answer; it computes on the CPU just as well",
    )


def rewrite_index(lock: str, index: str) -> str:
    """The CPU lock with its URLs on a mirror. The hashes stay, so a mirror can only serve the same files."""
    return lock.replace(TORCH_CPU_INDEX + "/", index.rstrip("/") + "/")


def wheel_url(lock: str, version: "tuple[int, ...]") -> str:
    """The URL the CPU lock gives for this Python: the file whose presence is asked for."""
    tag = f"cp{version[0]}{version[1]}"
    for url in re.findall(r"^torch @ (\S+)", lock, re.MULTILINE):
        if f"-{tag}-{tag}-" in url:
            return str(url)
    raise Unusable(f"{LOCKS}/torch-cpu.txt has no wheel for {tag}: run make lock, or correct the file.")


def url_answers(url: str, timeout_s: float = INDEX_TIMEOUT_S) -> bool:
    """True when the URL answers a HEAD request within the time, name look-up included."""
    if not url.startswith(("https://", "http://")):
        return False
    answer: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the scheme was checked above
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310
                answer.append(200 <= reply.status < 300)
        except (OSError, ValueError):  # no route, no such name, an error status, TLS, a malformed URL
            answer.append(False)

    # urllib's timeout does not cover the name look-up, which can hang for half a minute behind a firewall.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answer and answer[0])


# ---- is the work done already? ---------------------------------------------------------------------------------------


def digest(root: Path, packages: str, lock: str, facts: "Mapping[str, object]") -> str:
    """One hash over the files and facts that decide what is in `.venv`.

    Args:
        root: the checkout.
        packages: DEVELOPMENT or TRAINING.
        lock: the lock that provides PyTorch.
        facts: about this machine.
    """
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in (LOCKS / "uv.txt", LOCKS / f"{packages}.txt", LOCKS / f"{lock}.txt", Path("pyproject.toml")):
        total.update(hashlib.sha256((root / name).read_bytes()).digest())
    return total.hexdigest()


def read_stamp(venv: Path) -> "dict[str, str]":
    """The stamp of the last installation, or {} when there is none to be trusted."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: "Mapping[str, str]") -> None:
    """Replace the stamp in one step: a reader sees the old one or the new one."""
    new = venv / (STAMP + ".new")
    new.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    os.replace(new, venv / STAMP)


def packages_to_install(venv: Path, wanted: str) -> str:
    """The lock to install: DEVELOPMENT also where only TRAINING is wanted but `.venv` has the development tools."""
    stamp = read_stamp(venv)
    # A stamp without "packages" was written before --only train existed.
    if stamp.get("state") == "finished" and stamp.get("packages", DEVELOPMENT) == DEVELOPMENT:
        return DEVELOPMENT
    return wanted


def up_to_date(root: Path, venv: Path, packages: str, facts: "Mapping[str, object]") -> bool:
    """True when the stamp matches and the environment's programs are there. The index is not asked again."""
    stamp = read_stamp(venv)
    if stamp.get("state") != "finished" or not (root / LOCKS / f"{stamp.get('torch')}.txt").is_file():
        return False
    if not all((venv / "bin" / name).exists() for name in ("python", "uv", "mini-r1")):
        return False
    return stamp.get("digest") == digest(root, packages, stamp["torch"], facts)


def reusable(venv: Path, version: "tuple[int, ...]") -> bool:
    """Return whether `.venv` can be updated in place; otherwise it is recreated."""
    if read_stamp(venv).get("state") == "unfinished":
        return False  # a package may be there by half, which uv would not notice
    activate = venv / "bin" / "activate"
    if not activate.is_file() or str(venv) not in activate.read_text(encoding="utf-8", errors="replace"):
        return False  # half made, or moved: its scripts name the old place
    python = [str(venv / "bin" / "python"), "-c", "import pip, sys; print(*sys.version_info[:2], sys.prefix, sep='|')"]
    try:
        probe = subprocess.run(python, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return False  # the Python it was made from is gone
    return probe.stdout.strip() == f"{version[0]}|{version[1]}|{venv}"


# ---- the steps -------------------------------------------------------------------------------------------------------


def run(*command: "str | Path") -> None:
    """Run one step in the repository's root; its own output tells what went wrong."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    # A wheel of 900 MB on a slow line pauses for longer than uv's 30 s.
    environment.setdefault("UV_HTTP_TIMEOUT", "180")
    subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, check=True)  # noqa: S603


def make_venv(venv: Path) -> None:
    """Return the existing environment, or an empty one with the pinned uv."""
    if not reusable(venv, sys.version_info[:2]):
        if venv.exists():
            print(f"{venv.name} is incomplete or from elsewhere: making it anew", flush=True)
        error = venv_error(sys.executable)
        if error:
            raise Unusable(error)
        run(sys.executable, "-m", "venv", "--clear", venv)
    pip = (str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", LOCKS / "uv.txt")


def install_packages(venv: Path, packages: str, choice: Choice, index: str) -> None:
    """Exactly what the locks name and nothing else, then this package itself, editable."""
    uv = venv / "bin" / "uv"
    python = ("--python", str(venv / "bin" / "python"))
    torch = (ROOT / LOCKS / f"{choice.lock}.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="mini-r1-install-") as scratch:
        torch_lock = Path(scratch) / f"{choice.lock}.txt"
        torch_lock.write_text(rewrite_index(torch, index), encoding="utf-8")
        # DeepSpeed and this package come as source: what builds them is held to the lock's version and hash as well.
        built_with = ("--build-constraints", LOCKS / "dev.txt")
        run(uv, "pip", "sync", *python, "--require-hashes", *built_with, LOCKS / f"{packages}.txt", torch_lock)
    run(uv, "pip", "install", *python, "--no-deps", *built_with, "--editable", ".")


NEXT_STEPS = """\
Installed into .venv. Next steps:
  make demo                                train a tiny model on the CPU, about two minutes
  .venv/bin/mini-r1 doctor                 check this machine
  .venv/bin/mini-r1 recipes                which recipes fit it
  .venv/bin/mini-r1 --install-completion   completion for your shell"""


def install(only: "str | None") -> None:
    """Do what `make install` does, or a part of it.

    Args:
        only: "train", "uv" or None for everything.
    """
    system, machine, version = platform.system(), platform.machine(), sys.version_info[:2]
    error = python_error(version) or platform_error(system, machine)
    if error:
        raise Unusable(error)
    venv = ROOT / ".venv"
    if only == "uv":  # for `make lock`, which must work when the locks do not
        make_venv(venv)
        return

    driver = has_nvidia_driver()
    index = os.environ.get("MINI_R1_TORCH_CPU_INDEX") or TORCH_CPU_INDEX
    facts = {"python": list(version), "venv": str(venv), "driver": driver, "index": index}
    packages = packages_to_install(venv, only or DEVELOPMENT)
    if up_to_date(ROOT, venv, packages, facts):
        print(f"{venv.name} is up to date")
        return

    lock = rewrite_index((ROOT / LOCKS / "torch-cpu.txt").read_text(encoding="utf-8"), index)
    choice = choose_torch(system, machine, driver, lambda: url_answers(wheel_url(lock, version)))
    print(f"PyTorch: {choice.why}", flush=True)
    make_venv(venv)
    write_stamp(venv, {"state": "unfinished"})
    try:
        install_packages(venv, packages, choice, index)
    except subprocess.CalledProcessError:
        if choice.lock != "torch-cpu":
            raise
        # The index answered and still did not deliver the file the lock names: everything else is on the registry.
        choice = Choice("torch", "the registry's CUDA build (about 4 GB), because the CPU build failed as said above")
        print(f"PyTorch: {choice.why}", flush=True)
        install_packages(venv, packages, choice, index)
    now = digest(ROOT, packages, choice.lock, facts)
    write_stamp(venv, {"state": "finished", "packages": packages, "torch": choice.lock, "digest": now})
    if packages == TRAINING:
        print("Installed what training needs. `make install` adds the development tools.", flush=True)
    else:
        print(NEXT_STEPS, flush=True)


def main() -> int:
    """Install, and turn what went wrong into a sentence and an exit status."""
    parser = argparse.ArgumentParser(description="Make or update .venv from the locks.")
    parser.add_argument("--only", choices=(TRAINING, "uv"), help="install this and nothing else (default: everything)")
    try:
        install(parser.parse_args().only)
    except Unusable as unusable:
        print(f"install: {unusable}", file=sys.stderr)
        return EXIT_CONFIG
    except subprocess.CalledProcessError as failed:
        step = " ".join(str(part) for part in failed.cmd[:4])
        print(f"install: '{step} …' failed with status {failed.returncode}; see its output above.", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("install: interrupted; run the same command again and it starts over.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
