"""Mutation testing: what is a mutant, that one which survives is seen, and that its lists name what is there."""

from __future__ import annotations

import importlib.util
import queue
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.conftest import REPO

pytest.importorskip("cosmic_ray")

CONFIG = REPO / "bench" / "mutants"
MODULES: dict[str, list[str]] = yaml.safe_load((CONFIG / "modules.yaml").read_text())["modules"]
EQUIVALENT: list[dict[str, Any]] = yaml.safe_load((CONFIG / "equivalent.yaml").read_text())


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", REPO / "bench" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", MODULES)
def test_a_module_and_its_tests_are_there(module: str) -> None:
    assert (REPO / "app" / "mini_r1" / module).is_file()
    assert MODULES[module]
    assert [file for file in MODULES[module] if not (REPO / "tests" / file).is_file()] == []


@pytest.mark.parametrize("entry", EQUIVALENT, ids=lambda entry: f"{entry['module']}: {entry['before']}")
def test_a_line_whose_mutants_are_equivalent_is_there(entry: dict[str, Any]) -> None:
    assert entry["reason"].endswith(".")
    assert entry["after"]
    assert entry["before"] not in entry["after"]
    names = list(MODULES) if entry["module"] == "*" else [entry["module"]]
    sources = [(REPO / "app" / "mini_r1" / name).read_text(encoding="utf-8") for name in names]
    lines = {line.strip() for source in sources for line in source.splitlines()}
    assert entry["before"] in lines, "the line has changed: change bench/mutants/equivalent.yaml, too"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("def f(a: x | y, *, b: x = 1) -> x | y: ...", "def f(a: x & y, /, b: x = 1) -> x & y: ...", True),
        ("x: int | None = 1", "x: int & None = 1", True),
        ("x: int = 1", "x: int = 2", False),
        ("@lru_cache(maxsize=4)\ndef f(): ...", "def f(): ...", True),
        ("@lru_cache(maxsize=4)\ndef f(): ...", "@functools.lru_cache(maxsize=5)\ndef f(): ...", True),
        ("@reward('words')\ndef f(): ...", "def f(): ...", False),
        ("def f(a, *, b=1): return a | b", "def f(a, *, b=1): return a & b", False),
        ("def f(a, *, b=1): ...", "def f(a, *, b=2): ...", False),
    ],
)  # fmt: skip
def test_what_changes_no_result_is_no_mutant(mutants: ModuleType, one: str, other: str, same: bool) -> None:
    assert (mutants.meaning(one) == mutants.meaning(other)) == same


def test_what_is_no_program_is_no_mutant(mutants: ModuleType) -> None:
    assert mutants.meaning("f(/a)") is None
    assert mutants.meaning("for i in x: pass\ncontinue") is None


def test_a_mutant_that_no_test_notices_is_seen(mutants: ModuleType, tmp_path: Path) -> None:
    """`a <= b` is tested with two numbers alone, which does not distinguish it from `a < b`."""
    package, tests = tmp_path / "app" / "mini_r1", tmp_path / "tests"
    package.mkdir(parents=True)
    tests.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text("def small(a, b):\n    return a <= b or b is None\n")
    (tests / "test_small.py").write_text(
        "from mini_r1.small import small\n\n\ndef test_small():\n    assert small(1, 2) and not small(2, 1)\n"
    )
    operators = ["ReplaceComparisonOperator_LtE_(Lt|Gt)", "ReplaceOrWithAnd"]
    found = mutants.mutate("small.py", ["test_small.py"], operators, tmp_path).mutants
    before = "return a <= b or b is None"
    assert {(mutant.before, mutant.after, mutant.killed) for mutant in found} == {
        (before, "return a < b or b is None", False),
        (before, "return a > b or b is None", True),
        (before, "return a <= b and b is None", True),
    }
    assert {mutant.line for mutant in found} == {2}
    (tests / "test_small.py").write_text("def test_small():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"the tests of small\.py fail without any change"):
        mutants.mutate("small.py", ["test_small.py"], operators, tmp_path)


def test_a_mutant_that_never_ends_is_killed_with_what_it_started(
    mutants: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One uses the CPU, which is limited; the other one waits, and is run again with more time before it counts."""
    package, tests = tmp_path / "app" / "mini_r1", tmp_path / "tests"
    package.mkdir(parents=True)
    tests.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ends.py").write_text(
        "import time\n\n\ndef ends(n, wait):\n    while n > 0:\n        n = n - 1\n        time.sleep(wait)\n"
        "    return True\n"
    )
    (tests / "test_ends.py").write_text(
        "import subprocess, sys\nfrom pathlib import Path\nfrom mini_r1.ends import ends\n\n\n"
        "def test_ends():\n    started = subprocess.Popen(['sleep', '1000'])\n"
        "    with Path('started').open('a') as file: print(started.pid, file=file)\n"
        "    assert ends(2, wait=0.2 if Path('waits').exists() else 0)\n"
    )
    for name, value in {"LEAST_CPU_S": 1, "TIMEOUT_FACTOR": 1, "LEAST_TIMEOUT_S": 1, "PATIENCE": 1.5}.items():
        monkeypatch.setattr(mutants, name, value)
    found = mutants.mutate("ends.py", ["test_ends.py"], ["ReplaceBinaryOperator_Sub_Add"], tmp_path).mutants
    assert [(mutant.after, mutant.killed, mutant.timed_out) for mutant in found] == [("n = n + 1", True, True)]
    (tmp_path / "waits").touch()
    before = len((tmp_path / "started").read_text().split())
    found = mutants.mutate("ends.py", ["test_ends.py"], ["ReplaceBinaryOperator_Sub_Add"], tmp_path).mutants
    assert [(mutant.killed, mutant.timed_out) for mutant in found] == [(True, True)]
    started = (tmp_path / "started").read_text().split()
    assert len(started) == before + 4  # twice without the change, twice with it
    assert not any(is_running(int(pid)) for pid in started)


def is_running(pid: int) -> bool:
    """Whether the process is there, and neither a zombie nor another one with its number."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(") ")
    except OSError:
        return False
    return name.endswith("(sleep") and rest[0] != "Z"


def test_a_result_is_kept_and_not_measured_again(
    mutants: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "machine/roles.py"
    mutant = mutants.Mutant(module, 7, "a < b", "a <= b", False, False)
    measured: list[str] = []

    def mutate(name: str, *given: object) -> object:
        measured.append(name)
        return mutants.Result(name, [mutant, mutant._replace(killed=True, line=8)], 90.0)

    monkeypatch.setattr(mutants, "mutate", mutate)
    monkeypatch.setattr(mutants, "EQUIVALENT_FILE", tmp_path / "equivalent.yaml")
    (tmp_path / "equivalent.yaml").write_text("[]")
    monkeypatch.setattr("sys.argv", ["mutants.py", "--jobs", "1", "--results", str(tmp_path / "kept"), "roles.py"])
    assert mutants.main() == 1
    first = capsys.readouterr().out
    assert "survived: machine/roles.py:7\n    - a < b\n    + a <= b\n" in first
    assert "bar: >= 92% killed: not met (50.0%)" in first
    assert mutants.main() == 1
    assert capsys.readouterr().out == first
    assert measured == [module]


def test_a_copy_has_what_git_knows_and_nothing_that_it_ignores(mutants: ModuleType) -> None:
    with mutants.copies(1) as trees:
        tree = trees.get()
        fields = "app/mini_r1/recipe/fields.py"
        assert (tree / fields).read_text() == (REPO / fields).read_text()
        assert not (tree / ".venv").exists()
        assert isinstance(trees, queue.SimpleQueue)
    assert not tree.exists()
