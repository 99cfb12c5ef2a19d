"""The caller's locale and PYTHONIOENCODING change nothing but what their own terminal is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.common import own_python
from tests.support.command import REPOSITORY

LATIN = {"PYTHONIOENCODING": "latin-1"}
ASCII = {"PYTHONIOENCODING": "ascii"}
BARE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CALLERS = {"latin-1": LATIN, "ascii": ASCII, "bare": BARE}
ROWS = [{"instruction": f"问题 {number}", "output": f"答案 é {number}"} for number in range(12)]


def call(folder: Path, caller: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `runner`, read byte by byte as Latin-1: nothing fails."""
    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))},
            "PYTHONPATH": str(REPOSITORY),
            "RUNNER_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            **caller,
        },
        capture_output=True,
        timeout=300,
    )
    out, err = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
    assert "Traceback" not in err and "bug in runner" not in err, err
    return done.returncode, out, err


@pytest.fixture
def job(tmp_path: Path) -> str:
    """A job whose file, rows and labels are Chinese."""
    rows = tmp_path / "数据é.jsonl"
    rows.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS), "utf-8")
    path = tmp_path / "情感.yaml"
    path.write_text(
        "description: 学习 é\nmodel: builtin:smollm2-135m-instruct\n"
        f"data: {{train: {rows.name}, format: alpaca}}\n",
        "utf-8",
    )
    return path.name


@pytest.mark.parametrize("caller", CALLERS)
def test_help_and_jobs_are_printed(caller: str, job: str, tmp_path: Path) -> None:
    assert call(tmp_path, CALLERS[caller], "--help")[0] == 0
    code, out, err = call(tmp_path, CALLERS[caller], "show", job)
    assert code == 0, err
    assert "\\u5b66\\u4e60" in out  # escapes, where the terminal has no sign
    assert ("\\xe9" in out) == (caller != "latin-1")


@pytest.mark.parametrize("caller", CALLERS)
def test_rows_are_prepared_by_a_process_of_their_own(caller: str, job: str, tmp_path: Path) -> None:
    code, out, err = call(tmp_path, CALLERS[caller], "data", job, "--json")
    assert code == 0, err
    assert json.loads(out)["job"] == "情感"


@pytest.mark.parametrize("caller", CALLERS)
def test_an_error_names_the_file_in_escapes(caller: str, tmp_path: Path) -> None:
    (tmp_path / "坏.yaml").write_text("modell: 情\n", "utf-8")
    code, _, err = call(tmp_path, CALLERS[caller], "check", "坏.yaml")
    assert code == 2
    assert "\\u574f.yaml" in err


def test_children_are_told_utf8_and_the_terminals_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv(own_python.TERMINAL_ENCODING, "koi8-r")
    given = own_python.safe_environment()
    assert (given["PYTHONIOENCODING"], given["PYTHONUTF8"]) == ("utf-8", "1")
    assert own_python.TERMINAL_ENCODING not in given

    class Latin:
        encoding = "latin-1"

    monkeypatch.setattr(sys, "stderr", Latin())
    given = own_python.safe_environment(to_terminal=True)
    assert given[own_python.TERMINAL_ENCODING] == "latin-1"


GUARDED = """
import sys
from runner.common import terminal
terminal.guard_streams({streams})
terminal.say("\\u60c5 \\xe9")
terminal.put_json({{"a": "\\u60c5 \\xe9"}})
"""


@pytest.mark.parametrize(
    ("streams", "out"), [("", "情 é".encode()), ('"stdout"', b"\\u60c5 \\u00e9")]
)
def test_a_child_writes_to_the_terminal_as_the_terminal_reads(streams: str, out: bytes) -> None:
    environment = {**own_python.safe_environment(), own_python.TERMINAL_ENCODING: "latin-1"}
    done = subprocess.run(
        own_python.code_argv(GUARDED.format(streams=streams)),
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b"\\u60c5 \xe9\n"
    assert out in done.stdout


def test_a_prompt_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from runner.cli.chat import _standard_input
    from runner.common.errors import UsageError

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("情".encode()), "ascii"))
    with pytest.raises(UsageError, match="not ascii"):
        _standard_input()


def test_json_is_json_on_any_terminal() -> None:
    import io

    from runner.common import terminal

    for encoding in ("ascii", "latin-1", "utf-8", "gbk"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
        terminal.put_json({"é": "情 \U0001f600 \x1b"}, stream=stream)
        told = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert json.loads(told) == {"é": "情 \U0001f600 \x1b"}
        assert "\x1b" not in told


@pytest.mark.e2e
@pytest.mark.parametrize("caller", ["latin-1"])
def test_a_check_asks_the_engine(caller: str, shared: Path, job: str, tmp_path: Path) -> None:
    model = shared / "models" / "stories260k"
    settings = ("--set", f"model={model}", "--set", "launch.device=cpu")
    code, _, err = call(tmp_path, CALLERS[caller], "check", job, *settings)
    assert code == 0, err


def test_launch_scripts_speak_utf8() -> None:
    for name in ("launch", "mgm", "script"):
        text = (REPOSITORY / "shell" / f"{name}.sh.j2").read_text("utf-8")
        assert "export PYTHONUTF8=1\nexport PYTHONIOENCODING=utf-8\n" in text
