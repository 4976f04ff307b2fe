"""The GitHub workflows, without GitHub: pins, permissions, shell, names, the steps of a release.

Nothing of GitHub Actions runs here. What a step runs is run where it can be: with bash, as the runner would.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mini_r1
import pytest
import yaml

from tests.conftest import REPO

GITHUB = REPO / ".github"
if not GITHUB.is_dir():
    pytest.skip("the test image carries no .github", allow_module_level=True)
FILES = sorted((GITHUB / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
SCRIPTS = sorted(GITHUB.glob("*.sh"))

USES = re.compile(r"^\s*(?:- )?uses:(.*)$", re.MULTILINE)
PIN = re.compile(r" (?P<action>[\w.-]+/[\w./-]+)@(?P<commit>[0-9a-f]{40}) # (?P<version>v\d+\.\d+\.\d+)")
# Anyone who names a branch, writes a title or pushes a commit controls these.
OF_STRANGERS = re.compile(r"\$\{\{[^}]*\bgithub\.(?:event|head_ref|base_ref|actor|triggering_actor)\b")

# Beyond `contents: read`. What is not here must not be asked for.
RIGHTS = {
    ("release", "image"): {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"},
    ("release", "publish"): {"contents": "write"},
}


class Step(NamedTuple):
    workflow: str
    job: str
    step: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.workflow}/{self.job}: {self.step.get('name') or self.step.get('uses') or self.step['run'][:40]}"


def steps() -> Iterator[Step]:
    for name, workflow in WORKFLOWS.items():
        for job, value in workflow["jobs"].items():
            for step in value["steps"]:
                yield Step(name, job, step)


RUNS = [step for step in steps() if "run" in step.step]
# Each name as a separate word: `$()`, pipes and redirections are no arguments.
COMMAND_ENDS = re.compile(r"[|;&]+|\n")


def commands(*start: str) -> Iterator[list[str]]:
    """The words after `start` of each such command in the steps and their scripts, without `--options`."""
    texts = [step.step["run"] for step in RUNS] + [script.read_text() for script in SCRIPTS]
    for text in texts:
        lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
        for command in COMMAND_ENDS.split(lines.replace("$(", "\n").replace(")\n", "\n")):
            try:
                words = shlex.split(command)
            except ValueError:  # a piece of something longer, quoted
                continue
            for at in range(len(words)):
                if tuple(words[at : at + len(start)]) == start:
                    yield words[at + len(start) :]


def script_of(name: str) -> str:
    """The one step of this name."""
    (step,) = (step.step["run"] for step in RUNS if step.step.get("name") == name)
    return str(step)


def bash(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `shell: bash` of a workflow runs a step."""
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    known = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(line, cwd=cwd, env=known, capture_output=True, text=True, timeout=60, check=False)


# ---- pins, rights, limits --------------------------------------------------------------------------------------------


def test_every_workflow_is_looked_at() -> None:
    assert set(WORKFLOWS) == {"ci", "nightly", "release"}
    assert len(RUNS) > 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_pinned_by_commit_and_say_their_version(file: Path) -> None:
    found = USES.findall(file.read_text())
    assert len(found) == sum("uses" in step.step for step in steps() if step.workflow == file.stem)
    for line in found:
        assert PIN.fullmatch(line), line


def test_an_action_has_one_pin() -> None:
    pins: dict[str, set[str]] = {}
    for file in FILES:
        for line in USES.findall(file.read_text()):
            match = PIN.fullmatch(line)
            assert match
            pins.setdefault(match["action"], set()).add(f"{match['commit']} {match['version']}")
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_permissions_are_minimal(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    for job, value in workflow["jobs"].items():
        assert value.get("permissions") == RIGHTS.get((name, job)), job


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_secret_is_asked_for(file: Path) -> None:
    assert "secrets." not in file.read_text()


def test_a_pull_request_releases_nothing() -> None:
    # YAML reads the key `on` as true.
    assert WORKFLOWS["release"][True] == {"push": {"tags": ["v*"]}}
    assert set(WORKFLOWS["ci"][True]) == {
        "push",
        "pull_request",
    }  # not pull_request_target, which has the owner's rights


def test_all_tests_run_every_night_and_before_a_release() -> None:
    for name, job in (("nightly", "test-all"), ("release", "test-all"), ("ci", "test-real")):
        runs = [step.step["run"] for step in RUNS if (step.workflow, step.job) == (name, job)]
        assert f".github/debian.sh {job}" in runs
    assert {"run": "make test"} in WORKFLOWS["ci"]["jobs"]["test"]["steps"]
    ((minute, hour, *every),) = [row["cron"].split() for row in WORKFLOWS["nightly"][True]["schedule"]]
    assert (minute.isdigit(), hour.isdigit(), every) == (True, True, ["*"] * 3)
    assert "test-all" in WORKFLOWS["release"]["jobs"]["image"]["needs"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_job_ends_and_its_shell_stops_at_a_failed_pipe(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["defaults"]["run"]["shell"] == "bash"
    assert "concurrency" in workflow
    for job, value in workflow["jobs"].items():
        assert 0 < value["timeout-minutes"] <= 150, job


@pytest.mark.parametrize("step", [step for step in steps() if "checkout" in step.step.get("uses", "")], ids=str)
def test_a_checkout_leaves_no_token_behind(step: Step) -> None:
    assert step.step["with"]["persist-credentials"] is False


def test_a_release_is_not_built_from_a_cache_that_a_pull_request_can_write() -> None:
    assert "cache-from" in (GITHUB / "workflows" / "ci.yml").read_text()
    for word in ("cache-from", "cache-to", "type=gha"):
        assert word not in (GITHUB / "workflows" / "release.yml").read_text()


# ---- shell -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", RUNS, ids=str)
def test_nothing_is_pasted_into_a_script(step: Step) -> None:
    """Values reach a script through `env`, where they are data."""
    assert "${{" not in step.step["run"]
    for value in {**step.step.get("env", {}), **WORKFLOWS[step.workflow].get("env", {})}.values():
        assert not OF_STRANGERS.search(str(value)), value


def shellcheck() -> str | None:
    return shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("step", RUNS, ids=str)
def test_a_step_is_sound_shell(step: Step) -> None:
    parsed = subprocess.run(["bash", "-n"], input=step.step["run"], capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    if (checker := shellcheck()) is None:
        pytest.skip("shellcheck is not installed: make install")
    checked = subprocess.run(
        [checker, "--shell=bash", "-"], input=step.step["run"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_sound_shell(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    if (checker := shellcheck()) is None:
        pytest.skip("shellcheck is not installed: make install")
    checked = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


# ---- what the workflows name is there --------------------------------------------------------------------------------


def test_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    named = {word for start in ("make", ".github/debian.sh") for words in commands(start) for word in words}
    assert named
    assert named <= targets


def test_files() -> None:
    named = {word for step in RUNS for word in re.findall(r"(?:\.github|docker|\.ci|app)/[\w./-]+", step.step["run"])}
    assert {".github/free-disk.sh", ".github/image-size.sh", ".github/compose-cpu.sh"} <= named
    # That of the certificate's identity is no path of a checkout, but the same file.
    assert {name for name in named if not (REPO / name).exists()} == set()


def image_targets() -> set[str]:
    text = (REPO / "Dockerfile").read_text()
    return set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))


def test_image_targets() -> None:
    named = {words[words.index("--target") + 1] for words in commands("docker", "buildx", "build")}
    for step in steps():
        if "build-push-action" not in step.step.get("uses", ""):
            continue
        target = step.step["with"]["target"]
        if target == "${{ matrix.target }}":
            matrix = WORKFLOWS[step.workflow]["jobs"][step.job]["strategy"]["matrix"]["include"]
            named |= {row["target"] for row in matrix}
        else:
            named.add(target)
    assert named == {"test", "cpu", "runtime"}
    assert named <= image_targets()


def test_build_arguments() -> None:
    inputs = [str(step.step.get("with", {}).get("build-args")) for step in steps()]
    inputs += [words[words.index("--build-arg") + 1] for words in commands("docker", "buildx", "build")]
    given = re.findall(r"\b([A-Z_]+)=", "\n".join(inputs))
    assert set(given) == {"REVISION"}
    assert "\nARG REVISION" in (REPO / "Dockerfile").read_text()


def test_images_that_a_job_runs_are_the_ones_it_built() -> None:
    for name in ("image-test", "image-cpu", "image-runtime"):
        of_job = [step for step in steps() if step.job == name]
        used = {word for step in of_job for word in re.findall(r"mini-r1:\w+", step.step.get("run", ""))}
        built = {step.step["with"]["tags"] for step in of_job if "tags" in step.step.get("with", {})}
        assert used | built == {f"mini-r1:{name.removeprefix('image-')}"}


def test_compose_profiles_services_and_images() -> None:
    compose = yaml.safe_load((REPO / "docker-compose.yml").read_text())
    profiles = {profile for service in compose["services"].values() for profile in service["profiles"]}
    named_profiles: set[str] = set()
    named_services: set[str] = set()
    for words in commands("docker", "compose"):
        named_profiles |= {word.partition("=")[2] for word in words if word.startswith("--profile=")}
        _, *rest = [word for word in words if not word.startswith("-")]
        named_services |= {word for word in rest if word != "$service"}
    (listed,) = re.findall(r"for service in ([a-z -]+);", (GITHUB / "compose-cpu.sh").read_text())
    named_services |= set(listed.split())
    assert named_profiles == {"cpu", "gpu"}
    assert named_profiles <= profiles
    assert named_services == {"demo", "tensorboard-cpu"}
    for service in named_services:
        assert compose["services"][service]["profiles"] == ["cpu"]
        # The job tags what it builds as compose calls it: compose must not build it again.
        assert compose["services"][service]["image"] == "${MINI_R1_CPU_IMAGE:-mini-r1:cpu}"


def test_the_script_asks_where_tensorboard_is() -> None:
    (port,) = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]["tensorboard-cpu"]["ports"]
    assert port.startswith("127.0.0.1:${TENSORBOARD_PORT:-6006}:")
    text = (GITHUB / "compose-cpu.sh").read_text()
    assert "port=${TENSORBOARD_PORT:-6006}" in text
    assert '"http://127.0.0.1:$port/data/runs"' in text


# ---- the release's own steps -----------------------------------------------------------------------------------------


def test_the_tag_is_the_version() -> None:
    done = bash(script_of("The tag is the package's version"), REPO, GITHUB_REF_NAME=f"v{mini_r1.__version__}")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("tag", ["v99.0.0", mini_r1.__version__, f"v{mini_r1.__version__}-rc1", "v"])
def test_another_tag_is_refused(tag: str) -> None:
    done = bash(script_of("The tag is the package's version"), REPO, GITHUB_REF_NAME=tag)
    assert done.returncode == 1
    assert f"The tag is {tag}, but the package says {mini_r1.__version__}. Set __version__" in done.stdout


def test_a_version_that_cannot_be_read_releases_nothing(tmp_path: Path) -> None:
    package = tmp_path / "app" / "mini_r1" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("__version__ = get_version()\n")
    assert bash(script_of("The tag is the package's version"), tmp_path, GITHUB_REF_NAME="v0.1.0").returncode == 1


def test_the_image_has_no_capitals(tmp_path: Path) -> None:
    (step,) = (step.step["run"] for step in RUNS if step.step.get("id") == "image")
    output = tmp_path / "output"
    done = bash(step, REPO, GITHUB_REPOSITORY="Some-One/Mini-R1.Kit", GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "image=ghcr.io/some-one/mini-r1.kit\n"


def test_each_run_of_the_matrix_hands_its_digest_on(tmp_path: Path) -> None:
    (step,) = (step.step for step in RUNS if step.step.get("id") == "digest")
    job = WORKFLOWS["release"]["jobs"]["image"]
    output = tmp_path / "output"
    for row in job["strategy"]["matrix"]["include"]:
        done = bash(step["run"], REPO, TARGET=row["target"], DIGEST="sha256:x", GITHUB_OUTPUT=str(output))
        assert done.returncode == 0, done.stderr
    assert output.read_text() == "runtime=sha256:x\ncpu=sha256:x\n"
    assert job["outputs"] == {name: f"${{{{ steps.digest.outputs.{name} }}}}" for name in ("runtime", "cpu")}


RELEASE = {
    "GITHUB_REPOSITORY": "Some-One/Mini-R1.Kit",
    "GITHUB_REF_NAME": "v1.2.3",
    "IMAGE": "ghcr.io/some-one/mini-r1.kit",
    "RUNTIME_DIGEST": "sha256:" + "a" * 64,
    "CPU_DIGEST": "sha256:" + "b" * 64,
}


def test_the_release_notes(tmp_path: Path) -> None:
    """The step of the workflow itself, in an empty checkout but for what it reads."""
    shutil.copytree(GITHUB, tmp_path / ".github")
    done = bash(script_of("Write the notes"), tmp_path, **RELEASE)
    assert done.returncode == 0, done.stderr
    notes = (tmp_path / "notes.md").read_text()
    assert "$" not in notes
    runtime, cpu = (f"ghcr.io/some-one/mini-r1.kit@{RELEASE[name]}" for name in ("RUNTIME_DIGEST", "CPU_DIGEST"))
    for line in (
        f"| `{runtime}`<br>`ghcr.io/some-one/mini-r1.kit:v1.2.3` |",
        f"| `{cpu}`<br>`ghcr.io/some-one/mini-r1.kit:v1.2.3-cpu` |",
        f"apptainer pull mini-r1.sif docker://{runtime}\n",
        "enroot import -o mini-r1.sqsh 'docker://ghcr.io#some-one/mini-r1.kit:v1.2.3'\n",
        "docker save -o mini-r1-v1.2.3.tar ghcr.io/some-one/mini-r1.kit:v1.2.3\n",
        f"gh attestation verify oci://{runtime} --repo Some-One/Mini-R1.Kit ",
    ):
        assert line in notes
    # Their commands are shell as well: a reader pastes them.
    for block in re.findall(r"^```\n(.*?)^```$", re.sub(r"(?ms)^```yaml.*?^```$", "", notes), re.DOTALL | re.MULTILINE):
        parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, parsed.stderr


def test_the_release_notes_fill_in_the_site_of_kubernetes(tmp_path: Path) -> None:
    shutil.copytree(GITHUB, tmp_path / ".github")
    notes = bash(script_of("Write the notes"), tmp_path, **RELEASE).stdout
    (block,) = re.findall(r"```yaml\n(.*?)```", notes, re.DOTALL)
    given = yaml.safe_load(block)["images"]
    asked = yaml.safe_load((REPO / "k8s" / "site" / "kustomization.yaml").read_text())["images"]
    assert [sorted(image) for image in given] == [sorted(image) for image in asked]
    assert [image["name"] for image in given] == [image["name"] for image in asked]
    assert [image["digest"] for image in given] == [RELEASE["RUNTIME_DIGEST"], RELEASE["CPU_DIGEST"]]


def test_the_identity_is_the_release_workflow_on_a_tag_and_nothing_else(tmp_path: Path) -> None:
    shutil.copytree(GITHUB, tmp_path / ".github")
    notes = bash(script_of("Write the notes"), tmp_path, **RELEASE).stdout
    (pattern,) = re.findall(r"--certificate-identity-regexp '(.*)'", notes)
    signer = "https://github.com/Some-One/Mini-R1.Kit/.github/workflows/release.yml@refs/"
    assert re.search(pattern, f"{signer}tags/v1.2.3")
    for other in (
        f"{signer}heads/main",
        f"{signer}tags/v1.2.3".replace("release", "ci"),
        f"{signer}tags/v1.2.3".replace("Mini-R1.Kit", "Mini-R1xKit"),
        f"https://example.com/?{signer}tags/v1.2.3",
    ):
        assert not re.search(pattern, other), other


@pytest.mark.real
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl: `.ci/install-engine` (Debian 12, root)")
def test_the_manifests_of_a_release_name_its_images(tmp_path: Path) -> None:
    for folder in ("k8s", "configs"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    done = bash(script_of("Write the manifests"), tmp_path, **RELEASE)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "mini-r1-manifests.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    files = {path.stem: path.read_text() for path in (tmp_path / "unpacked" / "manifests").iterdir()}
    assert files.keys() == {path.parent.name for path in (REPO / "k8s" / "overlays").glob("*/kustomization.yaml")}
    for name, digest in {"job-4xh100": "RUNTIME_DIGEST", "prefetch": "CPU_DIGEST"}.items():
        (image,) = re.findall(r"image: (\S+)", files[name])
        assert image == f"{RELEASE['IMAGE']}@{RELEASE[digest]}"


@pytest.mark.parametrize("name", RELEASE)
def test_notes_that_lack_something_are_not_published(tmp_path: Path, name: str) -> None:
    shutil.copytree(GITHUB, tmp_path / ".github")
    done = bash(script_of("Write the notes"), tmp_path, **{key: RELEASE[key] for key in RELEASE if key != name})
    assert done.returncode != 0
    assert f"'{name}' is not set" in done.stderr


def test_notes_without_a_digest_are_not_published(tmp_path: Path) -> None:
    """A matrix run that set no output leaves an empty one."""
    shutil.copytree(GITHUB, tmp_path / ".github")
    done = bash(script_of("Write the notes"), tmp_path, **{**RELEASE, "CPU_DIGEST": ""})
    assert done.returncode != 0
    assert "CPU_DIGEST is '', not a digest" in done.stderr


# ---- the runner's disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """`sudo` and `df` that only print their arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sudo", "df"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("runner", [{}, {"RUNNER_ENVIRONMENT": "self-hosted"}], ids=["none", "self-hosted"])
def test_toolchains_are_removed_from_github_hosted_runners_only(stand_ins: Path, runner: dict[str, str]) -> None:
    done = bash(f"PATH={stand_ins}:$PATH; {GITHUB}/free-disk.sh", REPO, **runner)
    assert (done.returncode, done.stdout) == (1, "")
    assert "runs on GitHub-hosted runners only" in done.stderr


def test_the_disk_is_shown_before_and_after(stand_ins: Path) -> None:
    done = bash(f"PATH={stand_ins}:$PATH; {GITHUB}/free-disk.sh", REPO, RUNNER_ENVIRONMENT="github-hosted")
    assert done.returncode == 0, done.stderr
    before, removal, after = done.stdout.splitlines()
    assert before == after == "df -h /"
    words = removal.split()
    assert words[:3] == ["sudo", "rm", "-rf"]
    for path in words[3:]:
        # A folder of one tool, never a tree that others live in.
        assert re.fullmatch(r"/(?:opt|usr)/[\w./*-]+", path), path
        assert path not in {"/opt", "/usr/local", "/usr/local/lib", "/usr/local/share", "/usr/share"}


def test_disk_is_freed_before_anything_large() -> None:
    for workflow, job in (("ci", "image-runtime"), ("release", "image"), ("nightly", "test-all"), ("ci", "test-real")):
        runs = [str(step.step) for step in steps() if (step.workflow, step.job) == (workflow, job)]
        freed = next(at for at, text in enumerate(runs) if "free-disk.sh" in text)
        built = next(at for at, text in enumerate(runs) if re.search("buildx build|build-push-action|debian.sh", text))
        assert freed < built


# ---- debian.sh -------------------------------------------------------------------------------------------------------


def test_the_targets_are_run_by_ci_run_in_a_container(stand_ins: Path) -> None:
    (stand_ins / "docker").write_text('#!/bin/sh\necho docker "$@"\n')
    (stand_ins / "docker").chmod(0o755)
    done = bash(f"PATH={stand_ins}:$PATH; {GITHUB}/debian.sh test test-real", REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "sudo chown -R 0:0 .",
        f"docker run --rm --privileged --volume {REPO}:/mini-r1 --volume /var/tmp --workdir /mini-r1 debian:12"
        " .ci/run test test-real",
    ]


def test_without_a_target_nothing_is_started(stand_ins: Path) -> None:
    done = bash(f"PATH={stand_ins}:$PATH; {GITHUB}/debian.sh", REPO)
    assert (done.returncode, done.stdout) == (1, "")
    assert "name a target of the Makefile" in done.stderr


# ---- compose-cpu.sh with stand-ins for docker and curl; by hand it was run with the real ones (docs/verified.md) -----


@pytest.mark.parametrize(
    ("demo", "tensorboard", "status"), [(143, 0, 0), (0, 143, 0), (137, 143, 1), (0, 137, 1), (150, 0, 1)]
)
def test_a_service_that_did_not_stop_in_order_fails_the_job(
    tmp_path: Path, demo: int, tensorboard: int, status: int
) -> None:
    log = tmp_path / "log"
    docker = f"""#!/bin/sh
echo "$@" >> {log}
case "$*" in
    *"ps --all --quiet demo") echo of-demo ;;
    *"ps --all --quiet tensorboard-cpu") echo of-tensorboard ;;
    inspect*of-demo) echo {demo} ;;
    inspect*of-tensorboard) echo {tensorboard} ;;
esac
"""
    for name, text in {"docker": docker, "curl": "#!/bin/sh\necho '[\"demo-cpu/tensorboard\"]'\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    done = bash(f"PATH={tmp_path}:$PATH; {GITHUB}/compose-cpu.sh", REPO)
    assert done.returncode == status, done.stderr
    assert ("should have exited 0 or 143" in done.stderr) == bool(status)
    calls = log.read_text().splitlines()
    # Stopped before its exit code is read, and removed with its volumes in any case.
    assert calls.index("compose --profile=cpu stop") < next(at for at, call in enumerate(calls) if "inspect" in call)
    assert calls[-1] == "compose --profile=cpu down -v"
