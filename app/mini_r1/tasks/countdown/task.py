"""The interface of the game: problems, prompt, verdicts, strata, solvers. Training and evaluation import it alone."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from operator import attrgetter
from pathlib import Path
from random import Random

from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import HUB_ID, SUFFIXES, data_files, read_files
from mini_r1.tasks.reflections import REFLECTION_PATTERN
from mini_r1.tasks.task_data import fetch_hub, split_problems

from . import solver
from .baselines import MOST_ENUMERATED, Chain, all_chains, chain_results, draw_chains
from .generator import DEFAULT_SPEC, GeneratorSpec, generate
from .generator_rule import OutOfWork, Work
from .problem import COLUMNS, Problem, parse_problem
from .prompt import PREFILL, messages
from .rewards import REWARDS, Verdict, fold_reason, judge
from .solver import signed_sums, solvable
from .worked_solution import Working, work_out

__all__ = [
    "GENERATED_ROWS", "MOST_ENUMERATED", "OPERATOR_STRATA", "PREFILL", "REFLECTION_PATTERN", "REWARDS", "Chain",
    "DataError", "GeneratorSpec", "Problem", "TaskData", "Verdict", "Working", "all_chains", "chain_results",
    "draw_chains", "fold_reason", "judge", "load_data", "messages", "parse_problem", "signed_sums", "solvable", "solve",
    "strata", "work_out",
]  # fmt: skip

GENERATED = "generated"
"""The source that needs no file and no network."""
GENERATED_ROWS = 50_000
"""Rows of the generated source by default: what the original trains on."""


@dataclass(frozen=True)
class TaskData:
    """Problems to train on, problems held out, and where they came from."""

    train: list[Problem]
    held_out: list[Problem]
    provenance: dict[str, object]
    """`source`, `kind` (generated, file, hub), `revision` (the hub's commit), `sha256` (of a local file), `rows`,
    `seed`, `test_fraction`, `split_by`, `generator`, `train_rows`, `held_out_rows`; None when it does not apply."""


def solve(problem: Problem) -> str | None:
    """Return an exact answer, None when none was found; `solvable` tells whether there is none."""
    try:
        return solver.solve(problem.nums, problem.target, Work(solver.MAX_STEPS))
    except OutOfWork:
        return None


OPERATOR_STRATA = {"add_subtract_suffice": "+ and - suffice", "needs_multiply_or_divide": "needs × or ÷"}
"""Keys and texts of the strata by operators."""


def strata(problem: Problem) -> dict[str, str]:
    """Return the groups that success is reported by: how many numbers, and a key of OPERATOR_STRATA."""
    needs = solver.needs_multiplication_or_division(problem)
    return {"numbers": str(len(problem.nums)), "operators": list(OPERATOR_STRATA)[needs]}


def split_key(by: str) -> Callable[[Problem], object]:
    """Return what training and held-out problems don't share: `key`, or the `numbers`."""
    return attrgetter("key" if by == "key" else "numbers_key")


def load_data(
    source: str,
    *,
    revision: str | None,
    rows: int | None,
    seed: int,
    test_fraction: float,
    split_by: str,
    generator: GeneratorSpec | None,
    config: str | None = None,
    split: str | None = None,
    test_split: str | None = None,
    prefer: str = "train",
    progress: Callable[[int], None] = lambda rows: None,
) -> TaskData:
    """Load problems and split them; the same arguments give the same split in every process.

    The source is `generated`, a local file or folder, or a hub data set `owner/name`, of which `revision` is a branch,
    tag or commit. `rows` None takes all of them (generated: 50,000); a file or hub set is shuffled before. `generator`
    None is the hub set's distribution. `progress` is called with the number of rows generated so far; what it raises
    ends the work. See `data.split_problems` for `test_fraction` and `split_by`.

    `config`, `split` and `test_split` choose from a folder or hub set as `problem_files` says, which has `prefer` too.
    All rows of `test_split` are held out, and rows of `split` that they hold are left out: no fraction is split off.

    Raises:
        DataError: for a source that does not exist or cannot be read, and for a bad row, naming it.
    """
    commit = digest = None
    tests: list[list[Problem]] = []
    spec = generator or DEFAULT_SPEC
    if source == GENERATED:
        if config or split or test_split:
            raise DataError("generated problems have no configurations and no splits: test_fraction holds some out")
        kind = GENERATED
        problems = []
        for problem in generate(rows or GENERATED_ROWS, seed, spec):
            problems.append(problem)
            progress(len(problems))
    else:
        path = Path(source)
        splits = [split, test_split] if test_split else [split]
        if path.exists():
            kind, files = "file", data_files(path, config, splits, prefer)
            digest = _sha256(file for each in files for file in each)
        elif HUB_ID.fullmatch(source) and "/" in source and not source.endswith(SUFFIXES):
            kind = "hub"
            files, commit = fetch_hub(source, revision, config, splits)
        else:
            raise DataError(
                f"the data set '{source}' is neither a file nor a folder nor a hub id (owner/name): "
                f"check the path, or use '{GENERATED}' for generated problems"
            )
        problems, *tests = [read_files(each, COLUMNS, parse_problem) for each in files]
        Random(seed).shuffle(problems)
        problems = list(islice(problems, rows))
    key = split_key(split_by)
    if tests:
        held_out = tests[0]
        there = set(map(key, held_out))
        train = [problem for problem in problems if key(problem) not in there]
        if not train:
            raise DataError(f"{source}: every problem of its split '{split or prefer}' is in '{test_split}', too")
    else:
        train, held_out = split_problems(problems, test_fraction, seed, key)
    provenance: dict[str, object] = {
        "source": source,
        "kind": kind,
        "config": config,
        "split": split,
        "test_split": test_split,
        "revision": commit,
        "sha256": digest,
        "rows": len(problems),
        "seed": seed,
        "test_fraction": None if tests else test_fraction,
        "split_by": split_by,
        "generator": asdict(spec) if kind == GENERATED else None,
        "train_rows": len(train),
        "held_out_rows": len(held_out),
    }
    return TaskData(train, held_out, provenance)


def _sha256(files: Iterable[Path]) -> str:
    digest = sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
