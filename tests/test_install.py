"""app/install.py: which PyTorch a machine gets, what counts as done, and what it says where it cannot help."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "app" / "install.py"

# The script is outside the package (it runs before there is one), so it is loaded by its path.
spec = importlib.util.spec_from_file_location("install", SCRIPT)
assert spec is not None
assert spec.loader is not None
install = importlib.util.module_from_spec(spec)
sys.modules["install"] = install
spec.loader.exec_module(install)


def never() -> bool:
    raise AssertionError("the index must not be asked here")


# ---- which PyTorch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "machine", "driver", "answers", "lock"),
    [
        ("Linux", "x86_64", True, None, "torch"),
        ("Linux", "x86_64", False, True, "torch-cpu"),
        ("Linux", "x86_64", False, False, "torch"),
        ("Linux", "aarch64", False, None, "torch"),
        ("Linux", "aarch64", True, None, "torch"),
        ("Darwin", "arm64", False, None, "torch"),
    ],
)
def test_choice_of_torch(system: str, machine: str, driver: bool, answers: bool | None, lock: str) -> None:
    ask: Callable[[], bool] = never if answers is None else lambda: bool(answers)
    choice = install.choose_torch(system, machine, driver, ask)
    assert choice.lock == lock
    assert "\n" not in choice.why


def test_driver_is_the_kernel_module_or_the_tool(tmp_path: Path) -> None:
    module = tmp_path / "version"
    assert not install.has_nvidia_driver(module, lambda name: None)
    assert install.has_nvidia_driver(module, lambda name: f"/usr/bin/{name}")
    module.touch()
    assert install.has_nvidia_driver(module, lambda name: None)


class Index(BaseHTTPRequestHandler):
    """Knows one wheel, is slow for another, and knows nothing else."""

    def do_HEAD(self) -> None:
        if "slow" in self.path:
            time.sleep(3)
        self.send_response(200 if self.path.startswith("/mirror/torch-2.5.1") else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/mirror"
    server.shutdown()
    server.server_close()


def test_index_answers(index: str) -> None:
    lock = install.rewrite_index((ROOT / "app/locks/torch-cpu.txt").read_text(), index + "/")
    assert install.url_answers(install.wheel_url(lock, (3, 11)))


def test_index_does_not_answer(index: str) -> None:
    assert not install.url_answers(f"{index}/something-else.whl"), "an index without the file does not serve it"
    assert not install.url_answers("http://127.0.0.1:9/torch.whl"), "no server there"
    assert not install.url_answers("file:///etc/hosts"), "only the web"
    assert not install.url_answers("not a url")
    assert not install.url_answers("http://[bad/torch.whl")


def test_a_silent_index_is_not_waited_for(index: str) -> None:
    start = time.monotonic()
    assert not install.url_answers(f"{index}/slow/torch.whl", timeout_s=0.3)
    assert time.monotonic() - start < 2


# ---- the CPU lock ----------------------------------------------------------------------------------------------------


def test_cpu_lock_has_one_hashed_wheel_for_each_python() -> None:
    lock = (ROOT / "app/locks/torch-cpu.txt").read_text()
    pinned = re.search(r"^torch==(\S+)", (ROOT / "app/locks/torch.in").read_text(), re.MULTILINE)
    assert pinned
    for minor in (10, 11, 12):
        url = install.wheel_url(lock, (3, minor))
        assert url.startswith(f"{install.TORCH_CPU_INDEX}/torch-{pinned[1]}%2Bcpu-cp3{minor}-")
        assert re.search(
            re.escape(url) + rf' ; python_version == "3\.{minor}" \\\n +--hash=sha256:[0-9a-f]{{64}}\n', lock
        )
    with pytest.raises(install.Unusable, match="cp313"):
        install.wheel_url(lock, (3, 13))


def test_a_mirror_takes_over_every_url_and_no_hash() -> None:
    lock = (ROOT / "app/locks/torch-cpu.txt").read_text()
    mirrored = install.rewrite_index(lock, "https://mirror.example/torch")
    assert install.TORCH_CPU_INDEX not in mirrored
    assert mirrored.count("https://mirror.example/torch/torch-") == 3
    assert re.findall("sha256:.*", mirrored) == re.findall("sha256:.*", lock)


def test_every_lock_is_hashed_and_names_no_index() -> None:
    locks = sorted((ROOT / "app/locks").glob("*.txt"))
    assert len(locks) >= 9
    for lock in locks:
        text = lock.read_text()
        assert "--index-url" not in text
        assert "--find-links" not in text
        blocks = [block for block in re.split(r"\n(?=[a-z0-9])", text) if re.match(r"[a-z0-9]", block)]
        assert blocks
        assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == [], lock.name


# ---- what is done already --------------------------------------------------------------------------------------------

FACTS = {"python": [3, 11], "venv": "/somewhere/.venv", "driver": False, "index": "https://index.example"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose `.venv` is finished."""
    (tmp_path / "app").mkdir()
    shutil.copytree(ROOT / "app/locks", tmp_path / "app/locks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "uv", "mini-r1"):
        (programs / name).touch()
    finish(tmp_path, "dev")
    return tmp_path


def finish(checkout: Path, packages: str) -> None:
    """Write the stamp of a finished installation."""
    digest = install.digest(checkout, packages, "torch-cpu", FACTS)
    stamp = {"state": "finished", "packages": packages, "torch": "torch-cpu", "digest": digest}
    install.write_stamp(checkout / ".venv", stamp)


def test_finished_is_up_to_date(checkout: Path) -> None:
    assert install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)


@pytest.mark.parametrize("name", ["pyproject.toml", "app/locks/dev.txt", "app/locks/torch-cpu.txt", "app/locks/uv.txt"])
def test_a_changed_input_is_not_up_to_date(checkout: Path, name: str) -> None:
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert not install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)


def test_a_lock_that_was_not_used_does_not_matter(checkout: Path) -> None:
    (checkout / "app/locks/gpu.txt").write_text("# changed\n")
    (checkout / "app/locks/torch.txt").write_text("# changed\n")
    assert install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)


@pytest.mark.parametrize("fact", [{"python": [3, 12]}, {"venv": "/moved/.venv"}, {"driver": True}, {"index": "x"}])
def test_another_machine_is_not_up_to_date(checkout: Path, fact: dict[str, object]) -> None:
    assert not install.up_to_date(checkout, checkout / ".venv", "dev", FACTS | fact)


def test_missing_programs_are_noticed(checkout: Path) -> None:
    (checkout / ".venv/bin/mini-r1").unlink()
    assert not install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)


@pytest.mark.parametrize("stamp", ["", "[]", "{", '{"state": "unfinished"}', '{"state": "finished", "torch": "../x"}'])
def test_no_stamp_to_trust_is_not_up_to_date(checkout: Path, stamp: str) -> None:
    (checkout / ".venv" / install.STAMP).write_text(stamp)
    assert not install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)


# ---- training alone, and the development tools -----------------------------------------------------------------------


def test_a_training_environment_is_not_a_development_environment(checkout: Path) -> None:
    finish(checkout, "train")
    assert not install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)
    assert install.up_to_date(checkout, checkout / ".venv", "train", FACTS)


def test_a_changed_training_lock_is_not_up_to_date(checkout: Path) -> None:
    finish(checkout, "train")
    with (checkout / "app/locks/train.txt").open("a") as file:
        file.write("# changed\n")
    assert not install.up_to_date(checkout, checkout / ".venv", "train", FACTS)


@pytest.mark.parametrize(
    ("stamp", "wanted", "installed"),
    [
        ({}, "train", "train"),
        ({}, "dev", "dev"),
        ({"state": "finished", "packages": "train"}, "train", "train"),
        ({"state": "finished", "packages": "train"}, "dev", "dev"),
        ({"state": "finished", "packages": "dev"}, "train", "dev"),
        ({"state": "finished"}, "train", "dev"),  # written before there was a choice
        ({"state": "unfinished"}, "train", "train"),
        ({"state": "unfinished"}, "dev", "dev"),
    ],
)
def test_development_tools_that_are_installed_are_kept(
    tmp_path: Path, stamp: dict[str, str], wanted: str, installed: str
) -> None:
    install.write_stamp(tmp_path, stamp)
    assert install.packages_to_install(tmp_path, wanted) == installed


def test_stamps_without_a_choice_are_accepted(checkout: Path) -> None:
    stamp = install.read_stamp(checkout / ".venv")
    del stamp["packages"]
    install.write_stamp(checkout / ".venv", stamp)
    assert install.up_to_date(checkout, checkout / ".venv", "dev", FACTS)
    assert not install.up_to_date(checkout, checkout / ".venv", "train", FACTS)


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The locks given to `uv pip sync` by calls of `install.install` in a new checkout; nothing is installed."""
    shutil.copytree(ROOT / "app/locks", tmp_path / "app/locks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    locks: list[str] = []

    def run(*command: str | Path) -> None:
        assert install.read_stamp(tmp_path / ".venv")["state"] == "unfinished", "a kill now would leave a false stamp"
        if "sync" in command:
            locks.append(Path(command[-2]).name)

    def make_venv(venv: Path) -> None:
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        for name in ("python", "uv", "mini-r1"):
            (venv / "bin" / name).touch()

    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr(install, "make_venv", make_venv)
    monkeypatch.setattr(install, "has_nvidia_driver", lambda: True)  # so that no index is asked
    return locks


def test_demo_then_install_then_demo(synced: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    install.install("train")
    assert synced == ["train.txt"]
    assert "`make install` adds the development tools" in capsys.readouterr().out

    install.install("train")
    assert synced == ["train.txt"], "the second call has nothing to do"
    assert capsys.readouterr().out == ".venv is up to date\n"

    install.install(None)
    assert synced == ["train.txt", "dev.txt"]
    said = capsys.readouterr().out
    assert "adds the development tools" not in said
    for step in ("make demo", ".venv/bin/mini-r1 doctor", ".venv/bin/mini-r1 recipes"):
        assert f"  {step}  " in said, "the next steps can be copied"

    install.install("train")
    install.install(None)
    assert synced == ["train.txt", "dev.txt"], "the full environment serves the demo as it is"


def test_demo_updates_an_outdated_development_environment_whole(synced: list[str]) -> None:
    install.install(None)
    with (install.ROOT / "app/locks/dev.txt").open("a") as file:
        file.write("# changed\n")
    install.install("train")
    assert synced == ["dev.txt", "dev.txt"], "train.txt would remove the development tools"


@pytest.mark.parametrize("only", ["train", None])
def test_an_interrupted_completion_starts_over(
    synced: list[str], monkeypatch: pytest.MonkeyPatch, only: str | None
) -> None:
    install.install("train")
    recorded = install.run

    def interrupted(*command: str | Path) -> None:
        recorded(*command)
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.install(None)
    venv = install.ROOT / ".venv"
    assert not install.reusable(venv, sys.version_info[:2])
    monkeypatch.setattr(install, "run", recorded)
    install.install(only)
    assert synced == ["train.txt", "dev.txt", f"{only or 'dev'}.txt"]


def test_the_demo_alone_installs_without_the_development_tools() -> None:
    def commands(target: str) -> str:
        return subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "app/install.py --only train\n" in commands("demo")
    for target in ("install", "test", "test-real", "test-all", "lint", "format", "bench"):
        assert "app/install.py\n" in commands(target), target


def test_the_training_lock_is_a_part_of_the_development_lock() -> None:
    def pins(name: str) -> set[str]:
        lock = (ROOT / "app/locks" / name).read_text()
        return set(re.findall(r"^[a-z0-9.-]+==[^ ]+", lock, re.MULTILINE))

    assert pins("train.txt") < pins("dev.txt"), "completing .venv must not change what the demo ran with"
    assert not any(pin.startswith(("deepspeed==", "pytest==")) for pin in pins("train.txt"))


# ---- what can be updated in place ------------------------------------------------------------------------------------


def test_only_a_whole_environment_in_its_place_is_reused(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    version = sys.version_info[:2]
    assert not install.reusable(venv, version), "nothing there"

    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    assert install.reusable(venv, version)
    assert not install.reusable(venv, (3, 9)), "another Python"

    moved = tmp_path / "moved"
    venv.rename(moved)
    assert not install.reusable(moved, version), "its scripts name the old place"
    moved.rename(venv)

    install.write_stamp(venv, {"state": "unfinished"})
    assert not install.reusable(venv, version), "cut short"
    (venv / install.STAMP).unlink()

    (venv / "bin" / "python").unlink()
    assert not install.reusable(venv, version), "its Python is gone"


# ---- where it cannot help --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_python_that_serves(version: tuple[int, int]) -> None:
    assert install.python_error(version) is None


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 13), (4, 0)])
def test_python_that_does_not(version: tuple[int, int]) -> None:
    assert f"Python {version[0]}.{version[1]} " in install.python_error(version)


def test_platforms() -> None:
    assert install.platform_error("Linux", "x86_64") is None
    assert install.platform_error("Linux", "aarch64") is None
    assert install.platform_error("Darwin", "arm64") is None
    assert "Intel Macs" in install.platform_error("Darwin", "x86_64")
    assert "WSL" in install.platform_error("Windows", "AMD64")
    assert "riscv64" in install.platform_error("Linux", "riscv64")


def test_python_without_venv_names_the_package_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert "apt-get install python3-venv" in install.venv_error(str(bare))
    assert install.venv_error(sys.executable) is None


def test_an_error_is_one_sentence_and_exit_code_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 78
    said = capsys.readouterr().err
    assert said.startswith("install: Python 3.9 cannot install this")
    assert len(said.splitlines()) == 1


def test_a_failed_step_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(only: str | None) -> None:
        raise subprocess.CalledProcessError(2, ["uv", "pip", "sync", "--python", "x"])

    monkeypatch.setattr(install, "install", fail)
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 1
    assert "'uv pip sync --python …' failed with status 2" in capsys.readouterr().err
