"""One path is read one way: `~` and environment variables, in a recipe and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from mini_r1.cli.app import _prepare_parameters, app
from mini_r1.cli.options import ExpandedPath
from mini_r1.recipe.recipe_file import RecipeError, effective_output_dir, load_recipe
from mini_r1.values import expand_path

HOME = "/home/ada"
PATH_KEYS = ("model_name_or_path", "tokenizer_name_or_path", "dataset_id_or_path", "output_dir")
NO_PATHS = {
    "--set", "--repo", "--snapshot", "--step", "--reason", "--grep", "--engine", "--numbers", "--target", "--address",
    "--config", "--split", "--column",
}  # fmt: skip
"""Texts on the command line that are no paths."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv("SCRATCH", "/scratch/ada")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x-run", f"{HOME}/x-run"),
        ("~", HOME),
        ("$SCRATCH/runs/a", "/scratch/ada/runs/a"),
        ("${SCRATCH}/runs", "/scratch/ada/runs"),
        ("~/$USER_NOT", None),
        ("$NOWHERE/a", None),
        ("${NOWHERE}/a", None),
        ("~nobody-here/a", None),
        ("runs/a~b", "runs/a~b"),
        ("a$", "a$"),
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    ],
)
def test_a_path_is_expanded_or_refused(written: str, meant: str | None) -> None:
    if meant is not None:
        assert expand_path(written) == meant
    else:
        with pytest.raises(ValueError, match=r"is not set|there is no home directory"):
            expand_path(written)


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("by_override", [False, True])
def test_every_path_of_a_recipe_is_expanded_once(tmp_path: Path, key: str, by_override: bool) -> None:
    file = tmp_path / "x.yaml"
    other = "" if key == "model_name_or_path" else "model_name_or_path: builtin:demo\n"
    file.write_text(other + ("" if by_override else f"{key}: ~/it.jsonl\n"))
    overrides = [f"{key}=~/it.jsonl"] if by_override else []
    if by_override and key == "model_name_or_path":
        file.write_text("max_steps: 1\n")
    recipe = load_recipe(file, overrides)
    assert getattr(recipe, key) == f"{HOME}/it.jsonl"


def test_the_run_directory_of_a_home_path_is_in_the_home(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model_name_or_path: builtin:demo\noutput_dir: ~/x-run\n")
    assert effective_output_dir(load_recipe(file), file) == Path(HOME, "x-run")


def test_a_variable_that_is_not_set_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model_name_or_path: builtin:demo\noutput_dir: $NOWHERE/run\n")
    with pytest.raises(RecipeError, match=r"x.yaml:2: output_dir: the environment variable \$NOWHERE is not set"):
        load_recipe(file)


def text_parameters(command: click.Command) -> Iterator[click.Parameter]:
    """Every argument and option whose value is a text or a path, over all commands."""
    for parameter in command.params:
        if isinstance(parameter.type, click.types.StringParamType | click.Path):
            yield parameter
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from text_parameters(below)


def test_every_path_of_the_command_line_is_expanded() -> None:
    found = list(text_parameters(_prepare_parameters(typer.main.get_command(app))))
    assert len(found) > 25
    assert {parameter.opts[0] for parameter in found if not isinstance(parameter.type, ExpandedPath)} <= NO_PATHS


@pytest.mark.parametrize("arguments", [["report", "~/no-run"], ["samples", "$SCRATCH/no-run"], ["bundle", "~/no-run"]])
def test_a_command_reads_the_expanded_path(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((click.ClickException, SystemExit, Exception)) as refused:
        _prepare_parameters(typer.main.get_command(app))(arguments, prog_name="mini-r1", standalone_mode=False)
    assert expand_path(arguments[1]) in str(refused.value) + "".join(capsys.readouterr())
