"""CUDA_VISIBLE_DEVICES is read by CUDA's own rules: a table of them, torch's reading beside ours,
and what a job is told.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError
from runner.engines.load import load_job
from runner.engines.resolve import make_any_plan
from runner.machine.visible_devices import order_note, visible
from runner.plans.facts import Found, allowed_by_caller, list_gpus
from tests.support.command import REPOSITORY

UUIDS = ["GPU-aa00", "GPU-ab11", "GPU-bb22"]


@pytest.mark.parametrize(
    ("text", "positions", "told"),
    [
        (None, (0, 1, 2), ""),
        ("", (), "set and empty"),
        (" ", (), "set and empty"),
        ("0", (0,), ""),
        ("2,0", (2, 0), ""),
        (" 1 , 0", (1, 0), ""),
        ("+1", (1,), ""),
        ("1gpu2,2ampere", (1, 2), ""),
        ("007", (), "'007', which comes first, is none"),
        ("0,-1,1", (0,), "'-1' is no GPU here"),
        ("-1,0", (), "'-1', which comes first"),
        ("0,3,1", (0,), "nor what follows it ('1')"),
        ("0,,1", (0,), "'' is no GPU here"),
        ("0,1,", (0, 1), "'' is no GPU here"),
        ("0,x", (0,), "'x' is no GPU here"),
        ("0,99999999999999999999", (0,), "is no GPU here"),
        ("0,0", (), "names 0 twice"),
        ("0,1,1", (), "names 1 twice"),
        ("0,01,1", (), "names 1 twice"),
        ("0,7,0", (), "names 0 twice"),
        ("0,1,-1,1", (0, 1), "'-1'"),  # what stands behind the end does not count
        ("NoDevFiles", (), "Slurm sets it"),
        ("none", (), "'none', which comes first"),
        ("all", (), "'all', which comes first"),
        ("GPU-aa00", (0,), ""),
        ("GPU-ab", (1,), ""),
        ("GPU-b,GPU-aa", (2, 0), ""),
        ("GPU-a", (), "'GPU-a', which comes first"),  # it is the begin of two
        ("GPU-", (), "which comes first"),
        ("GPU-bb22,GPU-zz,GPU-aa", (2,), "'GPU-zz' is no GPU here"),
        ("GPU-aa00,GPU-aa", (), "GPU 0 twice"),
        ("gpu-aa00", (), "which comes first"),
        ("0,GPU-ab11", (0,), "'GPU-ab11' is no GPU here"),
        ("GPU-aa00,1", (0,), "'1' is no GPU here"),
        ("MIG-11111111-2222", (), "names a MIG instance"),
        ("MIG-GPU-aa00/1/0", (), "names a MIG instance"),
        ("MIG-a,MIG-b", (), "names a MIG instance"),
    ],
)
def test_each_rule(text: str | None, positions: tuple[int, ...], told: str) -> None:
    seen = visible(text, UUIDS)
    assert seen.positions == positions
    assert told in seen.hides_all + seen.ignored
    assert bool(seen.hides_all) == (not positions)
    assert bool(seen.mig) == (text or "").startswith("MIG-")


NAMES = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "3", "-1", "", " 1", "01", "x", "2a", "GPU-a", "MIG-a", *UUIDS]
    ),
    st.text("0123-+ GPUMIabx", max_size=6),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(NAMES, max_size=5).map(",".join))
def test_torch_reads_the_same(text: str) -> None:
    torch_cuda = pytest.importorskip("torch.cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", text)
        try:
            found: list[Any] = torch_cuda._parse_visible_devices()
        except ValueError:
            return  # its own strtoul stumbles over a bare sign
        if found and isinstance(found[0], str):
            if found[0].startswith("MIG-"):
                assert visible(text, UUIDS).mig
                return
            found = torch_cuda._transform_uuid_to_ordinals(found, UUIDS)
        elif any(
            position >= len(UUIDS) for position in found
        ):  # as torch's device count ends there
            found = found[: next(n for n, each in enumerate(found) if each >= len(UUIDS))]
    assert list(visible(text, UUIDS).positions) == found


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300), count=st.integers(0, 4))
def test_whatever_is_written_gives_gpus_that_are_there_each_once(text: str, count: int) -> None:
    seen = visible(text, UUIDS[:count])
    assert len(set(seen.positions)) == len(seen.positions)
    assert all(0 <= position < count for position in seen.positions)
    assert len(seen.hides_all) < 300 and len(seen.ignored) < 300


def test_numbers_are_explained_where_gpus_differ() -> None:
    names = ["T4", "H200", "T4"]
    note = order_note(visible("1", UUIDS), None, names)
    assert "GPU 1 (H200)" in note and "CUDA_DEVICE_ORDER" in note
    assert order_note(visible("1", UUIDS), "PCI_BUS_ID", names) == ""
    assert order_note(visible("GPU-ab", UUIDS), None, names) == ""
    assert order_note(visible("1", UUIDS), None, ["T4"] * 3) == ""
    assert order_note(visible(None, UUIDS), None, names) == ""


class Nvml:
    """Three GPUs."""

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def devices(self) -> list[tuple[int, str]]:
        return list(enumerate(UUIDS))

    def read(self, index: int) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(lost=False, name="H200", total_bytes=1 << 37, used_bytes=0)

    def compute_capability(self, index: int) -> float:
        return 9.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    from runner.machine import nvml

    monkeypatch.setattr(nvml, "Nvml", Nvml)
    monkeypatch.setattr(nvml, "library_present", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def numbers(found: Found) -> list[int]:
    return [gpu.index for gpu in found.gpus]


def test_a_run_may_have_what_cuda_would_show(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", "0,-1,1")
    assert numbers(list_gpus()) == [0]
    assert "'-1'" in list_gpus().notes[0]
    allows = allowed_by_caller(Nvml().devices())
    assert [allows(index, uuid) for index, uuid in enumerate(UUIDS)] == [True, False, False]
    machine.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb22")
    assert numbers(list_gpus()) == [2]


def test_what_the_container_toolkit_reads_says_nothing_to_cuda(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("NVIDIA_VISIBLE_DEVICES", "none")
    assert numbers(list_gpus()) == [0, 1, 2]
    machine.setenv("NVIDIA_VISIBLE_DEVICES", "0")
    machine.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert numbers(list_gpus()) == [2]


@pytest.mark.parametrize("engine", ["demo-identity", "script-example"])
def test_a_mig_instance_is_refused_by_name(engine: str, machine: pytest.MonkeyPatch) -> None:
    job = load_job(str(REPOSITORY / "jobs" / f"{engine}.yaml"))
    machine.setenv("CUDA_VISIBLE_DEVICES", "MIG-1c2d3e4f")
    with pytest.raises(RefusedError, match=r"MIG-1c2d3e4f names a MIG instance") as refusal:
        make_any_plan(job)
    assert "launch.device=cpu" in str(refusal.value.lines())
    on_cpu = load_job(str(REPOSITORY / "jobs" / f"{engine}.yaml"), ["launch.device=cpu"])
    assert make_any_plan(on_cpu)[0].launch.device == "cpu"


def test_a_run_on_the_cpu_says_that_gpus_are_hidden(machine: pytest.MonkeyPatch) -> None:
    job = load_job(str(REPOSITORY / "jobs" / "script-example.yaml"))
    for text, said in (("", "set and empty"), ("0,0", "twice"), ("NoDevFiles", "Slurm")):
        machine.setenv("CUDA_VISIBLE_DEVICES", text)
        plan, _ = make_any_plan(job)
        assert plan.launch.device == "cpu"
        assert any(said in line for line in plan.warnings)
    machine.setenv("CUDA_VISIBLE_DEVICES", "1,x")
    plan, _ = make_any_plan(job)
    assert plan.launch.gpu_uuids == ["GPU-ab11"]
    assert any("'x' is no GPU here" in line for line in plan.warnings)


def test_a_lost_gpu_keeps_its_number(machine: pytest.MonkeyPatch) -> None:
    class Lost(Nvml):
        def read(self, index: int) -> Any:
            reading = super().read(index)
            reading.lost = index == 0
            return reading

    from runner.machine import nvml

    machine.setattr(nvml, "Nvml", Lost)
    machine.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert numbers(list_gpus()) == [1]
    machine.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = list_gpus()
    assert found.gpus == () and found.broken and "lost GPU 0" in found.absence
