"""Every overlay, built by the real kustomize: strict schemas, the kit's rules, and the two copies in k8s/rendered."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.kubernetes.manifests import K8S, OVERLAYS, build, load, named, needs_kustomize, overlay, pods
from tests.kubernetes.rules import breaches

pytestmark = [pytest.mark.real, needs_kustomize]

ASKED_FOR = {
    "demo-cpu", "evaluate", "indexed-job-2x8h100", "job-1gpu", "job-4xh100", "job-8xh100", "kueue", "prefetch",
    "pytorchjob-2x8h100", "rdma", "tensorboard",
}  # fmt: skip
HEADER = ("Needs", "Apply", "Watch", "Read", "Stop", "Clean")
PRODUCT = "nvidia.com/gpu.product"


def test_the_overlays_that_the_readme_promises_are_there() -> None:
    assert set(OVERLAYS) >= ASKED_FOR


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_breaks_no_rule(name: str) -> None:
    manifests = overlay(name)
    assert manifests
    assert breaches(manifests) == {}


RENDERED = ("job-4xh100", "pytorchjob-2x8h100")
"""The overlays that are committed as one file, for `kubectl apply -f` from a checkout."""


@pytest.mark.parametrize("name", RENDERED)
def test_a_rendered_file_equals_its_overlay(name: str) -> None:
    rendered = K8S / "rendered" / f"{name}.yaml"
    assert load(rendered.read_text()) == overlay(name), "run `make manifests`"


def test_two_overlays_are_committed_as_rendered_files() -> None:
    assert {path.name for path in (K8S / "rendered").iterdir()} == {f"{name}.yaml" for name in RENDERED}
    assert f"RENDERED := {' '.join(RENDERED)}\n" in (REPO / "Makefile").read_text()


def test_render_sh_writes_every_overlay_and_removes_old_files(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").write_text("kind: Job\n")
    done = subprocess.run([K8S / "render.sh", tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.stem: load(path.read_text()) for path in tmp_path.iterdir()} == {
        name: overlay(name) for name in OVERLAYS
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_its_header_says_how_to_apply_watch_read_stop_and_clean(name: str) -> None:
    text = (K8S / "overlays" / name / "kustomization.yaml").read_text()
    header = text[: text.index("apiVersion")]
    if name in ("namespace", "setup"):  # nothing runs
        assert f"kubectl apply -k k8s/overlays/{name}" in header
        return
    for word in HEADER:
        assert re.search(rf"^# {word}\b|\b{word.lower()}\b", header, re.MULTILINE), word
    assert f"kubectl apply -k k8s/overlays/{name}\n" in header or f"kubectl apply -k k8s/overlays/{name} " in header


def test_only_overlays_name_a_gpu_product() -> None:
    assert PRODUCT not in build(K8S / "base" / "train")
    assert PRODUCT in build(K8S / "overlays" / "job-4xh100")
    assert PRODUCT not in build(K8S / "overlays" / "job-1gpu")


def test_only_the_site_has_settings_of_a_cluster() -> None:
    site = (K8S / "site" / "kustomization.yaml").read_text()
    for own in ("newName: ghcr.io", "storageClassName", "accessModes", "digest: sha256"):
        assert own in site
        others = [path for path in K8S.rglob("*.yaml") if "rendered" not in path.parts and path.parent.name != "site"]
        assert not [path for path in others if own in path.read_text()], own


@pytest.fixture(scope="module")
def with_options(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ and configs/ whose site takes in every option, as somebody who takes its # away."""
    copy = tmp_path_factory.mktemp("site")
    for folder in ("k8s", "configs"):
        shutil.copytree(REPO / folder, copy / folder)
    site = copy / "k8s" / "site" / "kustomization.yaml"
    site.write_text(re.sub(r"^#(components:|  - \.\./options/)", r"\1", site.read_text(), flags=re.MULTILINE))
    taken = [component.removeprefix("../options/") for component in load(site.read_text())[0]["components"]]
    assert sorted(taken) == sorted(path.name for path in (K8S / "options").iterdir())
    return copy / "k8s" / "overlays"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_breaks_no_rule_with_every_option(name: str, with_options: Path) -> None:
    manifests = load(build(with_options / name))
    refused = breaches(manifests)
    # OpenShift's admission gives the pods a group, which the rule wants to see.
    assert set(refused) <= {"closed-pod"}
    assert all("group" in sentence for sentence in refused.get("closed-pod", []))
    for one in pods(manifests):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(one.spec["securityContext"])
        assert one.spec["imagePullSecrets"] == [{"name": "mini-r1-registry"}]
        assert one.spec.get("runtimeClassName") == ("nvidia" if one.gpus else None)
        assert one.spec.get("priorityClassName") == ("mini-r1" if one.gpus else None)
        own = [volume["configMap"]["name"] for volume in one.volumes if volume["name"] == "own"]
        assert own == (["mini-r1-own"] if one.gpus or one.component == "prefetch" else [])


VARIANTS = {"kueue": "indexed-job-2x8h100", "rdma": "pytorchjob-2x8h100"}
"""Overlays that start the job of another one in another way: never both at once."""


def owners(folder: Path) -> dict[str, set[str]]:
    """Return the overlays that make an object, by its kind and name."""
    found: dict[str, set[str]] = {}
    for name in OVERLAYS:
        for one in load(build(folder / name)):
            found.setdefault(named(one), set()).add(VARIANTS.get(name, name))
    return found


def test_every_object_has_one_overlay() -> None:
    """To apply or delete an overlay changes nothing of another one: no policy, no ConfigMap."""
    assert {what: names for what, names in owners(K8S / "overlays").items() if len(names) > 1} == {}


def test_two_overlays_with_one_object_are_found(tmp_path: Path) -> None:
    for folder in ("k8s", "configs"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    policy = tmp_path / "k8s" / "overlays" / "pytorchjob-2x8h100" / "network-policy.yaml"
    policy.write_text(policy.read_text().replace("name: mini-r1-2x8h100-pytorchjob\n", "name: mini-r1-2x8h100\n"))
    both = {"indexed-job-2x8h100", "pytorchjob-2x8h100"}
    assert owners(tmp_path / "k8s" / "overlays")["NetworkPolicy mini-r1-2x8h100"] == both


def test_the_namespace_is_apart_from_claims_and_policies() -> None:
    """A user without the right to create namespaces applies `setup` alone."""
    kinds = {name: {one["kind"] for one in overlay(name)} for name in OVERLAYS}
    assert kinds["namespace"] == {"Namespace"}
    assert kinds["setup"] == {"PersistentVolumeClaim", "NetworkPolicy"}
    bringing = {name for name in OVERLAYS if kinds[name] & {"PersistentVolumeClaim", "Namespace"}}
    assert bringing == {"namespace", "setup"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_quantities_are_quoted_in_the_sources(name: str) -> None:
    """Also in a file that no overlay builds now, such as the patch of `rdma` for a Job."""
    unquoted = r"(?:nvidia\.com/gpu|rdma/hca|cpu|memory|storage|ephemeral-storage|sizeLimit): *\d"
    for path in (K8S / "overlays" / name).glob("*.yaml"):
        assert not re.findall(unquoted, path.read_text()), path
        assert not re.findall(r"hca, value: \d", path.read_text()), path


def test_every_file_is_one_concept_in_kebab_case() -> None:
    paths = list(K8S.rglob("*.yaml"))
    assert len(paths) > len(ASKED_FOR)
    assert [path for path in paths if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.yaml", path.name)] == []


def test_the_configmap_of_recipes_holds_every_recipe_of_the_kit() -> None:
    (recipes,) = (one for one in overlay("job-4xh100") if one["kind"] == "ConfigMap")
    files = {path.name: path.read_text() for path in (REPO / "configs" / "recipes").glob("*.yaml")}
    assert recipes["data"] == files
    assert sum(map(len, files.values())) < 1 << 20  # a ConfigMap's limit


def test_a_job_and_its_pods_are_found_by_the_same_labels() -> None:
    found = [one for name in OVERLAYS for one in pods(overlay(name))]
    assert len(found) >= len(ASKED_FOR)
    for one in found:
        of, on = one.of["metadata"]["labels"], one.template["metadata"]["labels"]
        for label in ("app.kubernetes.io/name", "app.kubernetes.io/component"):
            assert of[label] == on[label], named(one.of)
