"""Peaks from several sources: the largest is reported by name, and each is kept."""

from __future__ import annotations

from runner.machine.readings import Attribution, Sample
from runner.supervisor.event_log import Peak


def sample(own: int | None, attribution: Attribution) -> Sample:
    measure = None if attribution in (Attribution.TRAINER, Attribution.NONE) else "nvml"
    return Sample(0.0, 0.0, "gpu", own, attribution, None, None, (), 1, None, measure)  # type: ignore[arg-type]


def test_each_source_keeps_its_own_largest() -> None:
    peak = Peak()
    for size in (300, 500, 400):
        peak.see(sample(size, Attribution.NVML_PID))
    peak.see(sample(450, Attribution.TRAINER))
    peak.offer(480, "torch_max_reserved", step=3)
    peak.offer(470, "torch_max_reserved", step=4)
    assert (peak.value, peak.source) == (500, "nvml_pid:nvml")
    assert peak.by_source == {
        "nvml_pid:nvml": 500,
        "trainer_reported:trainer": 450,
        "torch_max_reserved": 480,
    }
    assert peak.steps == {"torch_max_reserved": 3}


def test_what_is_not_the_runs_own_is_no_peak() -> None:
    peak = Peak()
    assert not peak.see(sample(10**12, Attribution.NONE))
    assert not peak.see(sample(None, Attribution.NVML_PID))
    assert (peak.value, peak.by_source) == (None, {})


def test_the_accounting_of_one_process_is_its_maximum() -> None:
    peak = Peak()
    peak.see(sample(300, Attribution.NVML_PID))
    peak.account([700])
    assert (peak.value, peak.source) == (700, "accounting")
    assert peak.by_source == {"nvml_pid:nvml": 300, "accounting": 700}


def test_several_processes_maxima_do_not_add_up_to_a_peak() -> None:
    peak = Peak()
    peak.account([700, 600])
    peak.account([900, 100])  # the next card
    peak.account([])  # and one whose driver keeps nothing
    assert (peak.value, peak.source) == (900, "accounting")
    assert peak.by_source == {"accounting": 900, "accounting_upper_bound": 1300}
