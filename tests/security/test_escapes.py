"""Escape sequences in all that others write: none reaches the terminal by any command.

OSC 52 sets the clipboard, CSI moves the cursor over what was said, CR too; bidi marks turn it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.cli.check import sample_lines
from runner.common.output import Output
from runner.engines.render import read_any_plan
from runner.launch.data_lines import report_lines
from runner.launch.follow import Progress, View
from runner.report.monitor.processes import read_stat
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.report.laid_runs import lay_run, lives
from tests.security.hostile_runs import EVIL, RECORDS, evil_in, lay_hostile, renamed, text_of, unfit
from tests.support.command import REPOSITORY, Answer


def spoil(folder: RunFolder) -> RunFolder:
    """Every text of every record evil, the reason, the names of files and of the run too."""
    for name, record in RECORDS.items():
        evil = evil_in(record)
        if name == "termination.json":
            evil["reason"] = record["reason"]
        if name in ("events.jsonl", "engine/failure.json"):
            evil["kind"] = record["kind"]
        (folder.path / name).write_text(text_of(name, evil))
    seal = folder.checkpoints / "checkpoint-2" / checkpoints.SEAL
    seal.write_text(json.dumps({"files": {f"weights{EVIL}": {"size_bytes": 1, "sha256": "0"}}}))
    log = f"fine\n{EVIL[:13]}\n{EVIL}\nover\rwritten\n{EVIL}".encode() + b"\xff\n"
    folder.train_log.write_bytes(log)
    folder.supervisor_log.write_bytes(log)
    return renamed(folder, "job\x1b[2J", "\x1b]52;c;eA==\x07\udcff")


@pytest.fixture
def place(cli: Callable[..., Answer], tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    root = tmp_path / "runs"
    return spoil(lay_hostile(root)), lay_hostile(root)


COMMANDS = [
    "ps --all",
    "ps --all --json",
    "ps",
    "report RUN",
    "report RUN --json",
    "logs RUN",
    "logs RUN -f",
    "logs RUN --json",
    "logs RUN -f --json",
    "logs RUN --supervisor",
    "attach RUN",
    "attach RUN --json",
    "wait RUN",
    "wait RUN --json",
    "verify RUN OTHER",
    "verify RUN OTHER --json",
    "diff RUN OTHER",
    "diff OTHER RUN --json",
    "stop RUN",
    "monitor RUN --once",
    "monitor RUN --once --json",
    "monitor RUN --once --csv",
    "prune --failed --dry-run",
    "rm RUN",
    "chat RUN -p hello",
    "evaluate RUN",
    "reproduce RUN",
    "report nothing-like-it",
]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_prints_what_a_terminal_obeys(
    command: str,
    ended: bool,
    place: tuple[RunFolder, RunFolder],
    cli: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evil, other = place
    if not ended:
        evil.termination.unlink()
    monkeypatch.setattr("runner.launch.wait.START_SECONDS", 0.0)
    words = {"RUN": str(evil.path), "OTHER": other.name}
    answer = cli(*(words.get(word, word) for word in command.split()))
    assert unfit(answer.out) == [] and unfit(answer.err) == [], answer
    assert "bug in runner" not in answer.err
    if command.endswith("--json") and answer.code == 0 and "-f" not in command:
        json.loads(answer.out)


def test_what_was_written_is_shown_and_not_swallowed(
    place: tuple[RunFolder, RunFolder], cli: Callable[..., Answer]
) -> None:
    evil, _ = place
    told = cli("report", str(evil.path)).out
    assert r"\x1b]52;c;ZXZpbA==\x07" in told and r"\x9b31m" in told and r"\u202eevil" in told
    log = cli("logs", str(evil.path)).out
    assert r"\x1b]52;c;ZXZpb" in log
    assert "\nwritten\n" in log  # what a terminal would have shown last in that line
    record = json.loads(cli("report", str(evil.path), "--json").out)
    assert record["termination"]["message"] == f"why{EVIL}"  # the value itself is as it was


def test_raw_hands_a_log_on_as_it_is(place: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    evil, _ = place
    for words in (["--raw"], ["--raw", "-f"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "runner", "logs", str(evil.path), *words],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            check=True,
        )
        assert done.stdout == evil.train_log.read_bytes()


def test_raw_and_json_exclude_each_other(
    place: tuple[RunFolder, RunFolder], cli: Callable[..., Answer]
) -> None:
    answer = cli("logs", str(place[0].path), "--raw", "--json")
    assert answer.code == 2 and "--raw and --json exclude each other" in answer.err


@pytest.mark.parametrize("words", ["ps --all", "report RUN", "logs RUN", "monitor RUN --once"])
def test_the_bytes_of_a_process_hold_none_either(
    words: str, place: tuple[RunFolder, RunFolder], tmp_path: Path
) -> None:
    """As a user starts it: what does not go through Python's sys.stdout is seen here too."""
    evil, _ = place
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "runner"),
            *(str(evil.path) if word == "RUN" else word for word in words.split()),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    for said in (done.stdout, done.stderr):
        assert unfit(said.decode()) == []
    assert b"Traceback" not in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_of_a_run_that_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_run(tmp_path / "runs", device="cpu", budget="4GiB")
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    view = View(Progress(folder, read_any_plan(folder.plan)), Output(as_json=False), EVIL)
    for name in ("metrics.jsonl", "memory.jsonl", "events.jsonl", "queue.json"):
        (folder.path / name).write_text(text_of(name, evil_in(RECORDS[name])))
    for kind in ("warning", "signal"):
        event = {**RECORDS["events.jsonl"], "kind": kind, "text": EVIL}
        with folder.events.open("a") as stream:
            stream.write(json.dumps(event) + "\n")
    view.look(ended=False)
    folder.queue.unlink()
    (folder.path / "engine/rank-0.json").write_text(json.dumps({"phase": EVIL}))
    view.look(ended=False)
    view.clear()
    told = screen.getvalue().replace("\r\x1b[K", "")
    assert unfit(told) == [] and r"\x1b]52" in told


# -- a text that passes for one of our lines


def test_a_second_line_of_a_message_passes_for_none_of_ours(
    place: tuple[RunFolder, RunFolder], cli: Callable[..., Answer]
) -> None:
    _, other = place
    record = {**RECORDS["termination.json"], "message": "x\nkept        checkpoint-9 is whole"}
    other.termination.write_text(json.dumps(record))
    told = cli("report", other.name).out
    assert "\nkept        checkpoint-9" not in told and " kept        checkpoint-9" in told


# -- rows, job files, bundles, answers


def test_a_row_that_check_shows_is_shown_in_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    sample = {
        "segments": [[f"question {EVIL}", False], [f"answer {EVIL}", True]],
        "line": 1,
        "supervised": 1,
        "tokens": 2,
    }
    Output(as_json=False).result(None, sample_lines(sample))
    Output(as_json=True).result(sample, [])
    assert unfit(capsys.readouterr().out) == []


def test_a_row_is_coloured_by_us_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.cli.check.colour", lambda: True)
    sample = {"segments": [[f"a{EVIL}", True]], "line": 1, "supervised": 1, "tokens": 2}
    Output(as_json=False).result(None, sample_lines(sample))
    told = capsys.readouterr().out.replace("\x1b[30;42m", "<").replace("\x1b[0m", ">")
    assert unfit(told) == [] and "<a\\x1b]52" in told


def test_labels_in_the_table_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    report: dict[str, Any] = {
        "sources": [],
        "mix": None,
        "sides": {"train": 1, "eval": 0, "test": 0},
        "leakage": {"mode": "remove"},
        "split": {"stratify": EVIL, "strata": {f"{EVIL}\nrow": {"train": 1, "eval": 0, "test": 0}}},
        "labels": None,
        "characters": {},
        "cleaning": {},
    }
    try:
        lines = report_lines(report)
    except KeyError as error:
        pytest.fail(f"the report has another field by now: {error}")
    Output(as_json=False).result(None, lines)
    told = capsys.readouterr().out
    assert unfit(told) == [] and r"[/red]\nrow" in told


def test_values_of_a_job_file_in_errors(cli: Callable[..., Answer], tmp_path: Path) -> None:
    evil = json.dumps(EVIL)
    for text in (
        f"model: {evil}\ndata: {{train: rows.jsonl}}\nmethod: {evil}\n",
        f"model: x\ndata: {{train: {evil}}}\n",
        f"{evil}: 1\n",
        f"model: x\ndata: {{train: x}}\ndescription: {evil}\nbudget: {evil}\n",
    ):
        (tmp_path / "job.yaml").write_text(text)
        for command in ("check", "show", "train"):
            answer = cli(command, "job.yaml")
            assert unfit(answer.out) == [] and unfit(answer.err) == [], answer
            assert answer.code in (0, 2, 3)
    answer = cli("show", f"no{EVIL}job")
    assert unfit(answer.out + answer.err) == []


def test_a_bundles_names_in_errors(cli: Callable[..., Answer], tmp_path: Path) -> None:
    import tarfile

    for name in (f"a{EVIL}", "bundle.json"):
        with tarfile.open(tmp_path / "evil.tar", "w") as tar:
            content = json.dumps({"run": EVIL, "schema_version": EVIL, "notes": [EVIL]}).encode()
            (tmp_path / "member").write_bytes(content)
            tar.add(tmp_path / "member", arcname=name)
        answer = cli("unbundle", str(tmp_path / "evil.tar"))
        assert answer.code in (1, 2) and unfit(answer.out + answer.err) == []


def test_an_answer_of_a_model_as_it_streams(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from runner.engines.sft.inside.chat import answer_streamer

    class Tokenizer:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    import torch

    streamer = answer_streamer(Tokenizer())
    streamer.put(torch.tensor([[65]]))  # the prompt
    for letter in f"says {EVIL} done":
        streamer.put(torch.tensor([ord(letter)]))
    streamer.end()
    told = capsys.readouterr().out
    assert unfit(told) == [] and r"says \x1b]52;c;" in told and told.endswith("done\n")


# -- processes

_NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode("utf-8", "surrogateescape"), 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["\x1b]0;x\x07\x1b[2J", "\udcff\udc9b31m", "[red]x[/red]\r"])
def test_the_name_of_a_process_in_the_monitor(
    name: str, cli: Callable[..., Answer], tmp_path: Path
) -> None:
    """Any user may name a process so; its bytes need not even be text."""
    if not hasattr(ctypes.CDLL(None), "prctl"):
        pytest.skip("no prctl")
    folder = lay_run(tmp_path / "runs", device="cpu", budget="4GiB")
    with subprocess.Popen(
        [sys.executable, "-c", _NAMED, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        try:
            lives(folder, process.pid)
            found = read_stat(process.pid)
            assert found is not None and unfit(found.command) == []
            for how in ([], ["--json"], ["--csv"]):
                answer = cli("monitor", folder.name, "--once", *how)
                assert answer.code == 0 and unfit(answer.out) == [], answer
            assert cli("ps").code == 0
        finally:
            process.stdin.close()


# -- completion


def test_a_shell_completes_no_name_that_it_would_execute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.cli.complete import complete_jobs, complete_runs

    stamp = "20260101-000000-abcdef0"
    for end in ("", ";reboot", "$(reboot)", "\n@last", EVIL[:9]):
        name = stamp + end
        (tmp_path / "runs" / "job" / name).mkdir(parents=True)
    (tmp_path / "jobs").mkdir()
    for name in ("mine", "x;reboot", "x`reboot`", "x\x1b[2J"):
        (tmp_path / "jobs" / f"{name}.yaml").touch()
    monkeypatch.chdir(tmp_path)

    found = complete_runs(SimpleNamespace(params={"runs": tmp_path / "runs"}), "")  # type: ignore
    assert found == ["@last", f"job/{stamp}"]
    assert "mine" in complete_jobs("") and not any("x" in name[:1] for name in complete_jobs("x"))
