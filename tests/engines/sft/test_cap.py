"""Torch's own cap: the arithmetic, and what is asked of a torch that is no torch."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runner.common.errors import RefusedError
from runner.common.units import GIB, MIB
from runner.engines.sft.inside import memory_cap as cap
from runner.engines.sft.inside.memory_cap import cap_fraction, outside_bytes, set_cap


def test_at_least_512_mib_are_outside_of_torch_and_more_where_more_was_measured() -> None:
    assert outside_bytes(None, 1) == 512 * MIB
    assert outside_bytes(300 * MIB, 1) == 512 * MIB
    assert outside_bytes(700 * MIB, 1) == 700 * MIB


def test_nccl_has_room_of_its_own() -> None:
    assert outside_bytes(None, 2) == 1024 * MIB
    assert outside_bytes(700 * MIB, 8) == 1212 * MIB


def test_the_cap_is_the_budget_less_what_is_outside() -> None:
    share = cap_fraction(12 * GIB, 80 * GIB, 512 * MIB)
    assert share is not None
    assert share * 80 * GIB == pytest.approx(11.5 * GIB)


def test_under_the_drivers_own_limit_the_budget_is_not_applied_twice() -> None:
    """There the total that torch sees is the limit: 12 GiB of 80, which are not to become 1.8."""
    share = cap_fraction(12 * GIB, 12 * GIB, 512 * MIB)
    assert share is not None
    assert share * 12 * GIB == pytest.approx(11.5 * GIB)


def test_a_budget_above_the_card_is_no_cap() -> None:
    assert cap_fraction(100 * GIB, 80 * GIB, 512 * MIB) == 1.0  # torch takes 1.0 as no cap


def test_the_smaller_of_the_users_fraction_and_ours_holds() -> None:
    assert cap_fraction(12 * GIB, 80 * GIB, 512 * MIB, standing=0.05) == 0.05
    assert cap_fraction(12 * GIB, 80 * GIB, 512 * MIB, standing=0.9) == 11.5 / 80


@pytest.mark.parametrize("limit", [1, 511 * MIB, 512 * MIB])
def test_a_budget_that_leaves_nothing_has_no_fraction(limit: int) -> None:
    assert cap_fraction(limit, 80 * GIB, 512 * MIB) is None


class Card:
    """A torch.cuda that has a card of 80 GiB, 700 MiB of it this process's context."""

    def __init__(self, standing: float | None = 1.0, neighbour: int = 0) -> None:
        self.fractions: list[tuple[float, int]] = []
        self._neighbour = neighbour
        self.memory = SimpleNamespace()
        if standing is not None:  # a torch before 2.9 can't say
            self.memory.get_per_process_memory_fraction = lambda _: standing

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(total_memory=80 * GIB, uuid="aaaa-bbbb")

    def memory_reserved(self, device: int) -> int:
        return 2 * MIB

    def mem_get_info(self, device: int) -> tuple[int, int]:
        return 80 * GIB - 702 * MIB - self._neighbour, 80 * GIB

    def set_per_process_memory_fraction(self, share: float, device: int) -> None:
        self.fractions.append((share, device))


def put(monkeypatch: pytest.MonkeyPatch, card: Card, listed: int | None = None) -> None:
    torch = SimpleNamespace(cuda=card, zeros=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(cap, "_listed_bytes", lambda uuid: listed if uuid == "aaaa-bbbb" else None)


def test_what_nvml_lists_for_this_process_is_what_is_left_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Card(neighbour=40 * GIB)  # who says nothing about us
    put(monkeypatch, card, listed=602 * MIB)
    assert set_cap(12 * GIB, 0, 1) == 600 * MIB
    ((share, device),) = card.fractions
    assert (round(share * 80 * GIB), device) == (12 * GIB - 600 * MIB, 0)
    assert "measured by NVML" in capsys.readouterr().err


@pytest.mark.parametrize("listed", [None, 60 * GIB])  # not listed; another's of another namespace
def test_where_nvml_does_not_list_it_the_card_tells_within_bounds(
    monkeypatch: pytest.MonkeyPatch, listed: int | None
) -> None:
    put(monkeypatch, Card(), listed)
    assert set_cap(12 * GIB, 1, 1) == 700 * MIB
    put(monkeypatch, Card(neighbour=40 * GIB), listed)
    assert set_cap(12 * GIB, 1, 1) == 1 * GIB


def test_the_allocators_settings_of_the_user_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "per_process_memory_fraction:0.1")
    before = dict(os.environ)
    card = Card(standing=0.1)
    put(monkeypatch, card)
    set_cap(12 * GIB, 0, 1)
    assert card.fractions == [(0.1, 0)]
    assert dict(os.environ) == before


def test_a_torch_that_cannot_tell_its_fraction_is_capped_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(standing=None)
    put(monkeypatch, card)
    set_cap(12 * GIB, 0, 1)
    assert len(card.fractions) == 1


def test_a_budget_that_leaves_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    put(monkeypatch, card)
    with pytest.raises(RefusedError, match="leaves nothing for tensors"):
        set_cap(600 * MIB, 0, 1)
    assert card.fractions == []
