"""The share of a machine's cores that a container's or a job's control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.machine import control_groups

V1 = "9:memory:/slice/job\n4:cpu,cpuacct:/slice/job\n1:name=systemd:/slice/job\n"


def reader(root: Path, cgroup: str, files: dict[str, str]) -> control_groups.Read:
    """Return a reader of a made-up /proc and /sys/fs/cgroup."""
    kernels = {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}
    for path, text in kernels.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return lambda path: (root / path).read_text() if (root / path).is_file() else None


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4.0),  # a container that sees its own group as the root
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/pod/one\n", {"pod/one/cpu.max": "max 100000\n", "pod/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/pod/one\n", {"pod/one/cpu.max": "800000 100000\n", "pod/cpu.max": "200000 50000\n"}, 4.0),
        (V1, {"cpu/slice/job/cpu.cfs_quota_us": "-1\n", "cpu/slice/job/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/slice/job/cpu.cfs_quota_us": "50000\n", "cpu/slice/job/cpu.cfs_period_us": "100000\n"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("", {"cpu.max": "400000 100000\n"}, None),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, cgroup: str, files: dict[str, str], cores: float | None) -> None:
    assert control_groups.cores(reader(tmp_path, cgroup, files)) == cores


@pytest.mark.parametrize(("quota", "seen", "cores"), [(None, 16, 16), (2.5, 16, 2), (0.5, 16, 1), (32.0, 16, 16)])
def test_the_quota_limits_the_usable_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, seen: int, cores: int
) -> None:
    monkeypatch.setattr(control_groups, "cores", lambda: quota)
    monkeypatch.setattr(control_groups.os, "sched_getaffinity", lambda _: set(range(seen)), raising=False)
    assert control_groups.usable_cores() == cores
