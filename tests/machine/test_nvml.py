"""guard.nvml against a real shared library that lies in all the ways that drivers do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runner.machine.nvml import unified_cgroup
from tests.testbed import H100, REPOSITORY, FakeNvml

MIB = 1024**2
GPU0 = f"gpu 0 GPU-0 {H100}"
READ = "with Nvml() as nvml: tell(asdict(nvml.read(0)))"
OPEN = """
try:
    Nvml().open()
    tell("opened")
except NvmlUnavailable as error:
    tell([error.reason, error.fatal])
"""


def test_a_reading_has_every_figure(fake_nvml: FakeNvml) -> None:
    fake_nvml.set("driver 580.1", GPU0, "compute 0 9182 19997")
    assert fake_nvml.probe(READ) == {
        "index": 0,
        "uuid": "GPU-0",
        "name": "NVIDIA H100 80GB HBM3",
        "total_bytes": 81559 * MIB,
        "used_bytes": 20000 * MIB,
        "free_bytes": (81559 - 20000 - 512) * MIB,
        "reserved_bytes": 512 * MIB,
        "memory_api": 2,
        "utilization_percent": 87,
        "temperature_celsius": 61,
        "power_watts": 452.0,
        "lost": False,
        "processes": [{"pid": 9182, "used_bytes": 19997 * MIB}],
    }
    told = fake_nvml.probe(
        "with Nvml() as n: tell([n.driver_version(), n.devices(), n.compute_capability(0)])"
    )
    assert told == ["580.1", [[0, "GPU-0"]], 9.0]


@pytest.mark.parametrize("fault", ["no", "old"])
def test_without_memory_v2_v1_is_used_and_recorded(fake_nvml: FakeNvml, fault: str) -> None:
    fake_nvml.set(GPU0, f"{fault} DeviceGetMemoryInfo_v2")
    reading = fake_nvml.probe(READ)
    assert reading["memory_api"] == 1
    assert reading["used_bytes"] == (20000 + 512) * MIB  # v1 counts the driver's share as used
    assert reading["reserved_bytes"] is None


def test_an_old_driver_without_symbols_still_gives_readings(old_nvml: FakeNvml) -> None:
    old_nvml.set(GPU0, "compute 0 71 100", "graphics 0 72 5")
    reading = old_nvml.probe(READ)
    assert reading["memory_api"] == 1
    assert [process["pid"] for process in reading["processes"]] == [71, 72]


def test_process_lists_are_merged_by_pid_and_never_summed(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(
        GPU0, "compute 0 71 100", "graphics 0 71 100", "mps 0 71 90", "compute 0 72 -", "mps 0 72 7"
    )
    assert fake_nvml.probe(READ)["processes"] == [
        {"pid": 71, "used_bytes": 100 * MIB},
        {"pid": 72, "used_bytes": 7 * MIB},
    ]


def test_unknown_process_bytes_are_none(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0, "compute 0 71 -")
    assert fake_nvml.probe(READ)["processes"] == [{"pid": 71, "used_bytes": None}]


def test_no_processes_and_no_process_list_are_not_the_same(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0)
    assert fake_nvml.probe(READ)["processes"] == []
    fake_nvml.set(GPU0, "no DeviceGetComputeRunningProcesses_v3")
    assert fake_nvml.probe(READ)["processes"] is None


def test_unsupported_figures_are_none_and_system_memory_never_stands_in(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.set("gpu 0 GPU-0 - - - - - 0 NVIDIA GB10")
    reading = fake_nvml.probe(READ)
    unknown = {key for key, value in reading.items() if value is None}
    assert unknown == {
        "total_bytes",
        "used_bytes",
        "free_bytes",
        "reserved_bytes",
        "memory_api",
        "utilization_percent",
        "temperature_celsius",
        "power_watts",
    }


@pytest.mark.parametrize("code", [15, 16])
def test_a_lost_card_is_a_reading_that_still_has_its_name(fake_nvml: FakeNvml, code: int) -> None:
    fake_nvml.set(GPU0)
    lost = GPU0.replace(" 452000 0 ", f" 452000 {code} ")
    told = fake_nvml.probe(
        "import os, pathlib\n"
        "with Nvml() as nvml:\n"
        "    nvml.read(0)\n"
        f"    pathlib.Path(os.environ['NVML_STUB']).write_text({lost!r} + chr(10))\n"
        "    tell([asdict(nvml.read(0)), nvml.compute_capability(0), nvml.devices()])\n"
    )
    reading, capability, devices = told
    assert reading["lost"] is True
    assert reading["uuid"] == "GPU-0"
    assert reading["used_bytes"] is None and reading["processes"] is None
    assert capability is None
    assert devices == [[0, "GPU-0"]]


def test_a_card_lost_before_the_first_reading_does_not_hide_the_others(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.set(GPU0.replace(" 452000 0 ", " 452000 15 "), f"gpu 1 GPU-1 {H100}")
    told = fake_nvml.probe("with Nvml() as n: tell([n.devices(), n.read(0).lost, n.read(1).lost])")
    assert told == [[[0, None], [1, "GPU-1"]], True, False]


@pytest.mark.parametrize(
    ("line", "fatal"),
    [
        ("init 18", True),  # driver and library of different versions
        ("init 999", True),  # a GPU detached from its container by daemon-reload
        ("init 9", False),  # no driver loaded: a machine without a GPU
    ],
)
def test_why_nvml_cannot_be_opened(fake_nvml: FakeNvml, line: str, fatal: bool) -> None:
    fake_nvml.set(line)
    reason, told = fake_nvml.probe(OPEN)
    assert told is fatal
    assert reason


def test_a_library_mismatch_that_is_no_nvml_error_is_fatal(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0)
    body = (
        "import pynvml\n"
        "def refuse(): raise pynvml.NVMLLibraryMismatchError('versions differ')\n"
        "pynvml.nvmlInit = refuse\n"
    )
    assert fake_nvml.probe(body + OPEN) == ["versions differ", True]


def test_a_failed_question_is_not_a_reading(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0, "code DeviceGetMemoryInfo 999", "code DeviceGetMemoryInfo_v2 999")
    told = fake_nvml.probe(
        "with Nvml() as nvml:\n"
        "    for index in (0, 7):\n"
        "        try: nvml.read(index); tell('read')\n"
        "        except NvmlFailed as error: print(error)\n"
        "    tell('failed twice')\n"
    )
    assert told == "failed twice"


def test_accounting_keeps_the_peak_of_a_process_that_ended(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0, f"gpu 1 GPU-1 {H100}", "accounting 0 71 4096")
    told = fake_nvml.probe(
        "with Nvml() as n: tell([n.accounting_peak(0, 71), n.accounting_peak(0, 72), "
        "n.accounting_peak(1, 71)])"
    )
    assert told == [4096 * MIB, None, None]


CGROUP = "/sys/fs/cgroup/system.slice/docker-0123.scope"
LIMITS = f"""
from pathlib import Path
with Nvml() as nvml:
    own = Path({CGROUP!r})
    tell([nvml.memory_limit_bytes(0, own), nvml.memory_limit_bytes(0, own.parent),
          nvml.limit_in_force([0], own), nvml.limit_in_force([0, 1], own),
          nvml.limit_in_force([], own)])
"""


def test_the_drivers_limit_is_read_back_for_the_containers_own_cgroup(fake_nvml: FakeNvml) -> None:
    cards = (GPU0, f"gpu 1 GPU-1 {H100}")
    fake_nvml.set("driver 615.20", *cards, f"limit 0 16384 {CGROUP}")
    cap = 16384 * MIB
    # neither a parent's nor another card's silence is taken for a limit
    assert fake_nvml.probe(LIMITS) == [cap, None, cap, None, None]
    fake_nvml.set(*cards, f"limit 0 16384 {CGROUP}", f"limit 1 20480 {CGROUP}")
    assert fake_nvml.probe(LIMITS) == [cap, None, cap, 20480 * MIB, None]
    fake_nvml.set(*cards, "limit 0 16384 /sys/fs/cgroup/system.slice", "limit 1 1")
    assert fake_nvml.probe(LIMITS) == [cap, cap, cap, cap, None]  # inherited: it binds all the same


@pytest.mark.parametrize(
    "lines",
    [
        [],  # soft 0 and hard at its maximum: no limit
        [f"limit 0 - {CGROUP}"],
        [f"limit 0 0 {CGROUP}"],  # the structure as it began: nothing was read
        [f"limit 0 16384 {CGROUP}x"],  # a neighbour's
        [f"limit 1 16384 {CGROUP}"],  # another card's
        [f"limit 0 16384 {CGROUP}", "no DeviceGetMemoryLimits_v1"],
        [f"limit 0 16384 {CGROUP}", "old DeviceGetMemoryLimits_v1"],
        [f"limit 0 16384 {CGROUP}", "code DeviceGetMemoryLimits_v1 6"],  # NOT_FOUND
        [f"limit 0 16384 {CGROUP}", "code DeviceGetMemoryLimits_v1 15"],  # GPU_IS_LOST
    ],
)
def test_a_limit_that_was_not_read_back_is_none(fake_nvml: FakeNvml, lines: list[str]) -> None:
    fake_nvml.set(GPU0, f"gpu 1 GPU-1 {H100}", *lines)
    assert fake_nvml.probe(LIMITS)[0] is None


def test_a_driver_or_a_binding_without_limits_has_none(
    old_nvml: FakeNvml, nvml_library: Path
) -> None:
    old_nvml.set(GPU0, f"limit 0 16384 {CGROUP}")
    assert old_nvml.probe(LIMITS) == [None] * 5
    current = FakeNvml(nvml_library, old_nvml.state)
    assert current.probe(LIMITS)[0] == 16384 * MIB
    older_binding = "import pynvml; del pynvml.nvmlDeviceGetMemoryLimits_v1\n"
    assert current.probe(older_binding + LIMITS) == [None] * 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0::/system.slice/docker-0123.scope\n", CGROUP),
        ("0::/\n", "/sys/fs/cgroup"),
        ("4:memory:/docker/0123\n0::/docker/0123\n", None),  # hybrid: no limits there
        ("4:memory:/docker/0123\n", None),
        ("0::/../other\n", None),  # outside of this process's cgroup namespace
        ("0::/docker/0123 (deleted)\n", None),
        ("", None),
    ],
)
def test_which_cgroup_a_limit_is_kept_under(text: str, found: str | None) -> None:
    assert unified_cgroup(text) == (None if found is None else Path(found))


HEALTH = """
from runner.machine.health import XidWatch, read_health
with Nvml() as nvml: tell(asdict(read_health(nvml, 0)))
"""
NOTHING = {
    "power_limit_watts": None,
    "clock_limits": None,
    "ecc_corrected": None,
    "ecc_uncorrected": None,
    "mig_mode": None,
    "mig_devices": None,
}
HEALTHY = ("power_limit 0 700000", "clocks 0 0x1", "ecc 0 3 0", "mig_mode 0 0")


def test_a_cards_health_in_units_and_words(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0, *HEALTHY)
    assert fake_nvml.probe(HEALTH) == {
        "power_limit_watts": 700.0,
        "clock_limits": ["idle"],
        "ecc_corrected": 3,
        "ecc_uncorrected": 0,
        "mig_mode": False,
        "mig_devices": None,
    }
    fake_nvml.set(GPU0, "clocks 0 0")
    assert fake_nvml.probe(HEALTH)["clock_limits"] == []  # told, and nothing holds them


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("0x4", ["power cap"]),
        ("0x68", ["hardware slowdown", "thermal (software)", "thermal (hardware)"]),
        ("0x1ff", 9),
        ("0x1004", ["power cap", "reason 0x1000"]),  # of a newer driver
    ],
)
def test_why_clocks_are_not_higher(fake_nvml: FakeNvml, mask: str, words: list[str] | int) -> None:
    fake_nvml.set(GPU0, f"clocks 0 {mask}")
    told = fake_nvml.probe(HEALTH)["clock_limits"]
    assert told == words or len(told) == words


def test_what_a_card_does_not_say_of_its_health_is_none(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0)
    assert fake_nvml.probe(HEALTH) == NOTHING
    fake_nvml.set(GPU0, "ecc 0 - 2")
    told = fake_nvml.probe(HEALTH)
    assert (told["ecc_corrected"], told["ecc_uncorrected"]) == (None, 2)
    fake_nvml.set(GPU0.replace(" 452000 0 ", " 452000 15 "), *HEALTHY)
    assert fake_nvml.probe(HEALTH) == NOTHING  # a lost card
    assert fake_nvml.probe(HEALTH.replace("nvml, 0", "nvml, 7")) == NOTHING


def test_an_old_driver_tells_the_reasons_by_their_older_name(old_nvml: FakeNvml) -> None:
    old_nvml.set(GPU0, *HEALTHY)
    told = old_nvml.probe(HEALTH)
    assert told["clock_limits"] == ["idle"]
    assert told["mig_mode"] is None
    assert told["power_limit_watts"] == 700.0


def test_a_card_in_mig_mode_has_its_devices_with_their_memory(fake_nvml: FakeNvml) -> None:
    a = "mig 0 MIG-a 9728 1200 NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    b = "mig 0 MIG-b 19968 - NVIDIA H100 80GB HBM3 MIG 2g.20gb"
    fake_nvml.set(GPU0, f"gpu 1 GPU-1 {H100}", a, b.replace("19968 -", "- -"), "mig_mode 1 0")
    told = fake_nvml.probe(HEALTH)
    assert told["mig_mode"] is True
    assert told["mig_devices"] == [
        {
            "index": 0,
            "uuid": "MIG-a",
            "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            "total_bytes": 9728 * MIB,
            "used_bytes": 1200 * MIB,
        },
        {
            "index": 2,  # slots need not be filled in order
            "uuid": "MIG-b",
            "name": "NVIDIA H100 80GB HBM3 MIG 2g.20gb",
            "total_bytes": None,
            "used_bytes": None,
        },
    ]
    other = fake_nvml.probe(HEALTH.replace("nvml, 0", "nvml, 1"))
    assert (other["mig_mode"], other["mig_devices"]) == (False, None)
    fake_nvml.set(GPU0, a, "old DeviceGetMemoryInfo_v2")
    assert fake_nvml.probe(HEALTH)["mig_devices"][0]["used_bytes"] == 1200 * MIB
    fake_nvml.set(GPU0, "mig_mode 0 1")
    assert fake_nvml.probe(HEALTH)["mig_devices"] == []
    fake_nvml.set(GPU0, a, "no DeviceGetMaxMigDeviceCount")
    told = fake_nvml.probe(HEALTH)
    assert (told["mig_mode"], told["mig_devices"]) == (True, None)


def test_a_card_in_mig_mode_still_has_its_own_memory_and_no_utilization(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.set(GPU0, "mig_mode 0 1", "no DeviceGetUtilizationRates", "compute 0 71 100")
    reading = fake_nvml.probe(READ)
    assert reading["used_bytes"] == 20000 * MIB
    assert reading["utilization_percent"] is None
    assert reading["processes"] == [{"pid": 71, "used_bytes": 100 * MIB}]


XIDS = """
import os, pathlib
from runner.machine.health import XidWatch
state = pathlib.Path(os.environ["NVML_STUB"])
def happens(*lines): state.write_text(state.read_text() + "".join(line + chr(10) for line in lines))
with Nvml() as nvml, XidWatch(nvml) as xids:
    told = [[xids.seen(0), xids.seen(1)]]
    happens("xid 0 79", "xid 1 48", "xid 0 31")
    told.append([xids.seen(0), xids.seen(1)])
    happens("xid 1 48")
    told.append([xids.seen(0), xids.seen(1), xids.seen(7)])
    tell(told)
"""


def test_xid_events_are_told_from_the_watch_on(fake_nvml: FakeNvml) -> None:
    cards = (GPU0, f"gpu 1 GPU-1 {H100}")
    fake_nvml.set(*cards)
    assert fake_nvml.probe(XIDS) == [[[], []], [[79, 31], [48]], [[79, 31], [48, 48], None]]


@pytest.mark.parametrize(
    "fault",
    ["no DeviceRegisterEvents", "old EventSetCreate", "code EventSetCreate 999"],
)
def test_where_events_cannot_be_heard_they_are_unknown(fake_nvml: FakeNvml, fault: str) -> None:
    fake_nvml.set(GPU0, f"gpu 1 GPU-1 {H100}", fault)
    assert fake_nvml.probe(XIDS) == [[None, None], [None, None], [None, None, None]]


def test_a_card_lost_before_the_watch_does_not_silence_the_others(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0.replace(" 452000 0 ", " 452000 15 "), f"gpu 1 GPU-1 {H100}")
    assert fake_nvml.probe(XIDS) == [[None, []], [None, [48]], [None, [48, 48], None]]


def test_a_failing_wait_loses_nothing_that_was_heard(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0)
    body = XIDS.replace('happens("xid 1 48")', 'happens("code EventSetWait_v2 15")')
    assert fake_nvml.probe(body) == [[[], None], [[79, 31], None], [[79, 31], None, None]]


def test_without_the_library_it_is_absent_and_not_fatal() -> None:
    program = (
        "from runner.machine.nvml import Nvml, NvmlUnavailable, library_present\n"
        "import ctypes\n"
        "def missing(name, *a, **k): raise OSError(name)\n"
        "ctypes.CDLL = missing\n"
        "import pynvml; pynvml.CDLL = missing\n"
        "try: Nvml().open()\n"
        "except NvmlUnavailable as error: print(library_present(), error.fatal)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_importing_the_guard_imports_neither_pynvml_nor_psutil() -> None:
    program = (
        "import sys, runner.supervisor.guard, runner.machine.nvml, runner.supervisor.guard.policy\n"
        "print([name for name in ('pynvml', 'psutil', 'rich', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "[]"
