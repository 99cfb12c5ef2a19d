"""`runner vram` by its own command line, and how a prediction is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common.terminal import inked
from runner.engines.sft.inside.memory.predict import predict
from runner.engines.sft.memory.ask import Batch
from runner.report.prediction import WIDTH, bar, ordered, prediction_lines
from runner.vram.prediction import CONTEXT, HostMemory, Prediction, TrainingMemory
from tests.support.command import Answer, run_cli
from tests.support.forked import forks_for_modules
from tests.vram.plans import gpu_plan
from tests.vram.real import LLAMA, plan_of
from tests.vram.tiny_job import MODEL, WORDS, write_job

GIB, MIB = 1 << 30, 1 << 20
Cli = Callable[..., Answer]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a job, a cache and a state of its own."""
    folder = tmp_path_factory.mktemp("vram")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RUNNER_CACHE", str(folder / "cache"))
        patch.setenv("RUNNER_STATE", str(folder / "state"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        write_job(folder)
        with forks_for_modules():
            yield folder


def vram(*arguments: str) -> tuple[dict[str, Any], Answer]:
    answer = run_cli("vram", *arguments, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out), answer


@pytest.fixture(scope="module")
def on_gpu(place: Path) -> tuple[dict[str, Any], Answer]:
    return vram("job.yaml")


@pytest.mark.e2e
def test_parts_sum_to_what_the_process_takes(on_gpu: tuple[dict[str, Any], Answer]) -> None:
    record, answer = on_gpu
    assert "assumed" in record["assumed"]  # there is no GPU here
    (memory,) = record["trainings"]
    assert record["process_bytes"] == memory["process_bytes"] == sum(memory["parts"].values())
    assert memory["process_bytes"] == memory["reserved_bytes"] + memory["overhead_bytes"]
    assert record["low_bytes"] < record["process_bytes"] < record["high_bytes"]
    assert memory["allocated_bytes"] <= memory["reserved_bytes"]
    assert memory["method"] == "traced"
    assert memory["parts"][CONTEXT] > 100 * MIB
    assert WORDS < memory["tokens"] < WORDS + 40
    assert "longest of 3 rows" in memory["length_from"]
    assert memory["layers"] == MODEL["num_hidden_layers"]
    assert "tracing a step" in answer.err


@pytest.mark.e2e
def test_the_second_call_is_answered_from_the_cache(
    on_gpu: tuple[dict[str, Any], Answer],
) -> None:
    first, _ = on_gpu
    again, answer = vram("job.yaml")
    assert "tracing" not in answer.err
    assert again == first


@pytest.mark.e2e
def test_a_changed_setting_is_traced_anew_and_one_that_changes_nothing_is_not(
    on_gpu: tuple[dict[str, Any], Answer],
) -> None:
    first, _ = on_gpu
    _, same = vram("job.yaml", "--set", "training.learning_rate=1e-5")
    assert "tracing" not in same.err
    less, answer = vram("job.yaml", "--set", "training.gradient_checkpointing=true")
    assert "tracing" in answer.err
    assert less["process_bytes"] < first["process_bytes"]


@pytest.mark.e2e
def test_on_the_cpu_it_is_the_hosts_memory_in_fp32(
    place: Path, on_gpu: tuple[dict[str, Any], Answer]
) -> None:
    record, _ = vram("job.yaml", "--set", "launch.device=cpu", "--set", "budget.gpu_memory=null")
    assert record["device"] == "cpu"
    assert record["assumed"] is None
    (memory,) = record["trainings"]
    assert record["process_bytes"] == sum(memory["parts"].values())
    weights = on_gpu[0]["trainings"][0]["parts"]["frozen weights"]
    assert memory["parts"]["frozen weights"] == pytest.approx(2 * weights, rel=0.01)


@pytest.mark.e2e
def test_for_people_it_says_all_that_takes_memory(
    place: Path, on_gpu: tuple[dict[str, Any], Answer]
) -> None:
    answer = run_cli("vram", "job.yaml", "--set", "budget.gpu_memory=100MiB")
    assert answer.code == 0
    for part, size in on_gpu[0]["trainings"][0]["parts"].items():
        assert size < MIB or part in answer.out
    assert "does NOT fit the budget of 100 MiB" in answer.out
    assert "assumed" in answer.out


@pytest.mark.e2e
def test_a_model_that_is_nowhere_is_refused_with_a_way_out(place: Path) -> None:
    path = place / "unknown.yaml"
    path.write_text("model: nobody/knows-this\ndata: {train: rows.jsonl}\n")
    answer = run_cli("vram", str(path))
    assert answer.code == 3, answer.err
    assert "nobody/knows-this" in answer.err
    assert "--set model=FOLDER" in answer.err


def test_a_model_that_cannot_be_traced_is_estimated_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    plan = plan_of(tmp_path, {**LLAMA, "num_hidden_layers": 2})
    batch = Batch(128, 0, "a test")
    traced = predict(plan, [batch])
    [assumed] = traced.notes  # no test measures what libraries hold
    assert "was not measured on this machine" in assumed
    before = modeling_llama.LlamaMLP.forward

    def looks_at_values(self: Any, x: Any) -> Any:
        if x.sum().item() > 0:
            x = x + 1
        return before(self, x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", looks_at_values)
    found = predict(plan, [batch])
    assert found.largest.method == "estimated"
    (note,) = set(found.notes) - {assumed}
    assert "could not be traced" in note
    assert found.plus_minus_bytes > traced.plus_minus_bytes
    assert found.low_bytes <= traced.process_bytes <= found.high_bytes
    assert sum(found.largest.parts.values()) == found.process_bytes
    assert found.largest.trainable == traced.largest.trainable
    shown = "\n".join(prediction_lines(found, None))
    assert "estimated, not traced" in shown
    assert note in shown


def test_an_adapter_that_does_not_fit_is_refused_and_not_estimated(tmp_path: Path) -> None:
    from runner.common.errors import SpecError

    plan = plan_of(tmp_path, lora={"r": 8, "target_modules": ["q_prj"]})
    with pytest.raises(SpecError) as caught:
        predict(plan, [Batch(32, 0, "a test")])
    assert "q_prj" in str(caught.value.problems[0].value)


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_states_in_8_bits_take_a_quarter(optim: str) -> None:
    from runner.engines.sft.inside.memory.step import trace

    model = "HuggingFaceTB/SmolLM2-135M"
    plain, eight = (
        trace(gpu_plan(model, training={"optim": name}), 32, layers=2)
        for name in ("adamw_torch", optim)
    )
    ratio = eight.parts["optimizer states"] / plain.parts["optimizer states"]
    assert 0.2 < ratio < 0.35


def test_a_stored_base_takes_what_bitsandbytes_stores() -> None:
    from runner.engines.sft.inside.memory.step import trace

    model = "Qwen/Qwen2.5-0.5B"
    held = {
        bits: trace(
            gpu_plan(model, method="qlora", quantization={"bits": bits}), 32, layers=4
        ).parts["frozen weights"]
        for bits in (4, 8)
    }
    whole = trace(gpu_plan(model), 32, layers=4).parts["frozen weights"]
    embedding = 2 * 151_936 * 896
    linear = whole - embedding
    assert held[8] - embedding == pytest.approx(linear / 2, rel=0.02)
    assert held[4] - embedding == pytest.approx(linear / 2 * (4.127 / 8), rel=0.02)


# ---- how it is shown, at fixed figures

PARTS = {
    "frozen weights": 4 * GIB,
    "adapter": 256 * MIB,
    "activations": 2 * GIB,
    "logits": GIB,
    "something new": 512 * MIB,
    CONTEXT: 256 * MIB,
    "dust": 1000,
}
PROCESS = sum(PARTS.values())
FIXED = TrainingMemory(
    phase="",
    rows=4,
    tokens=512,
    images=4,
    length_from="the longest of 7 rows",
    method="traced",
    allocated_bytes=7 * GIB,
    reserved_bytes=PROCESS - 256 * MIB,
    overhead_bytes=256 * MIB,
    process_bytes=PROCESS,
    low_bytes=PROCESS - GIB,
    high_bytes=PROCESS + GIB,
    parts=PARTS,
    at="loss head, forward pass",
    flops=1e12,
    trainable=1234,
    total=56789,
)


def fixed(**more: Any) -> Prediction:
    return Prediction(device="cuda", trainings=[FIXED], **more)


def test_every_part_is_named_with_its_figure_and_share() -> None:
    lines = prediction_lines(fixed(notes=["one note"]), 16 * GIB)
    text = "\n".join(lines)
    for name, figure, share in (
        ("frozen weights", "4.00 GiB", "50.0%"),
        ("adapter", "256 MiB", "3.1%"),
        ("activations", "2.00 GiB", "25.0%"),
        ("logits", "1.00 GiB", "12.5%"),
        ("something new", "512 MiB", "6.2%"),
        (CONTEXT, "256 MiB", "3.1%"),
    ):
        (line,) = [line for line in lines if f" {name} " in line and "%" in line]
        assert figure in line
        assert share in line
    assert "all else" in text  # what is too small is told together, so that nothing is missing
    assert "8.00 GiB ± 1.00" in text
    assert "fits the budget of 16.00 GiB with 8.00 GiB to spare" in text
    assert "4 x 512 tokens, 4 image(s) (the longest of 7 rows)" in text
    assert "1,234 of 56,789" in text
    assert "one note" in text


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (16, "fits the budget"),
        (10, "fits the budget"),
        (8, "may or may not fit"),
        (6, "does NOT fit"),
        (None, "no budget"),
    ],
)
def test_the_verdict_goes_by_the_interval(budget: int | None, said: str) -> None:
    lines = prediction_lines(fixed(), budget and budget * GIB)
    assert any(said in line for line in lines)


@pytest.mark.parametrize(("budget", "scale"), [(16, 16), (12, 12), (6, 9)])
def test_the_bar_is_to_scale_and_marks_the_budget(budget: int, scale: int) -> None:
    drawn, marks = bar(ordered(PARTS), FIXED, budget * GIB)
    cells = drawn.strip()
    assert len(cells) == pytest.approx(WIDTH * 8 / scale, abs=1)
    runs = [cells[0]]
    for cell in cells:
        if cell != runs[-1][-1]:
            runs.append(cell)
    assert cells.count(cells[0]) == pytest.approx(WIDTH * 4 / scale, abs=1)  # frozen weights
    assert len(set(runs)) == len(runs) >= 5  # each part by its own pattern, in one piece
    marks = marks[2:]
    assert marks.index("^") == pytest.approx(WIDTH * budget / scale, abs=1)
    assert marks.index("~") == pytest.approx(WIDTH * 7 / scale, abs=1)
    assert f"budget {budget}.00 GiB" in marks


def test_colours_are_only_where_they_are_asked_for() -> None:
    plain = "\n".join(prediction_lines(fixed(), 16 * GIB))
    coloured = inked("\n".join(prediction_lines(fixed(), 16 * GIB, colour=True)))
    assert "\x1b" not in plain
    assert coloured.count("\x1b[0m") >= 10


def test_the_host_and_what_was_measured_are_told() -> None:
    host = HostMemory(loading_bytes=3 * GIB, offload_bytes=5 * GIB)
    text = "\n".join(prediction_lines(fixed(host=host, calibration="3 step(s)"), None))
    assert "3.00 GiB while weights are loaded, 5.00 GiB offloaded" in text
    assert "measured   3 step(s)" in text
    assert "runner smoke measures" in "\n".join(prediction_lines(fixed(), None))


# ---- imports, and the toolkit

REPORT = """
import json, sys
sys.argv = ["runner", *sys.argv[1:]]
from runner.cli import main
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["vram", "fit"])
def test_help_imports_no_torch(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, command, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert command in done.stdout
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert loaded & {"torch", "transformers", "peft", "trl", "numpy", "yaml", "jinja2"} == set()


@pytest.mark.e2e
def test_the_toolkits_job_says_why_full_does_not_fit_and_lora_does(cli: Cli) -> None:
    with forks_for_modules():
        answer = cli("vram", "mgm-10k-lora", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    named = {memory["phase"]: memory for memory in record["trainings"]}
    told = "\n".join(record["explanation"])
    card = 23.6 * GIB
    full = next(memory for name, memory in named.items() if "on the GPU" in name)
    assert full["process_bytes"] > card
    assert "500 MiB" in told
    for name in ("pretrain", "finetune"):
        assert named[name]["high_bytes"] <= 16 * GIB, name
    assert "fits 16.00 GiB" in told
    for memory in named.values():
        assert sum(memory["parts"].values()) == memory["process_bytes"]
