"""Stand-ins for Apptainer and for pyxis: they record what they are asked for, and do it.

    python stand_in_container.py apptainer exec ...    as the program does it
    python stand_in_container.py srun ...              the real srun, with the options that pyxis adds
    python stand_in_container.py enter JSON COMMAND    what is inside

The container is a separate root in a mount namespace. Instead of an image it has the machine's programs and this
checkout, read-only, and the requested mounts. GPUs, users, the host's /tmp and images are not simulated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from shlex import join
from typing import Any, NoReturn

RECORD, IMAGE_BIN, SRUN = "STAND_IN_RECORD", "STAND_IN_IMAGE_BIN", "STAND_IN_SRUN"
"""In the environment: the file of notes, a folder of the image's programs, the real srun."""
REPO = Path(__file__).resolve().parents[2]
SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64")


def apptainer(arguments: list[str]) -> NoReturn:
    """Apptainer's `exec`, with the options that the kit uses; a source that is missing ends it, as the real one."""
    asked: dict[str, Any] = {"program": "apptainer", "flags": []}
    if arguments[0] != "exec":
        fail(255, f"FATAL: {arguments[0]}: only exec is known")
    words = iter(arguments[1:])
    for word in words:
        if word in ("--no-home", "--nv"):
            asked["flags"].append(word)
        elif word in ("--bind", "--pwd"):
            asked[word.strip("-")] = next(words)
        elif word.startswith("-"):
            fail(255, f"FATAL: unknown flag {word}")
        else:
            asked["image"] = word
            break
    command = list(words)
    enter({**asked, "mounts": asked.pop("bind").split(","), "workdir": asked.pop("pwd")}, command)


def srun(arguments: list[str]) -> NoReturn:
    """The real srun, whose tasks are in a container if one is asked for."""
    real = os.environ[SRUN]
    if "--help" in arguments:
        said = subprocess.run([real, *arguments], check=True, capture_output=True, text=True).stdout
        print(f"{said}\nOptions provided by plugins:\n      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH")
        sys.exit()
    first = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    options, command = arguments[:first], arguments[first:]
    ours = [word for word in options if "container-" in word]
    if not ours:
        os.execv(real, [real, *options, *command])
    values = dict(word.removeprefix("--container-").split("=", 1) for word in ours if "=" in word)
    asked = {"program": "pyxis", "flags": [word for word in ours if "=" not in word], **values}
    asked["mounts"] = values["mounts"].split(",")
    if " " in values["mounts"]:  # https://github.com/NVIDIA/pyxis/issues/133
        fail(1, "error: pyxis: container start failed")
    inside = (sys.executable, __file__, "enter", json.dumps(asked))
    os.execv(real, [real, *(word for word in options if word not in ours), *inside, *command])


def enter(asked: dict[str, Any], command: list[str]) -> NoReturn:
    """Become a command in the container."""
    record, programs = Path(os.environ[RECORD]), os.environ[IMAGE_BIN]
    with record.open("a") as file:
        file.write(json.dumps({**asked, "command": command}) + "\n")
    if not Path(asked["image"]).is_file():
        fail(255, f"FATAL: could not open image {asked['image']}")
    root = record.parent / "root"
    root.mkdir(exist_ok=True)
    lines = ["set -e", join(["mount", "-t", "tmpfs", "none", str(root)]), join(["mkdir", f"{root}/tmp"])]
    lines.append(join(["mount", "-t", "tmpfs", "none", f"{root}/tmp"]))  # stays when the root can no longer be written
    for path in SYSTEM:
        if Path(path).is_symlink():
            lines.append(join(["ln", "-s", os.readlink(path), f"{root}{path}"]))
        elif Path(path).exists():
            lines += bind(root, path, path, "ro")
    for path in ("/dev", "/proc", "/sys"):
        lines += bind(root, path, path)
    python = [] if sys.base_prefix.startswith("/usr") else [sys.base_prefix]
    for path in (*python, str(REPO), programs):
        lines += bind(root, path, path, "ro")
    for mount in asked["mounts"]:
        host, inside, *options = mount.split(":")
        lines += bind(root, host, inside, *options)
    lines.append(join(["mount", "-o", "remount,ro", str(root)]))
    lines.append(f"exec {join(['chroot', str(root), 'env', '-C', asked['workdir'], *command])}")
    image, host = {"HF_HOME": "/cache/huggingface"}, dict(os.environ)
    environment = {**host, **image} if asked["program"] == "pyxis" else {**image, **host}  # who wins
    environment["PATH"] = f"{programs}:{REPO}/.venv/bin:/usr/sbin:/usr/bin:/bin"
    os.execvpe("unshare", ["unshare", "--mount", "sh", "-c", "\n".join(lines)], environment)


def bind(root: Path, host: str, inside: str, options: str = "") -> list[str]:
    """The shell's lines that mount a path of the host."""
    target = f"{root}{inside}"
    make = ["mkdir", "-p", target] if Path(host).is_dir() else ["install", "-D", "/dev/null", target]
    lines = [join(make), join(["mount", "--rbind", host, target])]
    return lines + ([join(["mount", "-o", "remount,bind,ro", target])] if options == "ro" else [])


def fail(code: int, sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "enter":
        enter(json.loads(rest[0]), rest[1:])
    {"apptainer": apptainer, "srun": srun}[verb](rest)
