"""Job files as users write them: every mistake answered in a few lines that name it, YAML 1.2's
scalars, arbitrary bytes, --set, the schema, and `show` as a job file again.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from runner.common.errors import SpecError, UsageError
from runner.common.packages import package_version
from runner.common.units import GIB
from runner.common.yaml_text import to_yaml
from runner.engines.job_kinds import json_schema
from runner.engines.load import load_job
from runner.engines.sft.job import SftJob
from runner.jobs.fields import all_fields
from runner.jobs.load import LoadedJob
from tests.support.command import REPOSITORY, Answer, run_cli
from tests.support.soaking import examples

JOBS = REPOSITORY / "jobs"
MODEL = "model: builtin:smollm2-135m-instruct\n"
DATA = "data: {train: rows.jsonl}\n"
BASE = MODEL + DATA  # two lines, so that what a case adds starts at line 3
TOP = (
    "one of description, engine, model, vision, trust_remote_code, method, lora, quantization, "
    "prefix, data, training, phases, evaluation, tracking, deterministic, on_oom, fit, smoke, "
    "launch, container, budget, timeout_minutes, on_end"
)
SIZE = "a size with its unit, such as 12GiB, 900MiB or 16GB"
Cli = Callable[..., Answer]


def told(
    where: str,
    problem: str,
    *,
    value: str | None = None,
    expected: str | None = None,
    nearest: str | None = None,
) -> str:
    """The whole answer to one mistake, as it stands on stderr."""
    lines = [f"error: {where}", f"  problem   {problem}"]
    for label, text in (("value", value), ("expected", expected), ("nearest", nearest)):
        if text is not None:
            lines.append(f"  {label:<9} {text}")
    return "\n".join(lines) + "\n"


def nested(levels: str) -> str:
    """Lists of ten aliases each, a level for each letter: ten to that power values."""
    lines = [f"{levels[0]}: &{levels[0]} [{', '.join('x' * 10)}]"]
    for inner, outer in itertools.pairwise(levels):
        lines.append(f"{outer}: &{outer} [{', '.join([f'*{inner}'] * 10)}]")
    return "\n".join(lines) + "\n"


def unknown(where: str, value: str, nearest: str | None, expected: str = TOP) -> str:
    return told(where, "unknown field", value=value, expected=expected, nearest=nearest)


def wrong_type(where: str, value: str, expected: str) -> str:
    return told(where, "has the wrong type", value=value, expected=expected)


def out_of_range(where: str, value: str, expected: str) -> str:
    return told(where, "is out of range", value=value, expected=expected)


def unusable(where: str, value: str, expected: str) -> str:
    return told(where, "has no usable value", value=value, expected=expected)


LORA = "one of r, lora_alpha, lora_dropout, target_modules, use_rslora, use_dora, dtype"
MISSING = "this field, which has no default"
FIELDS = "at least `model:` and `data:`"
NAME_VALUE = "'name: value' lines"
INDENTED = "fields of its own (an indented block)"

BROKEN: dict[str, tuple[str | bytes, str]] = {
    "an unknown key": (BASE + "modle: x\n", unknown("j.yaml:3  modle", "x", "model")),
    "an unknown nested key": (
        BASE + "lora:\n  lora_alhpa: 3\n",
        unknown("j.yaml:4  lora.lora_alhpa", "3", "lora_alpha", LORA),
    ),
    "an abbreviation in the wrong block": (
        BASE + "lr: 1e-4\n",
        unknown("j.yaml:3  lr", "0.0001", "training.learning_rate"),
    ),
    "a key in the wrong block": (BASE + "r: 8\n", unknown("j.yaml:3  r", "8", "lora.r")),
    "a key of two blocks at the top": (
        BASE + "seed: 8\n",
        unknown("j.yaml:3  seed", "8", "training.seed"),
    ),
    "a key like nothing else": (BASE + "zzz: 8\n", unknown("j.yaml:3  zzz", "8", None)),
    "a key with a terminal's escapes": (
        BASE + '"a\\nb\\e[31m": 1\n',
        unknown("j.yaml:3  'a\\nb\\x1b[31m'", "1", None),
    ),
    "a merge key": (
        MODEL + "data: &d {train: rows.jsonl}\n<<: *d\n",
        unknown("j.yaml:3  <<", "{train: rows.jsonl}", None),
    ),
    "text for a whole number": (
        BASE + "training:\n  max_steps: many\n",
        wrong_type("j.yaml:4  training.max_steps", "many", "a whole number"),
    ),
    "a quoted number": (
        BASE + 'training:\n  max_steps: "8"\n',
        wrong_type("j.yaml:4  training.max_steps", "8", "a whole number, without quotes"),
    ),
    "a fraction for a whole number": (
        BASE + "training: {max_steps: 8.5}\n",
        wrong_type("j.yaml:3  training.max_steps", "8.5", "a whole number"),
    ),
    "a bool for a whole number": (
        BASE + "training: {max_steps: true}\n",
        wrong_type("j.yaml:3  training.max_steps", "true", "a whole number"),
    ),
    "a number for text": (
        MODEL + "data: {train: 5}\n",
        wrong_type("j.yaml:2  data.train", "5", "text"),
    ),
    "yes for a bool": (
        BASE + "trust_remote_code: yes\n",
        wrong_type("j.yaml:3  trust_remote_code", "yes", "true or false"),
    ),
    "a list for text": (
        MODEL + "data:\n  train: [a.jsonl, b.jsonl]\n",
        wrong_type("j.yaml:3  data.train", "[a.jsonl, b.jsonl]", "text"),
    ),
    "a number for a block": (BASE + "lora: 16\n", wrong_type("j.yaml:3  lora", "16", INDENTED)),
    "nothing for a block": (
        BASE + "training:\n",
        wrong_type("j.yaml:3  training", "null", INDENTED),
    ),
    "a number for a label's text": (
        MODEL + "data:\n  train: rows.jsonl\n  labels:\n    0: 1\n",
        wrong_type("j.yaml:5  data.labels.0", "1", "text"),
    ),
    "a negative": (
        BASE + "lora: {r: -4}\n",
        out_of_range("j.yaml:3  lora.r", "-4", "at least 1"),
    ),
    "zero": (
        BASE + "training: {learning_rate: 0}\n",
        out_of_range("j.yaml:3  training.learning_rate", "0", "above 0"),
    ),
    "too many processes": (
        BASE + "launch: {num_processes: 100000}\n",
        out_of_range("j.yaml:3  launch.num_processes", "100000", "at most 64"),
    ),
    "a seed past numpy's": (
        BASE + "training: {seed: 4294967296}\n",
        out_of_range("j.yaml:3  training.seed", "4294967296", "at most 4294967295"),
    ),
    "a number of 5,000 digits": (
        BASE + f"training: {{seed: {'9' * 5000}}}\n",
        told("j.yaml:3  training.seed", "can't be read as int", value="9" * 77 + "..."),
    ),
    "not a number": (
        BASE + "training: {learning_rate: .nan}\n",
        unusable("j.yaml:3  training.learning_rate", ".nan", "a finite number"),
    ),
    "an infinity": (
        BASE + "training: {weight_decay: .inf}\n",
        unusable("j.yaml:3  training.weight_decay", ".inf", "a finite number"),
    ),
    "a float past the largest": (
        BASE + "training: {num_train_epochs: 1e999}\n",
        unusable("j.yaml:3  training.num_train_epochs", ".inf", "a finite number"),
    ),
    "a transposed choice": (
        BASE + "training:\n  precision: fb16\n",
        told(
            "j.yaml:4  training.precision",
            "is not one of the possible values",
            value="fb16",
            expected="auto or bf16 or fp16 or fp32",
            nearest="bf16",
        ),
    ),
    "a mistyped method": (
        BASE + "method: lroa\n",
        told(
            "j.yaml:3  method",
            "is not one of the possible values",
            value="lroa",
            expected="lora or qlora or prefix or full",
            nearest="lora",
        ),
    ),
    "neither a choice nor a list": (
        BASE + "lora: {target_modules: 5}\n",
        told(
            "j.yaml:3  lora.target_modules",
            "is not one of the possible values",
            value="5",
            expected="all-linear, or a list, such as [q_proj, v_proj]",
        ),
    ),
    "a size without unit": (
        BASE + "budget: {gpu_memory: 12}\n",
        unusable("j.yaml:3  budget.gpu_memory", "12", SIZE),
    ),
    "a quoted size without unit": (
        BASE + 'budget: {gpu_memory: "12"}\n',
        unusable("j.yaml:3  budget.gpu_memory", "12", SIZE),
    ),
    "a size of zero": (
        BASE + "budget: {gpu_memory: 0GiB}\n",
        unusable("j.yaml:3  budget.gpu_memory", "0GiB", f"{SIZE}, above zero"),
    ),
    "a negative size": (
        BASE + "budget: {host_memory: -1GiB}\n",
        unusable("j.yaml:3  budget.host_memory", "-1GiB", SIZE),
    ),
    "an endless size": (
        BASE + f"budget: {{host_memory: {'9' * 400}GiB}}\n",
        unusable("j.yaml:3  budget.host_memory", "9" * 77 + "...", SIZE),
    ),
    "no model": (DATA, told("j.yaml  model", "is missing", expected=MISSING)),
    "no data": (MODEL, told("j.yaml  data", "is missing", expected=MISSING)),
    "no rows in data": (
        MODEL + "data:\n  format: alpaca\n",
        told("j.yaml:2  data.train", "is missing", expected=MISSING),
    ),
    "an empty model": (
        'model: ""\n' + DATA,
        unusable("j.yaml:1  model", "", "text that is not empty"),
    ),
    "an empty file": ("", told("j.yaml", "is empty", expected=FIELDS)),
    "nothing but a comment": ("# soon\n", told("j.yaml", "is empty", expected=FIELDS)),
    "a list": (
        "- a\n",
        told("j.yaml:1", "does not hold fields", expected=f"{NAME_VALUE}, {FIELDS}"),
    ),
    "a tab for indentation": (
        MODEL + "data:\n\ttrain: rows.jsonl\n",
        told(
            "j.yaml:3",
            "is not valid YAML: found character '\\t' that cannot start any token",
            expected=f"spaces for indentation, {NAME_VALUE}",
        ),
    ),
    "an unclosed bracket": (
        MODEL + "data: {train: [x\n",
        told(
            "j.yaml:3",
            "is not valid YAML: expected ',' or ']', but got '<stream end>'",
            expected=f"spaces for indentation, {NAME_VALUE}",
        ),
    ),
    "a field twice": (
        BASE + MODEL,
        told("j.yaml:3  model", "'model' is given twice", expected="each field once"),
    ),
    "a Python tag": (
        BASE + "description: !!python/object/apply:os.system [touch canary]\n",
        told(
            "j.yaml:3  description",
            "tag !!python/object/apply:os.system is not allowed",
            expected="plain YAML",
        ),
    ),
    "a tag of another kind of value": (
        BASE + "lora: !!map 5\n",
        told("j.yaml:3  lora", "tag !!map is not allowed", expected="plain YAML"),
    ),
    "a tag that its value does not fit": (
        BASE + "trust_remote_code: !!bool 7\n",
        told("j.yaml:3  trust_remote_code", "can't be read as bool", value="7"),
    ),
    "bytes that are not UTF-8": (
        b"model: \xff\xfe\n",
        told("j.yaml", "is not UTF-8 text (byte 7)"),
    ),
    "half a surrogate pair": (
        BASE + 'description: "\\ud800"\n',
        told("j.yaml:3  description", "can't be read as str", value="'\\ud800'"),
    ),
    "an alias bomb": (
        nested("abcdefg"),
        told("j.yaml:1", "has too many values (aliases that multiply?)"),
    ),
    "an alias inside itself": (
        "a: &a [*a]\n",
        told("j.yaml:1", "has too many values (aliases that multiply?)"),
    ),
    "endless nesting": ("[" * 5000, told("j.yaml", "is nested too deeply")),
    "two sources of evaluation rows": (
        MODEL + "data:\n  train: rows.jsonl\n  eval: rows.jsonl\n  split: {eval: 0.1}\n",
        told(
            "j.yaml:4  data.eval",
            "data.eval and data.split both name evaluation rows; keep one",
            value="rows.jsonl",
        ),
    ),
    "evaluations without rows": (
        BASE + "training:\n  eval_steps: 5\n",
        told(
            "j.yaml:4  training.eval_steps",
            "needs evaluation rows: data.eval or data.split",
            value="5",
        ),
    ),
    "a field of an entry of a list": (
        BASE + "training:\n  stages:\n  - {max_steps: 3, learning_rat: 1}\n",
        told("j.yaml:5  training.stages.0.learning_rate", "is missing", expected=MISSING)
        + unknown(
            "j.yaml:5  training.stages.0.learning_rat",
            "1",
            "learning_rate",
            "one of max_steps, learning_rate, lr_scheduler_type, warmup_steps, save",
        ),
    ),
    "a length said twice": (
        BASE + "training: {max_steps: 5, num_train_epochs: 2}\n",
        told(
            "j.yaml:3  training.num_train_epochs",
            "max_steps says the length already; keep one",
            value="2",
        ),
    ),
    "stages beside a learning rate": (
        BASE + "training:\n  learning_rate: 0.1\n  stages: [{max_steps: 3, learning_rate: 0.2}]\n",
        told(
            "j.yaml:4  training.learning_rate",
            "training.stages says it for each stage; keep one",
            value="0.1",
        ),
    ),
    "a warm-up as long as its stage": (
        BASE + "training:\n  stages: [{max_steps: 3, learning_rate: 0.2, warmup_steps: 3}]\n",
        told(
            "j.yaml:4  training.stages.0.warmup_steps",
            "is not shorter than the stage's 3 steps",
            value="3",
        ),
    ),
    "a batch that does not come out": (
        BASE + "training: {global_batch_size: 256, per_device_train_batch_size: 4}\n",
        told(
            "j.yaml:3  training.global_batch_size",
            "4 rows x 1 accumulated x 1 process(es) come to 4",
            value="256",
        ),
    ),
    "the best of what is never evaluated": (
        BASE + "training: {load_best_model_at_end: true, save_steps: 5}\n",
        told(
            "j.yaml:3  training.load_best_model_at_end",
            "needs eval_loss while training: training.eval_steps",
            value="true",
        ),
    ),
    "saves that meet no evaluation": (
        MODEL
        + "data: {train: rows.jsonl, split: {eval: 0.1}}\n"
        + "training: {load_best_model_at_end: true, save_steps: 5, eval_steps: 2}\n",
        told(
            "j.yaml:3  training.save_steps",
            "must be a multiple of eval_steps (2) with load_best_model_at_end: only a saved step "
            "can be the best",
            value="5",
        ),
    ),
    "nothing left to train on": (
        MODEL + "data: {train: rows.jsonl, split: {eval: 0.5, test: 0.5}}\n",
        told(
            "j.yaml:2  data.split.test",
            "eval and test together leave no rows to train on",
            value="0.5",
        ),
    ),
    "a phase with settings that exclude each other": (
        BASE + "phases:\n- name: two\n  trains: [adapter]\n  training: {eval_steps: 3}\n",
        told(
            "j.yaml:6  phases.0.training.eval_steps",
            "needs evaluation rows: data.eval or data.split",
            value="3",
        ),
    ),
    "an adapter that no later phase would take up": (
        BASE + "phases:\n- {name: one, trains: [adapter]}\n- {name: two, trains: [adapter]}\n",
        told(
            "j.yaml:4  phases.0.trains",
            "only the last phase can train the adapter: what an earlier one hands on is the "
            "projector",
            value="[adapter]",
        ),
    ),
    "a projector without a tower": (
        BASE + "phases: [{name: one, trains: [projector]}]\n",
        told(
            "j.yaml:3  phases.0.trains",
            "projector needs an image tower: vision.model",
            value="[projector]",
        ),
    ),
    "an empty list of layers": (
        BASE + "lora:\n  target_modules: []\n",
        told(
            "j.yaml:4  lora.target_modules",
            "is empty, so no layer would be trained",
            value="[]",
        ),
    ),
    "fp16 on a CPU": (
        BASE + "launch: {device: cpu}\ntraining: {precision: fp16}\n",
        told(
            "j.yaml:4  training.precision",
            "fp16 needs a GPU; launch.device is cpu",
            value="fp16",
        ),
    ),
    "a GPU budget on a CPU": (
        BASE + "launch: {device: cpu}\nbudget: {gpu_memory: 4GiB}\n",
        told(
            "j.yaml:4  budget.gpu_memory",
            "can't be enforced where launch.device is cpu; give budget.host_memory",
            value="4GiB",
        ),
    ),
    "a prompt without its text": (
        MODEL + "data: {train: rows.jsonl, prompt: hello}\n",
        told("j.yaml:2  data.prompt", "does not contain {text}", value="hello"),
    ),
}


def write_job(folder: Path, content: str | bytes) -> Path:
    """j.yaml beside one row of data."""
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    path = folder / "j.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_job_file_is_answered_with_what_is_wrong(
    case: str, cli: Cli, tmp_path: Path
) -> None:
    content, expected = BROKEN[case]
    write_job(tmp_path, content)
    answer = cli("show", "./j.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == expected
    assert len(answer.err.splitlines()) <= 8
    assert not (tmp_path / "canary").exists()


def test_every_problem_of_a_file_is_told_at_once(cli: Cli, tmp_path: Path) -> None:
    write_job(tmp_path, MODEL + "data: {train: 5}\nlora: {r: -4}\nlr: 1\n")
    assert cli("show", "./j.yaml").err == (
        out_of_range("j.yaml:3  lora.r", "-4", "at least 1")
        + wrong_type("j.yaml:2  data.train", "5", "text")
        + unknown("j.yaml:4  lr", "1", "training.learning_rate")
    )


@pytest.mark.parametrize("case", ["an unknown key", "a quoted number", "a Python tag"])
def test_the_installed_command_answers_the_same(case: str, tmp_path: Path) -> None:
    content, expected = BROKEN[case]
    write_job(tmp_path, content)
    done = subprocess.run(
        [sys.executable, "-m", "runner", "render", "./j.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


DATA_FILE = "a file: .json, .jsonl, .ndjson, .csv, .tsv, .parquet"
MODEL_FORMS = (
    "a folder, OWNER/NAME[@REVISION], modelscope:OWNER/NAME or builtin:smollm2-135m-instruct"
)
UNUSABLE: dict[str, tuple[str, Callable[[Path], str]]] = {
    "an unknown built-in model": (
        "model: builtin:smollm\n" + DATA,
        lambda here: told(
            "j.yaml:1  model",
            "no such built-in model",
            value="builtin:smollm",
            expected="builtin:smollm2-135m-instruct",
            nearest="builtin:smollm2-135m-instruct",
        ),
    ),
    "a model folder that is not there": (
        "model: ./modle\n" + DATA,
        lambda here: told(
            "j.yaml:1  model",
            "no such folder, and not a hub id",
            value="./modle",
            expected=MODEL_FORMS,
            nearest=str(here / "model"),
        ),
    ),
    "a model path longer than a name can be": (
        f"model: /{'m' * 300}\n" + DATA,
        lambda here: told(
            "j.yaml:1  model",
            "no such folder, and not a hub id",
            value="/" + "m" * 300,
            expected=MODEL_FORMS,
        ),
    ),
    "a folder that is no model": (
        "model: ./model\n" + DATA,
        lambda here: told(
            "j.yaml:1  model",
            "the folder holds no config.json",
            value=str(here / "model"),
            expected="a model in transformers' layout",
        ),
    ),
    "a data file that is not there": (
        MODEL + "data:\n  train: rowz.jsonl\n",
        lambda here: told(
            "j.yaml:3  data.train",
            "no such file on this machine",
            value="rowz.jsonl",
            expected=f"a file; looked for {here / 'rowz.jsonl'}",
            nearest=str(here / "rows.jsonl"),
        ),
    ),
    "a data file in the home of no user": (
        MODEL + "data: {train: ~nobody-of-that-name/x.jsonl}\n",
        lambda here: told(
            "j.yaml:2  data.train",
            "no such file on this machine",
            value="~nobody-of-that-name/x.jsonl",
            expected=f"a file; looked for {here / '~nobody-of-that-name/x.jsonl'}",
        ),
    ),
    "a data file with a NUL in its name": (
        MODEL + 'data: {train: "a\\0b/c.jsonl"}\n',
        lambda here: told(
            "j.yaml:2  data.train",
            "no such file on this machine",
            value="'a\\x00b/c.jsonl'",
            expected=repr(f"a file; looked for {here}/a\0b/c.jsonl"),
        ),
    ),
    "a folder for data": (
        MODEL + "data: {train: model}\n",
        lambda here: told(
            "j.yaml:2  data.train", "is a folder, not a file", value="model", expected=DATA_FILE
        ),
    ),
    "data of an unknown kind": (
        MODEL + "data: {train: j.yaml}\n",
        lambda here: told(
            "j.yaml:2  data.train",
            "files of kind '.yaml' are not read",
            value="j.yaml",
            expected=DATA_FILE,
        ),
    ),
    "a hub data set without owner": (
        MODEL + "data: {train: 'hub:x'}\n",
        lambda here: told(
            "j.yaml:2  data.train",
            "is not a hub data set",
            value="hub:x",
            expected="hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
        ),
    ),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_job_whose_files_are_not_here_starts_nothing(
    case: str, command: str, cli: Cli, tmp_path: Path
) -> None:
    if command == "train" and package_version("trl") is None:
        pytest.skip("train refuses earlier where the training packages are not installed")
    content, expected = UNUSABLE[case]
    write_job(tmp_path, content)
    (tmp_path / "model").mkdir()
    answer = cli(command, "./j.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == expected(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j.yaml", "model", "rows.jsonl"]


def test_data_at_a_path_that_is_not_utf8_is_refused(cli: Cli, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    write_job(folder, BASE)
    answer = cli("render", f"{folder}/j.yaml")
    assert answer.code == 2
    assert "data.train\n  problem   is at a path that is not UTF-8\n" in answer.err


TRAINING = "one of max_steps, num_train_epochs, per_device_train_batch_size"
OVERRIDES = {
    "zzz=1": unknown("--set zzz=1  zzz", "1", None),
    "lr=1e-4": unknown("--set lr=1e-4  lr", "0.0001", "training.learning_rate"),
    "zzz.a=1": unknown("--set zzz.a=1  zzz", "{a: 1}", None),
    "lora.rank=4": unknown("--set lora.rank=4  lora.rank", "4", None, LORA),
    "lora={r: 0}": out_of_range("--set lora={r: 0}  lora.r", "0", "at least 1"),
    "training.max_steps=few": wrong_type(
        "--set training.max_steps=few  training.max_steps", "few", "a whole number"
    ),
    "training.max_steps=[1": wrong_type(
        "--set training.max_steps=[1  training.max_steps", "[1", "a whole number"
    ),
    "lora.r.x=1": told("--set lora.r.x=1  lora.r.x", "lora.r has no fields of its own"),
    "budget.gpu_memory=12": unusable("--set budget.gpu_memory=12  budget.gpu_memory", "12", SIZE),
    "model=": unusable("--set model=  model", "", "text that is not empty"),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_bad_override_is_named(override: str, cli: Cli, tmp_path: Path) -> None:
    write_job(tmp_path, BASE + "lora: {r: 4}\n")
    answer = cli("show", "./j.yaml", "--set", override)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == OVERRIDES[override]


@pytest.mark.parametrize("override", ["lora.r", "=3", "lora..r=3", ".r=3", "model=\udcff"])
def test_an_override_that_is_not_an_assignment_is_refused(
    override: str, cli: Cli, tmp_path: Path
) -> None:
    write_job(tmp_path, BASE)
    answer = cli("show", "./j.yaml", "--set", override)
    assert answer.code == 2
    assert answer.err == (
        f"error: --set {override!r} is not FIELD=VALUE in UTF-8\n"
        "  hint      for example --set training.learning_rate=2e-4\n"
    )


def test_a_job_that_does_not_exist_is_answered_with_the_nearest(cli: Cli, tmp_path: Path) -> None:
    write_job(tmp_path, BASE)
    by_name = cli("show", "demo-identiy")
    assert by_name.code == 2
    assert by_name.err.startswith("error: no job named 'demo-identiy'; there are: ")
    assert by_name.err.endswith("\n  hint      nearest: demo-identity\n")
    by_path = cli("show", "./k.yaml")
    assert (by_path.code, by_path.err) == (
        2,
        "error: no job file './k.yaml'\n  hint      nearest in that folder: j.yaml\n",
    )
    (tmp_path / "folder.yaml").mkdir()
    assert "(it is a folder)" in cli("show", "folder.yaml").err


# YAML 1.2


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1_000", 1000),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-11-21", "2026-11-21"),
        ("True", True),
        ("~", None),
        ("null", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, read: object, tmp_path: Path) -> None:
    path = write_job(tmp_path, BASE + f"zzz: {written}\n")
    with pytest.raises(SpecError) as caught:
        load_job(str(path))
    shown = read if isinstance(read, str) else to_yaml(read)
    assert caught.value.problems[0].value == shown


def test_numbers_and_text_reach_the_job_as_written(tmp_path: Path) -> None:
    path = write_job(
        tmp_path,
        MODEL + "description: no\ndata: {train: rows.jsonl, system: 12:30, labels: {0: no}}\n"
        "lora: {r: 010}\ntraining: {learning_rate: 1e-4, max_length: 0o100, weight_decay: 0}\n",
    )
    job = load_job(str(path)).job
    assert (job.description, job.data.system, job.data.labels) == ("no", "12:30", {"0": "no"})
    assert (job.lora.r, job.training.learning_rate, job.training.max_length) == (10, 1e-4, 64)
    assert job.training.weight_decay == 0.0


# Anything at all


def answered(content: bytes, overrides: tuple[str, ...] = ()) -> LoadedJob | None:
    """The job, or None after a refusal; any other exception goes through."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_job(Path(folder), content)
        try:
            return load_job(str(path), overrides)
        except (SpecError, UsageError) as refusal:
            assert refusal.exit_code == 2
            for line in refusal.lines():
                assert line.isprintable()
                assert len(line) < 500
            return None


YAML_PARTS = st.sampled_from(
    [
        *("model: a/b\n", "data: ", "{train: x.jsonl}", "lora:\n", "  r: ", "  training: "),
        *("&a ", "*a", "<<: ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!python/none "),
        *("- ", "? ", ": ", "[", "]", "{", "}", "|", ">-\n", "'", '"', "\\U00110000", "\\ud800"),
        *("---\n", "...\n", "%YAML 1.2\n", "#", "\n", "  ", "\t", "\x00", "\x85", "\u2028"),
        *(".nan", "1e999", "0x", "0o", "~", "=", "9" * 5000, "\ufeff", "1__0", "-", "+.inf"),
    ]
)


@settings(max_examples=examples(83, 250), deadline=None)
@given(st.lists(YAML_PARTS | st.text(max_size=4), max_size=25).map("".join))
def test_any_text_is_a_job_or_is_refused(text: str) -> None:
    answered(text.encode(errors="replace"))


@settings(max_examples=examples(33, 100), deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused(content: bytes) -> None:
    assert answered(content) is None


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["all-linear", "12GiB", "9" * 400 + "B", "{text}"])
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=examples(83, 250), deadline=None)
@given(st.sampled_from(all_fields(SftJob)), VALUES)
def test_any_value_of_any_field_is_taken_or_refused(field: str, value: Any) -> None:
    *blocks, last = field.split(".")
    record: dict[str, Any] = {"model": "a/b", "data": {"train": "x.jsonl"}}
    place = record
    for block in blocks:
        place = place.setdefault(block, {})
    place[last] = value
    answered(json.dumps(record).encode())


@settings(max_examples=examples(50, 150), deadline=None)
@given(st.sampled_from([*all_fields(SftJob), "data.labels.0"]), st.text(max_size=12) | YAML_PARTS)
def test_any_override_is_taken_or_refused(field: str, value: str) -> None:
    answered(BASE.encode(), (f"{field}={value}",))


# --set

# blocks that are not there by default and have fields without one
LACKING = ("vision.", "data.mix.")


def default_of(field: str) -> tuple[Any, bool]:
    """A field's value in the smallest job, and whether its block is there by default."""
    values: Any = SftJob.model_validate({"model": "a/b", "data": {"train": "rows.jsonl"}})
    model: type[BaseModel] = SftJob
    for part in field.split("."):
        info = model.model_fields[part]
        if isinstance(values, BaseModel):
            values = getattr(values, part)
        else:
            return info.get_default(), False
        inner = [t for t in (info.annotation, *getattr(info.annotation, "__args__", ())) if t]
        model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return (values.model_dump(mode="json") if isinstance(values, BaseModel) else values), True


@pytest.mark.parametrize("as_typed", [False, True], ids=["json", "as typed"])
@pytest.mark.parametrize(
    "field", [name for name in all_fields(SftJob) if not name.startswith(LACKING)]
)
def test_a_default_given_by_set_is_the_default(
    field: str, as_typed: bool, cli: Cli, tmp_path: Path
) -> None:
    write_job(tmp_path, "model: a/b\n" + DATA)
    before = json.loads(cli("show", "./j.yaml", "--json").out)
    value, there = default_of(field)
    text = value if as_typed and isinstance(value, str) else json.dumps(value)
    answer = cli("show", "./j.yaml", "--json", "--set", f"{field}={text}")
    assert answer.err == ""
    after = json.loads(answer.out)
    if there:
        assert after["values"] == before["values"]
    shown = after["values"]
    for part in field.split("."):
        shown = shown[part]
    assert shown == value
    leaf = next(name for name in after["sources"] if name == field or name.startswith(f"{field}."))
    assert after["sources"][leaf] == f"--set {field}"


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("model=123", "model", "123"),
        ("model=1e3", "model", "1e3"),
        ("description=true", "description", "true"),
        ("description=", "description", ""),
        ("description=a: b", "description", "a: b"),
        ("description=*x", "description", "*x"),
        ("description='null'", "description", "null"),
        ("data.system=null", "data.system", None),
        ("data.labels.0=1", "data.labels", {"0": "1"}),
        ("data.placeholders={name: Rue}", "data.placeholders", {"name": "Rue"}),
        ("lora.target_modules=[q_proj, v_proj]", "lora.target_modules", ["q_proj", "v_proj"]),
        ("training.learning_rate=1e-5", "training.learning_rate", 1e-5),
        ("budget.host_memory=1.5GiB", "budget.host_memory", GIB * 3 // 2),
        ("data.split={eval: 0.2}", "data.split.eval", 0.2),
        ("training.stages=[]", "training.stages", []),
    ],
)
def test_overrides_mean_what_they_look_like(
    override: str, field: str, value: object, tmp_path: Path
) -> None:
    path = write_job(tmp_path, BASE)
    loaded = load_job(str(path), [override])
    found: Any = loaded.job.model_dump()
    for part in field.split("."):
        found = found[part]
    assert found == value
    assert override.split("=")[0] in loaded.overridden


def test_an_entry_of_a_list_is_overridden_by_its_number(cli: Cli, tmp_path: Path) -> None:
    stages = "training:\n  stages:\n  - {max_steps: 3, learning_rate: 0.1}\n"
    path = write_job(tmp_path, BASE + stages)
    loaded = load_job(str(path), ["training.stages.0.max_steps=7"])
    assert [stage.max_steps for stage in loaded.job.training.stages] == [7]
    assert loaded.sources["training.stages.0.max_steps"] == "--set training.stages.0.max_steps"
    for number, problem in (("1", "no entry '1'; it has 1"), ("x", "no entry 'x'; it has 1")):
        answer = cli("show", "./j.yaml", "--set", f"training.stages.{number}.max_steps=7")
        assert answer.code == 2
        assert problem in answer.err
    wrong = cli("show", "./j.yaml", "--set", "training.stages.0.max_steps=0")
    assert wrong.code == 2
    assert "error: --set training.stages.0.max_steps=0" in wrong.err


def test_a_later_override_wins_and_is_the_source(tmp_path: Path) -> None:
    path = write_job(tmp_path, BASE + "lora: {r: 4, lora_alpha: 8}\n")
    loaded = load_job(str(path), ["lora.r=2", "lora={r: 3}", "lora.lora_dropout=0.5"])
    assert (loaded.job.lora.r, loaded.job.lora.lora_alpha) == (3, 32.0)
    sources = {name: source for name, source in loaded.sources.items() if name.startswith("lora.")}
    assert sources == {"lora.r": "--set lora", "lora.lora_dropout": "--set lora.lora_dropout"}


def test_a_file_given_by_set_is_meant_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.facts import gather

    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    path = write_job(tmp_path / "there", BASE)
    (tmp_path / "here" / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "here")
    for override in ("data.train=rows.jsonl", "data={train: rows.jsonl}"):
        assert (
            gather(load_job(str(path), [override])).rows["data.train"].path
            == Path.cwd() / "rows.jsonl"
        )
    assert gather(load_job(str(path))).rows["data.train"].path == path.parent / "rows.jsonl"


# The schema


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert json.loads((JOBS / "job.schema.json").read_text()) == json_schema()


def test_the_committed_table_of_fields_is_that_of_the_code() -> None:
    from runner.engines.job_reference import table

    assert (REPOSITORY / "docs" / "job-fields.md").read_text() == table()


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_here_fit_their_schema_and_name_it(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=job.schema.json"
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    validator.validate(yaml.safe_load(text))
    assert not validator.is_valid(yaml.safe_load(text) | {"lr": 1})
    load_job(str(path))


def test_every_field_says_what_it_means() -> None:
    def silent(model: type[BaseModel], prefix: str) -> list[str]:
        out = []
        for name, info in model.model_fields.items():
            inner = [info.annotation, *getattr(info.annotation, "__args__", ())]
            out += [] if len(info.description or "") > 10 else [prefix + name]
            for part in inner:
                if isinstance(part, type) and issubclass(part, BaseModel):
                    out += silent(part, f"{prefix}{name}.")
        return out

    assert silent(SftJob, "") == []


# show


def test_show_says_each_value_and_where_it_comes_from(cli: Cli, tmp_path: Path) -> None:
    write_job(
        tmp_path,
        MODEL + "lora:\n  r: 4\ndata:\n  train: rows.jsonl\n  split: {eval: 0.2}\n"
        "budget: {host_memory: 1100MiB}\n",
    )
    arguments = ("--set", "lora.lora_alpha=8", "--set", "data.placeholders.name=Rue")
    sources = json.loads(cli("show", "./j.yaml", "--json", *arguments).out)["sources"]
    assert {name: source for name, source in sources.items() if source != "default"} == {
        "model": "j.yaml:1",
        "lora.r": "j.yaml:3",
        "lora.lora_alpha": "--set lora.lora_alpha",
        "data.train": "j.yaml:5",
        "data.split.eval": "j.yaml:6",
        "data.placeholders": "--set data.placeholders.name",
        "budget.host_memory": "j.yaml:7",
    }
    told_lines = dict(
        line.strip().split(": ", 1)
        for line in cli("show", "./j.yaml", *arguments).out.splitlines()[1:]
        if ": " in line
    )
    for field, source in sources.items():
        assert told_lines[field.rsplit(".", 1)[-1]].endswith(f"# {source}") or field in (
            *("data.eval", "data.split.eval", "data.split.seed", "training.seed"),
            *("data.split", "data.hub.split"),
        )
    assert told_lines["host_memory"].split()[0] == "1100MiB"


@pytest.mark.parametrize("name", sorted(path.stem for path in JOBS.glob("*.yaml")))
def test_the_shown_job_is_the_same_job(name: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(cli("show", name).out)
    assert load_job(str(tmp_path / "again.yaml")).job == load_job(str(JOBS / f"{name}.yaml")).job


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["1e-4", "08", "010", "0o10", "no", "null", "~", "", " a ", "a: b # c", "- x", "a\nb\n", "<<"]
)


@settings(max_examples=examples(33, 100), deadline=None)
@given(
    description=TEXT,
    system=st.none() | TEXT,
    labels=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
    placeholders=st.dictionaries(TEXT, TEXT, max_size=2),
    modules=st.lists(TEXT, min_size=1, max_size=3),
    rate=st.floats(min_value=1e-300, max_value=100),
    size=st.integers(1, 2**50),
)
def test_any_job_is_shown_as_a_job_file_of_the_same_values(
    description: str,
    system: str | None,
    labels: dict[str, str] | None,
    placeholders: dict[str, str],
    modules: list[str],
    rate: float,
    size: int,
) -> None:
    record = {
        "model": "a/b",
        "description": description,
        "lora": {"target_modules": modules},
        "data": {
            "train": "rows.jsonl",
            "system": system,
            "labels": labels,
            "placeholders": placeholders,
        },
        "training": {"learning_rate": rate},
        "budget": {"host_memory": f"{size}B"},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = write_job(Path(folder), to_yaml(record))
        job = load_job(str(path)).job
        assert (job.description, job.data.system, job.data.labels) == (description, system, labels)
        assert (job.data.placeholders, job.lora.target_modules) == (placeholders, modules)
        assert (job.training.learning_rate, job.budget.host_memory) == (rate, size)
        shown = run_cli("show", str(path)).out
        again = Path(folder) / "again.yaml"
        again.write_text(shown)
        assert load_job(str(again)).job == job
