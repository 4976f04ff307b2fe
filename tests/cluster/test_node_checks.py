"""The doctor's checks of host, disks, network, installation and inputs, on real ones if possible."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from mini_r1.doctor import host, inputs, local_storage, software
from mini_r1.doctor.case import Case
from mini_r1.doctor.node_checks import run_check
from mini_r1.machine import heavy_imports, paths
from mini_r1.machine.devices import Devices
from mini_r1.machine.findings import Finding
from mini_r1.recipe.fields import Recipe

from tests.conftest import ASSETS, REPO
from tests.small_disk import small_disk

GPUS = Devices(("0", "1"), False, "a test")
NO_GPU = Devices((), True, "a test")


def case(devices: Devices = NO_GPU, recipe: dict[str, Any] | None = None, **facts: Any) -> Case:
    values = {"model_name_or_path": "builtin:demo", "max_steps": 1, **(recipe or {})}
    facts = {"environment": {"HOME": "/home/me"}, **facts}
    return Case(devices=devices, driver=None, recipe=None if recipe is None else Recipe(**values), **facts)


def is_failure(finding: Finding, cause: str) -> bool:
    return (finding.status, finding.cause) == ("fail", cause)


def files(root: Path, **texts: str) -> Path:
    """Files below a root; `__` in a name is a slash."""
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# --- host ---

MEMINFO = "MemTotal:       104857600 kB\nMemFree: 1 kB\nMemAvailable:   52428800 kB\n"  # 100 and 50 GiB
GIB = 2**30


def groups(root: Path, cgroup: str, limits: dict[str, str]) -> Path:
    files(root, proc__meminfo=MEMINFO, proc__self__cgroup=cgroup)
    for path, text in limits.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "found"),
    [
        ("0::/\n", {}, "50.0 of 100.0 GiB free (the machine)"),
        ("0::/\n", {"memory.max": "max"}, "50.0 of 100.0 GiB free (the machine)"),
        ("0::/\n", {"memory.max": str(8 * GIB), "memory.current": str(2 * GIB)}, "6.0 of 8.0 GiB"),
        # As Slurm does: the limit is the job's, above the step that this process is in
        ("0::/job_1/step_0\n", {"job_1/memory.max": str(8 * GIB), "job_1/memory.current": "0",
                                "job_1/step_0/memory.max": "max"}, "8.0 of 8.0 GiB"),
        ("9:memory:/job_1\n0::/\n", {"memory/job_1/memory.limit_in_bytes": str(4 * GIB),
                                     "memory/job_1/memory.usage_in_bytes": str(GIB)}, "3.0 of 4.0 GiB"),
        ("9:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, "50.0 of 100.0 GiB"),
        ("3:cpu:/x\n", {"memory.max": "1"}, "50.0 of 100.0 GiB"),
    ],
)  # fmt: skip
def test_the_smallest_limit_on_memory_counts(tmp_path: Path, cgroup: str, limits: dict[str, str], found: str) -> None:
    assert found in host.host_memory(case(root=groups(tmp_path, cgroup, limits))).detail


def test_host_memory_against_the_plan(tmp_path: Path) -> None:
    root = groups(tmp_path, "0::/\n", {"memory.max": str(60 * GIB), "memory.current": str(20 * GIB)})
    for need, status in ((30, "ok"), (55, "warn"), (61, "fail")):
        finding = host.host_memory(case(root=root, host_memory_gib=need))
        assert finding.status == status
        assert finding.cause == ("node" if status == "fail" else None)


def test_the_real_host_has_memory() -> None:
    finding = host.host_memory(case())
    assert finding.status == "ok"
    assert float(finding.detail.split(" of ")[1].split(" GiB")[0]) > 0.1


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    with small_disk(tmp_path / "small", "1m") as folder:
        yield folder


def test_shared_memory_too_small_for_the_plan_or_for_nccl(tmp_path: Path, small_tmpfs: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/shm").symlink_to(small_tmpfs)
    finding = host.shared_memory(case(root=tmp_path, shm_gib=0.5))
    assert is_failure(finding, "node")
    assert "the plan needs 0.50" in finding.detail
    assert "--shm-size" in finding.fix
    assert "shm_size" in finding.fix
    assert is_failure(host.shared_memory(case(GPUS, root=tmp_path)), "node")
    assert host.shared_memory(case(root=tmp_path)).status == "ok"
    assert is_failure(host.shared_memory(case(root=tmp_path / "nowhere")), "node")


def test_infiniband_wants_memory_locked_without_limit(tmp_path: Path) -> None:
    assert host.locked_memory(case(root=tmp_path)).status == "skip"
    files(tmp_path, sys__class__infiniband__mlx5_0="")
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    finding = host.locked_memory(case(root=tmp_path))
    assert finding.status == ("ok" if unlimited else "warn")
    assert "mlx5_0" in finding.detail


def test_infiniband_without_its_library_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.infiniband(case(GPUS, root=tmp_path)).status == "skip"
    files(tmp_path, sys__class__infiniband__mlx5_0="")
    assert host.infiniband(case(root=tmp_path)).status == "skip"
    monkeypatch.setattr(host, "IBVERBS", "libc.so.6")
    assert host.infiniband(case(GPUS, root=tmp_path)).status == "ok"
    monkeypatch.setattr(host, "IBVERBS", "libibverbs.so.nowhere")
    finding = host.infiniband(case(GPUS, root=tmp_path))
    assert finding.status == "warn"
    assert "mlx5_0" in finding.detail
    assert "NCCL uses TCP" in finding.detail
    assert "ibverbs-providers" in finding.fix


@pytest.mark.parametrize(("effective", "status"), [("0000000000004000", "ok"), ("00000000a80425fb", "warn")])
def test_a_capability_locks_memory_only_where_it_is_in_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effective: str, status: str
) -> None:
    """A pod that asks for IPC_LOCK and is not root has it in its bounding set alone."""
    files(tmp_path, sys__class__infiniband__mlx5_0="")
    text = f"Name:\tpython\nCapPrm:\t{effective}\nCapEff:\t{effective}\nCapBnd:\t0000000000004000\n"
    files(tmp_path, proc__self__status=text)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65_536, 65_536))
    finding = host.locked_memory(case(root=tmp_path))
    assert finding.status == status
    assert ("LimitMEMLOCK" in finding.fix) == (status == "warn")


def test_few_open_files_are_a_warning() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        finding = host.open_files(case())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert finding.status == "warn"
    assert "1024" in finding.detail


def test_a_container_with_few_processes_is_a_warning(tmp_path: Path) -> None:
    root = groups(tmp_path, "0::/\n", {"pids.max": "300", "pids.current": "100"})
    assert host.processes(case(root=root, workers=1)).status == "warn"
    (root / "sys/fs/cgroup/pids.max").write_text("max\n")
    assert host.processes(case(root=root, workers=1)).status == "ok"


def test_a_user_without_a_name_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert host.user(case()).status == "warn"
    monkeypatch.setenv("USER", "trainer")
    assert host.user(case()).detail == "trainer"


# --- disks ---


def test_a_writable_run_directory_is_left_as_it_was(tmp_path: Path) -> None:
    finding = local_storage.run_directory(case(run_dir=tmp_path / "deep/run"))
    assert finding.status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_can_be_resumed_and_other_files_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    finding = local_storage.run_directory(case(run_dir=tmp_path))
    assert is_failure(finding, "recipe")
    assert "holds no run" in finding.detail
    (tmp_path / "recipe.yaml").write_text("")
    assert local_storage.run_directory(case(run_dir=tmp_path)).status == "ok"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "recipe.yaml"]


def test_a_file_in_the_way_is_an_error_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "run"):
        assert is_failure(local_storage.run_directory(case(run_dir=path)), "recipe")


def test_a_directory_without_write_permission_is_a_failure_of_the_node(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            if os.geteuid() == 0:  # who may write anywhere, so somebody else looks
                os.setgid(65_534)
                os.setuid(65_534)
            found = local_storage.run_directory(case(run_dir=tmp_path / "run"))
            message = f"give this user ({os.geteuid()}) the right" in found.fix and "fsGroup" in found.fix
            code = 0 if is_failure(found, "node") and "Permission denied" in found.detail and message else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_claim_that_is_mounted_read_only_is_a_failure_of_the_node(small_tmpfs: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_tmpfs], check=True)
    finding = local_storage.run_directory(case(run_dir=small_tmpfs / "runs/first"))
    assert is_failure(finding, "node")
    assert "Read-only file system" in finding.detail
    assert "readOnly on claim or mount" in finding.fix


def test_a_read_only_cache_is_ok_offline(small_tmpfs: Path, tmp_path: Path) -> None:
    """As in the pods that train: what overlays/prefetch has filled is not theirs to change."""
    subprocess.run(["mount", "-o", "remount,ro", small_tmpfs], check=True)
    local = {name: f"{tmp_path}/{name}" for name in local_storage.NODE_CACHES}
    offline = {"HOME": str(tmp_path), "HF_HOME": str(small_tmpfs / "hf"), "HF_HUB_OFFLINE": "1", **local}
    finding = local_storage.caches(case(environment=offline))
    assert (finding.status, finding.detail) == ("ok", f"the hub's cache {small_tmpfs / 'hf/hub'} (tmpfs)")
    online = {name: value for name, value in offline.items() if name != "HF_HUB_OFFLINE"}
    assert local_storage.caches(case(environment=online)).status == "warn"


def test_a_disk_too_small_for_the_plan(small_tmpfs: Path) -> None:
    run = small_tmpfs / "run"
    finding = local_storage.disk(case(run_dir=run, disk_gib=2.0))
    assert is_failure(finding, "node")
    assert "the plan needs 2.0" in finding.detail
    assert local_storage.disk(case(run_dir=run, disk_gib=0.0001)).status == "ok"


def test_what_a_resumed_run_has_already_is_not_needed_again(small_tmpfs: Path) -> None:
    run = small_tmpfs / "run"
    run.mkdir()
    (run / "shard").write_bytes(b"x" * 700_000)
    assert local_storage.disk(case(run_dir=run, disk_gib=900_000 / GIB)).status == "ok"
    assert local_storage.disk(case(run_dir=run, disk_gib=1_700_000 / GIB)).status == "fail"


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
filer:/home /home nfs4 rw 0 0
fs /scratch\\040big lustre rw 0 0
/dev/sdb /home/me/local xfs rw 0 0
b /blob fuse.blobfuse2 rw 0 0
o /over fuse.fuse-overlayfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/data", "ext4", False),
        ("/home/me/.cache", "nfs4", True),
        ("/homeless", "ext4", False),
        ("/scratch big/x", "lustre", True),
        ("/home/me/local/x", "xfs", False),
        ("/blob/x", "fuse.blobfuse2", True),
        ("/over/x", "fuse.fuse-overlayfs", False),
    ],
)
def test_the_filesystem_of_a_path(tmp_path: Path, path: str, kind: str, network: bool) -> None:
    root = files(tmp_path, proc__self__mounts=MOUNTS)
    assert local_storage.filesystem(case(root=root), Path(path)) == kind
    assert local_storage.is_network(kind) == network


def test_caches_on_a_network_filesystem_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_storage, "move_caches", lambda environment: ({}, ""))  # /home/me is not here
    root = files(tmp_path, proc__self__mounts=MOUNTS)
    finding = local_storage.caches(case(root=root))
    assert finding.status == "warn"
    for message in (
        "/home/me/.cache/huggingface/hub is on nfs4",
        "TRITON_CACHE_DIR: /home/me/.triton/cache is on nfs4",
    ):
        assert message in finding.detail
    local = {name: f"{tmp_path}/{name}" for name in local_storage.NODE_CACHES}
    offline = case(root=root, environment={"HOME": "/home/me", "HF_HUB_OFFLINE": "1", **local})
    assert local_storage.caches(offline).status == "ok"


def test_a_home_that_cannot_be_written_is_named_and_no_warning(tmp_path: Path) -> None:
    finding = local_storage.caches(case(environment={"HOME": "/proc/nowhere"}))
    assert finding.status == "ok"
    assert finding.detail.startswith("HOME (/proc/nowhere) can't be written, so libraries have their caches in ")


def test_the_hub_cache_is_where_the_hub_library_has_it(tmp_path: Path) -> None:
    code = "from huggingface_hub import constants as c; print(c.HF_HUB_CACHE)"
    for environment in ({}, {"HF_HOME": "~/hf"}, {"XDG_CACHE_HOME": "/x"}, {"HF_HUB_CACHE": "/h"}):
        given = {"HOME": "/home/me", "PATH": os.environ["PATH"], **environment}
        done = subprocess.run([os.sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)  # type: ignore[attr-defined]
        assert str(paths.hub_cache(given)) == done.stdout.strip()


def test_a_user_without_a_home_causes_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert local_storage.caches(case(environment={})).status in ("ok", "warn")
    assert paths.hub_cache({}) == Path("~/.cache/huggingface/hub")


# --- network ---


def test_a_port_in_use_is_a_failure_of_the_node() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = host.ports(case(ports=(port,)))
    assert is_failure(finding, "node")
    assert f"port {port} is taken" in finding.detail
    assert host.ports(case(ports=(port,))).status == "ok"
    assert host.ports(case()).status == "skip"


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("NCCL_SOCKET_IFNAME", "eth", "ok"),
        ("NCCL_SOCKET_IFNAME", "=eth0", "ok"),
        ("NCCL_SOCKET_IFNAME", "ib,eth", "ok"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo", "ok"),
        ("NCCL_SOCKET_IFNAME", "=eth", "fail"),
        ("NCCL_SOCKET_IFNAME", "enp5s0", "fail"),
        ("GLOO_SOCKET_IFNAME", "eth0", "ok"),
        ("GLOO_SOCKET_IFNAME", "eth", "fail"),
    ],
)
def test_an_interface_that_is_not_there_is_named(tmp_path: Path, variable: str, value: str, status: str) -> None:
    root = files(tmp_path, sys__class__net__eth0="", sys__class__net__lo="")
    finding = host.interfaces(case(root=root, environment={variable: value}))
    assert finding.status == status
    if status == "fail":
        assert finding.cause == "node"
        assert "eth0, lo" in finding.detail
        assert f"unset {variable}" in finding.fix


# --- installation ---


def test_the_pins_are_those_of_the_package() -> None:
    pins = software.read_pins()
    assert pins["trl"] == "0.14.0"
    assert pins["vllm"] == "0.7.0"
    assert "hatchling" not in pins


def test_another_version_of_a_patched_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = software._installed
    versions = {"torch": "2.6.0"}
    monkeypatch.setattr(software, "_installed", lambda name: versions.get(name, real(name)))
    finding = software.versions(case(recipe={}))
    assert finding.status == "warn"
    assert "torch 2.6.0 instead of 2.5.1" in finding.detail
    versions["trl"] = "0.15.0"
    assert is_failure(software.versions(case(recipe={})), "recipe")
    assert "trl 0.15.0 instead of 0.14.0" in software.versions(case(recipe={})).detail


def test_what_a_recipe_needs_and_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_installed", lambda name: None)
    finding = software.versions(case(recipe={"use_vllm": True}))
    assert is_failure(finding, "recipe")
    assert "transformers" in finding.detail
    assert "`make install`" in finding.fix
    assert "vllm" not in finding.detail  # `make install` brings none
    assert "bitsandbytes" not in finding.detail
    assert software.versions(case()).status == "ok"
    quantized = software.versions(case(recipe={"use_peft": True, "load_in_4bit": True}))
    assert "bitsandbytes" in quantized.detail
    assert quantized.fix.startswith("use the image, or install app/locks/gpu.txt")


@pytest.mark.parametrize(
    ("version", "devices", "detail", "fix"),
    [
        (None, NO_GPU, "vLLM is not installed here", "`make vllm-cpu`"),
        (None, GPUS, "vLLM is not installed here", "use the image, or install app/locks/gpu.txt (docs/slurm.md"),
        ("0.7.0", NO_GPU, "vLLM 0.7.0 here is built for GPUs", "`make vllm-cpu`"),
        ("0.7.0+cpu", GPUS, "vLLM 0.7.0+cpu here is built for a CPU", "use the image"),
    ],
)
def test_a_vllm_that_cannot_be_used_gets_what_brings_one(
    monkeypatch: pytest.MonkeyPatch, version: str | None, devices: Devices, detail: str, fix: str
) -> None:
    monkeypatch.setattr(heavy_imports, "versions", lambda names: {"vllm": version})
    finding = software.vllm_engine(case(devices, recipe={"use_vllm": True}))
    assert is_failure(finding, "recipe")
    assert detail in finding.detail
    assert finding.fix.startswith(fix)
    assert finding.fix.endswith("or set use_vllm: false")


def test_nothing_names_a_package_that_is_not_on_the_registry() -> None:
    """Anyone could register it."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.endswith((".py", ".md", ".sh", ".yaml", ".yml", ".toml", ".ipynb", "Makefile", "Dockerfile")):
            text = (REPO / name).read_text(errors="replace")
            assert not re.search(r"pip install[^\n]{0,40}mini[-_]r1\b(?!/)", text), name


def test_nvcc_is_asked_for_where_deepspeed_meets_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_installed", lambda name: "0.15.4")
    assert software.nvcc(case()).status == "skip"
    files(tmp_path, on_path__bin__nvcc="", toolkit__bin__nvcc="").joinpath("on_path/bin/nvcc").chmod(0o755)
    path = str(tmp_path / "on_path/bin")
    for environment, place in (
        ({"PATH": path}, tmp_path / "on_path"),
        ({"PATH": path, "CUDA_HOME": str(tmp_path / "toolkit")}, tmp_path / "toolkit"),
    ):
        assert software.nvcc(case(GPUS, environment=environment)).detail == f"{place}/bin/nvcc"
    # torch, and so DeepSpeed, does not look elsewhere once CUDA_HOME is set.
    broken = {"PATH": path, "CUDA_HOME": str(tmp_path)}
    found = software.nvcc(case(GPUS, environment=broken))
    assert found.status == "warn"
    assert f"no {tmp_path}/bin/nvcc" in found.detail
    assert is_failure(software.nvcc(case(GPUS, environment=broken, deepspeed="zero3")), "recipe")


def test_a_deepspeed_configuration_that_cannot_be_used_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    assert software.deepspeed(case(deepspeed="zero3")).detail == "zero3: ZeRO stage 3"
    file = tmp_path / "mine.json"
    file.write_text("{")
    for name in ("zero4", str(file)):
        assert is_failure(run_check(software.deepspeed, case(deepspeed=name)), "recipe")


def test_vllms_other_engine_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"use_vllm": True}
    monkeypatch.setattr(heavy_imports, "versions", lambda names: {"vllm": "0.7.0+cpu"})
    assert software.vllm_engine(case(recipe=recipe, environment={"VLLM_USE_V1": "1"})).status == "warn"
    assert software.vllm_engine(case(recipe=recipe, environment={"VLLM_USE_V1": "0"})).status == "ok"


def test_publishing_needs_a_token_and_never_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    publishing = case(recipe={"push_to_hub": True})
    assert software.hub_token(case(recipe={})).status == "skip"
    assert is_failure(software.hub_token(publishing), "recipe")
    (tmp_path / "token").write_text("pineapple\n")
    finding = software.hub_token(publishing)
    assert finding.status == "ok"
    assert "pineapple" not in str(finding)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_failure(software.hub_token(publishing), "recipe")
    assert "HF_HUB_OFFLINE" in software.hub_token(publishing).detail


# --- model and data ---


def model_dir(folder: Path, config: dict[str, Any] | None = None, shards: int = 2, present: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "qwen2"}))
    names = [f"model-{n}.safetensors" for n in range(shards)]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: n for n in names}}))
    for name in names[:present]:
        (folder / name).write_bytes(b"")
    return folder


def cached_repo(cache: Path, folder: str, source: Path | None = None) -> Path:
    commit = "0" * 40
    files(cache / "hub" / folder, refs__main=commit)
    snapshot = cache / "hub" / folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in source.iterdir() if source else []:
        (snapshot / path.name).write_bytes(path.read_bytes())
    return snapshot


@pytest.mark.parametrize(
    ("config", "present", "message"),
    [
        (None, 2, None),
        (None, 1, "1 of 2 files are missing, such as model-1.safetensors"),
        ({"model_type": "qwen3"}, 2, "transformers 4.51.0 was the first that does"),
    ],
)
def test_a_model_on_disk_must_be_whole_and_known(
    tmp_path: Path, config: dict[str, Any] | None, present: int, message: str | None
) -> None:
    folder = model_dir(tmp_path / "model", config, present=present)
    finding = inputs.model(case(recipe={"model_name_or_path": str(folder)}))
    if message is None:
        assert finding.status == "ok"
    else:
        assert is_failure(finding, "recipe")
        assert message in finding.detail


def test_a_directory_without_a_model_and_one_with_pickles_only(tmp_path: Path) -> None:
    assert "no config.json" in inputs.model(case(recipe={"model_name_or_path": str(tmp_path)})).detail
    files(tmp_path, **{"config.json": '{"model_type": "qwen2"}', "pytorch_model.bin": ""})
    finding = inputs.model(case(recipe={"model_name_or_path": str(tmp_path)}))
    assert is_failure(finding, "recipe")
    assert "no safetensors" in finding.detail


def test_a_later_kind_is_known_by_its_name_without_any_file() -> None:
    finding = inputs.model(case(recipe={"model_name_or_path": "Qwen/Qwen3-1.7B"}))
    assert is_failure(finding, "recipe")
    assert "qwen3" in finding.detail


def test_a_misspelt_name_offline_is_reported_with_the_likely_one(tmp_path: Path) -> None:
    cached_repo(tmp_path, "models--Qwen--Qwen2.5-3B-Instruct", model_dir(tmp_path / "model"))
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    right = {"model_name_or_path": "Qwen/Qwen2.5-3B-Instruct"}
    assert (
        inputs.model(case(recipe=right, environment=environment)).detail
        == f"{right['model_name_or_path']}: whole, weights in 2 files"
    )
    wrong = {"model_name_or_path": "Qwen/Qwen2.5-3B-Instuct"}
    finding = inputs.model(case(recipe=wrong, environment=environment))
    assert is_failure(finding, "recipe")
    assert "did you mean Qwen/Qwen2.5-3B-Instruct" in finding.detail
    assert "mini-r1 prefetch RECIPE" in finding.fix


@pytest.mark.parametrize("pod", [{}, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}])
def test_an_empty_cache_in_a_pod_names_the_job_that_fills_it(tmp_path: Path, pod: dict[str, str]) -> None:
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", **pod}
    for finding in (
        inputs.model(case(recipe={"model_name_or_path": "a/b"}, environment=environment)),
        inputs.data(case(recipe={}, environment=environment)),
    ):
        assert is_failure(finding, "recipe")
        assert f"is not in the cache {tmp_path}/hub" in finding.detail
        assert ("k8s/overlays/prefetch" in finding.fix) == bool(pod)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, None),
        ({"dataset_split": "train", "dataset_test_split": "test"}, None),
        ({"dataset_test_split": "tset"}, "a/b in the cache has no split 'tset'; there are: test, train"),
        ({"dataset_config": "x"}, "a/b in the cache has no configuration 'x'; there are: default"),
    ],
)
def test_a_split_that_the_cached_data_has_not_is_named(
    tmp_path: Path, keys: dict[str, str], message: str | None
) -> None:
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    shards = {f"data__{name}-00000-of-00001.parquet": "" for name in ("train", "test")}
    files(cached_repo(tmp_path, "datasets--a--b"), **shards)
    finding = inputs.data(case(recipe={"dataset_id_or_path": "a/b", **keys}, environment=offline))
    if message is None:
        assert finding.status == "ok"
    else:
        assert is_failure(finding, "recipe")
        assert message in finding.detail


def test_data_is_a_file_generated_or_in_the_cache(tmp_path: Path) -> None:
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    rows = str(ASSETS / "countdown_rows.jsonl")
    assert inputs.data(case(recipe={"dataset_id_or_path": rows})).status == "ok"
    assert inputs.data(case(recipe={"dataset_id_or_path": "generated", "dataset_rows": 9})).status == "ok"
    assert is_failure(inputs.data(case(recipe={"dataset_id_or_path": "nowhere.jsonl"})), "recipe")
    finding = inputs.data(case(recipe={}, environment=offline))
    assert is_failure(finding, "recipe")
    assert "mini-r1 prefetch RECIPE" in finding.fix
    files(cached_repo(tmp_path, "datasets--Jiayi-Pan--Countdown-Tasks-3to4"), **{"data__x.parquet": ""})
    assert inputs.data(case(recipe={}, environment=offline)).status == "ok"
    finding = inputs.data(case(recipe={"dataset_revision": "v2"}, environment=offline))
    assert is_failure(finding, "recipe")
    assert "at revision v2 is not in the cache" in finding.detail
    assert inputs.data(case(recipe={"dataset_revision": "0" * 40}, environment=offline)).status == "ok"


def test_data_of_which_a_part_is_in_the_cache_is_not_there(tmp_path: Path) -> None:
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    snapshot = cached_repo(tmp_path, "datasets--Jiayi-Pan--Countdown-Tasks-3to4")
    files(snapshot, **{"data__train-00001-of-00002.parquet": ""})
    finding = inputs.data(case(recipe={}, environment=offline))
    assert is_failure(finding, "recipe")
    assert "in the cache: 1 of its files are not here, train-00000-of-00002.parquet among them" in finding.detail
    assert "mini-r1 prefetch RECIPE" in finding.detail
    files(snapshot, **{"data__train-00000-of-00002.parquet": ""})
    assert inputs.data(case(recipe={}, environment=offline)).status == "ok"
