"""What SECURITY.md says of the code and of the versions is so."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mini_r1.errors import KitError
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.tasks.problem_files import list_splits
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.conftest import ASSETS, REPO
from tests.training.workers import run_forked

KIT = REPO / "app" / "mini_r1"
PAGE = (REPO / "SECURITY.md").read_text()


class Call(NamedTuple):
    """A call in the kit's source."""

    place: str
    name: str
    """As it is written: `torch.load`."""
    given: tuple[str, ...]
    """Names of its keyword arguments."""
    keywords: dict[str, object]
    """Values of those that are constants."""


def calls_in(source: str, place: str = "here") -> list[Call]:
    """Every call; of a name that an import gave, the name that it has in its own module."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            name = f"{imported.get(first, first)}{dot}{rest}"
            given = tuple(k.arg or "**" for k in node.keywords)
            found.append(Call(f"{place}:{node.lineno}", name, given, keywords))
    return found


def kit_calls() -> Iterator[Call]:
    for path in sorted(KIT.rglob("*.py")):
        yield from calls_in(path.read_text(), path.relative_to(REPO).as_posix())


RUNS_CODE = re.compile(
    r"""^(?:
        (?:builtins\.)?(?:eval|exec|compile|__import__)
        | (?:\w+\.)*(?:pickle|cPickle|cloudpickle|dill|marshal|shelve|joblib)\.(?:load|loads|Unpickler|open)
        | (?:\w+\.)*read_pickle
        | yaml\.(?:load|load_all|full_load|full_load_all|unsafe_load|unsafe_load_all)
        | os\.(?:system|popen) | (?:subprocess\.)?(?:getoutput|getstatusoutput) | commands\.\w+
        | runpy\.\w+ | code\.\w+
        | torch\.(?:load|jit\.load|hub\.load|package\.\w+) | torch\.serialization\.load
    )$""",
    re.VERBOSE,
)
"""What turns data into code, or can. `torch.load` too: in 2.5.1 also with weights_only=True (CVE-2025-32434)."""


def runs_code(call: Call) -> bool:
    unsafe_numpy = call.name in ("numpy.load", "np.load") and bool(call.keywords.get("allow_pickle"))
    told_to = bool(call.keywords.get("shell")) or bool(call.keywords.get("trust_remote_code"))
    return bool(RUNS_CODE.match(call.name)) or unsafe_numpy or told_to


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "exec(text)", "import pickle\npickle.loads(b'')", "from pickle import load as x\nx(f)",
        "import yaml as y\ny.load(f, Loader=y.Loader)", "import torch\ntorch.load(p, weights_only=True)",
        "from torch import load\nload(p)", "import subprocess\nsubprocess.run('ls', shell=True)",
        "os.system('ls')", "AutoModel.from_pretrained(p, trust_remote_code=True)", "import dill\ndill.load(f)",
        "import numpy as np\nnp.load(p, allow_pickle=True)", "multiprocess.pickle.loads(b'')", "pandas.read_pickle(p)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert [call for call in calls_in(source) if runs_code(call)]


@pytest.mark.parametrize(
    "source", ["model.eval()", "yaml.safe_load(t)", "re.compile('x')", "json.load(f)", "run(shell=False)"]
)
def test_the_search_leaves_the_rest(source: str) -> None:
    assert not [call for call in calls_in(source) if runs_code(call)]


def test_nothing_in_the_kit_turns_data_into_code() -> None:
    assert [f"{call.place} {call.name}" for call in kit_calls() if runs_code(call)] == []


def test_recipes_are_read_by_a_loader_that_makes_only_plain_values(tmp_path: Path) -> None:
    readers = [call for call in kit_calls() if call.name == "ruamel.yaml.YAML"]
    assert readers
    for call in readers:
        assert call.keywords.get("typ") == "safe", call.place
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"run_name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(KitError):
        load_recipe(recipe)
    assert not (tmp_path / "made").exists()


WITHOUT_CODE = {"transformers.GenerationConfig"}
"""Values from a JSON file into one class: it has no `trust_remote_code`."""
WITHOUT_WEIGHTS = {"transformers.AutoConfig", "transformers.AutoTokenizer", "peft.PeftConfig", *WITHOUT_CODE}
BY_FOLDER = {"peft.PeftModel"}
"""It takes the safetensors of a folder where there are any, and `load_model` has looked."""


def test_every_model_is_read_from_safetensors_without_its_own_code() -> None:
    loads = [call for call in kit_calls() if call.name.endswith(".from_pretrained")]
    kinds = {call.name.removesuffix(".from_pretrained") for call in loads}
    assert kinds == {"transformers.AutoModelForCausalLM", *WITHOUT_WEIGHTS, *BY_FOLDER}
    made = [
        call for call in kit_calls() if call.name.startswith("transformers.Auto") and call.name.endswith(".from_config")
    ]
    assert made
    for call in made:
        assert call.keywords.get("trust_remote_code") is False, call.place
    for call in loads:
        kind = call.name.removesuffix(".from_pretrained")
        if kind.startswith("transformers.") and kind not in WITHOUT_CODE:
            assert call.keywords.get("trust_remote_code") is False, call.place
        if kind not in WITHOUT_WEIGHTS | BY_FOLDER:
            assert call.keywords.get("use_safetensors") is True, call.place


def test_vllm_is_an_engine_without_a_server_that_reads_safetensors_alone() -> None:
    (engine,) = [call for call in kit_calls() if call.name == "vllm.LLM"]
    assert engine.keywords["trust_remote_code"] is False
    assert engine.keywords["load_format"] == "safetensors"
    assert engine.keywords["enable_prefix_caching"] is False
    assert {"tokenizer", "skip_tokenizer_init"} <= set(engine.given)  # a saved copy, or none at all
    # What each of these would bring is out of reach, says the page.
    for option in (
        "tensor_parallel_size",
        "distributed_executor_backend",
        "kv_transfer_config",
        "enable_lora",
        "quantization",
    ):
        assert option not in engine.given
    (sampling,) = [call for call in kit_calls() if call.name == "vllm.SamplingParams"]
    assert "guided_decoding" not in sampling.given
    sources = {
        path: re.findall(r"^\s*(?:from|import) (vllm\S*)", path.read_text(), re.MULTILINE) for path in KIT.rglob("*.py")
    }
    imported = {path.name: set(found) for path, found in sources.items() if found}
    assert imported == {"vllm_child.py": {"vllm", "vllm.executor.executor_base"}}


def test_of_a_data_set_only_data_is_fetched() -> None:
    data = ["data/train.parquet", "test.csv", "train.jsonl", "validation.json"]
    others = ["set.py", "train.pkl", "data/train.tar.gz", "README.md", "train"]
    splits = list_splits([*data, *others], "", None, "the data set a/b")
    assert sorted(name for names in splits.values() for name in names) == sorted(data)


# --- a model of pickles alone, as a user meets it ---


@pytest.fixture
def pickled(untrained: Path, tmp_path: Path) -> Path:
    """A model directory whose only weights are a pickle that makes a directory when it is read."""
    import torch

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    folder = tmp_path / "pickled"
    shutil.copytree(untrained, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap()}, folder / "pytorch_model.bin")
    return folder


def test_the_commands_refuse_a_model_of_pickles_alone(
    small_recipe: Callable[..., Path], pickled: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(model_name_or_path=str(pickled))
    for arguments in (
        ("train", recipe, "--run-dir", tmp_path / "run"),
        ("evaluate", pickled, "--problems", ASSETS / "countdown_rows.jsonl"),
    ):
        done = run_forked(*arguments, folder=tmp_path)
        assert done.code == 78, done.errors
        assert f"{pickled} has no safetensors weights; pickled ones (pytorch_model.bin) are not read" in done.errors
        assert "Traceback" not in done.errors
    assert not (tmp_path / "trapped").exists()


# --- the page ---


class Advisory(NamedTuple):
    """An entry of a table: of which package and version, its number and the versions it affects."""

    package: str
    version: str
    number: str
    affected: str


LISTED = re.compile(r"((?:CVE-\d{4}-\d+|GHSA(?:-\w{4}){3})) \(([^)]*)\)")
"""`CVE-2025-27516 (<3.1.6)`"""


def locked() -> dict[str, set[str]]:
    """Versions of each package in all locks; most have one."""
    versions: dict[str, set[str]] = {}
    for path in (REPO / "app" / "locks").glob("*.txt"):
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\\n]+)", path.read_text(), re.MULTILINE):
            versions.setdefault(name.lower().replace("_", "-"), set()).add(version)
    return versions


def advisories() -> list[Advisory]:
    found = []
    for line in PAGE.splitlines():
        row = re.match(r"\| `(?P<package>[\w-]+)` (?P<version>\S+) \|", line)
        if row:
            found += [Advisory(row["package"], row["version"], *entry) for entry in LISTED.findall(line)]
    return found


def affects(advisory: Advisory, version: str) -> bool:
    if advisory.affected == "all":
        return True
    bounds = ",".join(advisory.affected.replace("≥", ">=").replace("≤", "<=").split())
    return SpecifierSet(bounds, prereleases=True).contains(Version(version))


def test_the_tables_have_entries_and_none_twice() -> None:
    numbers = [advisory.number for advisory in advisories()]
    assert len(numbers) > 100
    assert sorted(numbers) == sorted(set(numbers))


def test_the_versions_of_the_tables_are_those_of_the_locks() -> None:
    versions, stated = locked(), {advisory.package: {advisory.version} for advisory in advisories()}
    assert len(stated) > 5
    assert stated == {package: versions.get(package) for package in stated}


def test_every_advisory_of_the_tables_touches_the_locked_version() -> None:
    wrong = [advisory for advisory in advisories() if not affects(advisory, advisory.version)]
    assert wrong == []


def test_what_is_said_not_to_touch_the_locked_versions_does_not() -> None:
    section = PAGE.partition("## Often named, and not of these versions")[2].partition("\n## ")[0]
    rows = re.findall(r"^- `([\w-]+)` (\S+): (.*(?:\n  .*)*)", section, re.MULTILINE)
    assert len(rows) >= 4
    for package, version, text in rows:
        assert locked()[package] == {version}
        entries = [Advisory(package, version, *entry) for entry in LISTED.findall(text)]
        assert entries
        assert [entry for entry in entries if affects(entry, version)] == []


def test_the_tests_and_files_that_the_page_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", PAGE)
    assert named
    for file, test in named:
        source = (REPO / file).read_text()
        assert not test or f"def {test}(" in source, test
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE):
        assert (REPO / target).exists(), target
    for target in re.findall(r"`((?:app|docs|docker|configs)/[\w./-]+)`", PAGE):
        assert (REPO / target).exists(), target
