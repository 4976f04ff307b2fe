"""`mini-r1 evaluate` on a run directory and on a model directory: what is chosen, written, said and refused."""

from __future__ import annotations

import io
import json
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation import source as sources
from mini_r1.evaluation.results_table import print_table
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.run.manifest import MANIFEST
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.data_errors import DataError
from rich.console import Console

from tests.evaluation.conftest import RECIPE, evaluate_one


def test_a_run_uses_its_newest_snapshot_its_problems_and_its_recipe(run: RunDir, problems_file: Path) -> None:
    result = evaluate_one(str(run.path), samples=2)
    provenance = result["provenance"]
    assert provenance["step"] == 10
    assert provenance["problems_file"] == str(run.held_out_file)
    assert provenance["problems_sha256"] == sha256(problems_file.read_bytes()).hexdigest()
    assert (provenance["prompt_style"], provenance["max_new_tokens"], provenance["seed"]) == ("notebook", 8, 11)
    assert (result["problems"], result["samples"], result["temperature"]) == (9, 2, 0.7)
    assert result["completion_tokens"] <= 8
    assert provenance["selection"] == "all 9 problems"
    assert {"torch", "transformers", "mini-r1", "python"} <= set(provenance["versions"])
    assert provenance["model"]["dtype"] in ("float32", "bfloat16")
    written = run.evaluation / "step-10.json"
    assert provenance["written_to"] == str(written)
    assert json.loads(written.read_text()) == result
    again = evaluate_one(str(run.path), samples=2)
    for volatile in ("seconds", "provenance"):
        del again[volatile], result[volatile]
    assert again == result


def test_the_sampling_keys_of_the_recipe_are_used_and_recorded(run: RunDir) -> None:
    free = evaluate_one(str(run.path), samples=3)
    settings = {"top_p": 1.0, "top_k": None, "stop": []}
    assert settings.items() <= free["provenance"].items()
    written = run.evaluation / "step-10.json"
    older = json.loads(written.read_text())
    for key in settings:
        del older["provenance"][key]
    written.write_text(json.dumps(older))  # as it was before there were such keys
    assert evaluate_one(str(run.path), samples=3)["seconds"] == free["seconds"]  # not measured again

    run.recipe_file.write_text(f"{RECIPE}top_k: 1\n")
    assert evaluate_one(str(run.path), samples=3)["provenance"]["top_k"] == 1
    rows = [json.loads(line) for line in (run.evaluation / "step-10-completions.jsonl").read_text().splitlines()]
    for start in range(0, len(rows), 4):  # one greedy and three sampled answers, all of the most likely tokens
        assert len({row["completion"] for row in rows[start : start + 4]}) == 1

    stop = ["a", "e", "i", "o", "u", "1", "2"]
    run.recipe_file.write_text(f"{RECIPE}top_p: 0.99\nstop: {json.dumps(stop)}\n")
    ended = evaluate_one(str(run.path), samples=3)
    assert {"top_p": 0.99, "top_k": None, "stop": stop}.items() <= ended["provenance"].items()
    assert ended["truncated"] < free["truncated"]
    assert ended["completion_tokens"] < free["completion_tokens"]


def test_results_of_other_problems_replace_none_of_the_held_out_ones(run: RunDir, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"nums": [1, 2, 3], "target": 6}\n')
    evaluate_one(str(run.path), samples=1, step=5)
    evaluate_one(str(run.path), other, 1, step=5)
    limited = evaluate_one(str(run.path), samples=1, step=5, limit=2)
    evaluate_one(str(run.path), samples=1, step=5, limit=1000)
    digest = sha256(other.read_bytes()).hexdigest()[:8]
    results = ("step-5", f"step-5-{digest}", "step-5-limit-2")
    names = {path.name for path in run.evaluation.iterdir()}
    assert names == {f"{name}{end}" for name in results for end in (".json", "-completions.jsonl")}
    assert limited["problems"] == 2
    assert limited["provenance"]["selection"] == "first 2 of 9 problems by a shuffle with seed 42"


def test_a_model_directory_writes_nothing_and_takes_the_seeds_settings(
    model_directory: Path, problems_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "Source", partial(sources.Source, sampling=SamplingConfig(4, 0.9)))
    before = sorted(model_directory.rglob("*"))
    result = evaluate_one(str(model_directory), problems_file, 1, limit=1)
    assert (result["provenance"]["prompt_style"], result["temperature"]) == ("script", 0.9)
    assert (result["provenance"]["step"], result["provenance"]["written_to"]) == (None, None)
    assert sorted(model_directory.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 7}, "no complete snapshot of step 7; there are: 5, 10"),
        ({"step": 15}, "no complete snapshot of step 15"),
    ],
)
def test_what_a_user_can_get_wrong(run: RunDir, options: dict[str, int], message: str) -> None:
    with pytest.raises(KitError, match=message) as caught:
        evaluate_one(str(run.path), **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == ExitCode.CONFIG
    assert not run.evaluation.exists()


def test_the_error_of_a_run_without_a_snapshot_names_the_first_save(run: RunDir) -> None:
    for manifest in run.snapshots.glob(f"*/{MANIFEST}"):
        manifest.unlink()
    with pytest.raises(KitError, match="no complete snapshot yet: wait for the first save"):
        evaluate_one(str(run.path))


def test_a_damaged_snapshot_is_not_evaluated(run: RunDir) -> None:
    weights = run.snapshots / "step-10" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(KitError, match=r"damaged \(model.safetensors does not have the hash.*--step"):
        evaluate_one(str(run.path))
    assert evaluate_one(str(run.path), samples=1, limit=1, step=5)["problems"] == 1


def test_a_run_that_held_nothing_out(run: RunDir) -> None:
    run.recipe_file.write_text(RECIPE + "test_fraction: 0\n")
    run.held_out_file.write_text("")
    with pytest.raises(KitError, match="held no problems out.*--problems"):
        evaluate_one(str(run.path))


def test_bad_problems_are_named(run: RunDir, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nums": [1, 2, 3], "target": 6}\n{"nums": [1, 2]}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2: there is no column 'target'"):
        evaluate_one(str(run.path), bad)
    with pytest.raises(DataError, match="no such file"):
        evaluate_one(str(run.path), Path("owner/name"))


def test_models_that_are_none(model_directory: Path, problems_file: Path, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="not a run, so it has no held-out part: name a file with --problems"):
        evaluate_one(str(model_directory))
    with pytest.raises(KitError, match="--step chooses a snapshot of a run"):
        evaluate_one(str(model_directory), problems_file, step=3)
    with pytest.raises(KitError, match="neither a run .* nor a model"):
        evaluate_one(str(tmp_path), problems_file)
    for name in ("./missing", "/no/such/run", str(problems_file)):
        with pytest.raises(KitError, match=f"there is no directory {name}: name a run"):
            evaluate_one(name, problems_file)
    with pytest.raises(KitError, match="no directory runs/tyop; if it is a model on the hub, name a file with --prob"):
        evaluate_one("runs/tyop")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(KitError, match="cannot load the model"):
        evaluate_one(str(tmp_path), problems_file)


def test_the_table_shows_text_as_text(run: RunDir) -> None:
    result = evaluate_one(str(run.path), samples=4, limit=4)
    result["failures"] = {"unexpected character '\x1b[31m'": 3, "[bold]no[/bold]": 1}
    result["provenance"]["source"] = "runs/[red]\x1b]0;title\x07"
    out = io.StringIO()
    print_table(result, Console(file=out, width=160))
    shown = out.getvalue()
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown
    assert "[bold]no[/bold]" in shown
    assert "runs/[red]" in shown
    for expected in (
        "all",
        " numbers ",
        "greedy",
        "sampled (T 0.7)",
        "pass@4",
        "tries per answer",
        "step-10-limit-4.json",
    ):
        assert expected in shown


def test_progress_without_a_terminal_is_plain_lines(run: RunDir) -> None:
    out = io.StringIO()
    evaluate_one(str(run.path), samples=2, console=Console(file=out, force_terminal=False, width=200))
    assert out.getvalue().splitlines()[-1] == "completions 27/27"
    assert "\x1b" not in out.getvalue()


def test_progress_on_a_terminal_is_a_bar(run: RunDir) -> None:
    out = io.StringIO()
    evaluate_one(str(run.path), samples=1, console=Console(file=out, force_terminal=True, width=100))
    assert "completions 18/18" in out.getvalue()
