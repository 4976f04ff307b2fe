"""What several commands do in the same way: progress lines, stop signals, errors of data files, unfinished starts."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_r1.console import printable, progress_console
from mini_r1.disk_errors import DENIED, WRONG_PATH, disk_error
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.run.health import check_health
from mini_r1.run.run_dir import RunDir


def progress_printer(style: str | None = None) -> Callable[[str], None]:
    """Return a function that prints one line of progress on standard error."""
    console = progress_console()
    return lambda line: console.print(printable(line), style=style, markup=False)


def path_error(error: OSError) -> KitError | None:
    """Return the sentence for a disk error (150) or an error of a given path (78); None for another one."""
    if error.errno not in WRONG_PATH | DENIED:
        return disk_error(error)
    return KitError(f"{error.filename or 'file'}: {error.strerror}")


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn errors of files that can't be read or written into exit code 78, those of a full disk into 150."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_error(error) or KitError(f"{error.filename or 'file'}: {error.strerror}") from error


@contextmanager
def stop_signals(describe: Callable[[], str]) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end a command with the sentence that `describe` returns; for the main thread.

    Raises:
        Stopped: one of the two came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(describe()) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_starting(run: RunDir, why: str) -> None:
    """Refuse a run that has not begun its first attempt.

    Raises:
        KitError: there is such a run; retryable while it makes progress.
    """
    if run.is_starting():
        found = check_health(run.path, time.time())
        raise KitError(f"{found.sentence}: {why}", ExitCode.RETRY if found.healthy else ExitCode.CONFIG)


def find_recipe_for_other_node(name: str) -> Path:
    """Return the file of a recipe that another node trains."""
    from mini_r1.recipe.recipe_file import find_recipe

    if name == "auto":
        raise KitError(
            "auto chooses by the devices of the node that trains, which this one need not have: name the recipe; "
            "`mini-r1 recipes --gpus 4 --gpu-memory 80` lists what fits such a node"
        )
    return find_recipe(name)
