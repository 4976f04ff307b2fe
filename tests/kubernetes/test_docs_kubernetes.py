"""docs/kubernetes.md and the headers in k8s/: every command runs, and the page is complete and true.

The real kubectl runs every command in bash, in a copy of k8s/ and configs/, against a stand-in for the API server
(tests/kubernetes/api.py). Other stand-ins:

- $EDITOR is a stand-in for the user who fills in k8s/site: it replaces the placeholders.
- NODE, POD and FILE are a node, a pod and a file of the test. HOME has the files that the commands read.
- `port-forward` and `exec` reach the pod; the missing tunnel of the stand-in counts as Ctrl-C.
- The operator's Deployment is an empty stand-in. Commands that download from GitHub are not run (FROM_GITHUB).
"""

from __future__ import annotations

import base64
import copy
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mini_r1.errors import ExitCode

from tests.conftest import REPO
from tests.kubernetes.api import IMMUTABLE, LOG, NO_TUNNEL, Api, Key
from tests.kubernetes.manifests import K8S, OVERLAYS, overlay, pods
from tests.kubernetes.rules.security import restricted
from tests.kubernetes.schemas import schema_errors
from tests.kubernetes.wire import KUBEFLOW, KUEUE, Object

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl: `.ci/install-engine` (Debian 12, root)"),
]

PAGE = (REPO / "docs" / "kubernetes.md").read_text()
FIRST_RUN, WHICH, TROUBLE = "From an empty cluster to the curve", "Choose an overlay", "Trouble"
EXITS = "Exit codes and evictions"
APPLY_SETUP = "kubectl apply -k k8s/overlays/namespace\nkubectl apply -k k8s/overlays/setup"
TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_HEADER = re.compile(r"(?:\b(?:kubectl|openssl) |k8s/wait\.sh ).+?(?=  |\. [A-Z]|\.$|, then|\)|`|$)", re.MULTILINE)
"""A command of a header: up to two spaces, the next sentence, or the end."""
INLINE = re.compile(r"`(kubectl [^`]+)`")
MENTIONED = {"kubectl wait", "kubectl port-forward"}
"""In backticks on the page, and no commands for anybody."""
FROM_GITHUB = {
    "kubectl apply --server-side -k "
    '"github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.2"'
}
TOKEN, DIGEST = "a-token-of-nobody", "sha256:" + "ab" * 32
STAND_INS = {
    "editor": """for placeholder in ghcr.io/OWNER/REPOSITORY "sha256:$(printf 0%.0s {1..64})" 'Name, value: shared'; do
    grep -q "$placeholder" "$1" || { echo "$1 has no $placeholder" >&2; exit 2; }
done
sed -i "s|OWNER/REPOSITORY|nobody/mini-r1|; s|sha256:0*$|$DIGEST|; s|value: shared|value: nfs|" "$1"
""",
    "kubectl": """code=0
"$KUBECTL" "$@" 2>"$HOME/stderr" || code=$?
cat "$HOME/stderr" >&2
if [[ $code != 0 && " $* " =~ " port-forward "|" exec " ]] && grep -q "$NO_TUNNEL" "$HOME/stderr"; then exit 0; fi
exit $code
""",
}


def section(title: str) -> str:
    """A section of the page, up to the next title."""
    (found,) = (match for match in TITLE.finditer(PAGE) if match[1] == title)
    following = TITLE.search(PAGE, found.end())
    return PAGE[found.end() : following.start() if following else None]


def table(title: str) -> list[list[str]]:
    """The cells of a section's first table, row by row."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def header_of(path: Path) -> list[str]:
    """The commands in the comment that a file begins with; those in backticks are mentioned, and commands as well."""
    comment = path.read_text().partition("\napiVersion:")[0]
    return [command for line in comment.splitlines() for command in IN_HEADER.findall(line.removeprefix("#"))]


class Reader:
    """A user who follows the page, in bash in a separate checkout.

    Attributes:
        api: the stand-in for the API server that kubectl finds.
        folder: the checkout.
    """

    def __init__(self, api: Api, folder: Path) -> None:
        self.api, self.folder, self._home, programs = api, folder / "kit", folder / "home", folder / "stand-ins"
        for name in ("k8s", "configs"):
            shutil.copytree(REPO / name, self.folder / name)
        programs.mkdir()
        for name, body in STAND_INS.items():
            (programs / name).write_text(f"#!/bin/bash\nset -e\n{body}")
            (programs / name).chmod(0o755)
        for file, text in {".cache/huggingface/token": TOKEN, ".docker/config.json": '{"auths": {}}'}.items():
            (self._home / file).parent.mkdir(parents=True)
            (self._home / file).write_text(text)
        self._environment = {
            "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self._home), "KUBECONFIG": str(api.kubeconfig),
            "KUBECTL": shutil.which("kubectl") or "", "EDITOR": str(programs / "editor"), "DIGEST": DIGEST,
            "NO_TUNNEL": NO_TUNNEL,
        }  # fmt: skip

    def type(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Have bash run these lines; the first that fails ends it. What they print is in `stdout`."""
        cache = self._home / ".cache/huggingface"
        filled = {"NODE": "node-1", "POD": "mini-r1-4xh100-0", "FILE": str(cache / "token"), "FOLDER": str(cache)}
        for name, value in filled.items():
            lines = re.sub(rf"(?<=[ =]){name}\b", value, lines)
        return subprocess.run(
            ["bash", "-c", f"set -eu -o pipefail\n{lines}"], cwd=self.folder, env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip

    def follow(self, lines: str) -> str:
        """Have bash run these lines to their end, and give what they print."""
        done = self.type(lines)
        assert done.returncode == 0, f"{lines}\n{done.stdout}"
        return done.stdout

    def follow_one(self, command: str) -> None:
        """The same with one command, which finds what it looks for: a selector that finds nothing is no error."""
        said = self.follow(command)
        assert " -l " not in command or (said and "No resources found" not in said), command


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """On a cluster on which everything is installed, and where nothing was applied yet."""
    with Api(installed=(KUBEFLOW, KUEUE)) as api:
        yield Reader(api, tmp_path)


@pytest.fixture(scope="module")
def applied_setup(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, Object]:
    """What `kubectl apply -k k8s/overlays/setup` leaves on the cluster of `reader`."""
    with Api(installed=(KUBEFLOW, KUEUE)) as api:
        Reader(api, tmp_path_factory.mktemp("setup")).follow(APPLY_SETUP)
        return api.objects


@pytest.fixture
def reader_after_setup(reader: Reader, applied_setup: dict[Key, Object]) -> Reader:
    """The same reader, with the overlay `setup` applied."""
    reader.api.objects.update(copy.deepcopy(applied_setup))
    return reader


# ---- followed --------------------------------------------------------------------------------------------------------


def test_from_an_empty_cluster_to_the_curve(reader: Reader) -> None:
    api = reader.api
    said = reader.follow("".join(BLOCK.findall(section(FIRST_RUN))))
    namespace = api.objects["namespaces", None, "mini-r1"]["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    for claim in ("mini-r1-runs", "mini-r1-cache"):
        spec = api.objects["persistentvolumeclaims", "mini-r1", claim]["spec"]
        assert (spec["storageClassName"], spec["accessModes"]) == ("nfs", ["ReadWriteMany"])
    assert "mini-r1-closed" in api.named("networkpolicies")
    # In this order, each to its end, by its log or by waiting, with the images that the site names.
    created = [request.key for request in api.requests if request.verb == "POST" and not request.part]
    jobs = [name for resource, _, name in created if resource == "jobs"]
    assert jobs == [f"mini-r1-{name}" for name in ("demo", "prefetch", "doctor", "4xh100", "evaluate")]
    for name in jobs:
        job = api.objects["jobs", "mini-r1", name]
        assert job["status"]["conditions"][0]["type"] == "Complete", name
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == f"ghcr.io/nobody/mini-r1@{DIGEST}"
    assert said.count(LOG) == len(jobs)
    # The token was there before it was needed, and said nowhere.
    secret = api.objects["secrets", "mini-r1", "mini-r1-hub"]["data"]["token"]
    assert base64.b64decode(secret).decode() == TOKEN
    assert created.index(("secrets", "mini-r1", "mini-r1-hub")) < created.index(("jobs", "mini-r1", "mini-r1-prefetch"))
    assert TOKEN not in said
    # The curve: the tunnel was asked for into TensorBoard's own pod, and before the evaluation.
    tunnels = {request.key for request in api.requests if request.part == "portforward"}
    assert tunnels == {("pods", "mini-r1", "mini-r1-tensorboard-0")}
    assert not [request for request in api.requests if request.verb == "DELETE"]


def test_the_readmes_lines(reader: Reader) -> None:
    readme = (REPO / "README.md").read_text()
    (lines,) = (block for block in BLOCK.findall(readme) if "kubectl" in block)
    assert LOG in reader.follow(lines)
    for job in ("mini-r1-prefetch", "mini-r1-4xh100"):
        assert reader.api.objects["jobs", "mini-r1", job]["status"]["conditions"][0]["type"] == "Complete"


def test_the_rest_of_the_page(reader: Reader) -> None:
    api, overlays = reader.api, reader.folder / "k8s" / "overlays"
    api.put("namespaces", {"metadata": {"name": "kubeflow"}})
    empty = {"metadata": {"labels": {}}, "spec": {"containers": [{"name": "training-operator", "image": "none"}]}}
    operator = {"metadata": {"name": "training-operator"}, "spec": {"template": empty}}
    api.put("deployments", operator, "kubeflow")
    reader.follow(
        "for overlay in namespace setup job-4xh100 tensorboard; do kubectl apply -k k8s/overlays/$overlay; done"
    )
    # Another recipe: refused as the page says, and taken after its lines.
    changed = overlays / "job-4xh100" / "kustomization.yaml"
    changed.write_text(changed.read_text().replace("recipes/mini-r1-3b.yaml", "recipes/mini-r1-1.5b.yaml"))
    refused = reader.type("kubectl apply -k k8s/overlays/job-4xh100")
    assert (refused.returncode, IMMUTABLE in refused.stdout) == (1, True)
    followed = section(FIRST_RUN)
    blocks = [block for block in BLOCK.findall(PAGE) if block not in followed]
    for block in blocks:
        reader.follow(block)
    job = api.objects["jobs", "mini-r1", "mini-r1-4xh100"]["spec"]["template"]["spec"]
    assert job["containers"][0]["args"] == ["launch", "recipes/mini-r1-1.5b.yaml"]
    (deleted,) = [request for request in api.requests if request.verb == "DELETE"]
    assert deleted.body["propagationPolicy"] == "Foreground"
    secret = api.objects["secrets", "mini-r1", "mini-r1-job-token"]["data"]["token"]
    assert re.fullmatch(r"[0-9a-f]{64}\n", base64.b64decode(secret).decode())
    assert {"mini-r1-2x8h100-0", "mini-r1-2x8h100-1"} <= set(api.named("pods"))
    patched = api.objects["deployments", "kubeflow", "training-operator"]["spec"]["template"]["spec"]
    (mount,) = patched["containers"][0]["volumeMounts"]
    assert (patched["volumes"][0]["name"], mount["name"]) == ("pytorch-init", "pytorch-init")
    assert f"`{mount['mountPath']}/initContainer.yaml`" in PAGE
    assert "initContainer.yaml" in api.objects["configmaps", "kubeflow", "pytorch-init"]["data"]
    # Commands within a line of text.
    commands = set(INLINE.findall(PAGE)) - MENTIONED
    assert commands > FROM_GITHUB
    reader.follow("kubectl -n mini-r1 delete job mini-r1-4xh100")
    order = (" drain ", " delete "), " apply "  # what takes objects away comes last, and what makes them first
    for command in sorted(
        commands - FROM_GITHUB, key=lambda line: ([word in line for word in order[0]], order[1] not in line, line)
    ):
        reader.follow_one(command.partition(" | ")[0])
        if " label " in command:
            labels = api.objects["namespaces", None, "mini-r1"]["metadata"]["labels"]
            assert labels["pod-security.kubernetes.io/enforce"] == "baseline"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlays_header(name: str, request: pytest.FixtureRequest) -> None:
    reader: Reader = request.getfixturevalue("reader" if name in ("namespace", "setup") else "reader_after_setup")
    if name == "setup":  # in a namespace that somebody else has made
        reader.follow("kubectl apply -k k8s/overlays/namespace")
    api, path = reader.api, K8S / "overlays" / name / "kustomization.yaml"
    commands, apply = header_of(path), f"kubectl apply -k k8s/overlays/{name}"
    claims = [] if name == "namespace" else ["mini-r1-cache", "mini-r1-runs"]
    assert apply in commands
    ends = [command for command in commands if " delete " in command]
    for command in commands:
        if command in ends[1:]:  # each is one way to end it
            reader.follow(apply)
        if name == "kueue":
            reader.follow(command)  # the job is not admitted, so it has no pods
        else:
            reader.follow_one(command)
        is_over = command in ends and name == "setup"
        assert api.named("persistentvolumeclaims") == ([] if is_over else claims), command
        assert (("namespaces", None, "mini-r1") in api.objects) != (command in ends and name == "namespace")
        if command in ends:
            assert not {key for key in api.objects if key[0] in ("jobs", "pytorchjobs", "deployments", "pods")}
    assert bool(ends) == (name != "rdma")  # which says: as for the job below


@pytest.mark.parametrize("name", [name for name in OVERLAYS if "job-" in name or name in ("demo-cpu", "kueue")])
def test_a_training_is_stopped_by_a_line_that_waits_for_it(name: str) -> None:
    text = (K8S / "overlays" / name / "kustomization.yaml").read_text()
    (stop,) = re.findall(r"^# Stop +(.+)$", text, re.MULTILINE)
    assert "saves" in stop
    assert "--cascade=foreground" in IN_HEADER.findall(stop)[0]


@pytest.mark.parametrize("path", [K8S / "site", *sorted((K8S / "options").iterdir())], ids=lambda path: path.name)
def test_commands_of_the_site_and_its_options(path: Path, reader_after_setup: Reader) -> None:
    reader = reader_after_setup
    text = (path / "kustomization.yaml").read_text()
    comments = "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    commands = IN_HEADER.findall(comments)
    assert bool(commands) == (path.name != "openshift")
    for command in commands:
        reader.follow(command)
    if path.name == "image-pull-secret":
        (name,) = set(re.findall(r"imagePullSecrets, value: \[\{name: (.+?)\}\]", text))
        assert ".dockerconfigjson" in reader.api.objects["secrets", "mini-r1", name]["data"]


def test_what_comes_in_the_wrong_order_or_without_an_operator_is_refused(tmp_path: Path) -> None:
    with Api() as api:
        reader = Reader(api, tmp_path)
        refused = reader.type("kubectl apply -k k8s/overlays/demo-cpu")
        assert (refused.returncode, 'namespaces "mini-r1" not found' in refused.stdout) == (1, True)
        reader.follow(APPLY_SETUP)
        refused = reader.type("kubectl apply -k k8s/overlays/pytorchjob-2x8h100")
        (said,) = [row[0] for row in table(TROUBLE) if "no matches for kind" in row[0]]
        assert (refused.returncode, said.strip("`") in refused.stdout) == (1, True)
        assert "mini-r1-2x8h100-pytorchjob" in api.named("networkpolicies")
        assert not api.named("pods")


# ---- jobs that fail --------------------------------------------------------------------------------------------------

WAITED_FOR = (
    "prefetch",
    "job-1gpu",
    "job-4xh100",
    "job-8xh100",
    "indexed-job-2x8h100",
    "evaluate",
    "doctor",
    "demo-cpu",
)
SECONDS = 60
"""Far less than any limit that a line has, also on a busy machine."""


def waiting_lines(name: str) -> list[str]:
    """The lines that wait for an overlay's job: of its header, the page and the README."""
    text = (K8S / "overlays" / name / "kustomization.yaml").read_text() + PAGE + (REPO / "README.md").read_text()
    (kind, job), = [
        (one["kind"].lower(), one["metadata"]["name"]) for one in overlay(name) if one["kind"] in ("Job", "PyTorchJob")
    ]  # fmt: skip
    return sorted(set(re.findall(rf"k8s/wait\.sh {kind}/{job} (?:ready|complete)(?: \d+)?", text)))


@pytest.mark.parametrize("name", [*WAITED_FOR, "pytorchjob-2x8h100"])
def test_a_documented_wait_for_a_job_that_has_failed_returns_with_the_reason(
    name: str, reader_after_setup: Reader
) -> None:
    reader, lines = reader_after_setup, waiting_lines(name)
    assert lines
    (job,) = {line.split()[1].partition("/")[2] for line in lines}
    reader.api.failing[job] = 78
    reader.follow(f"kubectl apply -k k8s/overlays/{name}")
    for line in lines:
        began = time.monotonic()
        done = reader.type(line)
        assert time.monotonic() - began < SECONDS, line
        assert done.returncode == 1, done.stdout
        assert "has failed:" in done.stdout
        assert "Error exit code 78" in done.stdout
        assert LOG in done.stdout
        assert ("PyTorchJobFailed" if name.startswith("pytorchjob") else "PodFailurePolicy") in done.stdout


def test_the_pages_lines_end_at_a_download_that_fails(reader: Reader) -> None:
    reader.api.failing["mini-r1-prefetch"] = 150
    done = reader.type("".join(BLOCK.findall(section(FIRST_RUN))))
    assert done.returncode == 1
    assert "Error exit code 150" in done.stdout
    assert not {"mini-r1-doctor", "mini-r1-4xh100"} & set(reader.api.named("jobs"))


def test_the_wait_without_the_checkout_returns_too(reader_after_setup: Reader) -> None:
    reader_after_setup.api.failing["mini-r1-4xh100"] = 78
    reader_after_setup.follow("kubectl apply -k k8s/overlays/job-4xh100")
    (line,) = (command for command in INLINE.findall(PAGE) if "conditions[0]" in command)
    began = time.monotonic()
    reader_after_setup.follow(line)
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("symptom", ["no PriorityClass with name", 'RuntimeClass "nvidia" not found'])
def test_a_wait_prints_why_there_are_no_pods(symptom: str, reader_after_setup: Reader) -> None:
    why = f'pods "x" is forbidden: {symptom}'
    reader_after_setup.api.refused["mini-r1-4xh100"] = why
    reader_after_setup.follow("kubectl apply -k k8s/overlays/job-4xh100")
    done = reader_after_setup.type("k8s/wait.sh job/mini-r1-4xh100 ready 0")
    assert done.returncode == 1
    assert f"FailedCreate: {why}" in done.stdout
    assert "job/mini-r1-4xh100 is not ready after 0 minutes" in done.stdout
    assert [row for row in table(TROUBLE) if f"`{symptom}`" in row[0]]


@pytest.mark.parametrize("words", ["", "job/x", "job/x done", "pod/x ready", "job/x ready soon", "job/ ready"])
def test_a_wait_for_nothing_is_78(words: str, reader: Reader) -> None:
    done = reader.type(f"k8s/wait.sh {words}")
    assert (done.returncode, "k8s/wait.sh job/mini-r1-4xh100 ready" in done.stdout) == (78, True)


def test_a_wait_for_a_job_that_is_not_there_ends(reader_after_setup: Reader) -> None:
    done = reader_after_setup.type("k8s/wait.sh job/gone ready")
    assert (done.returncode, "not found" in done.stdout) == (1, True)


# ---- applied, changed, cleaned up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_unchanged_overlay_is_unchanged(name: str, reader_after_setup: Reader) -> None:
    apply = f"kubectl apply -k k8s/overlays/{name}"
    reader_after_setup.follow(apply)
    lines = reader_after_setup.follow(apply).splitlines()
    assert lines
    assert all(line.endswith(" unchanged") for line in lines), lines


def test_an_unquoted_quantity_would_be_configured_again(reader_after_setup: Reader) -> None:
    path = reader_after_setup.folder / "k8s" / "overlays" / "job-1gpu" / "kustomization.yaml"
    path.write_text(path.read_text().replace('cpu: "8"', "cpu: 8"))
    apply = "kubectl apply -k k8s/overlays/job-1gpu"
    reader_after_setup.follow(apply)
    assert "job.batch/mini-r1-1gpu configured" in reader_after_setup.follow(apply)


def test_what_one_job_applies_and_deletes_leaves_the_others_alone(reader_after_setup: Reader) -> None:
    reader, api = reader_after_setup, reader_after_setup.api
    both = ("indexed-job-2x8h100", "pytorchjob-2x8h100")
    reader.follow(f"kubectl apply -k k8s/overlays/{both[0]}")
    before = copy.deepcopy(api.objects)
    reader.follow(f"kubectl apply -k k8s/overlays/{both[1]}")
    assert {key: api.objects[key] for key in before} == before
    (clean,) = (
        command for command in header_of(K8S / "overlays" / both[1] / "kustomization.yaml") if " -l " in command
    )
    reader.follow(clean)
    assert api.objects == before


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name not in ("namespace", "setup")])
def test_one_command_deletes_what_a_deleted_job_leaves(name: str, reader_after_setup: Reader) -> None:
    reader, api = reader_after_setup, reader_after_setup.api
    before = set(api.objects)
    reader.follow(f"kubectl apply -k k8s/overlays/{name}")
    if name != "tensorboard":
        for key in [key for key in api.objects if key[0] in ("jobs", "pytorchjobs", "pods")]:
            del api.objects[key]  # as ttlSecondsAfterFinished does
    kinds = "job,pytorchjob,deployment,service,networkpolicy,configmap"
    instance = next(one["metadata"]["labels"]["app.kubernetes.io/instance"] for one in overlay(name))
    reader.follow(f"kubectl -n mini-r1 delete {kinds} -l app.kubernetes.io/instance={instance}")
    assert set(api.objects) == before


# ---- true ------------------------------------------------------------------------------------------------------------


def test_the_operators_template_is_hardened() -> None:
    (text,) = re.findall(r"initContainer\.yaml=/dev/stdin <<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    assert "<" not in text  # the operator's templates are HTML's
    for name, value in {"InitContainerImage": "alpine:3.10", "MaxTries": "100", "MasterAddr": "job-master-0"}.items():
        text = text.replace(f"{{{{.{name}}}}}", value)
    assert "{{" not in text
    (job,) = (manifest for manifest in overlay("pytorchjob-2x8h100") if manifest["kind"] == "PyTorchJob")
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    template["initContainers"] = yaml.safe_load(text)
    assert [*restricted([job]), *schema_errors(job)] == []
    del template["initContainers"][0]["securityContext"]
    assert any("init-pytorch" in sentence for sentence in restricted([job]))


def test_every_overlay_is_there_with_its_pods_and_recipe() -> None:
    rows = {row[0].strip("`"): row for row in table(WHICH)}
    assert set(rows) == set(OVERLAYS)
    for name, row in rows.items():
        found = list(pods(overlay(name)))
        recipes = {arg for one in found for arg in one.spec["containers"][0].get("args", []) if "recipes/" in arg}
        recipe = f"recipes/{row[3].strip('`')}.yaml"
        assert row[2] == (f"{sum(one.count for one in found)} x {found[0].gpus}" if found else ""), name
        assert recipes == ({recipe} if row[3] and name != "demo-cpu" else set()), name
        assert not row[3] or (REPO / "configs" / recipe).is_file()
    for option in (K8S / "options").iterdir():
        assert f"k8s/options/{option.name}`" in PAGE


def test_the_exit_codes_do_what_the_table_says() -> None:
    rows, text = {int(row[0]): row for row in table(EXITS)}, " ".join(section(EXITS).split())
    assert set(rows) == {*map(int, ExitCode), 137}
    for name in ("job-4xh100", "indexed-job-2x8h100"):
        (job,) = (manifest["spec"] for manifest in overlay(name) if manifest["kind"] == "Job")
        for code, row in rows.items():
            rules = [rule["action"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
                     and code in rule["onExitCodes"]["values"]]  # fmt: skip
            assert re.findall(r"`(\w+)`", row[2]) == rules, code
            assert ("not counted" in row[2]) == ("Ignore" in rules)
        assert f"`podReplacementPolicy: {job['podReplacementPolicy']}`" in text
        assert job["activeDeadlineSeconds"] == 2 * 24 * 3600
        assert f"{job['template']['spec']['terminationGracePeriodSeconds']} s to save" in text
        assert re.search(rf"\b{job['backoffLimit']}\b", text.partition("`backoffLimit`")[2])
    (job,) = (manifest["spec"] for manifest in overlay("pytorchjob-2x8h100") if manifest["kind"] == "PyTorchJob")
    assert f"`cleanPodPolicy: {job['runPolicy']['cleanPodPolicy']}`" in rows[0][3]
    assert {code for code, row in rows.items() if row[3] == "Failed"} == {code for code in rows if 0 < code < 128}


def test_messages_of_the_trouble_table_are_in_the_source() -> None:
    source = "\n".join(path.read_text() for path in (REPO / "app" / "mini_r1").rglob("*.py"))
    ours = [row for row in table(TROUBLE) if re.search(r"\((?:78|150)\)", row[0])]
    said = [text for row in ours for text in re.findall(r"`([^`]+)`", row[0])]
    assert len(said) > 8
    for piece in (piece for text in said for piece in text.split(", and ")):
        assert piece in source, piece


def test_every_link_within_the_page_finds_its_title() -> None:
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in TITLE.findall(PAGE)}
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert links
    assert set(links) <= anchors
