"""The benchmarks' own logic, without a trainer: limits, resuming, what travels, what is counted."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.testbed import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def load(name: str) -> Any:
    return importlib.import_module(name)


# What a step costs ------------------------------------------------------------------------------

QWEN_7B = SimpleNamespace(
    hidden_size=3584,
    intermediate_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
    num_hidden_layers=28,
    vocab_size=152064,
)


def test_the_flops_of_a_lora_step_are_nemos() -> None:
    """Their table: 14,110 tokens/s are 423 TFLOP/s and 42.8 % of an H100."""
    speed = load("step_speed")
    assert speed.lora_parameters(QWEN_7B, 16) == 40_370_176  # PEFT's own count
    each = speed.lora_flops_per_token(QWEN_7B, 4096, 16)
    assert each == pytest.approx(29.98e9, rel=0.002)
    assert round(14_110 * each / 1e12) == 423
    assert 14_110 * each / speed.peak_flops("NVIDIA H100 80GB HBM3") == pytest.approx(
        0.428, abs=5e-4
    )
    assert speed.peak_flops("NVIDIA H200") == speed.peak_flops("NVIDIA H100 PCIe")
    assert speed.peak_flops("a card of 2031") is None


def test_a_stopwatch_leaves_out_warm_up_profile_and_what_follows() -> None:
    watch = load("step_speed").Stopwatch(8, "cpu")
    watch._starts = [0.0, 10.0, 20.0, 30.0, 40.0, 41.0, 42.0, 99.0]
    assert watch.step_seconds == [1.0, 1.0]


def test_attention_kernels_are_told_by_their_names() -> None:
    kernels = [
        ("sm90_xmma_gemm_bf16bf16", 9.0),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", 8.0),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 7.0),
        ("fmha_cutlassB_bf16_aligned_128x64_k128_sm80", 6.0),
        ("triton_per_fused_rms_norm", 5.0),
    ]
    found = load("step_speed").attention_kernels(kernels)
    assert [ms for _name, ms in found] == [8.0, 7.0, 6.0]


def test_a_steps_ratio_is_the_median_of_pairs_with_their_spread() -> None:
    def turn(*seconds: float) -> dict[str, Any]:
        steps = [{"seconds": one, "cpu": 2 * one} for one in (99.0, *seconds)]
        return {"steps": steps, "losses": [1.0]}

    plain = [turn(10.0, 10.0), turn(20.0, 20.0), turn(40.0, 40.0)]
    ours = [turn(9.0, 9.0), turn(19.0, 19.0), turn(60.0, 60.0)]
    told = load("step_cpu").compared({"plain": plain, "ours": ours})
    assert told["ratios"]["cpu"]["pairs"] == [0.9, 0.95, 1.5]
    assert told["text"][-1] == "ratio  0.950 of the CPU time (0.900 to 1.500, 3 pairs)"


# The battery of predictions ---------------------------------------------------------------------


def test_every_case_is_measured_without_a_budget() -> None:
    battery = load("vram_battery")
    for case in [*battery.CASES, *battery.ON_CPU, *battery.REHEARSAL]:
        sets = case.settings(Path("m"), Path("r"), "cuda")
        assert [text for text in sets if text.startswith("budget")] == ["budget={}"]


def test_what_says_most_comes_first() -> None:
    battery = load("vram_battery")
    names = [case.name for case in battery.CASES]
    assert len(set(names)) == len(names) == 28
    assert battery.CASES[:8] == battery.FIRST and len(battery.FIRST) == 8
    assert {case.model for case in battery.FIRST} == {"qwen2.5-7b", "qwen2.5-0.5b"}
    assert {case.method for case in battery.FIRST} == {"lora", "4bit", "full"}


def test_a_battery_stops_in_time_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    battery, asked, clock = load("vram_battery"), [], [0.0]

    def measure(case: Any, _work: Path, _device: str, limit_s: float) -> dict[str, Any]:
        asked.append((case.name, limit_s))
        clock[0] += 50
        sizes = {"predicted_bytes": 10, "measured_bytes": 10, "peaks": {}}
        return {"case": case.name, "error": 0.01, **sizes}

    monkeypatch.setattr(battery, "measure", measure)
    monkeypatch.setattr(battery.time, "monotonic", lambda: clock[0])
    arguments = ["x", str(tmp_path), "--first", "4", "--case-seconds", "80"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", "110"])
    assert battery.main() == 4
    assert [limit for _name, limit in asked] == [80, 60]  # the second has what is left
    assert capsys.readouterr().out.count("not reached in 110 s") == 2
    monkeypatch.setattr(sys, "argv", arguments)
    assert battery.main() == 0
    assert [name for name, _limit in asked] == [case.name for case in battery.FIRST[:4]]


def test_weights_that_are_there_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    battery = load("vram_battery")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.setattr(battery.subprocess, "run", lambda *_, **__: pytest.fail("made again"))
    assert battery.make_weights("tiny", tmp_path) is None


def living(marker: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_at_a_limit_nothing_is_left_in_whatever_session() -> None:
    marker = f"RUNNER_TEST_BELOW={os.getpid()}"
    name, _, value = marker.partition("=")
    script = "setsid bash -c 'setsid sleep 60 & exit' ; sleep 60"
    began = time.monotonic()
    command = [sys.executable, str(BENCHMARKS / "below.py"), "1", "bash", "-c", script]
    done = subprocess.run(command, env={**os.environ, name: value})
    assert done.returncode == 124 and time.monotonic() - began < 50
    assert living(marker) == []
    assert subprocess.run([*command[:3], "bash", "-c", "exit 7"]).returncode == 7


# What travels -----------------------------------------------------------------------------------


def wheel(path: Path, **entries: str) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, text in entries.items():
            made.writestr(name, text)
    return path


def test_wheels_are_cut_and_unpacked_for_a_pythonpath(tmp_path: Path) -> None:
    carried, folder = load("carried"), tmp_path / "carry"
    folder.mkdir()
    library = "bitsandbytes/libbitsandbytes_{}.so"
    names = ("cuda118", "cuda129", "cuda130", "cpu", "rocm62")
    wheel(
        folder / "bitsandbytes-1-py3-none-any.whl",
        **{"bitsandbytes/__init__.py": "x = 1"},
        **{library.format(name): name for name in names},
    )
    wheel(
        folder / "odd-1-py3-none-any.whl",
        **{"odd-1.data/purelib/odd/__init__.py": "", "odd-1.data/scripts/odd": ""},
    )
    carried.cut_libraries(folder)
    into = carried.unpack(folder, tmp_path / "into")
    assert sorted(path.name for path in (into / "bitsandbytes").iterdir()) == [
        "__init__.py",
        "libbitsandbytes_cpu.so",
        "libbitsandbytes_cuda130.so",
    ]
    assert (into / "odd" / "__init__.py").is_file() and not (into / "odd-1.data").exists()
    with pytest.raises(SystemExit, match="too much to carry"):
        carried.check(folder, REPOSITORY, 0)
    wheel(folder / "odd-2-py3-none-any.whl")
    with pytest.raises(SystemExit, match="more than one wheel of: odd"):
        carried.wheels(folder)
    with pytest.raises(SystemExit, match=r"carry\.sh"):
        carried.wheels(tmp_path / "nothing")


def test_everything_carried_is_of_the_lock() -> None:
    text = (BENCHMARKS / "carry.sh").read_text()
    names = text[text.index("names=(") + 7 : text.index(")\nextra")].split()
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert names and not [name for name in names if f"\n{name}==" not in lock]


# First contact ----------------------------------------------------------------------------------

FAKE_PARTS = """
import json, os, subprocess, sys, time
part, rehearse = sys.argv[1], "--rehearse" in sys.argv
def emit(what, said, **more):
    print(json.dumps({"what": what, "said": said, **more}), flush=True)
emit("asked", f"part {part}", ok=True)
if part == "2" and not os.path.exists("second"):
    subprocess.Popen(["setsid", "sleep", "60"])
    time.sleep(60)
if part == "3":
    emit("kernel", "has none", ok=False)
if part == "4":
    sys.exit("it broke")
"""


def test_first_contact_limits_each_part_and_writes_at_once(tmp_path: Path) -> None:
    for name in ("first_contact.py", "below.py", "carried.py"):
        shutil.copy(BENCHMARKS / name, tmp_path)
    (tmp_path / "first_contact_parts.py").write_text(FAKE_PARTS)
    out = tmp_path / "out"

    def call(*more: str) -> tuple[int, list[dict[str, Any]], str]:
        command = [sys.executable, "first_contact.py", "--out", "out", "--work", "work"]
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
        lines = (out / "results.jsonl").read_text().splitlines()
        return done.returncode, [json.loads(line) for line in lines], done.stdout

    code, found, table = call("--parts", "1,2,3,4", "--limits", "2=1.5", "--rehearse")
    assert code == 1
    assert all(one["rehearsal"] is True for one in found)
    ends = {one["part"]: one for one in found if one["what"] == "end"}
    assert [ends[part]["completed"] for part in (1, 2, 3, 4)] == [True, False, True, False]
    assert ends[2]["timed_out"] and ends[2]["seconds"] < 15
    assert {one["part"] for one in found if one["what"] == "asked"} == {1, 2, 3, 4}
    assert table.startswith("REHEARSAL on a CPU") and table == (out / "table.txt").read_text()
    assert "2 loads" not in table and "KILLED at its limit of 1.5 s" in table
    assert "WRONG kernel: has none" in table and "FAILED (exit code 1)" in table
    assert "it broke" in (out / "parts.log").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "parts.log",
        "results.jsonl",
        "table.txt",
    ]

    # a new call, its OUT emptied: what was done is known from WORK, and is not run again
    shutil.rmtree(out)
    (tmp_path / "second").touch()
    code, found, table = call("--parts", "1,2", "--rehearse")
    assert code == 0
    tries = [(one["part"], one["try"]) for one in found if one["what"] == "end"]
    assert tries == [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2)]
    # real results are not a rehearsal's; and what does not fit is said
    code, found, table = call("--parts", "1", "--seconds", "5")
    assert code == 1 and "1 loads and runs: not reached" in table
    assert "REHEARSAL" not in table


def test_a_rehearsals_limits_grow_with_what_else_the_machine_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contact = load("first_contact")
    assert contact.rehearsal_factor(0.0, 16) == contact.REHEARSAL_FACTOR
    assert contact.rehearsal_factor(5.0, 2) == 3 * contact.REHEARSAL_FACTOR
    assert contact.rehearsal_factor(500.0, 2) == contact.MOST_FACTOR
    monkeypatch.setattr(contact.os, "getloadavg", lambda: (5.0, 0.0, 0.0))
    monkeypatch.setattr(contact.os, "sched_getaffinity", lambda _: {0, 1})
    given = SimpleNamespace(limits="6=7", rehearse=True)
    assert contact.limit_now(1, given) == 9 * 60 and contact.limit_now(6, given) == 7
    given.rehearse = False
    assert contact.limit_now(1, given) == 60


def test_a_part_says_what_it_had_not_enough_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = load("first_contact_parts")
    told: dict[str, dict[str, Any]] = {}

    def emit(what: str, said: str, **figures: Any) -> None:
        told[what] = {"said": said, **figures}

    # by a process of its own: it ends all that is below it, and below this one are other tests'
    script = (
        "import json, sys; from pathlib import Path; import first_contact_parts as parts\n"
        "call = parts.Call(Path(sys.argv[1]), 3600.0, True, print)\n"
        "ran = call.run(sys.executable, '-c', 'import time; time.sleep(60)', seconds=6.0)\n"
        "print(json.dumps([*ran, call.left]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=True,
    )
    code, out, err, left = json.loads(done.stdout)
    assert (code, out) == (None, "") and err.endswith("not enough time: ended after 6 s")
    assert 3400 < left < 3600 - 6

    # nothing is begun that could not end, and each case, program and run is named
    monkeypatch.setattr(parts.vram_battery, "run_within", lambda *_: pytest.fail("begun"))
    monkeypatch.setattr(parts, "_weights", lambda *_: tmp_path)
    call = parts.Call(tmp_path, 10.0, True, emit, began=time.monotonic() - 8)
    for part in (parts.look_around, parts.measure_speed, parts.compare_memory):
        part(call)
    parts.breach_budgets(call)
    parts.compare_hashes(call)
    names = [case.name for case in parts.vram_battery.REHEARSAL]
    wanted = ["monitor", "doctor", "ours 2x64", "trl 2x64", *names, "watchdog", "first"]
    assert [name for name in wanted if "not enough time" not in told[name]["said"]] == []
    assert all(told[name]["ok"] is False for name in wanted)


def test_first_contact_refuses_a_part_that_is_none(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "first_contact.py"), "--out", str(tmp_path)]
    done = subprocess.run([*command, "--parts", "7"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no part 7; 1 to 6" in done.stderr


# The shell battery ------------------------------------------------------------------------------


def test_the_battery_survives_a_demo_without_a_record(tmp_path: Path) -> None:
    """No `runner` command, no GPU, every call failing: it says so, and breaks no budget of -300."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\ncase "$*" in *-c*json*) exec "$REAL" "$@";; esac\nexit 3\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [str(BENCHMARKS / "gpu_battery.sh"), str(tmp_path / "out")],
        env={
            **os.environ,
            "PYTHON": str(fake),
            "REAL": sys.executable,
            "WORK": str(tmp_path / "work"),
            "FULL_SIZE": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "WRONG   breach: left out: the demo has no peak" in done.stdout
    assert "-300" not in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log.txt", "summary.txt"]


def test_what_is_timed_has_rows_of_one_length(tmp_path: Path) -> None:
    determinism = load("determinism")
    lengths = {}
    for full in (False, True):
        path = tmp_path / f"{full}.jsonl"
        determinism.make_rows(path, determinism.TINY, full=full)
        rows = [json.loads(line)["output"].split() for line in path.read_text().splitlines()]
        lengths[full] = {len(words) for words in rows}
    assert len(lengths[False]) > 10
    assert lengths[True] == {determinism.TINY.tokens}  # words; each is a token or more
