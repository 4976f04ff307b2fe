"""The pods of k8s/, each as its own manifest confines it: signals, exit codes, users, a root that cannot be written.

A stand-in for the kubelet starts them (tests/containers/pod.py). In the pods for GPUs the image `cpu` is a stand-in for
`runtime`, which no test builds, and MINI_R1_ACCELERATOR=cpu replaces their `cuda`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ASSETS, REPO, rows
from tests.containers import engine
from tests.containers.pod import NeverStartsError, Node, NotTranslatedError, Pod, openshift
from tests.containers.test_image import SMALL
from tests.hub import Hub, Repo, files_of
from tests.kubernetes.manifests import OVERLAYS, Manifest, needs_kustomize, pods, quantity
from tests.kubernetes.manifests import overlay as manifests_of

pytestmark = [pytest.mark.real, needs_kustomize]

WITH_PODS = [name for name in OVERLAYS if name not in ("namespace", "setup")]
FOR_GPUS = [name for name in WITH_PODS if name not in ("demo-cpu", "prefetch", "tensorboard")]
RUNS, CACHE = "/workspace/runs", "/cache"
EVERYWHERE, OF_THE_RUNTIME = {"/home/mini-r1", "/tmp"}, {"/dev/shm", "/dev/mqueue"}
WRITABLE = {
    "demo-cpu": {RUNS, CACHE},  # it makes its model there
    "prefetch": {CACHE},
    "tensorboard": set(),
    **{name: {RUNS} for name in FOR_GPUS},
}
"""In addition to EVERYWHERE, and what a container runtime brings along itself."""
ON_CPU = {"MINI_R1_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
"""In place of the GPU that no test has. One thread: two that share busy cores wait for one another."""
DEMO_RUN = "runs/demo-cpu-quick"
TOKEN = "hf_" + 5 * "fetched"

LOOK = """
import json, os, re, subprocess
find = "find / ( -path /proc -o -path /sys ) -prune -o ( -type d -o -type f ) -writable -print -prune"
found = subprocess.run(find.split(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
writable = found.splitlines()
shm, ids = os.statvfs("/dev/shm"), [os.getuid(), os.getgid()]
status = dict(re.findall(r"^(CapEff|CapBnd|NoNewPrivs|Seccomp):\\s+(\\w+)$", open("/proc/self/status").read(), re.M))
print(json.dumps({"writable": writable, "shm": shm.f_blocks * shm.f_frsize, "ids": ids, **status}))
"""
ASK = """
import time, urllib.request
status, runs = 0, ""
while "demo-cpu-quick" not in runs:
    try:
        with urllib.request.urlopen("{url}") as reply:
            status, runs = reply.status, reply.read().decode()
    except OSError:
        pass
    time.sleep(0.2)
print(status, runs)
"""
"""Ask until TensorBoard has the run."""


@pytest.fixture(scope="module")
def node(cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """With both claims, which the tests share as pods of a namespace do, and without the hub's token."""
    cpus = float(engine.out("info", "--format={{.NCPU}}"))
    secrets = {"mini-r1-job-token": {"token": "of-this-test"}}
    with _claims() as claims:
        yield Node(cpu_image, tmp_path_factory.mktemp("node"), claims, cpus, secrets)


@pytest.fixture(scope="module")
def demo(node: Node) -> CompletedProcess[str]:
    """The demo's pod at its end: a run in one claim, the demo's model in the other."""
    done = node.pod("demo-cpu", args=["demo", "--quick", *SMALL], env=ON_CPU).run()
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def look(node: Node) -> Callable[[str], dict[str, Any]]:
    """What the first process of an overlay's pod can do; each looked at once."""
    seen: dict[str, dict[str, Any]] = {}

    def into(overlay: str) -> dict[str, Any]:
        if overlay not in seen:
            with _claims() as claims:
                done = dataclasses.replace(node, claims=claims).pod(overlay).python(LOOK)
            assert done.returncode == 0, done.stderr
            seen[overlay] = json.loads(done.stdout)
        return seen[overlay]

    return into


# ---- confinement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", WITH_PODS)
def test_a_pod_writes_where_its_manifest_mounts_something_for_it_and_nowhere_else(
    look: Callable[[str], dict[str, Any]], overlay: str
) -> None:
    assert set(look(overlay)["writable"]) - OF_THE_RUNTIME == {*EVERYWHERE, *WRITABLE[overlay]}


@pytest.mark.parametrize("overlay", WITH_PODS)
def test_a_pod_is_a_plain_user_without_any_privilege(look: Callable[[str], dict[str, Any]], overlay: str) -> None:
    inside = look(overlay)
    assert inside["ids"] == [1000, 1000]
    assert int(inside["CapEff"], 16) == 0
    # CAP_IPC_LOCK; in bounds, but only root's processes begin with what is.
    assert int(inside["CapBnd"], 16) == (1 << 14 if overlay == "rdma" else 0)
    assert (inside["NoNewPrivs"], inside["Seccomp"]) == ("1", "2")  # 2: filtered


@pytest.mark.parametrize("overlay", ["demo-cpu", *FOR_GPUS])
def test_shared_memory_is_as_large_as_the_manifest_says(
    node: Node, look: Callable[[str], dict[str, Any]], overlay: str
) -> None:
    volumes = {volume["name"]: volume for volume in node.pod(overlay).spec["volumes"]}
    assert look(overlay)["shm"] == quantity(volumes["shm"]["emptyDir"]["sizeLimit"])
    assert look(overlay)["shm"] > 64 * 2**20  # what a pod has without


def test_a_root_that_a_manifest_leaves_open_would_be_seen(node: Node) -> None:
    def careless(spec: Manifest) -> Manifest:
        del spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
        return spec

    done = node.pod("job-4xh100", admission=careless).python(LOOK)
    assert "/workspace" in json.loads(done.stdout)["writable"]


# ---- the demo, and what reads its run --------------------------------------------------------------------------------


def test_the_demos_pod_leaves_a_whole_run_in_the_claim(node: Node, demo: CompletedProcess[str]) -> None:
    assert "success, sampled" in demo.stdout
    health = node.pod("demo-cpu", args=["health", "runs"]).run()
    assert health.returncode == 0, health.stdout + health.stderr
    assert f"{DEMO_RUN} is finished at step 2" in health.stdout
    assert _saved(node.pod("demo-cpu"), DEMO_RUN) == {"checkpoints": ["step-2"], "snapshots": ["step-2"]}


@pytest.mark.usefixtures("demo")
def test_the_evaluations_pod_measures_a_run_of_the_claim(node: Node) -> None:
    done = node.pod("evaluate", args=["evaluate", DEMO_RUN, "--limit", "4", "--json"], env=ON_CPU).run()
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["problems"] == 4
    kept = node.pod("evaluate").python(f"print(open({measured['provenance']['written_to']!r}).read())")
    assert json.loads(kept.stdout)["problems"] == 4


@pytest.mark.usefixtures("demo")
def test_tensorboards_pod_gets_ready_and_can_write_nothing_of_a_run(node: Node) -> None:
    pod = node.pod("tensorboard")
    container = pod.spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probe = container["readinessProbe"]["httpGet"]
    ask = ASK.format(url=f"http://127.0.0.1:{ports[probe['port']]}{probe['path']}")
    with pod.started() as name:
        assert engine.out("exec", name, "timeout", "300", "python", "-c", ask).startswith("200 ")
        written = engine.docker("exec", name, "python", "-c", f"open('{DEMO_RUN}/state.json', 'a')")
        assert "Read-only file system" in written.stderr
        assert pod.stop(name) == 0  # 137: killed after its grace


# ---- a training ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("demo")  # its model: the cache is read-only here
def test_a_pod_that_is_stopped_saves_and_the_next_one_resumes(node: Node) -> None:
    args = ["launch", "recipes/demo-cpu.yaml", *SMALL, "--set", "max_steps=40", "--set", "save_steps=40"]
    pod = node.pod("job-1gpu", args=args, env=ON_CPU)
    with pod.started() as name:
        engine.wait_for_step(name, 2)
        code, log = pod.stop(name), engine.docker("logs", name).stderr
    assert code == 143, log
    (kept,) = _saved(pod, "runs/demo-cpu")["checkpoints"]
    step = int(kept.removeprefix("step-"))
    assert 2 <= step < 40, log

    done = pod.run()
    assert done.returncode == 0, done.stderr
    assert re.search(rf"resuming after step {step}\b", done.stderr), done.stderr
    assert "step-40" in _saved(pod, "runs/demo-cpu")["checkpoints"]


def test_prefetch_is_enough_for_a_training_pod_which_does_not_write_the_cache(
    node: Node, untrained: Path, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    table = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows(ASSETS / "countdown_rows.jsonl")), table)
    recipe = small_recipe(model_name_or_path="nobody/tiny", dataset_id_or_path="nobody/rows", max_steps=1)
    recipes = {"small.yaml": recipe.read_text()}
    repositories = (
        Repo("nobody/tiny", files_of(untrained), token=TOKEN),
        Repo("nobody/rows", {"data/train-00000-of-00001.parquet": table.read_bytes()}, "b" * 40, is_data=True),
    )
    with_token = dataclasses.replace(node, secrets={**node.secrets, "mini-r1-hub": {"token": TOKEN}})
    with Hub(*repositories) as hub:
        # The host's network, because the stand-in for the hub listens on loopback; no other pod here has any.
        fetching = with_token.pod(
            "prefetch", args=["prefetch", "recipes/small.yaml"], env={"HF_ENDPOINT": hub.address}, recipes=recipes
        )
        fetched = fetching.run(network="host")
    assert fetched.returncode == 0, fetched.stderr
    assert TOKEN not in fetched.stdout + fetched.stderr

    trainer = node.pod("job-1gpu", args=["launch", "recipes/small.yaml"], env=ON_CPU, recipes=recipes)
    refused = trainer.python("open('/cache/file', 'w')")
    assert "Read-only file system" in refused.stderr
    trained = trainer.run()
    assert trained.returncode == 0, trained.stderr
    assert _saved(trainer, "runs/small")["snapshots"] == ["step-1"]


def test_the_user_that_openshift_gives_a_namespace_can_do_all_of_it(node: Node, tmp_path: Path) -> None:
    for folder in ("k8s", "configs"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    site = tmp_path / "k8s" / "site" / "kustomization.yaml"
    site.write_text(re.sub(r"^#(components:|  - \.\./options/openshift)", r"\1", site.read_text(), flags=re.MULTILINE))

    with _claims() as claims:
        theirs = dataclasses.replace(node, claims=claims, overlays=tmp_path / "k8s" / "overlays")
        args = ["train", "recipes/demo-cpu.yaml", *SMALL, "--set", "max_steps=1"]
        pod = theirs.pod("demo-cpu", args=args, env=ON_CPU, admission=openshift)
        seen = json.loads(pod.python(LOOK).stdout)
        assert seen["ids"] == [1000680000, 0]
        assert set(seen["writable"]) - OF_THE_RUNTIME == {*EVERYWHERE, RUNS, CACHE}
        done = pod.run()
        assert done.returncode == 0, done.stderr
        assert _saved(pod, "runs/demo-cpu")["snapshots"] == ["step-1"]
    with pytest.raises(NeverStartsError, match="runAsUser"):  # the option is needed
        node.pod("demo-cpu", admission=openshift)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["job-1gpu", "job-4xh100", "doctor"])
def test_a_missing_gpu_is_an_error_of_the_node(node: Node, overlay: str) -> None:
    done = node.pod(overlay).run()
    assert done.returncode == 150, done.stderr
    assert "no GPU was given" in done.stderr


@pytest.mark.usefixtures("demo")
def test_without_its_gpu_an_evaluation_does_not_run_on_the_cpu(node: Node) -> None:
    done = node.pod("evaluate", args=["evaluate", DEMO_RUN]).run()
    assert done.returncode == 150, done.stderr
    assert "torch sees no GPU here" in done.stderr


def test_workers_share_the_cores_of_the_pod_and_not_those_of_the_node(node: Node) -> None:
    def small(spec: Manifest) -> Manifest:
        return _with(spec, "containers/0/resources/limits/cpu", 1)

    ask = "from mini_r1.machine.control_groups import usable_cores; print(usable_cores())"
    assert node.pod("job-4xh100", admission=small).python(ask).stdout == "1\n"


def test_a_wrong_recipe_in_the_configmap_is_reported_and_never_retried(node: Node) -> None:
    done = node.pod("job-4xh100", env=ON_CPU, recipes={"mini-r1-3b.yaml": "num_generation: 8\n"}).run()
    assert done.returncode == 78, done.stderr
    assert "recipes/mini-r1-3b.yaml:1: unknown key 'num_generation'" in done.stderr


def test_a_recipe_that_is_not_in_the_configmap_is_reported_with_those_that_are(node: Node) -> None:
    done = node.pod("job-4xh100", env=ON_CPU, recipes={"mini-r1-3b.yaml": None}).run()
    assert done.returncode == 78, done.stderr
    assert "recipes/mini-r1-3b.yaml: no such recipe" in done.stderr
    assert "recipes/demo-cpu.yaml" in done.stderr


def test_prefetchs_pod_without_a_token_starts_and_reports_the_missing_network(node: Node) -> None:
    done = node.pod("prefetch").run()
    assert done.returncode == 150, done.stderr
    assert "the hub does not answer" in done.stderr
    assert "Traceback" not in done.stderr


# ---- the stand-in itself: needs no engine ----------------------------------------------------------------------------


@pytest.fixture
def paper(tmp_path: Path) -> Node:
    """A node for translations only."""
    claims = {"mini-r1-runs": "runs", "mini-r1-cache": "cache"}
    return Node("image", tmp_path, claims, 2, {"mini-r1-job-token": {"token": "planted"}})


@pytest.mark.parametrize("overlay", WITH_PODS)
def test_the_stand_in_knows_every_field_of_every_pod_and_shows_no_secret(paper: Node, overlay: str) -> None:
    manifests = manifests_of(overlay)
    maps = {one["metadata"]["name"]: one["data"] for one in manifests if one["kind"] == "ConfigMap"}
    found = list(pods(manifests))
    assert found
    for one in found:
        translated = paper.translate(copy.deepcopy(one.spec), maps)
        assert "--read-only" in translated.options
        assert not [option for option in translated.options if "planted" in option]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostIPC", True),
        ("initContainers", [{"name": "first"}]),
        ("automountServiceAccountToken", True),
        ("securityContext/supplementalGroups", [4]),
        ("containers/0/lifecycle", {"preStop": {}}),
        ("containers/0/securityContext/privileged", True),
        ("containers/0/env/0/valueFrom", {"fieldRef": {"fieldPath": "metadata.name"}}),
        ("containers/0/volumeMounts/0/subPath", "one"),
        ("containers/0/resources/limits/hugepages-2Mi", "2Mi"),
        ("volumes/0", {"name": "runs", "hostPath": {"path": "/"}}),
        ("volumes/2/configMap/defaultMode", 256),
    ],
)
def test_what_the_stand_in_does_not_know_it_refuses(paper: Node, path: str, value: object) -> None:
    with pytest.raises(NotTranslatedError):
        paper.pod("job-4xh100", admission=lambda spec: _with(spec, path, value))


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("securityContext/runAsUser", "--user=1000:1000"),
        ("securityContext/fsGroup", "--group-add=1000"),
        ("containers/0/securityContext/allowPrivilegeEscalation", "--security-opt=no-new-privileges"),
        ("containers/0/securityContext/readOnlyRootFilesystem", "--read-only"),
        ("containers/0/securityContext/capabilities", "--cap-drop=ALL"),
        ("containers/0/resources", f"--memory={216 * 2**30}"),
        ("containers/0/resources", "--cpus=2"),
        ("containers/0/volumeMounts/5", "--tmpfs=/dev/shm:mode=2777,gid=1000,exec,size=17179869184"),
    ],
)
def test_what_a_manifest_drops_is_missing_in_the_container(paper: Node, path: str, option: str) -> None:
    def without(spec: Manifest) -> Manifest:
        if path.endswith("runAsUser"):
            del spec["securityContext"]["runAsGroup"]
        return _with(spec, path, None)

    assert option in paper.pod("job-4xh100").options
    assert option not in paper.pod("job-4xh100", admission=without).options


def test_without_a_profile_no_call_of_the_kernel_is_filtered(paper: Node) -> None:
    careless = paper.pod("job-4xh100", admission=lambda spec: _with(spec, "securityContext/seccompProfile", None))
    assert "--security-opt=seccomp=unconfined" in careless.options
    assert not [option for option in paper.pod("job-4xh100").options if "seccomp" in option]


def test_a_pod_whose_claim_configmap_or_secret_is_missing_never_starts(paper: Node) -> None:
    with pytest.raises(NeverStartsError, match="mini-r1-cache"):
        dataclasses.replace(paper, claims={"mini-r1-runs": "runs"}).pod("job-4xh100")
    with pytest.raises(NeverStartsError, match="mini-r1-job-token"):
        dataclasses.replace(paper, secrets={}).pod("indexed-job-2x8h100")
    with pytest.raises(NeverStartsError, match="recipes"):
        paper.pod("job-4xh100", admission=lambda spec: _with(spec, "volumes/2/configMap/name", "recipes"))
    with pytest.raises(NeverStartsError, match="runAsNonRoot"):
        paper.pod("job-4xh100", admission=lambda spec: _with(spec, "securityContext/runAsUser", 0))


# ---- helpers ---------------------------------------------------------------------------------------------------------


@contextmanager
def _claims() -> Iterator[dict[str, str]]:
    """Docker's volumes for both, new: no pod has opened them to its group yet."""
    with engine.volume() as runs, engine.volume() as cache:
        yield {"mini-r1-runs": runs, "mini-r1-cache": cache}


def _with(spec: Manifest, path: str, value: object) -> Manifest:
    """The spec with one value replaced; None takes it away."""
    changed = copy.deepcopy(spec)
    at: Any = changed
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
    for part in parents:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return changed


def _saved(pod: Pod, run: str) -> dict[str, list[str]]:
    """The names of a run's complete checkpoints and snapshots."""
    done = pod.python(
        f"import json, pathlib; from mini_r1.run.run_dir import RunDir; run = RunDir(pathlib.Path({run!r}));"
        " kept = {'checkpoints': run.complete_checkpoints(), 'snapshots': run.complete_snapshots()};"
        " print(json.dumps({kind: [one.path.name for one in saved] for kind, saved in kept.items()}))"
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
