"""Two runs by their manifests: every difference, in a fixed order. Pure: values in, values out.

Inputs come first (files, then versions, then settings), then rows, losses and results, since what
went in explains what came out; machine and times come last and decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from runner.common.units import format_bytes, format_duration
from runner.engines.registry import ENGINES
from runner.plans.base import Plan
from runner.plans.inputs import FileRecord
from runner.provenance.environment import decides
from runner.provenance.image_list import first_other
from runner.provenance.manifest import Manifest
from runner.provenance.results import Step

Group = Literal["record", "files", "versions", "settings", "rows", "losses", "results", "machine"]
TRAINERS = (
    *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "deepspeed"),
    *("safetensors", "tokenizers", "datasets", "numpy"),
)
"""Packages named before the others."""
_PLACES = re.compile(
    # where things lie, who waits for them, what is said of them: known otherwise, or of no weight
    r"^(schema_version|python|description|recovered_from|launch\.(gpu_indices|gpu_uuids|share)"
    r"|container|script|inputs|warnings|substitutions)(\.|$)"
    r"|(^|\.)(rows|folder|image_folder)(\.|$)"
    r"|(^|\.)data\.(train|eval|test|sample|questions)$|(^|\.)mix\.sources\.\d+\.sample$"
    r"|^mgm\.(python|toolkit|gpus|substitutions|questions|model_name_or_path|vision_tower.*"
    r"|(pretrain|finetune)\.data_path|infer)(\.|$)"
)
_UNHASHED = ("evaluation.", "tracking.", "on_oom", "budget.oom_snapshot")
_TEMPLATE_DATE = "template_date"  # not hashed, but rows are written with it
_NOTHING = "(none)"
_Images = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    manifest: Manifest
    steps: Sequence[Step] | None = None
    """From its metrics.jsonl; None where there is only the manifest."""
    images: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What of the manifest's images -> path to sha256, where their list is beside it."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not alike."""

    group: Group
    what: str
    one: object
    other: object
    text: str
    decides: bool = True
    """Whether two runs that differ in it are not identical."""


def differences(one: Side, other: Side, *, steps: int | None = None) -> list[Difference]:
    """All differences. With `steps`, losses are compared that far, and the results are not."""
    a, b = one.manifest, other.manifest
    found = [
        *_files(a, b, one.images, other.images),
        *_versions(a, b),
        *_settings(a, b),
        *_rows(a, b),
    ]
    found += _losses(one, other, steps)
    if steps is None:
        found += _results(a, b)
    return [*found, *_machine(a, b)]


def first_of(found: Sequence[Difference]) -> Difference | None:
    """The first difference that makes two runs not identical."""
    return next((each for each in found if each.decides), None)


def _files(
    a: Manifest, b: Manifest, images: _Images | None = None, others: _Images | None = None
) -> Iterator[Difference]:
    ours, theirs = ({each.what: each for each in side.files} for side in (a, b))
    for what in _in_order(ours, theirs):
        x, y = ours.get(what), theirs.get(what)
        if x is None or y is None:
            yield _named("files", what, _path(x), _path(y))
        elif x.kind == "remote" or y.kind == "remote":
            if x.path != y.path:
                yield _named("files", what, x.path, y.path)
        elif x.sha256 is None or y.sha256 is None:
            text = f"{what} was not hashed, so it can't be told whether it is the same: {_path(x)}"
            yield Difference("files", what, x.sha256, y.sha256, text)
        elif x.sha256 != y.sha256 and x.kind == "images":
            told = _first_image((images or {}).get(what), (others or {}).get(what))
            counts = f" ({x.files} → {y.files} images)" if x.files != y.files else ""
            yield Difference("files", what, x.sha256, y.sha256, f"{what}{counts}: {told}")
        elif x.sha256 != y.sha256:
            same = x.path == y.path
            place = f" ({x.path})" if same else ""
            ours_, theirs_ = ("", "") if same else (f"{x.path} ", f"{y.path} ")
            text = f"{what}{place}: {ours_}sha256 {x.sha256[:12]} → {theirs_}{y.sha256[:12]}"
            if x.size_bytes != y.size_bytes:
                text += f", {x.size_bytes} → {y.size_bytes} bytes"
            yield Difference("files", what, x.sha256, y.sha256, text)


def _first_image(ours: Mapping[str, str] | None, theirs: Mapping[str, str] | None) -> str:
    """Which image is the first that is another, in words."""
    if not ours or not theirs:
        return "others; which can't be told, since a run's list of them is not here"
    other = first_other(ours, theirs)
    if other is None:
        return "others"
    name, one, two = other
    return f"{name}: sha256 {one[:12] or _NOTHING} → {two[:12] or _NOTHING}"


def _versions(a: Manifest, b: Manifest) -> Iterator[Difference]:
    ids = [side.image.id if side.image else None for side in (a, b)]
    if ids[0] != ids[1]:
        shown = [side.image.name if side.image else "no image" for side in (a, b)]
        text = f"image: {shown[0]} {_short(ids[0])} → {shown[1]} {_short(ids[1])}"
        yield Difference("versions", "image", ids[0], ids[1], text)
    if a.python.version != b.python.version:
        yield _named("versions", "python", a.python.version, b.python.version)
    ours, theirs = a.python.packages, b.python.packages
    names = sorted({*ours, *theirs}, key=lambda name: (_rank(name), name))
    for name in names:
        if ours.get(name) != theirs.get(name):
            yield _named("versions", name, ours.get(name), theirs.get(name))
    for key in _in_order(a.stack, b.stack):
        if key != "cpu_capability" and a.stack and b.stack and a.stack.get(key) != b.stack.get(key):
            yield _named("versions", f"stack.{key}", a.stack.get(key), b.stack.get(key))
    if a.code.source_sha256 != b.code.source_sha256:
        yield Difference(
            "versions",
            "runner's code",
            a.code.source_sha256,
            b.code.source_sha256,
            f"runner's code: {_code(a)} → {_code(b)}",
        )
    locks = [side.lock.sha256 if side.lock else None for side in (a, b)]
    if locks[0] != locks[1]:
        text = f"lock: {_short(locks[0])} → {_short(locks[1])}"
        yield Difference("versions", "lock", locks[0], locks[1], text, decides=False)


def _settings(a: Manifest, b: Manifest) -> Iterator[Difference]:
    ours, theirs = (settings_of(_with_defaults(each.plan)) for each in (a, b))
    other_plan, named = a.plan_hash != b.plan_hash, False
    for name in _in_order(ours, theirs):
        if ours.get(name) != theirs.get(name):
            deciding = other_plan and not name.startswith((*_UNHASHED, _TEMPLATE_DATE))
            named = named or deciding
            x, y = (side.get(name, _NOTHING) for side in (ours, theirs))
            text = f"{name}: {_value(x)} → {_value(y)}"
            decides_text = name == _TEMPLATE_DATE and _NOTHING not in (x, y)
            decides_it = deciding or (decides_text and None not in (x, y))
            yield Difference("settings", name, x, y, text, decides=decides_it)
    for name in _in_order(a.environment, b.environment):
        x, y = a.environment.get(name), b.environment.get(name)
        if x != y:
            told = _named("settings", f"${name}", x, y)
            yield Difference("settings", f"${name}", x, y, told.text, decides=decides(name))
    if a.switches and b.switches:
        for name in _in_order(a.switches, b.switches):
            if a.switches.get(name) != b.switches.get(name):
                yield _named(
                    "settings", f"torch.{name}", a.switches.get(name), b.switches.get(name)
                )
    if other_plan and not named:
        text = f"plan: {a.plan_hash[:7]} → {b.plan_hash[:7]}"
        known = any(_files(a, b)) or any(each.what == "image" for each in _versions(a, b))
        if not known and _elsewhere(a, b) and _substitutions(a) == _substitutions(b):
            # the hash is over some paths too: of a model's folder, of a script's
            text, known = f"{text}, by the location of its inputs alone", True
        yield Difference("settings", "plan", a.plan_hash, b.plan_hash, text, decides=not known)


def _with_defaults(plan: Mapping[str, object]) -> Mapping[str, object]:
    """A plan as this runner reads it: what an earlier one did not know yet has its default."""
    try:
        read: Plan = ENGINES[str(plan.get("engine"))].plan_type.model_validate(plan)
    except (KeyError, ValidationError):
        return plan
    return read.model_dump(mode="json")


def settings_of(plan: Mapping[str, object]) -> dict[str, object]:
    """A plan's settings by dotted name, without what only says where things lie."""
    flat = dict(_flat(plan))
    for prefix in ("model", "vision.model"):
        if flat.get(f"{prefix}.kind") == "folder":
            flat.pop(f"{prefix}.id", None)  # a path; its files are compared by their hashes
    return {name: value for name, value in flat.items() if not _PLACES.search(name)}


def _flat(record: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(record, Mapping) and record:
        for key, value in record.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(record, list) and any(isinstance(each, Mapping) for each in record):
        for number, value in enumerate(record):
            yield from _flat(value, f"{prefix}.{number}")
    else:
        yield prefix, record


def _rows(a: Manifest, b: Manifest) -> Iterator[Difference]:
    for phase in _in_order(a.rows, b.rows):
        if phase not in a.rows or phase not in b.rows:
            continue  # one of them ended before; its results say so
        x, y = a.rows[phase], b.rows[phase]
        place = f"{phase}: " if phase else ""
        for side in _in_order(x.counts, y.counts):
            if x.counts.get(side) != y.counts.get(side):
                yield _named("rows", f"{place}{side} rows", x.counts.get(side), y.counts.get(side))
        for side in _in_order(x.split_sha256, y.split_sha256):
            if x.split_sha256.get(side) != y.split_sha256.get(side):
                ours, theirs = x.split_sha256.get(side), y.split_sha256.get(side)
                text = f"{place}other rows are in {side}: {_short(ours)} → {_short(theirs)}"
                yield Difference("rows", f"{place}{side} split", ours, theirs, text)


def _losses(one: Side, other: Side, steps: int | None) -> Iterator[Difference]:
    results = one.manifest.results, other.manifest.results
    x, y = (each.losses if each else None for each in results)
    if x == y or (steps is None and None in results):
        return  # alike, or told by what the results lack
    if one.steps is None or other.steps is None:
        hashes = [each.sha256 if each else None for each in (x, y)]
        if steps is None:
            text = f"losses: {_short(hashes[0])} → {_short(hashes[1])}"
            yield Difference(
                "losses",
                "losses",
                hashes[0],
                hashes[1],
                text + " (no metrics.jsonl to name a step)",
            )
        else:
            text = f"the first {steps} steps can't be compared: a run has no metrics.jsonl"
            yield Difference("losses", "losses", hashes[0], hashes[1], text)
        return
    ours, theirs = (
        [each for each in side if steps is None or each.step <= steps]
        for side in (one.steps, other.steps)
    )
    for number, (p, q) in enumerate(zip(ours, theirs, strict=False), start=1):
        if (p.phase, p.step) != (q.phase, q.step):
            text = f"logged step {number} is step {p.step} of one run and {q.step} of the other"
            yield Difference("losses", f"step {p.step}", p.step, q.step, text)
            return
        if p.loss != q.loss:
            place = f"{p.phase}: " if p.phase else ""
            text = f"{place}step {p.step}: loss {p.loss!r} → {q.loss!r}"
            if p.loss is not None and q.loss is not None:
                text += f" (by {q.loss - p.loss:+.3g})"
            yield Difference("losses", f"step {p.step}", p.loss, q.loss, text)
            return
    if len(ours) != len(theirs):
        text = f"{len(ours)} logged steps → {len(theirs)}, alike as far as both go"
        yield Difference("losses", "logged steps", len(ours), len(theirs), text)


def _results(a: Manifest, b: Manifest) -> Iterator[Difference]:
    x, y = a.results, b.results
    if x is None or y is None:
        lacking = " and ".join(
            side.run for side, results in ((a, x), (b, y)) if results is None
        )  # two of them are not identical either: nobody knows
        text = f"no results are known of {lacking}: not ended, never begun, or lost"
        yield Difference("results", "results", bool(x), bool(y), text)
        return
    if x.adapter_sha256 != y.adapter_sha256:
        text = f"adapter: sha256 {_short(x.adapter_sha256)} → {_short(y.adapter_sha256)}"
        yield Difference("results", "adapter", x.adapter_sha256, y.adapter_sha256, text)
    outputs = [side.output.sha256 if side.output else None for side in (x, y)]
    if outputs[0] != outputs[1]:
        text = f"output/: sha256 {_short(outputs[0])} → {_short(outputs[1])}"
        yield Difference("results", "output", outputs[0], outputs[1], text)
    for name in ("reason", "steps", "eval_loss", "tokens"):
        if getattr(x, name) != getattr(y, name):
            yield _named("results", name, getattr(x, name), getattr(y, name))
    ratio = (y.peak_bytes or 0) / (x.peak_bytes or 1)
    if x.peak_bytes and y.peak_bytes and not 0.98 < ratio < 1.02:
        told = f"peak: {format_bytes(x.peak_bytes)} → {format_bytes(y.peak_bytes)}"
        yield Difference("results", "peak", x.peak_bytes, y.peak_bytes, told, decides=False)
    if x.attempts != y.attempts:
        told = f"attempts: {x.attempts} → {y.attempts}"
        yield Difference("results", "attempts", x.attempts, y.attempts, told, decides=False)
    times = f"time: {format_duration(x.seconds)} → {format_duration(y.seconds)}"
    if times.split(" → ")[0].removeprefix("time: ") != times.split(" → ")[1]:
        yield Difference("results", "time", x.seconds, y.seconds, times, decides=False)


def _machine(a: Manifest, b: Manifest) -> Iterator[Difference]:
    ours, theirs = (
        {
            **side.host.model_dump(exclude={"gpus"}),
            "cpu_capability": side.stack.get("cpu_capability"),
        }
        for side in (a, b)
    )
    for side, manifest in ((ours, a), (theirs, b)):
        side["gpus"] = ", ".join(f"{card.name} {card.uuid}" for card in manifest.host.gpus) or None
    for name in ours:
        if ours[name] != theirs[name]:
            told = _named("machine", name, ours[name], theirs[name])
            yield Difference("machine", name, told.one, told.other, told.text, decides=False)
    if elsewhere := _elsewhere(a, b):
        text = f"places: other paths with the same content: {', '.join(elsewhere)}"
        yield Difference("machine", "places", None, None, text, decides=False)
    if a.resumed != b.resumed:
        told = _named("machine", "resumed", a.resumed, b.resumed)
        yield Difference("machine", "resumed", a.resumed, b.resumed, told.text, decides=False)


def _elsewhere(a: Manifest, b: Manifest) -> list[str]:
    """What both read with the same content from other paths; a model's files as one."""
    theirs = {each.what: each for each in b.files}
    found = [
        each.what.partition("/")[0]
        for each in a.files
        if (other := theirs.get(each.what)) is not None
        and each.path != other.path
        and each.sha256 is not None
        and each.sha256 == other.sha256
    ]
    return list(dict.fromkeys(found))


def _substitutions(side: Manifest) -> object:
    return [side.plan.get("substitutions"), (side.plan.get("mgm") or {}).get("substitutions")]


def _named(group: Group, what: str, one: object, other: object) -> Difference:
    shown = [_NOTHING if each is None else str(each) for each in (one, other)]
    return Difference(group, what, one, other, f"{what}: {shown[0]} → {shown[1]}")


def _in_order(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """The keys of both, in the order of the first, then what only the second has."""
    return list(dict.fromkeys([*ours, *theirs]))


def _path(record: FileRecord | None) -> str | None:
    return None if record is None else record.path


def _rank(name: str) -> int:
    return TRAINERS.index(name) if name in TRAINERS else len(TRAINERS)


def _short(digest: str | None) -> str:
    return _NOTHING if digest is None else digest.removeprefix("sha256:")[:12]


def _code(manifest: Manifest) -> str:
    code = manifest.code
    commit = f" at {code.commit[:7]}{', changed' if code.dirty else ''}" if code.commit else ""
    return f"{code.version} {code.source_sha256[:12]}{commit}"


def _value(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
