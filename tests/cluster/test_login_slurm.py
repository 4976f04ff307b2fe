"""`mini-r1 doctor --login` and Slurm: controller, partition, batch script.

Slurm's programs are stand-ins here (login_node.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.doctor import slurm

from tests.cluster.login_node import (
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
    UP,
    Cluster,
    is_failure,
    statuses,
)
from tests.conftest import REPO


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


# --- Slurm ---


def test_a_node_without_slurm_is_no_login_node(cluster: Cluster) -> None:
    (cluster.bin / "sinfo").unlink()
    report = cluster.report()
    assert report.exit_code == 150
    (scheduler,) = (finding for finding in report.findings if finding.check == "scheduler")
    assert scheduler.detail == "not on the PATH: sinfo"
    assert (statuses(report)["partition"], statuses(report)["submission"]) == ("skip", "skip")


@pytest.mark.parametrize(
    ("out", "err", "said"),
    [(DOWN, "", "is DOWN"), ("", NO_CONFIGURATION, "Could not establish a configuration source")],
)
def test_a_controller_that_does_not_answer_is_150_and_asked_once(
    cluster: Cluster, out: str, err: str, said: str
) -> None:
    cluster.program("scontrol", out, err, 1)
    report = cluster.report()
    finding = {finding.check: finding for finding in report.findings}["scheduler"]
    assert (report.exit_code, finding.cause) == (150, "node")
    assert said in finding.detail
    assert "*" not in finding.detail
    assert "scontrol:" not in finding.detail
    assert len(cluster.asked("scontrol")) == 1
    assert not (cluster.bin / "sinfo.asked").exists()


def test_a_second_controller_may_be_down(cluster: Cluster) -> None:
    cluster.program("scontrol", f"{UP}Slurmctld(backup) at vm2 is DOWN\n")
    finding = cluster.found("scheduler")
    assert finding.status == "ok"
    assert "Slurmctld(backup) at vm2 is DOWN" in finding.detail


@pytest.mark.parametrize(
    ("name", "status", "fault", "said"),
    [
        (None, "ok", None, "gpu (the cluster's default) is up, 2 nodes with 4 GPUs (h100) each, time limit 1-00:00:00"),
        ("gpu", "ok", None, "gpu is up"),
        ("mixed", "ok", None, "1 node with 8 GPUs (a100) each, 2 nodes with 4 GPUs (h100) each, 1 node without GPUs"),
        ("mixed", "ok", None, "out of service: 1 inval"),
        ("gpuu", "fail", "recipe", "there is no partition gpuu; did you mean 'gpu'?"),
        ("gpu,nope", "fail", "recipe", "there is no partition nope"),
        ("cpu", "fail", "recipe", "no GPUs (GRES) there"),
        ("empty", "fail", "recipe", "0 nodes without GPUs"),
        ("closed", "fail", "node", "closed is down"),
        ("drainp", "fail", "node", "drainp is drain"),
        ("inact", "fail", "node", "inact is inactive"),
    ],
)
def test_a_partition(cluster: Cluster, name: str | None, status: str, fault: str | None, said: str) -> None:
    finding = cluster.found("partition", SBATCH_PARTITION=name)
    assert (finding.status, finding.cause) == (status, fault)
    assert said in finding.detail


def test_an_unknown_partition_gets_the_names_of_those_that_there_are_and_is_told_once(cluster: Cluster) -> None:
    cluster.sbatch(NO_PARTITION, 1)
    report = cluster.report(SBATCH_PARTITION="nope")
    assert report.exit_code == 78
    partition, submission = report.findings[2:4]
    assert "one of gpu, cpu, mixed, closed, drainp, inact, empty, priv" in partition.fix
    assert (submission.status, submission.detail) == ("skip", "see partition")


def test_the_scripts_own_partition_counts_where_the_site_names_none(cluster: Cluster) -> None:
    cluster.script.write_text(SCRIPT.replace("#SBATCH --job-name=mini-r1", "#SBATCH -p mixed"))
    assert cluster.found("partition").detail.startswith("mixed (of slurm/train_4xh100.sh)")
    assert cluster.found("partition", SBATCH_PARTITION="gpu").detail.startswith("gpu is up")


def test_no_default_and_none_named(cluster: Cluster) -> None:
    cluster.program("sinfo", PARTITIONS.replace("gpu*", "gpu"))
    assert "no default partition" in cluster.found("partition").detail


@pytest.mark.parametrize("sinfo", [DRAINED, SILENT.replace("mixed", "gpu*")])
def test_nodes_out_of_service_are_the_nodes_fault(cluster: Cluster, sinfo: str) -> None:
    cluster.program("sinfo", sinfo)
    finding = cluster.found("partition")
    assert is_failure(finding, "node")
    assert "out of service: 1 " in finding.detail


def test_a_partition_of_cpus_will_do_where_the_cpu_is_to_train(cluster: Cluster) -> None:
    assert cluster.found("partition", SBATCH_PARTITION="cpu", MINI_R1_ACCELERATOR="cpu").status == "ok"


@pytest.mark.parametrize(
    ("gres", "gpus", "kind"),
    [
        ("gpu:h100:4", 4, "h100"),
        ("gpu:4", 4, ""),
        ("gpu:h100:4(S:0-1)", 4, "h100"),
        ("gpu:(null):2(S:0,2)", 2, ""),
        ("lustre:1,gpu:a100:2(S:0),gpu:a30:2", 4, "a100+a30"),
        ("mps:gpu:1,nvgpu:3", 0, ""),
        ("(null)", 0, ""),
    ],
)
def test_gpus_of_a_line_of_sinfo(cluster: Cluster, gres: str, gpus: int, kind: str) -> None:
    cluster.program("sinfo", f"p*|up|infinite|1|{gres}|idle\n")
    answer, (found,) = slurm._kinds(cluster.site())
    assert answer is None
    assert (found.gpus, found.gpu_kind) == (gpus, kind)


# --- the batch script ---


def test_slurms_own_words_are_told(cluster: Cluster) -> None:
    assert "Job 1 to start at 2026-11-26T08:55:19" in cluster.found("submission").detail
    cluster.sbatch(NO_ACCOUNT, 1)
    finding = cluster.found("submission")
    assert is_failure(finding, "recipe")
    assert "Invalid account or account/partition combination specified" in finding.detail
    cluster.sbatch(NOT_A_SCRIPT, 1)
    assert "must start with #! followed by the path" in cluster.found("submission").detail


def test_a_controller_that_goes_away_meanwhile_is_the_nodes_fault(cluster: Cluster) -> None:
    cluster.sbatch(NO_CONTROLLER, 1)
    assert is_failure(cluster.found("submission"), "node")


def test_too_much_asked_is_told_apart_from_nodes_that_are_away(cluster: Cluster) -> None:
    cluster.sbatch(NO_NODES, 1)
    finding = cluster.found("submission")
    assert is_failure(finding, "recipe")
    assert "there: 2 nodes with 4 GPUs (h100) each" in finding.detail
    cluster.program("sinfo", f"{DRAINED}gpu*|up|1-00:00:00|1|gpu:h100:2|idle\n")  # the one in service is too small
    finding = cluster.found("submission")
    assert is_failure(finding, "node")
    assert "out of service: 1 draining, 1 drained" in finding.detail
    assert is_failure(cluster.found("submission", SBATCH_GPUS_PER_NODE="h100:8"), "recipe")  # nor has any other eight
    cluster.script.write_text(SCRIPT.replace("#SBATCH --job-name=mini-r1", "#SBATCH -N 3"))
    assert is_failure(cluster.found("submission"), "recipe")
    cluster.program("sinfo", f"{DRAINED}gpu*|up|1-00:00:00|3|gpu:h100:4|idle\n")  # enough are there: it is memory, say
    assert is_failure(cluster.found("submission"), "recipe")


def test_no_script_here_is_skipped_with_a_sentence(cluster: Cluster) -> None:
    cluster.script.unlink()
    finding = cluster.found("submission")
    assert finding.status == "skip"
    assert "run this in the kit's folder" in finding.detail


def test_another_script_is_asked_about(cluster: Cluster) -> None:
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
    assert statuses(report)["runtime"] == "ok"  # the kit's virtual environment


@pytest.mark.parametrize("name", ["train_4xh100.sh", "lib.sh"])
def test_a_script_with_windows_line_ends_is_named(cluster: Cluster, name: str) -> None:
    (cluster.kit / "slurm" / name).write_bytes(SCRIPT.replace("\n", "\r\n").encode())
    finding = cluster.found("submission")
    assert is_failure(finding, "recipe")
    assert f"slurm/{name}: Windows line ends" in finding.detail
    assert finding.fix == f"sed -i 's/\\r$//' slurm/{name}"


def test_a_job_that_would_wait_for_ever_is_told_where_slurm_does_not(cluster: Cluster) -> None:
    finding = cluster.found("submission", SBATCH_PARTITION="mixed")
    assert is_failure(finding, "recipe")
    assert "asks for 12:00:00, and mixed allows 2:00:00" in finding.detail
    assert cluster.found("submission", SBATCH_PARTITION="mixed", SBATCH_TIMELIMIT="90").status == "ok"
    assert cluster.found("submission", SBATCH_PARTITION="mixed,gpu").status == "ok"  # the other one will take it
    assert cluster.found("submission", SBATCH_PARTITION="priv").status == "ok"


def test_a_log_without_a_folder_would_end_the_job_without_a_word(cluster: Cluster) -> None:
    cluster.script.write_text(SCRIPT.replace("%x-%j.log", "logs/%x-%j.log"))
    finding = cluster.found("submission")
    assert is_failure(finding, "recipe")
    assert finding.fix == "mkdir -p logs"
    (cluster.kit / "logs").mkdir()
    assert cluster.found("submission").status == "ok"


def test_directives_end_at_the_first_command_as_sbatch_has_it() -> None:
    found = slurm.directives(SCRIPT)
    assert found["time"] == "12:00:00"
    assert found["signal"] == "B:USR1@600"
    other = '#!/bin/sh\n# SBATCH --time=1\n #SBATCH --qos=x\n#SBATCH -t 5 -o"a b.log" --export NONE # why\n'
    assert slurm.directives(other) == {}  # an indented line is no comment of sbatch's, and so the first command
    assert slurm.directives(other.replace("\n #", "\n##")) == {"time": "5", "output": "a b.log", "export": "NONE"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:00", 600), ("2:00:00", 7200), ("1-00:00:00", 86_400), ("1-12", 129_600), ("0-0:30", 1800),
     ("infinite", None), ("UNLIMITED", None), ("", None), ("$TIME", None)],
)  # fmt: skip
def test_slurms_times(text: str, seconds: int | None) -> None:
    assert slurm.seconds(text) == seconds


def test_every_script_of_the_kit_is_understood() -> None:
    scripts = sorted((REPO / "slurm").glob("train_*.sh"))
    if not scripts:
        pytest.skip("no slurm/train_*.sh")
    for script in scripts:
        found = slurm.directives(script.read_text())
        assert slurm.seconds(found["time"]), script
        assert "/" not in found["output"].partition("%")[0], f"{script}: a folder for logs, which nothing makes"


def test_a_program_that_does_not_answer_is_given_up(cluster: Cluster) -> None:
    slow = cluster.bin / "slow"
    slow.write_text("#!/bin/sh\necho retrying >&2\nexec /bin/sleep 60\n")
    slow.chmod(0o755)
    answer = cluster.site().ask(str(slow), timeout_s=1.0)
    assert answer.code is None
    assert answer.words == "no answer within 1 s; retrying"
    assert cluster.site().ask(str(cluster.bin / "absent")).code == 127
