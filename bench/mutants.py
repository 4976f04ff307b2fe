"""Mutation testing: change a module in one place, and see whether its own tests notice. Hundreds of times.

    make mutants                                  every module of modules.yaml: an hour or two of two cores
    make mutants ARGS="expression.py machine/roles"   the modules whose path holds one of these

cosmic-ray makes the changes, in copies of the checkout, one for each job. A mutant that no test can kill, because the
changed code does the same, is listed in equivalent.yaml with the reason, and does not count. Exit code 1: fewer than
BAR of the others were killed, or equivalent.yaml lists a change that cosmic-ray does not make.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

REPO = Path(__file__).parent.parent
CONFIG = REPO / "bench" / "mutants"
BIN = Path(sys.executable).parent

BAR = 0.92
"""Smallest share of the mutants that the tests must kill."""
TIMEOUT_FACTOR, LEAST_TIMEOUT_S = 8, 60
"""A mutant whose tests take this many times as long as without it is taken for one that never ends: killed."""


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


def run(command: Sequence[str | Path], tree: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a copy of the checkout; its package comes before the installed one."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'app'}:{CONFIG}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [str(word) for word in command], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def mutate(module: str, tests: Sequence[str], operators: Sequence[str], tree: Path) -> Result:
    """Make every mutant of a module and run the tests on each.

    Raises:
        RuntimeError: the tests do not pass without a mutant, or cosmic-ray failed.
    """
    started = time.monotonic()
    source = f"app/mini_r1/{module}"
    options = "-x -q -p no_shrinking -p no:xdist -p no:cacheprovider --hypothesis-seed=0 -m".split()
    tests_command = [sys.executable, "-m", "pytest", *options, "not real and not exhaustive"]
    tests_command += [f"tests/{file}" for file in tests]
    # The first run leaves the compiled files of all other modules behind; cosmic-ray's own write none.
    check(run(tests_command, tree), f"the tests of {module} fail without any change")
    before = time.monotonic()
    check(run(tests_command, tree), f"the tests of {module} fail without any change")
    timeout = max(LEAST_TIMEOUT_S, TIMEOUT_FACTOR * (time.monotonic() - before))
    for compiled in (tree / source).parent.glob(f"__pycache__/{Path(module).stem}.*.pyc"):
        compiled.unlink()

    config, session = tree / "mutants.toml", tree / "mutants.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {source!r}\ntimeout = {timeout:.1f}\nexcluded-modules = []\n"
        f"test-command = '''{shlex.join(tests_command)}'''\n[cosmic-ray.distributor]\nname = 'local'\n"
    )
    check(run([BIN / "cosmic-ray", "init", config, session], tree), f"{module}: cosmic-ray init")
    leave_out(session, (tree / source).read_text(encoding="utf-8"), re.compile(f"core/({'|'.join(operators)})"))
    check(run([BIN / "cosmic-ray", "exec", config, session], tree), f"{module}: cosmic-ray exec")
    return Result(module, list(read(module, session)), time.monotonic() - started)


def check(process: subprocess.CompletedProcess[str], what: str) -> None:
    if process.returncode:
        raise RuntimeError(f"{what}:\n{process.stdout[-4000:]}{process.stderr[-4000:]}")


def leave_out(session: Path, source: str, operators: re.Pattern[str]) -> None:
    """Mark what is not run: other operators, and changes that make no program or, but for its types, the same one."""
    unchanged = meaning(source)
    with use_db(str(session), WorkDB.Mode.open) as database:
        for item in list(database.pending_work_items):
            (mutation,) = item.mutations
            if operators.fullmatch(mutation.operator_name):
                operator = get_operator(mutation.operator_name)(**mutation.operator_args)
                mutated = mutate_code(source, operator, mutation.occurrence)
                if mutated is not None and meaning(mutated) not in (None, unchanged):
                    continue
            database.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


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


def read(module: str, session: Path) -> Iterator[Mutant]:
    """The mutants of a session that cosmic-ray has run."""
    with use_db(str(session), WorkDB.Mode.open) as database:
        lines = {item.job_id: item.mutations[0].start_pos[0] for item in database.work_items}
        for job, result in database.results:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            if result.worker_outcome != WorkerOutcome.NORMAL:
                raise RuntimeError(f"{module}:{lines[job]}: {result.worker_outcome}: {result.output}")
            changed = [line for line in result.diff.splitlines() if not line.startswith(("---", "+++"))]
            before, after = (
                " ".join(re.sub(r"^ *(#.*)?", "", line[1:]).strip() for line in changed if line[:1] == sign).strip()
                for sign in "-+"
            )
            killed = result.test_outcome == TestOutcome.KILLED
            yield Mutant(module, lines[job], before, after, killed, result.output == "timeout")


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
    arguments = parser.parse_args()
    config = yaml.safe_load((CONFIG / "modules.yaml").read_text())
    listed = yaml.safe_load((CONFIG / "equivalent.yaml").read_text()) or []
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
            tree = trees.get()
            try:
                return mutate(module, config["modules"][module], config["operators"], tree)
            finally:
                trees.put(tree)

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
