"""The memory figures of metrics.jsonl: torch's allocator by windows, the fullest card counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes

from runner.engines.sft.inside.train.metrics_callback import MetricsCallback, _fullest
from runner.runs.folder import RunFolder


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """torch.cuda's counters: what they hold, and that a reset brings them back to what is held."""
    held = {"reserved": 0, "allocated": 0}

    def reset() -> None:
        held.update(reserved=100, allocated=50)

    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: held["reserved"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["allocated"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    return held


def records(tmp_path: Path, device: str, **more: Any) -> MetricsCallback:
    plan: Any = SimpleNamespace(launch=SimpleNamespace(device=device), phase="")
    return MetricsCallback(plan, RunFolder(tmp_path), None, **more)


def test_each_line_has_the_most_of_its_own_window(
    tmp_path: Path, allocator: dict[str, int]
) -> None:
    told = records(tmp_path, "cuda")
    allocator.update(reserved=900, allocated=700)
    assert told._memory() == {
        "memory_bytes": 900,
        "memory_source": "torch_max_reserved",
        "allocated_bytes": 700,
    }
    assert told._memory()["memory_bytes"] == 100  # nothing more since


def test_a_trainings_peak_outlives_the_windows_and_takes_in_what_came_last(
    tmp_path: Path, allocator: dict[str, int]
) -> None:
    told = records(tmp_path, "cuda")
    allocator.update(reserved=900, allocated=700)
    told._memory()
    assert told.memory_peaks() == {"peak_reserved_bytes": 900, "peak_allocated_bytes": 700}
    allocator.update(reserved=950, allocated=400)  # evaluated and saved after the last line
    assert told.memory_peaks() == {"peak_reserved_bytes": 950, "peak_allocated_bytes": 700}


def test_what_is_outside_of_torch_is_told_where_it_was_measured(
    tmp_path: Path, allocator: dict[str, int]
) -> None:
    assert records(tmp_path, "cuda", outside_bytes=600)._memory()["memory_outside_bytes"] == 600


def test_a_cpu_run_says_nothing_of_torchs_allocator(tmp_path: Path) -> None:
    told = records(tmp_path, "cpu")
    assert told.memory_peaks() == {}
    assert told._memory()["memory_source"] == "process_rss"


def test_alone_a_process_speaks_for_itself() -> None:
    assert _fullest(3, 4) == (3, 4)


def _rank(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    assert _fullest(10 + rank, 20 - rank, device="cpu") == (11, 20)
    torch.distributed.destroy_process_group()


def test_of_processes_that_train_together_the_fullest_card_counts(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    processes.start_processes(_rank, args=(store,), nprocs=2, start_method="fork")
