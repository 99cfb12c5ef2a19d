"""Split rows into train and eval by their content. Pure; imports only the standard library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def content_key(value: object) -> str:
    """A key that is equal for equal JSON values (a row, its messages), in any process."""
    canonical = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def split(
    keys: Sequence[str], fraction_eval: float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices (train, eval), each ascending; every index of `keys` is in exactly one of them.

    Rows with the same key stay on the same side. Which side depends on nothing but the keys,
    `fraction_eval` and `seed`: rows in another order give the same contents on each side. The eval
    side gets `round(fraction_eval * len(keys))` rows where duplicates allow it; where
    `fraction_eval` is above zero and at least two keys differ, both sides get at least one row.
    With a single distinct key nothing can be held out, and eval is empty.

    Raises ValueError unless 0 <= fraction_eval < 1.
    """
    if not 0 <= fraction_eval < 1:
        raise ValueError(f"fraction_eval must be at least 0 and below 1, not {fraction_eval}")
    groups: dict[str, int] = {}
    for key in keys:
        groups[key] = groups.get(key, 0) + 1
    held_out: set[str] = set()
    if fraction_eval > 0 and len(groups) >= 2:
        ranked = sorted(groups, key=lambda key: (_rank(key, seed), key))
        # the last group always trains
        target = min(max(1, round(fraction_eval * len(keys))), len(keys) - groups[ranked[-1]])
        room = target
        for key in ranked[:-1]:
            if groups[key] <= room:
                held_out.add(key)
                room -= groups[key]
        if not held_out:  # every group is larger than the target: one row is worth more than none
            held_out.add(min(ranked[:-1], key=lambda key: groups[key]))
    train = tuple(i for i, key in enumerate(keys) if key not in held_out)
    evaluation = tuple(i for i, key in enumerate(keys) if key in held_out)
    return train, evaluation


def _rank(key: str, seed: int) -> bytes:
    """Where a key stands in the order drawn by `seed`; built on no process-local hash()."""
    raw = f"{seed}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=16).digest()
