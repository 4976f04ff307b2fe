"""Make or update `.venv-vllm`, the kit with the real vLLM on a CPU: what `make vllm-cpu` runs. Standard library only.

    python3 app/vllm_cpu.py

vLLM 0.7.0 is on the package registry for CUDA only. The environment is the container image's (app/locks/gpu.txt, so
Linux x86_64 and Python 3.11), with vLLM's own CPU kernels, compiled from its source package, in the place of the CUDA
ones. Simplified against vLLM's CMake build: AVX2 alone, no oneDNN (quantized weights), no NUMA pinning.

A stamp in `.venv-vllm`, written last, makes a second call a moment; an installation that was cut short starts over.
The compiled kernels are kept outside the checkout, for the next checkout too: in MINI_R1_CACHE, else in the user's
cache directory, under vllm-cpu/. Their name is a hash over what decides them: the pins of vLLM and torch, the compiler,
the flags.
"""

# As in install.py: an old Python must reach the message that says what is wrong with it.
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import install
from install import EXIT_CONFIG, EXIT_FAILED, LOCKS, ROOT, Unusable, run

VENV = ROOT / ".venv-vllm"
PYTHON = (3, 11)
"""The one that gpu.txt was resolved for."""

KERNELS = ("activation", "attention", "cache", "layernorm", "pos_encoding", "torch_bindings", "utils")
"""csrc/cpu/*.cpp of vLLM 0.7.0, as cmake/cpu_extension.cmake lists them without oneDNN."""

FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-fopenmp", "-mavx2", "-mfma", "-mf16c", "-DVLLM_CPU_EXTENSION",
    "-DVLLM_NUMA_DISABLED", "-DTORCH_EXTENSION_NAME=_C", "-DPy_LIMITED_API=3", "-Icsrc",
)  # fmt: skip
LIBRARIES = ("-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10")

# pip asks a source package for its version before it hands it over, and vLLM's setup.py asks setuptools_scm, which is
# in no lock. setup.py would also append the target device to it, which pip then refuses as another version.
SCM_STAND_IN = """
import os
def get_version(**options):
    os.environ["VLLM_TARGET_DEVICE"] = "cuda"
    return "{version}"
"""

TORCH_FACTS = """
import json, sysconfig, torch
from torch.utils.cpp_extension import include_paths, library_paths
include = [*include_paths(), sysconfig.get_path("include")]
print(json.dumps({"abi": int(torch._C._GLIBCXX_USE_CXX11_ABI), "include": include, "lib": library_paths()}))
"""

CHECK = """
import importlib.metadata, torch, vllm._C
from vllm.platforms import current_platform
assert current_platform.is_cpu(), current_platform
assert hasattr(torch.ops._C, "paged_attention_v1"), "no attention kernel"
print(f"vLLM {importlib.metadata.version('vllm')} is ready in .venv-vllm")
"""


# ---- is this machine one that can be served? -------------------------------------------------------------------------


def machine_error(
    system: str, machine: str, cpu_flags: str, which: "Callable[[str], str | None]" = shutil.which
) -> "str | None":
    """What keeps vLLM's CPU kernels from being built here, or None.

    Args:
        system: platform.system().
        machine: platform.machine().
        cpu_flags: the text of /proc/cpuinfo.
        which: finds a program.
    """
    if (system, machine) != ("Linux", "x86_64"):
        return f"vLLM 0.7.0 for the CPU is built on Linux x86_64 only, and this is {system} on {machine}."
    if not {"avx2", "fma", "f16c"} <= set(cpu_flags.split()):
        return "this processor has no AVX2 with FMA and F16C, which vLLM's CPU kernels are compiled for."
    if which("g++") is None:
        return "there is no g++ to compile vLLM's kernels with. On Debian and Ubuntu: apt-get install g++"
    return None


def python_311(version: "tuple[int, ...]", which: "Callable[[str], str | None]" = shutil.which) -> "str | None":
    """The Python 3.11 to start this script with instead, or None when this is one.

    Raises:
        Unusable: there is none.
    """
    if version[:2] == PYTHON:
        return None
    found = which("python3.11")
    if found is None:
        running = ".".join(str(part) for part in version[:2])
        raise Unusable(
            f"this needs Python 3.11, the one that app/locks/gpu.txt was resolved for; this is {running} and no "
            "python3.11 is on PATH. Try: make vllm-cpu PYTHON=/path/to/python3.11"
        )
    return found


def headers_error(include: str) -> "str | None":
    """What is missing to compile against this Python, or None."""
    if (Path(include) / "Python.h").is_file():
        return None
    return f"{include} has no Python.h. On Debian and Ubuntu: apt-get install python3-dev; then run this again."


# ---- is the work done already? ---------------------------------------------------------------------------------------


def pinned(lock: str, package: str) -> str:
    """The lines that pin a package, its hashes included: a requirements file for it alone."""
    found = re.search(rf"^{re.escape(package)}==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", lock, re.MULTILINE)
    if found is None:
        raise Unusable(f"{LOCKS}/gpu.txt pins no {package} with hashes: run make lock.")
    return found.group()


def kernels_digest(lock: str, abi: int, compiler: str) -> str:
    """One hash over what decides the compiled kernels."""
    parts = (pinned(lock, "vllm"), pinned(lock, "torch"), KERNELS, FLAGS, LIBRARIES, abi, compiler)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def digest(root: Path, facts: "Mapping[str, object]") -> str:
    """One hash over the files and facts that decide what is in `.venv-vllm`."""
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    locks = [LOCKS / name for name in ("uv.txt", "dev.txt", "gpu.txt")]
    for name in (*locks, Path("pyproject.toml"), Path("app/install.py"), Path("app/vllm_cpu.py")):
        total.update(hashlib.sha256((root / name).read_bytes()).digest())
    return total.hexdigest()


def up_to_date(root: Path, venv: Path, facts: "Mapping[str, object]") -> bool:
    """True when the stamp matches and the environment's programs are there."""
    stamp = install.read_stamp(venv)
    if stamp.get("state") != "finished" or not all((venv / "bin" / name).exists() for name in ("python", "mini-r1")):
        return False
    return stamp.get("digest") == digest(root, facts)


def kernels_folder(environment: "Mapping[str, str]") -> Path:
    """Return where compiled kernels are kept. The kit's cache directory, as training/warm_start.py has it."""
    if environment.get("MINI_R1_CACHE"):
        return Path(environment["MINI_R1_CACHE"]) / "vllm-cpu"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mini-r1" / "vllm-cpu"


# ---- the steps -------------------------------------------------------------------------------------------------------


def install_packages(venv: Path) -> None:
    """Exactly what gpu.txt names, then this package itself, editable."""
    uv = venv / "bin" / "uv"
    python = ("--python", str(venv / "bin" / "python"))
    # Sources are built with what dev.txt pins: DeepSpeed's setuptools, the kit's own hatchling.
    built_with = ("--build-constraints", LOCKS / "dev.txt")
    run(uv, "pip", "sync", *python, "--require-hashes", *built_with, LOCKS / "gpu.txt")
    run(uv, "pip", "install", *python, "--no-deps", *built_with, "--editable", ".")


def fetch_source(venv: Path, scratch: Path, lock: str) -> Path:
    """vLLM's source package by its name and hash, unpacked: the directory that holds csrc/."""
    requirement = pinned(lock, "vllm")
    (scratch / "vllm.txt").write_text(requirement, encoding="utf-8")
    stand_in = scratch / "stand-in"
    stand_in.mkdir()
    version = requirement.split()[0].partition("==")[2]
    (stand_in / "setuptools_scm.py").write_text(SCM_STAND_IN.format(version=version), encoding="utf-8")
    command = [
        str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
        "--no-binary", ":all:", "--no-build-isolation", "--require-hashes", "--dest", str(scratch),
        "--requirement", str(scratch / "vllm.txt"),
    ]  # fmt: skip
    # "empty": setup.py looks for no CUDA compiler. No CUDA device: it imports torch.
    environment = {**os.environ, "PYTHONPATH": str(stand_in), "VLLM_TARGET_DEVICE": "empty", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=scratch, env=environment, check=True)  # noqa: S603
    archive = scratch / f"vllm-{version}.tar.gz"
    with tarfile.open(archive) as files:
        files.extractall(scratch)  # noqa: S202 - pip has checked its hash
    return scratch / f"vllm-{version}"


def compile_kernels(source: Path, target: Path, torch: "Mapping[str, object]") -> None:
    """Compile csrc/cpu and link it to `target`, which is there whole or not at all."""
    include = [f"-I{path}" for path in torch["include"]]  # type: ignore[attr-defined]
    library = [f"-L{path}" for path in torch["lib"]]  # type: ignore[attr-defined]
    flags = [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={torch['abi']}", *include]

    def compile_one(name: str) -> str:
        command = ["g++", *flags, "-w", "-c", f"csrc/cpu/{name}.cpp", "-o", f"{name}.o"]
        subprocess.run(command, cwd=source, check=True)  # noqa: S603
        return name

    jobs = min(len(os.sched_getaffinity(0)), len(KERNELS))
    print(f"compiling vLLM's CPU kernels, {len(KERNELS)} files, {jobs} at a time: a few minutes", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        # The two long ones first, so that they do not come last alone.
        order = sorted(KERNELS, key=lambda name: name not in ("attention", "torch_bindings"))
        for done, future in enumerate(as_completed([pool.submit(compile_one, name) for name in order]), start=1):
            print(f"  {done}/{len(KERNELS)} {future.result()}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_suffix(".new")
    objects = [f"{name}.o" for name in KERNELS]
    link = ["g++", "-shared", "-fopenmp", "-s", *objects, *library, *LIBRARIES, "-o", str(new)]
    subprocess.run(link, cwd=source, check=True)  # noqa: S603
    os.replace(new, target)


def replace_file(path: Path, content: bytes) -> None:
    """A new file under the old name. In place it would change uv's cache too: the two are hard links to one file."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)


def put_kernels(packages: Path, kernels: Path) -> None:
    """Turn the installed vLLM for CUDA into one for the CPU.

    Args:
        packages: the environment's site-packages.
        kernels: the compiled library.
    """
    replace_file(packages / "vllm" / "_C.abi3.so", kernels.read_bytes())
    # It wants the CUDA driver's library, and vLLM loads it when it is there.
    (packages / "vllm" / "cumem_allocator.abi3.so").unlink(missing_ok=True)
    # vLLM looks for "cpu" in its own version to know its platform.
    (metadata,) = packages.glob("vllm-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    replace_file(metadata, re.sub(r"^(Version: [^+\n]+).*$", r"\1+cpu", text, count=1, flags=re.MULTILINE).encode())


def make() -> None:
    """The whole of `make vllm-cpu`."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    error = machine_error(platform.system(), platform.machine(), flags)
    if error:
        raise Unusable(error)
    python = python_311(sys.version_info[:2])
    if python is not None:
        os.execv(python, [python, *sys.argv])  # noqa: S606
    facts = {"venv": str(VENV), "python": list(sys.version_info[:2])}
    if up_to_date(ROOT, VENV, facts):
        print(f"{VENV.name} is up to date")
        return
    error = headers_error(sysconfig.get_path("include"))
    if error:
        raise Unusable(error)

    print("vLLM 0.7.0 on the CPU: installing the container image's packages (7 GB) into .venv-vllm", flush=True)
    install.make_venv(VENV)
    install.write_stamp(VENV, {"state": "unfinished"})
    install_packages(VENV)
    bin_python = str(VENV / "bin" / "python")
    answer = subprocess.run([bin_python, "-c", TORCH_FACTS], capture_output=True, text=True, check=True)  # noqa: S603
    torch = json.loads(answer.stdout.splitlines()[-1])
    lock = (ROOT / LOCKS / "gpu.txt").read_text(encoding="utf-8")
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607
    kernels = kernels_folder(os.environ) / f"{kernels_digest(lock, torch['abi'], compiler)}.so"
    if kernels.is_file():
        print(f"vLLM's CPU kernels: from the cache, {kernels}", flush=True)
    else:
        print(f"vLLM's CPU kernels: none in the cache, {kernels.parent}", flush=True)
        with tempfile.TemporaryDirectory(prefix="mini-r1-vllm-") as scratch:
            source = fetch_source(VENV, Path(scratch), lock)
            compile_kernels(source, kernels, torch)
    put_kernels(VENV / "lib" / "python3.11" / "site-packages", kernels)
    run(VENV / "bin" / "python", "-c", CHECK)
    install.write_stamp(VENV, {"state": "finished", "digest": digest(ROOT, facts)})


def main() -> int:
    """Build, and turn what went wrong into a sentence and an exit status."""
    try:
        make()
    except Unusable as unusable:
        print(f"vllm-cpu: {unusable}", file=sys.stderr)
        return EXIT_CONFIG
    except subprocess.CalledProcessError as failed:
        step = " ".join(str(part) for part in failed.cmd[:4])
        print(f"vllm-cpu: '{step} …' failed with status {failed.returncode}; see its output above.", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("vllm-cpu: interrupted; run make vllm-cpu again and it starts over.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
