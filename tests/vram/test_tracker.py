"""The counter of living storages, on real CPU tensors."""

from __future__ import annotations

import gc

import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.engines.sft.inside.memory.tracker import Tracker
from runner.vram.allocator import rounded

KIB = 1024


def alive(tracker: Tracker) -> dict[str, int]:
    gc.collect()
    return {part: size for part, size in tracker.live.items() if size}


def test_views_count_once() -> None:
    with Tracker() as tracker:
        tensor = torch.zeros(64, KIB)
        shown = [
            tensor.view(-1),
            tensor.t(),
            tensor[3:5],
            tensor.detach(),
            tensor.expand(2, 64, KIB),
        ]
    assert alive(tracker) == {"other": 256 * KIB}
    assert tracker.peak_bytes == 256 * KIB
    del shown


def test_a_storage_lives_as_long_as_its_last_view() -> None:
    with Tracker() as tracker:
        tensor = torch.zeros(64, KIB)
        view = tensor[0]
        del tensor
        assert alive(tracker) == {"other": 256 * KIB}
        del view
        assert alive(tracker) == {}
    assert tracker.peak_bytes == 256 * KIB


def test_in_place_operations_add_nothing() -> None:
    with Tracker() as tracker:
        tensor = torch.zeros(64, KIB)
        tensor.add_(1).mul_(2)
        torch.add(tensor, 1, out=tensor)
        tensor[3].fill_(7)
        tensor.t().mul_(2)
    assert alive(tracker) == {"other": 256 * KIB}
    assert tracker.peak_bytes == 256 * KIB


def test_the_peak_is_the_most_at_once_and_what_it_was_of() -> None:
    with Tracker() as tracker:
        with tracker.making("first"):
            one = torch.zeros(1, 128 * KIB)
        tracker.phase = "middle"
        with tracker.making("second"):
            two = torch.zeros(1, 256 * KIB)
        tracker.phase = "end"
        del one, two
        three = torch.zeros(1, 64 * KIB)
    assert tracker.peak_bytes == (512 + 1024) * KIB
    assert tracker.peak_parts == {"first": 512 * KIB, "second": 1024 * KIB}
    assert tracker.peak_phase == "middle"
    assert alive(tracker) == {"other": 256 * KIB}
    del three


def test_parts_are_renamed_and_counted_no_second_time() -> None:
    weights = torch.zeros(16, KIB)
    with Tracker() as tracker:
        tracker.see(weights)
        tracker.see(weights, "weights")
        tracker.see_all([weights, weights.t()], "frozen")
    assert alive(tracker) == {"frozen": 64 * KIB}
    assert tracker.peak_bytes == 64 * KIB


def test_looking_for_the_peak_anew_keeps_what_lives() -> None:
    with Tracker() as tracker:
        kept = torch.zeros(64, KIB)
        large = torch.zeros(640, KIB)
        del large
        gc.collect()
        tracker.forget_peak()
        assert tracker.peak_bytes == 256 * KIB
        more = torch.zeros(64, KIB)
    assert tracker.peak_bytes == 512 * KIB
    del kept, more


def test_a_width_names_whoever_makes_it() -> None:
    with Tracker() as tracker:
        tracker.parts_by_width[KIB] = "logits"
        wide, narrow, flat = torch.zeros(2, KIB), torch.zeros(2, 512), torch.zeros(KIB)
    assert alive(tracker) == {"logits": 8 * KIB, "other": 8 * KIB}
    del wide, narrow, flat


def test_temporaries_of_an_expression_count_at_the_peak() -> None:
    with Tracker() as tracker:
        tensor = torch.ones(64, KIB)
        tensor = (tensor * 2 + 1) * 3  # result and one operand at a time, beside the first
    assert tracker.peak_bytes == 3 * 256 * KIB
    assert alive(tracker) == {"other": 256 * KIB}


def test_products_count_as_floating_point_operations() -> None:
    left, right = torch.zeros(8, 16), torch.zeros(16, 32)
    with Tracker() as tracker:
        left @ right
        left + 1
    assert tracker.flops == 2 * 8 * 16 * 32


@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=20))
def test_events_and_totals_agree(steps: list[tuple[int, bool]]) -> None:
    held: list[torch.Tensor] = []
    peak = total = 0
    with Tracker() as tracker:
        for size, drop in steps:
            held.append(torch.empty(size, dtype=torch.uint8))
            total += rounded(size)
            peak = max(peak, total)
            if drop:
                total -= rounded(held.pop(0).numel())
    assert tracker.peak_bytes == peak
    assert sum(tracker.live.values()) == total
    left: dict[int, int] = {}
    for name, size in tracker.events:
        if size:
            left[name] = size
        else:
            del left[name]
    assert sum(left.values()) == total
