"""The devices that a process was given: indices, UUIDs, slices, slots, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import pynvml
import pytest
from mini_r1.errors import KitError
from mini_r1.machine.devices import given_devices
from mini_r1.machine.nvidia import ListedGpu, device_index, list_gpus

UUIDS = tuple(f"GPU-{digit * 8}-0000-1111-2222-{digit * 12}" for digit in "abcd")
SLICES = ("MIG-1f3c5a2e-0000-1111-2222-333333333333", "MIG-2f3c5a2e-0000-1111-2222-333333333333")
CPU = {"MINI_R1_ACCELERATOR": "cpu"}


def seen(*devices: str):
    """A machine on which the NVIDIA library sees these GPUs, or slices of one GPU; without any, there is no driver."""
    if not devices:
        return lambda: None
    if devices[0].startswith("MIG-"):
        return lambda: [ListedGpu(UUIDS[0], devices)]
    return lambda: [ListedGpu((*UUIDS, *("GPU-" + digit * 8 for digit in "4567"))[int(index)]) for index in devices]


def indices(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@pytest.mark.parametrize("count", range(9))
def test_without_a_grant_all_devices_of_the_driver_are_given(count: int) -> None:
    devices = given_devices({}, driver=seen(*indices(count)))
    assert (devices.ids, devices.on_cpu) == (indices(count), count == 0)
    assert devices.source == ("the NVIDIA library" if count else "the NVIDIA library sees none")


@pytest.mark.parametrize(
    ("environment", "ids"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("0", "1", "2", "3")),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, ("2", "3")),  # a job on a shared node
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, ("3", "1")),  # the order is the user's, and the last one is vLLM's
        ({"CUDA_VISIBLE_DEVICES": " 1 , 2 "}, ("1", "2")),
        ({"CUDA_VISIBLE_DEVICES": "01"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "0,1,-1,2"}, ("0", "1")),  # CUDA stops reading there
        ({"CUDA_VISIBLE_DEVICES": ",".join(UUIDS[:3])}, UUIDS[:3]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa,GPU-b"}, ("GPU-aaaa", "GPU-b")),  # CUDA takes a beginning
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-aaaa/1/0"}, ("MIG-GPU-aaaa/1/0",)),  # as older drivers write it
        ({"SLURM_GPUS_ON_NODE": "4"}, ("0", "1", "2", "3")),
        ({"SLURM_GPUS_ON_NODE": "h100:4"}, ("0", "1", "2", "3")),
        ({"SLURM_GPUS_ON_NODE": "gpu:h100:2"}, ("0", "1")),
        ({"SLURM_GPUS_ON_NODE": "a100:1,h100:2"}, ("0", "1", "2")),
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "2,3"}, ("2", "3")),  # CUDA's variable counts
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"SLURM_GPUS_ON_NODE": "", "CUDA_VISIBLE_DEVICES": "1"}, ("1",)),
        # Without device cgroups the driver shows more GPUs than Slurm granted: its indices count.
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, ("2", "3")),
        ({"SLURM_JOB_GPUS": "2,3"}, ("2", "3")),
        ({"SLURM_STEP_GPUS": "6,7", "SLURM_JOB_GPUS": "4,5,6,7", "SLURM_GPUS_ON_NODE": "2"}, ("6", "7")),
        ({"SLURM_JOB_GPUS": "4-6", "SLURM_GPUS_ON_NODE": "3"}, ("4", "5", "6")),
        ({"SLURM_JOB_GPUS": "4,5,6", "SLURM_GPUS_ON_NODE": "1"}, ("4",)),
        ({"SLURM_JOB_GPUS": "4,5", "CUDA_VISIBLE_DEVICES": "0,1"}, ("0", "1")),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_GPUS": "gpu:2"}, ("0", "1")),
    ],
)
def test_devices_of_an_environment(environment: dict[str, str], ids: tuple[str, ...]) -> None:
    devices = given_devices(environment, driver=seen(*indices(8)))
    assert (devices.ids, devices.on_cpu) == (ids, not ids)
    assert next(iter(environment)) in devices.source or "CUDA_VISIBLE_DEVICES" in devices.source


@pytest.mark.parametrize("count", range(9))
def test_the_first_devices_are_taken(count: int) -> None:
    devices = given_devices({"CUDA_VISIBLE_DEVICES": "7,6,5,4,3,2,1,0"}, count, seen(*indices(8)))
    assert devices.ids == ("7", "6", "5", "4", "3", "2", "1", "0")[:count]
    assert devices.on_cpu == (count == 0)


def test_a_slice_that_the_driver_sees_is_one_gpu() -> None:
    assert given_devices({}, driver=seen(SLICES[0])).ids == (SLICES[0],)
    for name in (*SLICES, "MIG-1f3c", "0"):
        assert given_devices({"CUDA_VISIBLE_DEVICES": name}, driver=seen(*SLICES)).ids == (name,)


@pytest.mark.parametrize(
    ("environment", "shown", "ids"),
    [
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, 2, ("0", "1")),  # device cgroups
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, 0, ("0", "1")),
        ({"SLURM_JOB_GPUS": "2,3"}, 3, None),
        ({"SLURM_GPUS_ON_NODE": "4"}, 2, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, 2, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,9,2"}, 8, None),
        ({"CUDA_VISIBLE_DEVICES": "7,8"}, 8, None),
        ({"CUDA_VISIBLE_DEVICES": UUIDS[3]}, 2, None),
        ({"CUDA_VISIBLE_DEVICES": SLICES[0]}, 2, None),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-ffff/1/0"}, 2, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, 0, ("4", "5")),
        ({"CUDA_VISIBLE_DEVICES": f"{UUIDS[3]},GPU-ffff"}, 0, (UUIDS[3], "GPU-ffff")),
    ],
)
def test_a_device_that_the_driver_does_not_have_is_never_replaced(
    environment: dict[str, str], shown: int, ids: tuple[str, ...] | None
) -> None:
    driver = seen(*indices(shown))
    if ids is None:
        with pytest.raises(KitError, match="but the driver has no") as refused:
            given_devices(environment, driver=driver)
        assert refused.value.exit_code == 150
        assert next(iter(environment)) in refused.value.message
    else:
        devices = given_devices(environment, driver=driver)
        assert (devices.ids, devices.on_cpu) == (ids, False)
        assert ("not checked: no NVIDIA driver here" in devices.source) == (not shown)


def test_a_driver_without_gpus_does_not_have_the_one_that_was_given() -> None:
    with pytest.raises(KitError, match="no 0, only no GPU at all") as refused:
        given_devices({"CUDA_VISIBLE_DEVICES": "0"}, driver=list)
    assert refused.value.exit_code == 150
    assert given_devices({}, driver=list).on_cpu


@pytest.mark.parametrize(
    ("environment", "machine", "message"),
    [
        ({"CUDA_VISIBLE_DEVICES": ",".join(SLICES)}, (), SLICES[1]),
        ({"CUDA_VISIBLE_DEVICES": f"{UUIDS[0]},{SLICES[0]}"}, (), "one MIG slice"),
        ({}, SLICES, SLICES[0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, SLICES, "one MIG slice"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,0"}, ("0", "1"), "0 appears twice"),
        ({"CUDA_VISIBLE_DEVICES": "1,01"}, ("0", "1"), "1 appears twice"),
        ({"CUDA_VISIBLE_DEVICES": f"{UUIDS[0]},{UUIDS[0]}"}, (), "twice"),
        ({"CUDA_VISIBLE_DEVICES": "all"}, ("0",), "'all' is no device"),
        ({"CUDA_VISIBLE_DEVICES": "0;1"}, ("0",), "'0;1' is no device"),
        ({"CUDA_VISIBLE_DEVICES": "0,\x1b[31m"}, ("0",), r"\x1b"),
        ({"CUDA_VISIBLE_DEVICES": "0,١"}, ("0",), "is no device"),
        ({"SLURM_GPUS_ON_NODE": "many"}, (), "SLURM_GPUS_ON_NODE=many"),
        ({"MINI_R1_ACCELERATOR": "tpu"}, (), "MINI_R1_ACCELERATOR=tpu"),
        ({"MINI_R1_ACCELERATOR": "cuda"}, (), "nvidia.com/gpu in resources.limits"),
    ],
)
def test_invalid_entries_are_refused(environment: dict[str, str], machine: tuple[str, ...], message: str) -> None:
    with pytest.raises(KitError) as refused:
        given_devices(environment, driver=seen(*machine))
    assert message in refused.value.message
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    ("environment", "machine", "count", "message"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, indices(8), 3, "only 2 given (CUDA_VISIBLE_DEVICES=2,3)"),
        ({}, ("0",), 2, "only 1 given"),
        ({}, (), 2, "MINI_R1_ACCELERATOR=cpu for 2 slots"),
        ({**CPU, "CUDA_VISIBLE_DEVICES": "0,1"}, (), 3, "only 2 given"),
    ],
)
def test_more_than_was_given_is_refused(
    environment: dict[str, str], machine: tuple[str, ...], count: int, message: str
) -> None:
    with pytest.raises(KitError) as refused:
        given_devices(environment, count, seen(*machine))
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("environment", "count", "slots"),
    [
        ({}, None, 0),  # a plain process on the CPU
        ({}, 3, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, 2),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, None, 2),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, 1),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2, 2),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 0, 0),
        ({"SLURM_GPUS_ON_NODE": "4"}, None, 4),
        ({"CUDA_VISIBLE_DEVICES": ",".join(SLICES)}, None, 2),  # on the CPU a slot is a slot
    ],
)
def test_the_switch_makes_devices_slots_of_the_cpu(environment: dict[str, str], count: int | None, slots: int) -> None:
    devices = given_devices({**CPU, **environment}, count, seen("0", "1", "2"))
    assert (devices.ids, devices.on_cpu) == (indices(slots), True)
    assert "MINI_R1_ACCELERATOR=cpu" in devices.source


@pytest.mark.parametrize(
    ("environment", "count", "source"),
    [
        ({}, None, "MINI_R1_ACCELERATOR=cpu"),
        ({}, 2, "MINI_R1_ACCELERATOR=cpu and --gpus 2"),
        ({"SLURM_GPUS_ON_NODE": "4"}, 2, "MINI_R1_ACCELERATOR=cpu and SLURM_GPUS_ON_NODE=4"),
    ],
)
def test_where_slots_come_from(environment: dict[str, str], count: int | None, source: str) -> None:
    assert given_devices({**CPU, **environment}, count, seen()).source == source


# ---- a stand-in for the NVIDIA library -------------------------------------------------------------------------------


@dataclass
class Gpu:
    """What the library knows of one: as bytes, its UUID is what older versions answer."""

    uuid: str | bytes
    divided: bool | None = False
    """None: it cannot be."""
    slices: list[str | None] = field(default_factory=list)
    """None: no slice was made there."""


class Library:
    """The functions of pynvml that are asked; a handle is a GPU or a UUID."""

    def __init__(self, gpus: list[Gpu], fails_at: str = "") -> None:
        self.gpus, self.fails_at, self.opened = gpus, fails_at, 0

    def answer(self, name: str, value: object) -> object:
        if name == self.fails_at or value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Library:
        for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex",
                     "nvmlDeviceGetUUID", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount",
                     "nvmlDeviceGetMigDeviceHandleByIndex"):  # fmt: skip
            monkeypatch.setattr(pynvml, name, getattr(self, name))
        return self

    def nvmlInit(self) -> None:
        self.answer("init", True)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> object:
        return self.answer("count", len(self.gpus))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        return self.answer("handle", self.gpus[index])

    def nvmlDeviceGetUUID(self, handle: Gpu | str) -> object:
        return handle.uuid if isinstance(handle, Gpu) else handle

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> object:
        enabled, disabled = pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_DISABLE
        # What it is now, and what it will be after a reset.
        modes = {True: (enabled, disabled), False: (disabled, enabled), None: None}
        return self.answer("mode", modes[gpu.divided])

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:
        return len(gpu.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, number: int) -> object:
        return self.answer("slice", gpu.slices[number])


@pytest.mark.parametrize(
    ("gpus", "found"),
    [
        ([], ()),
        ([Gpu(UUIDS[0])], ("0",)),
        ([Gpu(UUIDS[0], None), Gpu(UUIDS[1]), Gpu(UUIDS[2])], ("0", "1", "2")),
        ([Gpu(UUIDS[0], True, [None, SLICES[0], None])], (SLICES[0],)),
        ([Gpu(UUIDS[0]), Gpu(UUIDS[1], True, [])], ("0",)),
    ],
)
def test_what_the_library_sees(gpus: list[Gpu], found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(gpus).install(monkeypatch)
    assert [gpu.uuid for gpu in list_gpus() or ()] == [gpu.uuid for gpu in gpus]
    assert given_devices({}).ids == found
    assert library.opened == 0


@pytest.mark.parametrize("fails_at", ["init", "count"])
def test_a_library_that_does_not_answer_sees_nothing(fails_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library([Gpu(UUIDS[0])], fails_at).install(monkeypatch)
    assert list_gpus() is None
    assert library.opened == 0


def test_a_gpu_that_does_not_answer_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to train on the CPU: the doctor refuses it, with exit code 150."""
    library = Library([Gpu(UUIDS[0])], "handle").install(monkeypatch)
    assert list_gpus() == [ListedGpu()]
    assert given_devices({}).ids == ("0",)
    assert library.opened == 0


@pytest.mark.parametrize(
    ("device", "index"), [(UUIDS[0], "0"), (UUIDS[1], "1"), (UUIDS[2], "2"), ("GPU-c", "2"), ("3", "3")]
)
def test_the_index_of_a_gpu_named_by_its_uuid(device: str, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu(UUIDS[0]), Gpu(UUIDS[1].encode()), Gpu(UUIDS[2])]
    library = Library(gpus).install(monkeypatch)
    assert device_index(device) == index
    assert library.opened == 0


def test_an_index_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    Library([], "init").install(monkeypatch)
    assert device_index("3") == "3"


@pytest.mark.parametrize("fails_at", ["", "init", "count"])
def test_a_uuid_that_no_driver_knows_stays(fails_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch --dry-run` shows it; a launch has refused it before, with exit code 150."""
    library = Library([Gpu(UUIDS[0])], fails_at).install(monkeypatch)
    assert device_index(UUIDS[3]) == UUIDS[3]
    assert library.opened == 0
