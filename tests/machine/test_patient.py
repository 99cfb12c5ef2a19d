"""guard.patient: a driver that hangs does not hang who asks, and what it says too late is not used.

The stub reads its state from a file; from a pipe that nobody writes to it waits forever, in C.
"""

from __future__ import annotations

from tests.testbed import H100, FakeNvml

GPU0 = f"gpu 0 GPU-0 {H100}"

PRELUDE = """
import os, time
from pathlib import Path
from runner.machine import nvml_timeout as patient
from runner.machine.nvml_timeout import NvmlWithTimeout
patient.ANSWER_SECONDS = 0.3
state = Path(os.environ["NVML_STUB"])
text = state.read_text()
def hang():
    os.mkfifo(state.with_suffix(".pipe"))
    state.with_suffix(".pipe").replace(state)
def answer():
    pipe = os.open(state, os.O_WRONLY)  # whoever reads it goes on
    state.with_suffix(".new").write_text(text)
    state.with_suffix(".new").replace(state)
    os.write(pipe, text.encode())
    os.close(pipe)
def failed(question):
    began = time.monotonic()
    try:
        question()
    except (NvmlFailed, NvmlUnavailable) as error:
        return [str(error), round(time.monotonic() - began, 1)]
    return None
"""


def test_it_answers_as_nvml_does(fake_nvml: FakeNvml) -> None:
    fake_nvml.set("driver 580.1", GPU0, "compute 0 71 100", "accounting 0 71 4096")
    told = fake_nvml.probe(
        PRELUDE + "with Nvml() as n:\n    plain = [n.devices(), asdict(n.read(0))]\n"
        "with NvmlWithTimeout() as n:\n"
        "    peak = n.accounting_peak(0, 71)\n"
        "    same = plain == [n.devices(), asdict(n.read(0))]\n"
        "    tell([same, peak, n.limit_in_force([0], Path('/sys/fs/cgroup/x')),\n"
        "          failed(lambda: n.read(7))[0][:5]])\n"
    )
    assert told == [True, 4096 << 20, None, "GPU 7"]


def test_a_hang_is_a_failure_and_the_questions_after_it_fail_at_once(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0)
    told = fake_nvml.probe(
        PRELUDE + "with NvmlWithTimeout() as n:\n"
        "    n.read(0)\n"
        "    hang()\n"
        "    found = [failed(lambda: n.read(0)), failed(lambda: n.read(0)),\n"
        "             failed(lambda: n.accounting_peak(0, 1))]\n"
        "    answer()\n"
        "    time.sleep(0.2)\n"
        "    tell([*found, n.read(0).used_bytes])\n"
    )
    hung, *after, used = told
    assert hung[0] == "GPU 0: NVML has not answered for 0 s" and hung[1] >= 0.3
    assert all(seconds < 0.3 for _, seconds in after)
    assert all("NVML has not answered since" in text for text, _ in after)
    assert used == 20000 << 20


def test_an_nvml_that_hangs_while_it_is_opened_is_one_that_does_not_work(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.set(GPU0)
    told = fake_nvml.probe(
        PRELUDE + "patient.OPEN_SECONDS = 0.3\nhang()\n"
        "try:\n    NvmlWithTimeout().__enter__()\n"
        "except NvmlUnavailable as error:\n    tell([error.reason, error.fatal])\n"
    )
    assert told == ["nvmlInit: NVML has not answered for 0 s", True]


def test_a_process_ends_although_its_driver_hangs(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(GPU0)
    told = fake_nvml.probe(
        PRELUDE + "with NvmlWithTimeout() as n:\n"
        "    n.read(0)\n    hang()\n    failed(lambda: n.read(0))\n"
        "tell('left')\n"  # and the interpreter ends, or probe() would time out
    )
    assert told == "left"


def test_why_nvml_cannot_be_opened_is_told_through(fake_nvml: FakeNvml) -> None:
    told = []
    for line in ("init 18", "init 9"):
        fake_nvml.set(line)
        body = (
            "try:\n    NvmlWithTimeout().__enter__()\n"
            "except NvmlUnavailable as error:\n    tell(error.fatal)\n"
        )
        told.append(fake_nvml.probe(PRELUDE + body))
    assert told == [True, False]
