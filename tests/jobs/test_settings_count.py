"""A setting counts: each field of each engine changes what is rendered, or is refused, or stands
here with the reason why it may be said all the same.

Each is tried where the job names a GPU and where it names the CPU. Rendered is what the launch
script and the files beside it say; of plan.yaml what the supervisor and the engine read of it. For
the native engine that is all of the plan, so that a second test looks for who reads each field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml

from runner.common.errors import RefusedError, SpecError
from runner.engines.load import load_job
from runner.engines.mgm.job import MgmJob
from runner.engines.mgm.resolve import make_mgm_plan
from runner.engines.render import render
from runner.engines.script.job import ScriptJob
from runner.engines.script.resolve import gather_script, make_script_plan
from runner.engines.sft.facts import gather
from runner.engines.sft.job import SftJob
from runner.engines.sft.resolve import make_plan
from runner.jobs.fields import _members, all_fields, annotation_at, model_at
from runner.plans.base import Plan
from runner.plans.facts import HostFacts, gather_host
from tests.plans.test_render import BLOCKS, CHANGES, CHANGES_NOTHING, WITH_OTHERS, on_gpus
from tests.support.command import REPOSITORY, Answer, run_cli

SFT = "model: ./m\ndata: {train: rows.jsonl, split: {eval: 0.1}}\n"
SCRIPT = "engine: script\nscript: train.py\ninputs: [rows.jsonl]\nsmoke: {arguments: [a]}\n"
MGM = (REPOSITORY / "jobs" / "mgm-10k-lora.yaml").read_text(encoding="utf-8")
OF_BOTH = {
    **{name: value for name, value in (CHANGES | CHANGES_NOTHING).items() if name[:7] == "budget."},
    **{name: value for name, value in (CHANGES | CHANGES_NOTHING).items() if name[:7] == "launch."},
    "timeout_minutes": "5",
    "on_end": "cat",
}
SCRIPT_VALUES = {
    **OF_BOTH,
    "script": "other.sh",
    "arguments": "[a]",
    "environment": "{A: b}",
    "inputs": "[other.jsonl]",
    "workdir": "source",
    "python": "/usr/bin/python3",
}
IN_A_CONTAINER = "of a run in a container, which --on chooses"
REASONS = {
    "description": "for people",
    "launch.on": "where it runs; chosen before the plan is made",
    "fit": "what runner fit may change",
    "fit.allow": "what runner fit may change",
    "fit.models": "what runner fit may change",
    "smoke": "of a smoke",
    "smoke.model_type": "of a smoke",
    "smoke.arguments": "of a smoke",
    "smoke.environment": "of a smoke",
    "inputs": "of a script: hashed, looked for before the start, and seen by a container",
    "budget.gpu_memory": "of a GPU run, beside launch.device auto; alone on a CPU it is refused",
    "budget.host_memory": "of a CPU run, beside launch.device auto; alone on a GPU it is refused",
    **{name: IN_A_CONTAINER for name in CHANGES_NOTHING if name.startswith("container.")},
}
UNENFORCED = {"budget.gpu_memory": "cpu", "budget.host_memory": "cuda"}
OF_THE_SUPERVISOR = ("budget", "container", "timeout_minutes", "on_end")


def rendered(plan: Plan) -> dict[str, Any]:
    """What is executed and what is read of the plan, without names for people."""
    files = {name: re.sub(r"(?m)^#.*$", "", text) for name, text in render(plan).items()}
    record = yaml.safe_load(files.pop("plan.yaml"))
    if record["engine"] != "sft":  # the engine's own record is in its files
        launch = {key: record["launch"][key] for key in ("device", "gpu_uuids", "share")}
        record = {**{key: record[key] for key in OF_THE_SUPERVISOR}, "launch": launch}
    for key in ("plan_hash", "description", "warnings"):
        record.pop(key, None)
    return {**files, "plan": record}


def planned(job: str, sets: list[str], device: str) -> Plan:
    loaded = load_job(job, [*sets, f"launch.device={device}"])
    on = on_gpus if device == "cuda" else _same
    if isinstance(loaded.job, ScriptJob):
        return make_script_plan(loaded, on(gather_script(loaded)))  # type: ignore[arg-type]
    if isinstance(loaded.job, MgmJob):
        return make_mgm_plan(loaded, on(gather_host(loaded.job)))  # type: ignore[arg-type]
    return make_plan(loaded, on(gather(loaded)))


def _same(facts: HostFacts) -> HostFacts:
    return replace(facts, gpus=())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    for name in ("rows.jsonl", "other.jsonl", "third.jsonl"):
        (tmp_path / name).write_text(f'{{"name": "{name}"}}\n')
    for name in ("m", "n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("train.py", "other.sh"):
        (tmp_path / name).write_text("\n")
    for name, text in (("sft", SFT), ("script", SCRIPT), ("mgm", MGM)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def has_effect(engine: str, field: str, value: str, others: list[str], device: str) -> bool:
    """Whether the field changes what is rendered; True where it is refused by name."""
    job = f"{engine}.yaml"
    before = rendered(planned(job, others, device))
    try:
        after = rendered(planned(job, [*others, f"{field}={value}"], device))
    except (SpecError, RefusedError) as refusal:
        named = field.rsplit(".", 1)[-1]
        assert any(named in line for line in refusal.lines()), refusal.lines()
        return True
    return before != after


def tries(fields: Iterable[str]) -> list[tuple[str, str]]:
    """Field and device: both where the device can matter."""
    return [
        (field, device)
        for field in sorted(fields)
        for device in ("cpu", "cuda")
        if field != "launch.device"
        and (device == "cpu" or field.startswith(("launch.", "budget.", "training.p", "d", "on")))
    ]


@pytest.mark.parametrize(("field", "device"), tries((CHANGES | CHANGES_NOTHING).keys() - BLOCKS))
def test_of_sft(field: str, device: str, folder: Path) -> None:
    others = list(WITH_OTHERS.get(field, []))
    if device == "cpu" and "budget.gpu_memory=4GiB" in others:
        others.append("budget.host_memory=4GiB")
    if field == "budget.gpu_memory" and device == "cpu":
        others.append("budget.host_memory=4GiB")
    if field == "budget.host_memory" and device == "cuda":
        others.append("budget.gpu_memory=4GiB")
    if field in ("data.eval", "data.test"):
        others.append("data.split=null")
    if field == "training.precision":
        value = "fp32" if device == "cuda" else "bf16"
    else:
        value = (CHANGES | CHANGES_NOTHING)[field]
    excused = REASONS.get(field, "")
    if excused.endswith("refused"):
        excused = "" if UNENFORCED.get(field) != device else excused
    assert has_effect("sft", field, value, others, device) == (not excused)


@pytest.mark.parametrize(("field", "device"), tries(SCRIPT_VALUES))
def test_of_script(field: str, device: str, folder: Path) -> None:
    unenforced = UNENFORCED.get(field) == device
    other = {"cpu": "host", "cuda": "gpu"}[device]
    others = [f"budget.{other}_memory=4GiB"] if unenforced else []
    if field == "launch.share":
        others = ["budget.gpu_memory=4GiB", "budget.host_memory=4GiB"]
    changed = has_effect("script", field, SCRIPT_VALUES[field], others, device)
    excused = field in ("launch.on", "inputs") or unenforced
    assert changed != excused


def test_every_field_of_a_script_is_tried() -> None:
    known = SCRIPT_VALUES.keys() | REASONS.keys() | BLOCKS | {"engine"}
    assert set(all_fields(ScriptJob)) - known == set()


MGM_LAUNCH = [
    ("cpu", "launch.deepspeed", "zero1"),
    ("cpu", "launch.deepspeed", "zero3"),
    ("cuda", "launch.deepspeed", "zero1"),
    ("cuda", "launch.deepspeed", "zero3"),
    ("cpu", "launch.threads_per_process", "3"),
    ("cuda", "launch.threads_per_process", "3"),
    ("cpu", "launch.num_processes", "2"),
    ("cpu", "budget.oom_snapshot", "true"),
    ("cuda", "budget.oom_snapshot", "true"),
]


@pytest.mark.parametrize(("device", "field", "value"), MGM_LAUNCH)
def test_of_mgms_launch(device: str, field: str, value: str, folder: Path) -> None:
    others = ["budget={}"]
    if field == "launch.num_processes":  # the batch's arithmetic alone would refuse it
        others += [
            "pretrain.gradient_accumulation_steps=1",
            "finetune.gradient_accumulation_steps=1",
        ]
    with pytest.raises((SpecError, RefusedError)) as refusal:
        planned("mgm.yaml", [*others, f"{field}={value}"], device)
    assert "has no effect" in "\n".join(refusal.value.lines())


def another(field: str) -> str:
    """A value of a field of an mgm job that it does not have."""
    kinds = _members(annotation_at(tuple(field.split(".")), MgmJob))
    kinds = tuple(part for kind in kinds for part in (_bare(kind),) if part is not NoneType)
    if bool in kinds:
        return "true"
    if choices := [choice for kind in kinds for choice in get_args(kind)]:
        return str(choices[-1])
    if int in kinds:
        return "2"
    return "0.25" if float in kinds else "another"


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


MGM_FIELDS = [
    field
    for field in all_fields(MgmJob)
    if model_at(annotation_at(tuple(field.split(".")), MgmJob)) is None
    and field.split(".")[0] not in ("container", "launch", "budget", "engine", "smoke")
    and dict not in map(get_origin, _members(annotation_at(tuple(field.split(".")), MgmJob)))
]
ASKED_WITHOUT_QUESTIONS = "pretrain.default_question"
OF_GPUS = {"infer.cuda_index", "attn_implementation"}


@pytest.mark.parametrize("field", MGM_FIELDS)
def test_of_mgms_stages(field: str, folder: Path) -> None:
    device = "cuda" if field in OF_GPUS else "cpu"
    others = ["launch.num_processes=2"] if field == "infer.cuda_index" else []
    if field == ASKED_WITHOUT_QUESTIONS:
        others = ["pretrain.questions=null"]
    value = "1" if field == "infer.cuda_index" else another(field)
    assert has_effect("mgm", field, value, others, device) == (field not in REASONS)


READ = re.compile(r"\.([a-z_][a-z0-9_]*)\b|[\"']([a-z_][a-z0-9_]*)[\"']")


def test_each_field_of_sft_is_read_by_somebody() -> None:
    """Beside the job's own modules, which only hold it, and those that hand it on."""
    read: set[str] = set()
    for path in (REPOSITORY / "runner").rglob("*.py"):
        top = path.relative_to(REPOSITORY / "runner")
        if top.parts[0] in ("jobs", "plans") or top.name in ("job.py", "plan.py"):
            continue
        for found in READ.finditer(path.read_text(encoding="utf-8")):
            read.add(found[1] or found[2])
    unread = [field for field in all_fields(SftJob) if field.rsplit(".", 1)[-1] not in read]
    assert unread == []


REFUSED = [
    ("sft", "training.early_stopping_threshold=0.1", [], "early_stopping_patience"),
    ("sft", "training.save_from_step=3", [], "training.save_steps"),
    ("sft", "evaluation.answer_pattern=a", [], "multiple_choice"),
    ("sft", "evaluation.answer_pattern=a", ["evaluation.task=json"], "evaluation.task is json"),
    ("sft", "evaluation.max_new_tokens=3", ["evaluation.task=loss"], "asks for no answers"),
    ("sft", "evaluation.thinking=keep", ["evaluation.task=loss"], "asks for no answers"),
    ("sft", "data.image_background=black", [], "without vision.model"),
    ("sft", "quantization.quant_type=fp4", ["quantization.bits=8"], "of 4 bits"),
    ("sft", "quantization.double_quant=false", ["quantization.bits=8"], "of 4 bits"),
    ("sft", "data.prompt=say {text}", ["data.format=alpaca"], "of text_label"),
    ("sft", "data.labels={a: b}", ["data.format=messages"], "of text_label"),
    ("sft", "data.questions=other.jsonl", ["data.format=messages"], "of data_juicer"),
    ("sft", "budget.oom_snapshot=true", ["launch.device=cpu"], "launch.device is cpu"),
    ("sft", "budget.host_memory=4GiB", ["launch.device=cuda"], "budget.gpu_memory"),
    ("script", "budget.oom_snapshot=true", [], "of engine sft"),
    ("script", "launch.num_processes=2", ["launch.device=cpu"], "a script is one process"),
    ("script", "python=/usr/bin/python3", ["script=other.sh"], ".py files"),
    ("script", "launch.deepspeed=zero2", [], "the script's own affair"),
]


@pytest.mark.parametrize(("engine", "setting", "others", "said"), REFUSED)
def test_the_refusal_names_field_and_reason(
    engine: str, setting: str, others: list[str], said: str, folder: Path
) -> None:
    sets = [word for text in (*others, setting) for word in ("--set", text)]
    answer: Answer = run_cli("render", f"{engine}.yaml", *sets)
    assert answer.code == 2, answer.err
    assert setting.split("=")[0] in answer.err and said in answer.err


def test_in_a_phase_too(folder: Path) -> None:
    phases = "[{name: only, trains: [adapter], training: {save_from_step: 3}}]"
    answer = run_cli("render", "sft.yaml", "--set", f"phases={phases}")
    assert answer.code == 2 and "phases.0.training.save_from_step" in answer.err


def test_a_default_in_so_many_words_contradicts_nothing(folder: Path) -> None:
    sets = ["training.save_from_step=1", "training.early_stopping_threshold=0.0"]
    words = [word for text in sets for word in ("--set", text)]
    assert run_cli("render", "sft.yaml", *words).code == 0
