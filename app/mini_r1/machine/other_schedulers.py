"""What the variables of schedulers that `nodes.py` does not read say about the number of nodes.

A node that takes itself for the only one trains another run in the same directory, so "several" must not be missed.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mini_r1.console import printable

SHOWN = 60
"""Characters of a value in a message."""
_NODES: Final = re.compile(
    r"""(?:\w*_)?(?:N_?|NUM_)(?:NODES|HOSTS)      # SkyPilot, PBS, Flux, AWS Batch, ModelArts, Grid Engine (NHOSTS)
    | \w+_NODES?_(?:NUM|COUNT)                    # dstack, Google's Batch, Azure ML
    | VC_\w+_NUM                                  # Volcano: one for each role
    | BEAKER_REPLICA_COUNT | LEPTON_JOB_TOTAL_WORKERS | LWS_GROUP_SIZE | NGC_ARRAY_SIZE | OCI__WORKER_COUNT
    | PJM_NODE""",
    re.VERBOSE,
)
"""Numbers of nodes."""
_HOSTS: Final = re.compile(
    r"""SM_HOSTS | SM_RESOURCE_CONFIG | CLUSTER_SPEC | TF_CONFIG       # SageMaker, Vertex AI, TensorFlow: JSON
    | (?:SKYPILOT_NODE|DSTACK_NODES)_IPS | AZ_BATCH_(?:NODE|HOST)_LIST | VC_\w+_HOSTS | LSB_HOSTS | LSB_MCPU_HOSTS
    | OMPI_MCA_orte_default_hostfile | I_MPI_HYDRA_HOST_FILE   # Kubeflow's MPIJob
    | LSB_DJOB_(?:HOST|RANK)FILE | PBS_NODEFILE | PE_HOSTFILE | OAR_NODE_?FILE | COBALT_NODEFILE | BATCH_HOSTS_FILE""",
    re.VERBOSE,
)
"""Names of hosts as JSON, as a list, or in a file with a line for each."""
_PROCESSES: Final = re.compile(
    r"(?:\w+_)?WORLD_SIZE|PMI_SIZE|JSM_NAMESPACE_SIZE|_CONDOR_NPROCS|(?:HOROVOD_)?CROSS_SIZE"
)
"""Numbers of processes: torch's and Open MPI's (OMPI_COMM_WORLD_SIZE), MPICH's, jsrun's, HTCondor's, Horovod's."""
_INDEX: Final = re.compile(r"(?:\w*_)?NODE_(?:RANK|INDEX)|RANK|V[CK]_TASK_INDEX|(?:PALS|SLURM)_NODEID")


def several_nodes(environment: Mapping[str, str]) -> tuple[str, int | None] | None:
    """Return a variable that says there is more than one node, with its value, and the number if it is known."""
    nodes: Counter[str] = Counter()
    unknown: list[str] = []  # several processes, perhaps of one node; hosts that cannot be read here
    first: list[str] = []  # index 0 of any number
    later: list[str] = []
    for name, value in sorted(environment.items()):
        text = value.strip()
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
        if text and _HOSTS.fullmatch(name):
            hosts = len(set(_hosts(text)))
            nodes[_all_roles(name)] += hosts
            unknown += [name] * (not hosts)
        elif number is not None and (_NODES.fullmatch(name) or (number == 1 and _PROCESSES.fullmatch(name))):
            nodes[_all_roles(name)] += number
        elif number and _PROCESSES.fullmatch(name):
            unknown.append(name)
        elif number is not None and _INDEX.fullmatch(name):
            (later if number else first).append(name)
    several: dict[str, int | None] = {name: count for name, count in nodes.items() if count > 1}
    if not any(nodes.values()):
        is_local = environment.get("MASTER_ADDR", "") in ("", "localhost", "127.0.0.1")
        several |= dict.fromkeys(unknown + first * (not is_local))
    several |= dict.fromkeys(later)
    for name, count in several.items():
        value = printable(" ".join(environment.get(name, str(count)).split()))
        return f"{name}={value if len(value) <= SHOWN else value[:SHOWN] + '...'}", count
    return None


def process_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that a launcher of processes gave this one: its rank, and their number."""
    return [name for name in sorted(environment) if name == "RANK" or _PROCESSES.fullmatch(name)]


def _all_roles(name: str) -> str:
    """Return the name under which Volcano's roles (VC_MASTER_NUM, VC_WORKER_NUM) are added up."""
    return re.sub(r"^VC_\w+_(NUM|HOSTS)$", r"VC_*_\1", name)


def _hosts(text: str) -> Iterator[str]:
    if text[0] in "[{":
        try:
            yield from _strings_in_lists(json.loads(text))
        except (ValueError, RecursionError):
            return
    elif text[0] == "/":
        try:
            yield from (line.split()[0] for line in Path(text).read_text(errors="replace").splitlines() if line.strip())
        except OSError:
            return
    else:  # LSB_MCPU_HOSTS has a number behind each name
        yield from (word for word in re.split(r"[\s,;]+", text) if word and not word.isdecimal())


def _strings_in_lists(value: Any) -> Iterator[str]:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(value, list) and isinstance(item, str):
            yield item
        else:
            yield from _strings_in_lists(item)
