"""The real `runner monitor` on the NVML stub: each way of showing, and how each ends."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.common import durable
from runner.common.output import Output
from runner.launch.monitor import reports as reports_of
from runner.machine.health import CLOCK_LIMITS
from runner.report.monitor.csv import COLUMNS
from runner.report.monitor.metrics import FAMILIES
from runner.runs.folder import RunFolder
from tests.report.laid_runs import GIB, guarded, lay_run, lives, measured, sleeping
from tests.support.command import Answer
from tests.testbed import H100, FakeNvml

MIB = 1024**2
UNKNOWN_CARD = "gpu 1 GPU-1 - - - - - 0 NVIDIA GB10"


def start(
    nvml: FakeNvml | None, folder: Path, *arguments: str, **more: Any
) -> subprocess.Popen[str]:
    environment = nvml.environment() if nvml else {**os.environ, "PYTHONPATH": sys.path[0]}
    return subprocess.Popen(
        [sys.executable, "-m", "runner", "monitor", "--runs", str(folder), *arguments],
        **{
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            # a shell has what it starts in the background ignore SIGINT, and that is inherited
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **more,
        },
    )


def monitor(nvml: FakeNvml, folder: Path, *arguments: str) -> str:
    with start(nvml, folder, *arguments) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert err == ""
    return out


@contextmanager
def a_run_on_the_card(nvml: FakeNvml, tmp_path: Path) -> Iterator[tuple[RunFolder, int]]:
    """A live run with 23 of its 24 GiB on the first card; the second card says nothing."""
    folder = lay_run(tmp_path / "runs", budget="24GiB")
    with sleeping() as pid:
        lives(folder, pid)
        measured(folder, [n * GIB for n in range(1, 24)])
        nvml.set(
            f"gpu 0 GPU-0 {H100}", UNKNOWN_CARD, f"compute 0 {pid} {23 * 1024}",
            "compute 0 4194303 -", "power_limit 0 700000", "clocks 0 0x44", "ecc 0 3 0",
        )  # fmt: skip
        with guarded(folder, 23 * GIB):
            yield folder, pid


def test_json_has_cards_processes_and_runs(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    with a_run_on_the_card(fake_nvml, tmp_path) as (folder, pid):
        record = json.loads(monitor(fake_nvml, tmp_path / "runs", "--once", "--json"))
    assert record["schema_version"] == 1
    assert (record["samples"], record["host"], record["note"]) == (1, None, None)
    assert record["driver_version"] == "570.124.06"
    assert "histories" not in record
    first, second = record["devices"]
    share = {
        "run": folder.name,
        "budget_bytes": 24 * GIB,
        "own_bytes": 23 * GIB,
        "own_max_bytes": 23 * GIB,
    }
    assert first["runs"] == [share]
    assert first["used_bytes"] == first["used_max_bytes"] == 20000 * MIB
    assert first["processes"] == [
        {"pid": pid, "used_bytes": 23 * GIB, "command": "sleep", "run": folder.name},
        {"pid": 4194303, "used_bytes": None, "command": None, "run": None},
    ]
    assert (first["power_watts"], first["power_limit_watts"]) == (452.0, 700.0)
    assert first["clock_limits"] == ["power cap", "thermal (hardware)"]
    assert (first["ecc_corrected"], first["ecc_uncorrected"]) == (3, 0)
    assert first["xids"] is None  # one look hears no events
    known = {"index", "uuid", "name", "lost", "runs", "processes"}
    assert {key for key, value in second.items() if value is not None} == known
    assert record["runs"][0]["budget_bytes"] == 24 * GIB


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_view_in_a_terminal_of_any_width(
    fake_nvml: FakeNvml, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with a_run_on_the_card(fake_nvml, tmp_path):
        out = monitor(fake_nvml, tmp_path / "runs", "--once", "--interval", "1")
    assert max(len(line) for line in out.splitlines()) <= columns
    for words in (
        "GPU 0  NVIDIA H100 80GB HBM3", "452 / 700 W", "19.53 / 79.65 GiB", "23.00 / 24.00 GiB",
        "96 %", "┃", "▇█", "clocks held by: power cap, thermal (hardware)", "sleep",
    ):  # fmt: skip
        assert words in out


def test_a_stream_of_json_samples_within_its_interval(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    card = f"gpu 0 GPU-0 {H100}"
    fake_nvml.set(card)
    # seconds for each of what the test does in between, since nobody knows how busy the machine is
    with start(fake_nvml, tmp_path, "--json", "--interval", "9") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        fake_nvml.set(card.replace(" 20000 ", " 70000 "), "xid 0 79")
        time.sleep(4.5)
        fake_nvml.set(card, "xid 0 79")
        second = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (130, "")
    (before,), (after,) = first["devices"], second["devices"]
    assert first["samples"] == 1 and 2 < second["samples"] <= 9
    assert before["used_max_bytes"] == 20000 * MIB and before["xids"] == []
    assert after["used_bytes"] == 20000 * MIB
    assert after["used_max_bytes"] == 70000 * MIB
    assert after["xids"] == [79]
    assert second["time_unix_seconds"] - first["time_unix_seconds"] > 8.5


def test_csv_has_a_header_and_a_line_for_each_card_at_once(
    fake_nvml: FakeNvml, tmp_path: Path
) -> None:
    with a_run_on_the_card(fake_nvml, tmp_path) as (folder, _):
        with start(fake_nvml, tmp_path / "runs", "--csv", "--interval", "0.2") as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(5)]  # without waiting for an end
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=600)
        once = monitor(fake_nvml, tmp_path / "runs", "--csv", "--once")
    assert (process.returncode, err) == (130, "")
    assert lines[0] == once.splitlines(keepends=True)[0] == ",".join(COLUMNS) + "\n"
    rows = list(csv.DictReader(io.StringIO("".join(lines))))
    assert [row["gpu"] for row in rows] == ["0", "1", "0", "1"]
    first, second = rows[0], rows[1]
    assert int(first["memory_used_bytes"]) == 20000 * MIB
    assert first["clock_limits"] == "power cap;thermal (hardware)"
    assert first["runs"] == folder.name
    assert int(first["runs_budget_bytes"]) == 24 * GIB
    assert int(first["runs_memory_bytes"]) == 23 * GIB
    assert (first["power_limit_watts"], first["xid_events"]) == ("700.0", "0")
    told = {name for name, value in second.items() if value}
    assert told == {"time_unix_seconds", "gpu", "uuid", "name", "xid_events", "lost"}
    assert len(once.splitlines()) == 3


def parsed(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, _ = FAMILIES[sample.name]
            assert set(sample.labels) == set(labels)
            key = tuple(sample.labels[label] for label in labels)
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def check_metrics(text: str, run: str) -> None:
    metrics = parsed(text)
    card = ("0", "GPU-0", "NVIDIA H100 80GB HBM3")
    assert set(metrics) <= set(FAMILIES)
    assert metrics["runner_gpu_memory_used_bytes"] == {card: 20000 * MIB}  # the other is unknown
    assert metrics["runner_gpu_memory_total_bytes"] == {card: 81559 * MIB}
    assert metrics["runner_gpu_utilization_ratio"] == {card: 0.87}
    assert metrics["runner_gpu_power_watts"] == {card: 452.0}
    assert metrics["runner_gpu_lost"] == {card: 0.0, ("1", "GPU-1", "NVIDIA GB10"): 0.0}
    assert metrics["runner_gpu_ecc_errors_total"] == {
        (*card, "corrected"): 3.0,
        (*card, "uncorrected"): 0.0,
    }
    limited = metrics["runner_gpu_clocks_limited"]
    assert {labels[3] for labels, value in limited.items() if value} == {
        "power cap",
        "thermal (hardware)",
    }
    assert len(limited) == len(CLOCK_LIMITS)
    assert metrics["runner_run_memory_bytes"] == {(run,): 23 * GIB}
    assert metrics["runner_run_budget_bytes"] == {(run,): 24 * GIB}
    assert metrics["runner_gpu_run_memory_bytes"] == {(*card, run): 23 * GIB}
    assert abs(metrics["runner_monitor_report_time_seconds"][()] - time.time()) < 600
    assert "nan" not in text.lower()


def test_metrics_are_served_on_this_machine_only(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    with (
        a_run_on_the_card(fake_nvml, tmp_path) as (folder, _),
        start(fake_nvml, tmp_path / "runs", "--prometheus", "0", "--interval", "0.2") as process,
    ):
        assert process.stderr is not None
        url = process.stderr.readline().removeprefix("metrics at ").strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
        port = int(url.rpartition(":")[2].removesuffix("/metrics"))
        text = ""
        deadline = time.monotonic() + 600
        while "runner_gpu" not in text and time.monotonic() < deadline:
            with urllib.request.urlopen(url) as answer:  # noqa: S310
                text = answer.read().decode()
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
        taken = start(fake_nvml, tmp_path / "runs", "--prometheus", str(port))
        _, err = taken.communicate(timeout=600)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=600)[1] == ""
    check_metrics(text, folder.name)
    assert parsed(text)["runner_gpu_xid_events_total"] == {
        ("0", "GPU-0", "NVIDIA H100 80GB HBM3"): 0.0,
        ("1", "GPU-1", "NVIDIA GB10"): 0.0,
    }
    assert process.returncode == 130
    assert taken.returncode == 2
    assert f"127.0.0.1:{port}" in err and "in use" in err and "Traceback" not in err


def test_metrics_as_a_textfile_that_is_always_whole(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    path = tmp_path / "node" / "runner.prom"
    path.parent.mkdir()
    with a_run_on_the_card(fake_nvml, tmp_path) as (folder, _):
        assert monitor(fake_nvml, tmp_path / "runs", "--textfile", str(path), "--once") == ""
        check_metrics(path.read_text(), folder.name)
        assert path.stat().st_mode & 0o777 == 0o644  # another user's node-exporter reads it
        process = start(fake_nvml, tmp_path / "runs", "--textfile", str(path), "--interval", "0.1")
        seen = set()
        deadline = time.monotonic() + 600
        while len(seen) < 5 and time.monotonic() < deadline:
            text = path.read_text()
            assert text.endswith("\n")
            check_metrics(text, folder.name)
            seen.add(parsed(text)["runner_monitor_report_time_seconds"][()])
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=600) == ("", "")
    assert len(seen) >= 5
    assert [entry.name for entry in path.parent.iterdir()] == ["runner.prom"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", "--csv"], "--json and --csv exclude each other"),
        (["--csv", "--prometheus", "9"], "--csv and --prometheus exclude each other"),
        (["--prometheus", "9", "--textfile", "x.prom"], "--prometheus and --textfile exclude"),
        (["--once", "--prometheus", "9"], "--once and --prometheus exclude each other"),
        (["--prometheus", "70000"], "expected PORT or ADDRESS:PORT"),
        (["--prometheus", "somewhere:80"], "expected PORT or ADDRESS:PORT"),
        (["--prometheus", ":80"], "expected PORT or ADDRESS:PORT"),
        (["--prometheus", "192.0.2.1:9400"], "can't be served at 192.0.2.1:9400"),
        (["--textfile", "metrics.txt"], "expected a name that ends in .prom"),
        (["--textfile", "nowhere/metrics.prom"], "there is no folder"),
        (["--interval", "nan"], "0.1"),
        (["--interval", "1e300"], "expected seconds from 0.1"),
        (["--interval", "0"], "0.1"),
        (["no-such-run"], "no run"),
    ],
)
def test_what_can_not_be_is_refused(
    cli: Callable[..., Answer], arguments: list[str], said: str
) -> None:
    answer = cli("monitor", *arguments)
    assert answer.code == 2
    assert said in answer.err and "Traceback" not in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("arguments", [["--prometheus", "0"], ["--textfile", "x.prom", "--once"]])
def test_without_the_package_metrics_are_refused_and_it_is_named(
    cli: Callable[..., Answer], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = cli("monitor", *arguments)
    assert answer.code == 2
    assert "pip install prometheus-client" in answer.err


def in_terminal(
    nvml: FakeNvml, folder: Path, *arguments: str, until: str, then: Callable[[int], None]
) -> tuple[int, str]:
    """Run in a terminal of 80 by 30; `then(pid)` once `until` is seen; exit code and output."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        environment = {**nvml.environment(), "TERM": "xterm-256color"}
        environment |= {"COLUMNS": "80", "LINES": "30"}
        command = [sys.executable, "-m", "runner", "monitor", "--runs", str(folder), *arguments]
        os.execve(command[0], command, environment)  # noqa: S606
    text, told = "", False
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        text += piece.decode(errors="replace")
        if until in text and not told:
            told = True
            then(pid)
    os.close(terminal)
    assert told, text
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def test_ctrl_c_ends_the_view_and_leaves_the_last_one(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    with a_run_on_the_card(fake_nvml, tmp_path):
        code, text = in_terminal(
            fake_nvml,
            tmp_path / "runs",
            "--interval",
            "0.3",
            until="every 0.3 s",
            then=lambda pid: os.kill(pid, signal.SIGINT),
        )
    assert code == 0
    assert "Traceback" not in text and "^C" not in text
    screen, _, left = text.partition("\x1b[?1049l")  # back from the alternate screen
    assert "\x1b[?1049h" in screen and "23.00 / 24.00 GiB" in screen
    assert "23.00 / 24.00 GiB" in left and "GPU 1  NVIDIA GB10" in left


def test_with_a_run_the_view_ends_when_it_does(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    with a_run_on_the_card(fake_nvml, tmp_path) as (folder, _):
        metric = {"step": 7, "loss": 1.5, "time_unix_seconds": time.time() - 60}
        folder.metrics.write_text(json.dumps(metric) + "\n")
        durable.write_json(folder.engine_status(0), {"phase": "training", "planned_steps": 60})
        with start(fake_nvml, tmp_path / "runs", "@last", "--interval", "3000") as process:
            assert process.stdout is not None
            first = [process.stdout.readline() for _ in range(3)]
            end = {
                "reason": "completed", "exit_code": 0, "steps": 60, "max_steps": 60,
                "text": "", "peak_bytes": 23 * GIB, "peak_source": "nvml_pid:nvml",
                "budget_bytes": 24 * GIB, "seconds": 60.0,
            }  # fmt: skip
            durable.write_json(folder.termination, end)
            out, err = process.communicate(timeout=600)  # and not after 3000 s
    assert (process.returncode, err) == (0, "")
    assert first[1] == f"{folder.name}\n"
    assert first[2].startswith("  step 7/48  ━━") and "loss 1.500" in first[2]
    assert "completed" in out and "(ended)" in out


def test_a_run_that_ends_just_after_a_report_is_reported_once_more(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "runs", device="cpu")
    out = Output(as_json=False)
    with contextlib.ExitStack() as stack:
        reports = reports_of(tmp_path / "runs", folder, 0.5, False, out, stack)
        assert [run.ended for run in next(reports).runs] == [False]
        folder.termination.write_text("{}")  # before the monitor gets to look again
        assert [run.ended for report in reports for run in report.runs] == [True]
        again = reports_of(tmp_path / "runs", folder, 0.5, False, out, stack)
        assert [run.ended for report in again for run in report.runs] == [True]  # and that is all


def test_gpustat_reads_the_same(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    pytest.importorskip("gpustat", reason="gpustat is not installed: pip install gpustat")
    with a_run_on_the_card(fake_nvml, tmp_path) as (_, pid), sleeping() as other:
        fake_nvml.set(
            f"gpu 0 GPU-0 {H100}", "gpu 1 GPU-1 24576 7168 3 40 90000 0 NVIDIA L4",
            f"compute 0 {pid} 19000", f"graphics 0 {pid} 19000", f"compute 0 {other} 100",
            f"compute 1 {other} 7000",
        )  # fmt: skip
        ours = json.loads(monitor(fake_nvml, tmp_path / "runs", "--once", "--json"))
        done = subprocess.run(
            [sys.executable, "-m", "gpustat", "--json", "--show-pid"],
            env=fake_nvml.environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert theirs["driver_version"] == ours["driver_version"]
    assert len(theirs["gpus"]) == len(ours["devices"]) == 2
    for their, our in zip(theirs["gpus"], ours["devices"], strict=True):
        assert their["uuid"] == our["uuid"]
        assert their["memory.used"] * MIB == our["used_bytes"]
        assert their["memory.total"] * MIB == our["total_bytes"]
        assert their["utilization.gpu"] == our["utilization_percent"]
        assert their["temperature.gpu"] == our["temperature_celsius"]
        assert {one["pid"]: one["gpu_memory_usage"] * MIB for one in their["processes"]} == {
            one["pid"]: one["used_bytes"] for one in our["processes"]
        }
    assert len(theirs["gpus"][0]["processes"]) == 2


def test_a_full_disk_leaves_the_last_whole_textfile(
    fake_nvml: FakeNvml, tmp_path: Path, full_disk: Callable[[int], Path]
) -> None:
    pytest.importorskip("prometheus_client")
    disk = full_disk(64 * 1024)
    path = disk / "runner.prom"
    fake_nvml.set(f"gpu 0 GPU-0 {H100}")
    with start(fake_nvml, tmp_path, "--textfile", str(path), "--interval", "0.2") as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 600
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        said = process.stderr.readline()
        assert parsed(path.read_text())["runner_gpu_memory_used_bytes"]
        (disk / "filler").unlink()
        before = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert path.stat().st_mtime_ns != before  # it goes on once there is room
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
    assert "warning" in said and "No space left" in said
