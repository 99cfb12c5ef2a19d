"""The parts of first_contact.py, a process each: `first_contact_parts.py PART --work DIR ...`.

A result is a line of JSON on stdout, written as soon as it is there: {"what": ..., "said": ...} and
the figures; "ok" where it can be right or wrong. All else that is printed goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vram_battery

HERE = Path(__file__).resolve().parent
GIB = 2**30
LEAST_SECONDS = 5.0  # a program that has less is not begun


@dataclass(frozen=True)
class Call:
    """What a part is given."""

    work: Path
    seconds: float
    """Until it is killed."""
    rehearse: bool
    emit: Callable[..., None]
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds in which something can still be run, and told before the part is killed."""
        margin = max(2.0, 0.03 * self.seconds)
        return self.seconds - margin - (time.monotonic() - self.began)

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def models(self) -> Path:
        return self.work / "battery" / "models"  # one folder: 7B and 0.5B are made once for all

    def run(self, *command: str, seconds: float | None = None) -> tuple[int | None, str, str]:
        """Exit code, stdout and stderr of a program; code None where its time, or the part's, was
        up, with that as stderr's last line."""
        limit = min(self.left, self.left if seconds is None else seconds)
        if limit < LEAST_SECONDS:
            return None, "", f"not enough time: {max(0.0, limit):.0f} s were left to begin it in"
        code, out, err = vram_battery.run_within(command, dict(os.environ), limit)
        sys.stderr.write(f"\n$ {' '.join(command[:8])} ...: {code}\n{out[-2000:]}\n{err[-6000:]}\n")
        if code is None:
            err += f"\nnot enough time: ended after {limit:.0f} s"
        return code, out, err

    def runner(self, *arguments: str, seconds: float | None = None) -> tuple[int | None, str, str]:
        return self.run(sys.executable, "-m", "runner", *arguments, seconds=seconds)


def _why(code: int | None, err: str) -> str:
    """How a program ended that did not do what it should, in a line."""
    lines = err.strip().splitlines() or ["no word"]
    return lines[-1] if code is None else f"exit code {code}: {err.strip()[-400:]}"


def _sets(lines: list[str]) -> list[str]:
    return [part for text in lines for part in ("--set", text)]


def _weights(call: Call, name: str) -> Path:
    """The model's folder, drawn where it is not there. Raises RuntimeError."""
    began = time.monotonic()
    there = (call.models / name / "config.json").is_file()
    if failed := vram_battery.make_weights(name, call.models):
        raise RuntimeError(f"weights of {name}: {failed}")
    if not there:
        seconds = time.monotonic() - began
        call.emit("weights", f"{name} drawn in {seconds:.1f} s", model=name, seconds=seconds)
    return call.models / name


# 2: the monitor and the doctor -------------------------------------------------------------------


def look_around(call: Call) -> None:
    """`runner monitor --once --json` and `runner doctor`, as they answer on this machine."""
    code, out, err = call.runner("monitor", "--once", "--json")
    try:
        record = json.loads(out)
    except ValueError:
        record = {"unreadable": out[:500], "err": err[-500:]}
    gpus = record.get("devices") or []
    names = ", ".join(str(gpu.get("name")) for gpu in gpus if isinstance(gpu, dict))
    ok = code == 0 and (bool(gpus) or call.rehearse)
    said = f"exit code 0; {names or 'no GPU listed'}" if code == 0 else _why(code, err)
    call.emit("monitor", said, ok=ok, record=record)
    report = call.work / "validation_report.json"
    code, _out, err = call.runner("doctor", "--json", "--out", str(report))
    if not report.is_file():
        call.emit("doctor", _why(code, err), ok=False)
        return
    record = json.loads(report.read_text())
    odd = [each for each in record["checks"] if each["status"] in ("warning", "problem")]
    said = "; ".join(f"{each['name']}: {each['status']}" for each in odd)
    call.emit("doctor", f"{record['summary']}; {said}", checks=record["checks"])


# 3: speed ----------------------------------------------------------------------------------------


def measure_speed(call: Call) -> None:
    """Our step and plain TRL's, at the same shape; a smaller one where memory does not suffice."""
    model = _weights(call, "tiny" if call.rehearse else "qwen2.5-7b")
    rows = vram_battery.make_rows(call.work / "rows.jsonl")
    shapes = ["2x64"] if call.rehearse else ["2x4096", "1x4096"]
    rates: dict[str, float] = {}
    for shape in shapes:
        for who in ("ours", "trl"):
            record = _step(call, who, shape, model, rows)
            if "error" not in record:
                rates[who] = record["tokens_per_second"]
        if rates:
            break
    if len(rates) == 2:
        ratio = rates["ours"] / rates["trl"]
        call.emit("ratio", f"ours / plain TRL: {ratio:.3f}", ratio=ratio, ok=ratio >= 1 or None)


def _step(call: Call, who: str, shape: str, model: Path, rows: Path) -> dict[str, Any]:
    folder = call.work / f"step-{who}-{shape}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    record_file = folder / "step.jsonl"
    command = [sys.executable, str(HERE / "step_speed.py"), str(folder), "--who", who]
    command += ["--model", str(model), "--rows", str(rows), "--shape", shape]
    command += ["--device", call.device, "--out", str(record_file)]
    began = time.monotonic()
    code, _out, err = call.run(*command)
    record: dict[str, Any] = {"error": _why(code, err)}
    if record_file.is_file():
        record = json.loads(record_file.read_text())
    if "error" in record:
        call.emit(f"{who} {shape}", record["error"], ok=False, record=record)
        return record
    mfu = f"MFU {record['mfu']:.1%}" if record["mfu"] else "no MFU (peak of this device not known)"
    kernels = ", ".join(name for name, _ms in record["attention_kernels"][:2]) or "none seen"
    said = f"{record['tokens_per_second']:,.0f} tokens/s, {record['step_ms']:.0f} ms a step, {mfu}"
    said += f", {(record['torch_peak_reserved_bytes'] or 0) / GIB:.1f} GiB reserved"
    said += f"; attention: {kernels}"
    call.emit(f"{who} {shape}", said, ok=True, record=record, seconds=time.monotonic() - began)
    return record


# 4: predictions ----------------------------------------------------------------------------------


def compare_memory(call: Call) -> None:
    """vram_battery.py's first eight; what was measured before is not measured again."""
    battery = call.work / "battery"
    battery.mkdir(parents=True, exist_ok=True)
    cases = vram_battery.REHEARSAL if call.rehearse else vram_battery.FIRST
    kept, done = _kept(call), _measured(call)
    most = max(90.0, call.seconds / 3)
    for case in cases:
        record = done.get(case.name)
        if record is None:
            if call.left < 2 * LEAST_SECONDS:
                call.emit(case.name, f"not enough time: {call.left:.0f} s were left", ok=False)
                continue
            record = vram_battery.measure(case, battery, call.device, min(most, call.left))
            if isinstance(record["error"], float):
                with kept.open("a") as stream:
                    stream.write(json.dumps(record) + "\n")
        if not isinstance(record["error"], float):
            call.emit(case.name, f"{record['error']}", ok=False, record=record)
            continue
        said = f"predicted {record['predicted_bytes'] / GIB:.2f} GiB, measured "
        said += f"{record['measured_bytes'] / GIB:.2f}, {record['error']:+.1%}"
        call.emit(case.name, said, ok=abs(record["error"]) <= 0.08 or call.rehearse, record=record)


def _kept(call: Call) -> Path:
    name = "rehearsal.jsonl" if call.rehearse else "measured.jsonl"
    return call.work / "battery" / name


def _measured(call: Call) -> dict[str, dict[str, Any]]:
    """What part 4 has measured, by the case's name."""
    if not _kept(call).is_file():
        return {}
    lines = _kept(call).read_text().splitlines()
    return {one["case"]: one for one in map(json.loads, lines)}


# 5: budgets --------------------------------------------------------------------------------------

_GROW = """
import sys, time
held = []
for number in range(40):
    if sys.argv[1] == "cuda":
        import torch
        held.append(torch.ones(64 * 2**20, dtype=torch.float32, device="cuda"))
    else:
        held.append(bytearray(b"x" * 2**26))
    print("holds", len(held), flush=True)
    time.sleep(0.25)
time.sleep(60)
"""
"""256 MiB (on a CPU 64 MiB) every quarter of a second: no cap of torch's holds it."""


def breach_budgets(call: Call) -> None:
    """The watchdog on a script that grows; torch's cap on a training that needs more."""
    script = call.work / "grow.py"
    script.write_text(_GROW)
    job = call.work / "grow.yaml"
    field, size = ("host_memory", "600MiB") if call.rehearse else ("gpu_memory", "3GiB")
    job.write_text(
        json.dumps(
            {
                "engine": "script",
                "script": str(script),
                "arguments": [call.device],
                "launch": {"device": call.device, "on": "local"},
                "budget": {field: size, "grace_seconds": 5},
            }
        )
    )
    end = _train(call, str(job), [], call.seconds / 2 if call.rehearse else 30.0)
    peak = (end.get("peak_bytes") or 0) / GIB
    said = f"{end.get('reason')}, exit code {end.get('exit_code')}, peak {peak:.2f} GiB of {size}"
    call.emit("watchdog", said, ok=end.get("reason") == "over_budget", end=end)
    if call.rehearse:
        call.emit("cap", "not rehearsed: torch's cap is on GPU memory")
        return
    case = vram_battery.FIRST[1]  # the smallest that part 4 measures
    _weights(call, case.model)
    rows = vram_battery.make_rows(call.work / "battery" / "rows.jsonl")
    sets = case.settings(call.models, rows, call.device)
    # under what it needs, but over what is refused before the start as impossible
    measured = _measured(call).get(case.name)
    low = measured["low_bytes"] if measured else _predicted_low(call, sets)
    above = max(16 * 2**20, (measured["measured_bytes"] - low) // 2 if measured else 0)
    budget = f"{(low + above) // 2**20}MiB"
    sets = [text for text in sets if not text.startswith("budget")]
    end = _train(call, "demo-identity", [*sets, f"budget.gpu_memory={budget}"], 60.0)
    peak = (end.get("peak_bytes") or 0) / GIB
    said = f"{end.get('reason')}, exit code {end.get('exit_code')}, peak {peak:.2f} GiB of {budget}"
    call.emit("cap", f"{said}: {end.get('why')}", ok=end.get("reason") == "over_budget", end=end)


def _predicted_low(call: Call, sets: list[str]) -> int:
    code, out, err = call.runner("vram", "demo-identity", "--json", *_sets(sets))
    if code != 0:
        raise RuntimeError(f"runner vram: {err.strip()[-300:]}")
    return int(json.loads(out)["low_bytes"])


def _train(call: Call, job: str, sets: list[str], seconds: float) -> dict[str, Any]:
    """termination.json of a run, else what was said in its place."""
    code, out, err = call.runner("train", job, "--json", *_sets(sets), seconds=seconds)
    try:
        record: dict[str, Any] = json.loads(out)
    except ValueError:
        return {"reason": f"no verdict, {_why(code, err)}"}
    end = Path(str(record.get("folder"))) / "termination.json"
    found = json.loads(end.read_text()) if end.is_file() else {}
    keys = ("reason", "exit_code", "peak_bytes", "peak_source", "adapter_sha256", "peaks")
    kept = {key: record.get(key, found.get(key)) for key in keys}
    return {**kept, "exit_code": code, "why": record.get("why"), "folder": record.get("folder")}


# 6: the same bits --------------------------------------------------------------------------------


def compare_hashes(call: Call) -> None:
    """Two runs of one plan with `deterministic: true` in bf16: adapters and losses."""
    name = "tiny" if call.rehearse else "qwen2.5-0.5b"
    model, steps = _weights(call, name), 5 if call.rehearse else 20
    tokens = 64 if call.rehearse else 1024
    sets = [
        f"model={model}",
        f"data.train={vram_battery.make_rows(call.work / 'rows.jsonl')}",
        *("data.format=alpaca", "data.split=null", "method=lora", "training.stages=[]"),
        "lora={r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: all-linear}",
        *("training.precision=bf16", f"training.max_length={tokens}", "budget={}"),
        *("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2"),
        *(f"training.max_steps={steps}", "training.eval_steps=null", "training.save_steps=null"),
        *("deterministic=true", f"launch.device={call.device}", "launch.on=local"),
        "tracking.report_to=[]",
    ]
    seen = []
    for run in ("first", "second"):
        code, out, err = call.runner("train", "demo-identity", "--fresh", "--json", *_sets(sets))
        if code != 0:
            call.emit(run, _why(code, err), ok=False)
            return
        folder = Path(json.loads(out)["folder"])
        sha = json.loads((folder / "termination.json").read_text())["adapter_sha256"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        call.emit(run, f"adapter {str(sha)[:16]}, last loss {losses[-1]!r}", sha256=sha)
        seen.append((sha, losses))
    equal = seen[0] == seen[1]
    call.emit("hashes", "equal" if equal else "NOT EQUAL", ok=equal, steps=steps)


def main() -> int:
    """0 where the part came to its end."""
    from first_contact_torch import load_and_run

    parts = {
        1: load_and_run,
        2: look_around,
        3: measure_speed,
        4: compare_memory,
        5: breach_budgets,
        6: compare_hashes,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", type=int, choices=sorted(parts))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    # what libraries print must not come between the lines of JSON
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(what: str, said: str, **figures: Any) -> None:
        answers.write(json.dumps({"what": what, "said": said, **figures}, default=str) + "\n")
        answers.flush()

    parts[given.part](Call(given.work, given.seconds, given.rehearse, emit))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
