"""docs/slurm.md: its first run works line by line, and it explains every setting and script.

The lines of "First run in five minutes" run unchanged, in one bash, in a separate folder, against a real Slurm. The
stand-ins are:

- `RECIPE=mini-r1-3b` becomes RECIPE=tiny: some cheap steps on the CPU, whose model and data come from a stand-in of the
  hub (tests/hub.py). Fake GPUs are slots on the CPU.
- `git`, `make` and `apptainer` are stand-ins: they bring a copy of this checkout, an environment that runs the copy's
  code with this one's packages, and a file. What jobs run in is `venv`.
- $EDITOR is a stand-in for the user who fills in site.env: it sets values in lines of site.env.example.
- `tail -F` ends after the first step, as by Ctrl-C. Before the last block the reader waits, as the text says.
- If the tests' folder is in memory or in a container, `doctor --login` reports an error, as it should (78).
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mini_r1.doctor.case import Case
from mini_r1.doctor.local_storage import filesystem
from mini_r1.doctor.login_checks import FLEETING
from mini_r1.machine.devices import Devices
from mini_r1.run.run_dir import RunDir

from tests.conftest import ASSETS, REPO, rows
from tests.hub import Hub, Repo, files_of
from tests.slurm.cluster import Job, Slurm
from tests.slurm.conftest import CHEAP

PAGE = (REPO / "docs" / "slurm.md").read_text()
FIRST_RUN = "First run in five minutes"
TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)
TIMEOUT_S = 900

STAND_INS = {
    "git": """[ "$1" = clone ] && [ $# = 2 ] || exit 2
cp -r "$ORIGIN" "$(basename "$2" .git)"
""",
    "make": """[ "$*" = install ] && [ -f Makefile ] || exit 2
"$PYTHON" -m venv --without-pip .venv
printf '%s\\n' "$PWD/app" "$PACKAGES" >"$(echo .venv/lib/python3.*/site-packages)/checkout.pth"
printf '#!%s\\nfrom mini_r1.cli.app import main\\nmain()\\n' "$PWD/.venv/bin/python" >.venv/bin/mini-r1
chmod +x .venv/bin/mini-r1
""",
    "apptainer": """[ "$1" = build ] && [ $# = 3 ] && [[ $3 == docker://* ]] || exit 2
echo "stand-in for $3" >"$2"
""",
    "editor": """for setting in $SITE; do
    grep -q "^#\\?export ${setting%%=*}=" "$1" || { echo "$1 has no line for $setting" >&2; exit 2; }
    sed -i "s|^#\\?export ${setting%%=*}=.*|export $setting|" "$1"
done
""",
    "tail": """[[ " $* " == *" -F "* ]] || exec "$TAIL" "$@"
exec 3< <(exec "$TAIL" "$@")
until [[ $line == *'step 1/'* || $line == *'attempt over'* ]]; do
    if read -r -t 5 line <&3; then echo "$line"; else [ -n "$(squeue --me --noheader)" ] || { kill $!; exit 1; }; fi
done
kill $!
""",
}
UNTIL_NO_JOB_IS_LEFT = 'while [ -n "$(squeue --me --noheader)" ]; do sleep 0.5; done\n'


def section(title: str) -> str:
    """A section of the page, up to the next title of any level."""
    (found,) = (match for match in TITLE.finditer(PAGE) if match[1] == title)
    following = TITLE.search(PAGE, found.end())
    return PAGE[found.end() : following.start() if following else None]


def blocks(title: str) -> list[str]:
    """The commands of a section."""
    return re.findall(r"^```sh\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def table(title: str) -> dict[str, list[str]]:
    """A section's first table: each row's cells by the code in its first, several in one cell apart."""
    lines = next(part for part in section(title).split("\n\n") if part.lstrip().startswith("|")).strip().splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    return {name: row for row in cells for name in re.findall(r"`([^`]+)`", row[0])}


# ---- followed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `git clone` brings: this checkout's files, and the recipe `tiny` among the shipped ones."""
    folder = tmp_path_factory.mktemp("origin") / "mini-r1"
    for name in ("app", "configs", "slurm"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "site.env"))
    shutil.copy(REPO / "Makefile", folder)
    recipe = CHEAP | {"model_name_or_path": "nobody/tiny", "dataset_id_or_path": "nobody/rows", "max_steps": 4}
    (folder / "configs" / "recipes" / "tiny-0.1b.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def hub_repos(untrained: Path) -> tuple[Repo, Repo]:
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(ASSETS / "countdown_rows.jsonl")), data)
    return (
        Repo("nobody/tiny", files_of(untrained), "a" * 40),
        Repo("nobody/rows", {"data/train-00000-of-00001.parquet": data.getvalue()}, "b" * 40, is_data=True),
    )


def script(folder: Path) -> str:
    """The section's blocks as one script that ends at the first line that fails."""
    *before, last = blocks(FIRST_RUN)
    lines = "".join([*before, UNTIL_NO_JOB_IS_LEFT, last])
    assert lines.count("RECIPE=mini-r1-3b\n") == 1
    lines = lines.replace("RECIPE=mini-r1-3b\n", "RECIPE=tiny-0.1b\n")
    if filesystem(Case({}, Devices((), True, ""), None), folder) in FLEETING:
        lines = re.sub(r"^(\S+ doctor .*?)( *#.*)?$", r"\1 || [ $? = 78 ]", lines, flags=re.MULTILINE)
    return f"set -eu\n{lines}declare -p JOB RUN\n"


@pytest.mark.real
def test_a_first_run_as_the_page_has_it(
    slurm: Slurm, origin: Path, hub_repos: tuple[Repo, Repo], tmp_path: Path
) -> None:
    programs, work, shared = tmp_path / "stand-ins", tmp_path / "work", tmp_path / "shared"
    for folder in (programs, work, shared):
        folder.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\nset -e\n{body}")
        (programs / name).chmod(0o755)
    site = {
        "SBATCH_PARTITION": "gpu", "SBATCH_ACCOUNT": "lab", "MINI_R1_RUNTIME": "venv", "MINI_R1_RUNS": f"{shared}/runs",
        "HF_HOME": f"{shared}/hf",
    }  # fmt: skip
    with Hub(*hub_repos) as hub:
        environment = {
            **{name: value for name, value in slurm.environment.items() if not name.startswith(("MINI_R1_", "HF_"))},
            "PATH": f"{programs}:{slurm.environment['PATH']}", "HF_ENDPOINT": hub.address,
            "MINI_R1_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "EDITOR": str(programs / "editor"),
            # For the stand-ins.
            "ORIGIN": str(origin), "PYTHON": sys.executable, "PACKAGES": sysconfig.get_path("purelib"),
            "TAIL": shutil.which("tail") or "tail", "SITE": " ".join(f"{name}={value}" for name, value in site.items()),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", script(tmp_path)], cwd=work, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    said, kit = done.stdout, work / "mini-r1"
    logs = "\n".join(path.read_text(errors="replace") for path in kit.glob("*.log"))
    assert done.returncode == 0, f"{said}\n{logs}"
    # Downloaded before, not requested afterwards.
    assert (shared / "hf" / "mini-r1" / "prefetched" / "tiny-0.1b.json").is_file()
    assert "nobody/tiny/model.safetensors" in " ".join(hub.fetched)
    assert re.search(r"submission +\S+ ok .* Slurm would accept slurm/train_4xh100.sh", said), said
    assert (kit / "mini-r1.sif").is_file()
    # The run, where the site file wants it, by the copy's own code.
    number, where = (re.search(rf'^declare -- {name}="(.*)"$', said, re.MULTILINE)[1] for name in ("JOB", "RUN"))  # type: ignore[index]
    assert Path(where) == shared / "runs" / "tiny-0.1b"
    run = RunDir(Path(where))
    assert (run.read_state()["state"], run.read_state()["step"]) == ("finished", 4)
    assert str(kit / "app") in (run.path / "attempts" / "1" / "rank-0.log").read_text()
    # What is shown while it runs, and at the end.
    assert re.search(rf"^ +{number} +gpu +mini-r1 ", said, re.MULTILINE), said
    assert "step 1/4" in said
    assert re.search(rf"^{re.escape(where)} (runs|is finished)", said, re.MULTILINE), said
    assert "this run so far: 1 attempt(s)" in said
    assert re.search(rf"^{number}\t1\t\d+\t4\t0\t\d+\t0$", said, re.MULTILINE), said
    # The evaluation waited for it, and came out.
    (log,) = kit.glob("mini-r1-evaluate-*.log")
    evaluation = Job(slurm, log.stem.rpartition("-")[2], log)
    training = Job(slurm, number, kit / f"mini-r1-{number}.log")
    assert (training.state, evaluation.state) == ("COMPLETED", "COMPLETED")
    assert training.show("EndTime") <= evaluation.show("StartTime")
    assert (run.evaluation / "step-4.json").is_file()
    assert "step-4.json" in said


# ---- complete --------------------------------------------------------------------------------------------------------


def test_every_setting_is_explained_and_nothing_else() -> None:
    example = (REPO / "slurm" / "site.env.example").read_text()
    shell = "\n".join(path.read_text() for path in (REPO / "slurm").glob("*.sh"))
    set_there = set(re.findall(r"^#?export ([A-Z_0-9]+)=", example, re.MULTILINE))
    read = set(re.findall(r"\$\{?([A-Z][A-Z_0-9]+)", shell))
    read |= set(re.findall(r"\b(?:TRITON|TORCH|TORCHINDUCTOR|VLLM)_[A-Z_]+\b", shell))  # caches of compiled code
    own = set(re.findall(r"^readonly ([A-Z]+)=", shell, re.MULTILINE)) | {"INTERRUPTED", "RETRY"}
    others = {"PWD", "HOME", "CUDA_VISIBLE_DEVICES", "BASH_REMATCH", "SECONDS"}
    of_the_system = {name for name in read if name.startswith("SLURM_")} | others
    assert len(set_there) > 10
    assert set(table("Every setting")) == set_there | (read - own - of_the_system)


def test_every_script_is_there_with_its_resources() -> None:
    shown = table("The scripts")
    scripts = {path.name: path.read_text() for path in (REPO / "slurm").glob("*.sh") if "#SBATCH" in path.read_text()}
    assert set(shown) >= set(scripts)
    assert all(f"`{path.name}`" in PAGE for path in (REPO / "slurm").iterdir())
    for name, text in scripts.items():
        given = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
        notice = given.get("signal", "").rpartition("@")[2]
        recipe = re.search(r"^(?:train|sweep \S+) (\S+) ", text, re.MULTILINE)
        assert shown[name][1:5] == [
            f"`{recipe[1]}`" if recipe else "", f"{given['nodes']} x {given['gpus-per-node']}", given["time"],
            f"{notice} s" if notice else "",
        ]  # fmt: skip


def test_messages_of_the_trouble_table_are_in_the_source() -> None:
    files = [*(REPO / "slurm").glob("*.sh"), *(REPO / "app" / "mini_r1").rglob("*.py")]
    source = "\n".join(path.read_text() for path in files)
    rows = [line.split("|")[1] for line in section("Trouble").splitlines() if re.match(r"\| .*?\((?:1|78|150)\)", line)]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    pieces = {piece.strip(" ,") for text in quoted for piece in re.split(r"\.\.\.|NODE|RUN|, and ", text)}
    by_slurm = {"Batch script contains DOS line breaks", ": No space left on device", "Disk quota exceeded"}
    assert len(pieces) > 15
    assert {piece for piece in pieces - by_slurm if piece not in source} == set()


def test_the_readme_has_lines_that_were_followed() -> None:
    readme = (REPO / "README.md").read_text()
    here = re.findall(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (lines,) = (block for block in here if "sbatch" in block)
    followed = [shlex.split(line, comments=True) for block in blocks(FIRST_RUN) for line in block.splitlines()]
    for line in lines.splitlines():
        assert shlex.split(line, comments=True) in followed, line


def test_every_link_within_the_page_finds_its_title() -> None:
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in TITLE.findall(PAGE)}
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert links
    assert set(links) <= anchors
