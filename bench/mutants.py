"""Mutation testing: change a module in one place, and see whether its own tests notice. Hundreds of times.

    make mutants                                  every module of modules.yaml: bench/RESULTS.md has the time
    make mutants ARGS="expression.py machine/roles"   the modules whose path holds one of these

cosmic-ray makes the changes, in copies of the checkout, one for each job, and fork_server.py runs the tests. A mutant
that no test can kill, because the changed code does the same, is listed in equivalent.yaml with the reason, and doesn't
count. Exit code 1: fewer than BAR of the others were killed, or equivalent.yaml lists a change that cosmic-ray does not
make.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

REPO = Path(__file__).parent.parent
CONFIG = REPO / "bench" / "mutants"
EQUIVALENT_FILE = CONFIG / "equivalent.yaml"

BAR = 0.92
"""Smallest share of the mutants that the tests must kill."""
TIMEOUT_FACTOR, LEAST_CPU_S, LEAST_TIMEOUT_S = 4, 10, 60
"""A mutant whose tests take this many times as long as without it is taken for one that never ends: killed."""
PATIENCE = 4
"""Times the limit of the second run of a mutant that took too long without using the CPU: the machine may be busy."""
NO_LIMIT_S = 3600
"""For the tests without a change, seconds."""


class Mutant(NamedTuple):
    """One change of one line."""

    module: str
    line: int
    before: str
    after: str
    killed: bool
    timed_out: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line}\n    - {self.before}\n    + {self.after}"


class Result(NamedTuple):
    """The mutants of a module, and how long they took."""

    module: str
    mutants: list[Mutant]
    seconds: float


class Tests:
    """A module's tests, run in the forks of one process; `fork_server.py` has its side."""

    def __init__(self, module: str, tests: Sequence[str], tree: Path) -> None:
        self._module = module
        options = "-x -q -p no_shrinking -p no:xdist -p no:cacheprovider --hypothesis-seed=0 -m".split()
        arguments = [*options, "not real and not exhaustive", *(f"tests/{file}" for file in tests)]
        settings = {
            "PYTHONPATH": f"{tree / 'app'}:{CONFIG}", "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        environment = {**os.environ, **settings}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._server = subprocess.Popen(
            [sys.executable, CONFIG / "fork_server.py", *arguments],
            cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Tests:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()

    def run(self, limits: tuple[int, float]) -> dict[str, Any]:
        """Run them once; the limits are seconds of CPU time and seconds."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(limits), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())  # type: ignore[no-any-return]

    def pass_in(self) -> tuple[float, float]:
        """Return the CPU time and the time of the tests without any change, or raise RuntimeError."""
        before = time.monotonic()
        ended = self.run((NO_LIMIT_S, NO_LIMIT_S))
        if ended["code"] != 0:
            raise RuntimeError(f"the tests of {self._module} fail without any change:\n{ended['output'][-4000:]}")
        return ended["cpu_s"], time.monotonic() - before


def mutate(module: str, tests: Sequence[str], operators: Sequence[str], tree: Path) -> Result:
    """Make every mutant of a module and run the tests on each; RuntimeError if they fail without a mutant."""
    started = time.monotonic()
    path = tree / "app" / "mini_r1" / module
    source = path.read_text(encoding="utf-8")
    made: list[Mutant] = []
    with Tests(module, tests, tree) as checks:
        checks.pass_in()  # leaves the compiled files of all other modules behind
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
        cpu_s, seconds = checks.pass_in()
        cpu_limit = math.ceil(max(LEAST_CPU_S, TIMEOUT_FACTOR * cpu_s))
        limit = max(LEAST_TIMEOUT_S, TIMEOUT_FACTOR * seconds)
        for line, mutated in changes(source, re.compile(f"core/({'|'.join(operators)})")):
            path.write_text(mutated, encoding="utf-8")
            ended = checks.run((cpu_limit, limit))
            if ended["code"] is None and ended["cpu_s"] < cpu_limit:  # it waits for ever, or the machine is busy
                ended = checks.run((cpu_limit, PATIENCE * limit))
            before, after = difference(source, mutated)
            made.append(Mutant(module, line, before, after, ended["code"] != 0, ended["code"] is None))
    path.write_text(source, encoding="utf-8")
    return Result(module, made, time.monotonic() - started)


def changes(source: str, operators: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Yield the line of each change that an operator makes, and the changed module.

    Changes that make no program, or the same one but for its types, are left out.
    """
    unchanged = meaning(source)
    for name in filter(operators.fullmatch, operator_names()):
        operator = get_operator(name)()
        nodes = ast_nodes(get_ast(source))
        positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, _) in enumerate(positions):
            mutated = mutate_code(source, operator, occurrence)
            if mutated is not None and meaning(mutated) not in (None, unchanged):
                yield line, mutated


def meaning(source: str) -> str | None:
    """The program without what changes no result; None if it is no program.

    Annotations are left out, the `*` and `/` of signatures, and `lru_cache`, which is only quicker.
    """
    try:
        tree = ast.parse(source)
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args, node.posonlyargs, node.kwonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], [], []
            node.defaults, node.kw_defaults = [*node.defaults, *filter(None, node.kw_defaults)], []
        if hasattr(node, "annotation"):
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            node.decorator_list = [one for one in node.decorator_list if "lru_cache" not in ast.unparse(one)]
    return ast.dump(tree)


def difference(source: str, mutated: str) -> tuple[str, str]:
    """Return the changed lines, without indentation and comments, before and after."""
    changed = list(difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm=""))[2:]
    before, after = (
        " ".join(re.sub(r"^ *(#.*)?", "", line[1:]).strip() for line in changed if line[:1] == sign).strip()
        for sign in "-+"
    )
    return before, after


@contextmanager
def copies(count: int) -> Iterator[queue.SimpleQueue[Path]]:
    """Copies of the checkout, without what git ignores."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mini-r1-mutants-") as folder:
        for index in range(count):
            tree = Path(folder) / str(index)
            for name in names:
                if name and (REPO / name).is_file():
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(REPO / name, tree / name)
            trees.put(tree)
        yield trees


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutation testing of the modules in modules.yaml.")
    parser.add_argument("modules", nargs="*", help="parts of the paths of modules (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="modules at a time (default: one for each core)"
    )
    parser.add_argument(
        "--results", type=Path, help="folder with a file for each module measured: a stopped run resumes from it"
    )
    arguments = parser.parse_args()
    config = yaml.safe_load((CONFIG / "modules.yaml").read_text())
    listed = yaml.safe_load(EQUIVALENT_FILE.read_text()) or []
    chosen = [
        module
        for module in config["modules"]
        if not arguments.modules or any(part in module for part in arguments.modules)
    ]
    if not chosen:
        parser.error("no such module in modules.yaml")

    results: list[Result] = []
    with copies(arguments.jobs) as trees, ThreadPoolExecutor(arguments.jobs) as pool:

        def one(module: str) -> Result:
            kept = arguments.results and arguments.results / f"{module.replace('/', '.')}.json"
            if kept and kept.exists():
                mutants, seconds = json.loads(kept.read_text())
                return Result(module, [Mutant(*mutant) for mutant in mutants], seconds)
            tree = trees.get()
            try:
                result = mutate(module, config["modules"][module], config["operators"], tree)
            finally:
                trees.put(tree)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps([result.mutants, result.seconds]))
            return result

        print(f"{'module':30} mutants  equivalent  killed  timed out  share  minutes")
        equivalent = {(entry["module"], entry["before"], after) for entry in listed for after in entry["after"]}
        for result in pool.map(one, chosen):
            results.append(result)
            print(line(result.module, result.mutants, equivalent, result.seconds), flush=True)

    mutants = [mutant for result in results for mutant in result.mutants]
    print(line("all", mutants, equivalent, sum(result.seconds for result in results)))
    for mutant in mutants:
        if not mutant.killed and not is_equivalent(mutant, equivalent):
            print(f"survived: {mutant}")
    made = {(mutant.module, mutant.before, mutant.after) for mutant in mutants}
    unknown = [entry for entry in sorted(equivalent) if entry[0] in chosen and entry not in made]
    for module, before, after in unknown:
        print(f"equivalent.yaml: no such mutant of {module}:\n    - {before}\n    + {after}")
    counted = [mutant for mutant in mutants if not is_equivalent(mutant, equivalent)]
    share = sum(mutant.killed for mutant in counted) / len(counted)
    print(f"bar: >= {BAR:.0%} killed: {'met' if share >= BAR else 'not met'} ({share:.1%})")
    return int(share < BAR or bool(unknown))


def is_equivalent(mutant: Mutant, equivalent: set[tuple[str, str, str]]) -> bool:
    return any((module, mutant.before, mutant.after) in equivalent for module in (mutant.module, "*"))


def line(name: str, mutants: Sequence[Mutant], equivalent: set[tuple[str, str, str]], seconds: float) -> str:
    """One row of the table."""
    counted = [mutant for mutant in mutants if not is_equivalent(mutant, equivalent)]
    killed = sum(mutant.killed for mutant in counted)
    timed_out = sum(mutant.timed_out for mutant in counted)
    share = f"{killed / len(counted):6.1%}" if counted else "     -"
    columns = f"{len(mutants):7} {len(mutants) - len(counted):11} {killed:7} {timed_out:10} {share} {seconds / 60:8.1f}"
    return f"{name:30} {columns}"


if __name__ == "__main__":
    sys.exit(main())
