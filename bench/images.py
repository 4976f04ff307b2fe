"""How long do the container images take to build, and what do they weigh?

    .venv/bin/python bench/images.py [--runtime] [--json]

Builds `test`, then again with a changed source, then `cpu`, and with --runtime the image for GPUs; in the end it
removes what it has built, and leaves the engine's cache. MINI_R1_BASE=local builds on stand-ins for the bases
(.ci/local-base), and a runtime without nvcc and flash-attn. Whether the engine's cache was empty before is printed:
only then is the first time that of an empty cache. Bars: `test` at most 60 s from an empty cache and 500 MB; a changed
source at most 15 s; our own layers of `runtime` at most 7.3 GB. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parents[1]
FIRST, AGAIN = 60, 15
"""Seconds that `test` may take from an empty cache, and any target with a changed source."""
TEST_BYTES = 500e6
OWN_LAYERS = 7.3e9
LOCAL = {
    "PYTHON_BASE": "localhost/mini-r1-base:python", "CUDA_BASE": "localhost/mini-r1-base:cuda",
    "PYTHON_PREFERENCE": "only-system", "NVCC": "", "FLASH_ATTN": "0", "TORCH_CPU_INDEX": "",
}  # fmt: skip


def out(*command: str) -> str:
    """What a docker command prints.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(["docker", *command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"docker {' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def build(target: str, context: Path, tag: str) -> float:
    """Seconds that one build takes."""
    local = os.environ.get("MINI_R1_BASE") == "local"
    arguments = [f"--build-arg={key}={value}" for key, value in LOCAL.items()] if local else []
    started = time.perf_counter()
    out("build", "--quiet", f"--target={target}", f"--tag={tag}", *arguments, str(context))
    return time.perf_counter() - started


def layers(tag: str) -> list[tuple[int, str]]:
    """(bytes, instruction) of every layer that holds something, from the top."""
    lines = out("history", "--human=false", "--no-trunc", "--format={{.Size}}\t{{.CreatedBy}}", tag).splitlines()
    pairs = [(int(size), text) for size, _, text in (line.partition("\t") for line in lines)]
    return [(size, text) for size, text in pairs if size]


def own(tag: str, base: str) -> int:
    """Bytes of an image's layers above its base."""
    below = len(out("image", "inspect", "--format={{range .RootFS.Layers}}{{println .}}{{end}}", base).split())
    here = out("image", "inspect", "--format={{range .RootFS.Layers}}{{println .}}{{end}}", tag).split()
    whole, base_size = (int(out("image", "inspect", "--format={{.Size}}", name)) for name in (tag, base))
    assert len(here) > below
    return whole - base_size


def changed_copy(folder: str) -> Path:
    """The sources with a line more."""
    context = Path(folder) / "context"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "runs", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(REPO, context, ignore=ignored)
    with (context / "app" / "mini_r1" / "errors.py").open("a") as file:
        file.write(f"# changed at {time.time()}\n")
    return context


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runtime", action="store_true", help="build the image for GPUs too: 17 GB of disk meanwhile")
    arguments = parser.parse_args()
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        print("no container engine answers here: nothing was measured")
        return 0
    empty = out("system", "df", '--format={{if eq .Type "Build Cache"}}{{.Size}}{{end}}').split() == ["0B"]
    local = os.environ.get("MINI_R1_BASE") == "local"
    if local:
        for which in ("python", "cuda") if arguments.runtime else ("python",):
            subprocess.run([REPO / ".ci" / "local-base", which], check=True)

    tag = "mini-r1-bench:{}".format
    targets = ["test", "cpu", *(["runtime"] if arguments.runtime else [])]
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds["test"] = build("test", REPO, tag("test"))
            seconds["test again, a source changed"] = build("test", changed_copy(folder), tag("changed"))
        for target in targets[1:]:
            seconds[target] = build(target, REPO, tag(target))
        with tempfile.TemporaryDirectory() as folder:
            again = f"{targets[-1]} again, a source changed"
            seconds[again] = build(targets[-1], changed_copy(folder), tag("changed"))
        for target in targets:
            sizes[target] = int(out("image", "inspect", "--format={{.Size}}", tag(target)))
        held = layers(tag(targets[-1]))
        ours = own(tag("runtime"), LOCAL["CUDA_BASE"]) if local and arguments.runtime else None
    finally:
        subprocess.run(["docker", "image", "rm", "--force", *map(tag, [*targets, "changed"])], capture_output=True)

    missed = [name for name, taken in seconds.items() if "again" in name and taken > AGAIN]
    if empty and seconds["test"] > FIRST:
        missed.append("test")
    if sizes["test"] > TEST_BYTES:
        missed.append("test's size")
    if ours is not None and ours > OWN_LAYERS:
        missed.append("runtime's own layers")
    if arguments.json:
        print(json.dumps({"bases": "stand-ins" if local else "real", "cache_was_empty": empty, "seconds": seconds,
                          "bytes": sizes, "own_bytes": ours, "missed": missed}))  # fmt: skip
        return 1 if missed else 0
    print(f"bases: {'stand-ins, no CUDA in them' if local else 'the real ones'}; "
          f"the builder's cache was {'empty' if empty else 'NOT empty'}")  # fmt: skip
    for name, taken in seconds.items():
        size = f"{sizes[name] / 1e6:8.0f} MB" if name in sizes else ""
        print(f"{name:32} {taken:6.1f} s {size}")
    print(f"layers of {targets[-1]}, from the top:")
    for bytes_, text in held:
        if bytes_ > 1e6:
            print(f"  {bytes_ / 1e6:8.0f} MB  {' '.join(text.split())[:90]}")
    if ours is not None:
        print(f"own layers of runtime: {ours / 1e9:.2f} GB, without nvcc, flash-attn and uv's Python")
    print(f"bars: {'missed: ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
