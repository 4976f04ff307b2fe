"""`mini-r1 doctor --login` and Slurm: partition and batch script. Slurm's programs are stand-ins (login_node.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.doctor import slurm
from mini_r1.doctor.slurm import read_directives, read_seconds

from tests.cluster.login_node import (
    CRLF,
    DOWN,
    DRAINED,
    NO_ACCOUNT,
    NO_CONFIGURATION,
    NO_CONTROLLER,
    NO_NODES,
    NO_PARTITION,
    NOT_A_SCRIPT,
    PARTITIONS,
    SCRIPT,
    SILENT,
    Cluster,
    is_failure,
    statuses,
)
from tests.conftest import REPO


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


# --- the partition ---


def test_a_node_without_slurm_is_no_login_node(cluster: Cluster) -> None:
    (cluster.bin / "sinfo").unlink()
    report = cluster.report()
    assert report.exit_code == 150
    partition, submission = report.findings[1:3]
    assert partition.detail == "sinfo: No such file or directory"
    assert (submission.status, submission.detail) == ("skip", "see partition")


@pytest.mark.parametrize(
    ("err", "part"),
    [(DOWN, "Unable to contact slurm controller"), (NO_CONFIGURATION, "Could not establish a configuration source")],
)
def test_a_controller_that_does_not_answer_is_150_and_asked_once(cluster: Cluster, err: str, part: str) -> None:
    cluster.program("sinfo", err=err, code=1)
    report = cluster.report()
    partition = report.findings[1]
    assert (report.exit_code, partition.cause) == (150, "node")
    assert part in partition.detail
    assert "sinfo: error:" not in partition.detail
    assert [len(cluster.asked(name)) for name in ("sinfo", "sbatch", "scontrol")] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "status", "cause", "part"),
    [
        (None, "ok", None, "gpu is up, time limit 1-00:00:00: 2 x gpu:h100:4 idle"),
        ("gpu", "ok", None, "gpu is up"),
        ("priv,gpu", "ok", None, "priv is up, time limit infinite: 2 x gpu:h100:4 idle; gpu is up"),
        ("mixed", "fail", "recipe", "asks for 12:00:00, and mixed allows 2:00:00"),
        ("mixed,gpu", "ok", None, "mixed is up, time limit 2:00:00: 1 x gpu:a100:8 inval, 1 x (null) idle, 2 x gpu"),
        ("gpuu", "fail", "recipe", "there is no partition gpuu; did you mean 'gpu'?"),
        ("gpu,nope", "fail", "recipe", "there is no partition nope"),
        ("cpu", "fail", "recipe", "no GPUs (GRES)"),
        ("empty", "fail", "recipe", "0 x (null) n/a: no GPUs"),
        ("closed", "fail", "node", "closed is down"),
        ("drainp", "fail", "node", "drainp is drain"),
        ("inact", "fail", "node", "inact is inactive"),
    ],
)
def test_a_partition(cluster: Cluster, name: str | None, status: str, cause: str | None, part: str) -> None:
    finding = cluster.found("partition", SBATCH_PARTITION=name)
    assert (finding.status, finding.cause) == (status, cause)
    assert part in finding.detail


def test_an_unknown_partition_gets_the_names_of_the_others_and_is_reported_once(cluster: Cluster) -> None:
    cluster.program("sbatch", err=NO_PARTITION, code=1)
    report = cluster.report(SBATCH_PARTITION="nope")
    assert report.exit_code == 78
    partition, submission = report.findings[1:3]
    assert "one of gpu, cpu, mixed, closed, drainp, inact, empty, priv" in partition.fix
    assert (submission.status, submission.detail) == ("skip", "see partition")


def test_the_scripts_partition_counts_if_the_site_names_none(cluster: Cluster) -> None:
    cluster.script.write_text(SCRIPT.replace("#SBATCH --job-name=mini-r1", "#SBATCH -p priv"))
    assert cluster.found("partition").detail.startswith("priv is up")
    assert cluster.found("partition", SBATCH_PARTITION="gpu").detail.startswith("gpu is up")


def test_no_default_and_none_named(cluster: Cluster) -> None:
    cluster.program("sinfo", PARTITIONS.replace("gpu*", "gpu"))
    assert "no default partition" in cluster.found("partition").detail


@pytest.mark.parametrize("sinfo", [DRAINED, SILENT.replace("mixed", "gpu*").replace("2:00:00", "infinite")])
def test_nodes_out_of_service_are_a_failure_of_the_node(cluster: Cluster, sinfo: str) -> None:
    cluster.program("sinfo", sinfo)
    finding = cluster.found("partition")
    assert is_failure(finding, "node")
    assert "out of service" in finding.detail


def test_a_partition_of_cpus_will_do_if_the_cpu_is_to_train(cluster: Cluster) -> None:
    assert cluster.found("partition", SBATCH_PARTITION="cpu", MINI_R1_ACCELERATOR="cpu").status == "ok"


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:4", 4),
        ("gpu:4", 4),
        ("gpu:h100:4(S:0-1)", 4),
        ("gpu:(null):2(S:0,2)", 2),
        ("lustre:1,gpu:a100:2(S:0),gpu:a30:2", 4),
        ("mps:gpu:1,nvgpu:3", 0),
        ("(null)", 0),
    ],
)
def test_gpus_of_a_line_of_sinfo(cluster: Cluster, gres: str, gpus: int) -> None:
    cluster.program("sinfo", f"p*|up|infinite|1|{gres}|idle\n")
    (group,) = cluster.login().node_groups
    assert group.gpus == gpus


def test_a_job_that_would_wait_forever_is_reported_though_slurm_accepts_it(cluster: Cluster) -> None:
    finding = cluster.found("partition", SBATCH_PARTITION="mixed")
    assert is_failure(finding, "recipe")
    assert finding.fix.startswith("`sbatch --time=2:00:00`")
    assert cluster.found("partition", SBATCH_PARTITION="mixed", SBATCH_TIMELIMIT="90").status == "ok"
    assert cluster.found("partition", SBATCH_PARTITION="mixed,gpu").status == "ok"  # the other one will take it
    assert cluster.found("partition", SBATCH_PARTITION="priv").status == "ok"


# --- the batch script ---


def test_slurms_own_message_is_shown(cluster: Cluster) -> None:
    assert "Job 1 to start at 2026-11-26T08:55:19" in cluster.found("submission").detail
    for err, part in (
        (NO_ACCOUNT, "Invalid account or account/partition combination specified"),
        (NOT_A_SCRIPT, "must start with #! followed by the path"),
        (CRLF, "Batch script contains DOS line breaks"),
    ):
        cluster.program("sbatch", err=err, code=1)
        finding = cluster.found("submission")
        assert is_failure(finding, "recipe")
        assert part in finding.detail


def test_a_controller_that_goes_away_meanwhile_is_a_failure_of_the_node(cluster: Cluster) -> None:
    cluster.program("sbatch", err=NO_CONTROLLER, code=1)
    assert is_failure(cluster.found("submission"), "node")


def test_too_much_asked_is_told_apart_from_nodes_out_of_service(cluster: Cluster) -> None:
    cluster.program("sbatch", err=NO_NODES, code=1)
    finding = cluster.found("submission")
    assert is_failure(finding, "recipe")
    assert "nodes: 2 x gpu:h100:4 idle" in finding.detail
    cluster.program("sinfo", f"{DRAINED}gpu*|up|1-00:00:00|1|gpu:h100:2|idle\n")  # the one in service is too small
    finding = cluster.found("submission")
    assert is_failure(finding, "node")
    assert "1 x gpu:h100:4 draining, 1 x gpu:h100:4 drained" in finding.detail
    assert is_failure(cluster.found("submission", SBATCH_GPUS_PER_NODE="h100:8"), "recipe")  # no node has eight
    cluster.script.write_text(SCRIPT.replace("#SBATCH --job-name=mini-r1", "#SBATCH -N 3"))
    assert is_failure(cluster.found("submission"), "recipe")
    cluster.program("sinfo", f"{DRAINED}gpu*|up|1-00:00:00|3|gpu:h100:4|idle\n")  # enough nodes: it is memory, or CPUs
    assert is_failure(cluster.found("submission"), "recipe")


def test_without_a_script_the_check_is_skipped(cluster: Cluster) -> None:
    cluster.script.unlink()
    finding = cluster.found("submission")
    assert finding.status == "skip"
    assert "run this in the kit's folder" in finding.detail


def test_another_script_is_checked_on_request(cluster: Cluster) -> None:
    (cluster.kit / "slurm/mine.sh").write_text("#!/bin/bash\n")
    cluster.report(script=Path("slurm/mine.sh"))
    assert cluster.asked("sbatch") == ["--test-only slurm/mine.sh"]


def test_the_kit_may_be_in_another_folder(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    report = cluster.report(MINI_R1_HOME=str(cluster.kit))
    assert report.exit_code == 0
    assert cluster.asked("sbatch") == [f"--test-only {cluster.script}"]
    assert statuses(report)["image"] == "ok"  # the kit's virtual environment


def test_directives_end_at_the_first_command_as_for_sbatch() -> None:
    found = read_directives(SCRIPT)
    assert found["time"] == "12:00:00"
    assert found["signal"] == "B:USR1@600"
    other = '#!/bin/sh\n# SBATCH --time=1\n #SBATCH --qos=x\n#SBATCH -t 5 --output="a b.log" --export NONE # why\n'
    assert read_directives(other) == {}  # for sbatch an indented line is no comment, and so the first command
    assert read_directives(other.replace("\n #", "\n##")) == {"time": "5", "output": "a b.log", "export": "NONE"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:00", 600), ("2:00:00", 7200), ("1-00:00:00", 86_400), ("1-12", 129_600), ("0-0:30", 1800),
     ("infinite", None), ("UNLIMITED", None), ("", None), ("$TIME", None)],
)  # fmt: skip
def test_slurms_times(text: str, seconds: int | None) -> None:
    assert read_seconds(text) == seconds


def test_every_script_of_the_kit_is_understood() -> None:
    scripts = sorted((REPO / "slurm").glob("train_*.sh"))
    if not scripts:
        pytest.skip("no slurm/train_*.sh")
    for script in scripts:
        found = read_directives(script.read_text())
        assert read_seconds(found["time"]), script
        assert "/" not in found["output"].partition("%")[0], f"{script}: a folder for logs, which nothing makes"


def test_a_program_that_does_not_answer_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = cluster.bin / "slow"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(slurm, "TIMEOUT_S", 1.0)
    answer = cluster.login().ask(str(slow))
    assert (answer.code, answer.text) == (None, "no answer within 1 s")
    assert cluster.login().ask(str(cluster.bin / "absent")).code == 127
