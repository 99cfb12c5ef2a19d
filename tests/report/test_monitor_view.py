"""report.monitor_*: what is gathered, and how it looks, without a terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from runner.common.tail import Tail
from runner.machine.nvml import NvmlFailed
from runner.machine.readings import DeviceHealth, DeviceProcess, DeviceReading, MigDevice
from runner.report.monitor.bars import bar, pair, percent, shorten, sparkline, style_of
from runner.report.monitor.processes import Owners, read_stat
from runner.report.monitor.runs import FIRST_READ_BYTES, LiveRuns
from runner.report.monitor.snapshot import History, Snapshot, run_key
from runner.report.monitor.view import render
from runner.report.monitor.watch import Watch, sample_once, samples_in
from tests.report.laid_runs import GIB, lay_run, lives, measured, sleeping
from tests.testbed import REPOSITORY

TOTAL = 80 * GIB


def drawn(snapshot: Snapshot, width: int = 110, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    options = console.options.update(width=width, height=height)
    lines = console.render_lines(render(snapshot), options, pad=False)
    return "\n".join("".join(segment.text for segment in line) for line in lines)


def in_colour(snapshot: Snapshot) -> str:
    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system="standard", no_color=False
    )
    console.print(render(snapshot))
    return console.file.getvalue()  # type: ignore[attr-defined]


def card(
    index: int = 0,
    used: int | None = 20 * GIB,
    processes: tuple[DeviceProcess, ...] | None = (),
    lost: bool = False,
) -> DeviceReading:
    total = None if used is None or lost else TOTAL
    used = None if lost else used
    return DeviceReading(
        index, f"GPU-{index}", "NVIDIA H100", total, used, None, None, None, None, None, None, lost,
        None if lost else processes,
    )  # fmt: skip


class Cards:
    """Cards as a test says; a text in place of a reading is how it fails."""

    def __init__(self, *cards: DeviceReading | str) -> None:
        self.now = list(cards)

    def driver_version(self) -> str | None:
        return None

    def devices(self) -> list[tuple[int, str | None]]:
        return [(index, f"GPU-{index}") for index in range(len(self.now))]

    def read(self, index: int) -> DeviceReading:
        reading = self.now[index]
        if isinstance(reading, str):
            raise NvmlFailed(reading)
        return reading


class NoCount(Cards):
    def devices(self) -> list[tuple[int, str | None]]:
        raise NvmlFailed("device count: Unknown Error")


def watch(tmp_path: Path, *cards: DeviceReading | str, interval: float = 5.0) -> Watch:
    return Watch(Cards(*cards), LiveRuns(tmp_path), interval_seconds=interval)


def test_failing_cards_are_shown_as_such(tmp_path: Path) -> None:
    snapshot = sample_once(watch(tmp_path, card(lost=True), "GPU 1 memory: Unknown Error"))
    text = drawn(snapshot)
    assert "the GPU is lost" in text
    assert "Unknown Error" in text
    assert [device.used_bytes for device in snapshot.devices] == [None, None]
    assert [device.used_max_bytes for device in snapshot.devices] == [None, None]
    json.dumps(snapshot.to_record(), allow_nan=False)


def test_where_nvml_fails_the_host_is_shown_and_why(tmp_path: Path) -> None:
    snapshot = sample_once(Watch(NoCount(), LiveRuns(tmp_path)))
    assert snapshot.host is not None and snapshot.devices == ()
    assert "Unknown Error" in drawn(snapshot)


def test_unknown_is_said_and_never_zero(tmp_path: Path) -> None:
    snapshot = sample_once(watch(tmp_path, card(used=None, processes=None)))
    text = drawn(snapshot, 80)
    assert "? %   ? W   ? °C" in text
    assert "unknown" in text and "? / ?" in text
    assert "clocks ? · ECC ? · XID ?" in text
    assert "processes unknown" in text
    assert "0 %" not in text and "0.00" not in text


def test_the_largest_sample_of_an_interval_is_kept_until_its_report(tmp_path: Path) -> None:
    watching = watch(tmp_path, card(used=10 * GIB))
    for used in (10, 70, 12):
        assert isinstance(watching._nvml, Cards)
        watching._nvml.now = [card(used=used * GIB)]
        watching.sample()
    first, second = watching.report(), sample_once(watching)
    assert (first.samples, second.samples) == (3, 1)
    assert first.devices[0].used_bytes == 12 * GIB
    assert first.devices[0].used_max_bytes == 70 * GIB
    assert second.devices[0].used_max_bytes == 12 * GIB
    assert "max 70.00" in drawn(first)


@pytest.mark.parametrize(
    ("interval", "samples"), [(5.0, 5), (1.0, 1), (0.1, 1), (2.5, 3), (60.0, 60)]
)
def test_samples_are_a_second_apart_or_less(interval: float, samples: int) -> None:
    assert samples_in(interval) == samples


def test_a_runs_budget_marks_the_bar_and_colours_it(tmp_path: Path) -> None:
    folder = lay_run(tmp_path, budget="24GiB")
    with sleeping() as pid:
        lives(folder, pid)
        held = (DeviceProcess(pid, 23 * GIB),)
        snapshot = sample_once(watch(tmp_path, card(used=23 * GIB, processes=held), card(1)))
    device, other = snapshot.devices
    assert [(share.run, share.budget_bytes, share.own_bytes) for share in device.runs] == [
        (folder.name, 24 * GIB, 23 * GIB)
    ]
    assert other.runs == ()
    assert device.processes is not None and device.processes[0].run == folder.name
    lines = drawn(snapshot, 100).splitlines()
    in_use = next(line for line in lines if line.startswith("  memory"))
    at = in_use.index("┃") - len("  memory ")
    assert abs(at / (100 - 47) - 24 / 80) < 0.03  # of the bar's 53 cells
    assert "23.00 / 24.00 GiB   96 %" in drawn(snapshot, 100)
    # 29 % of the card, but 96 % of the budget: red
    assert "\x1b[1;31m━" in in_colour(snapshot).splitlines()[3]
    free = sample_once(watch(tmp_path / "none", card(used=23 * GIB, processes=held)))
    assert "\x1b[32m━" in in_colour(free).splitlines()[3]


def test_over_budget_and_without_a_budget(tmp_path: Path) -> None:
    over, free = lay_run(tmp_path, budget="2GiB"), lay_run(tmp_path, budget=None)
    with sleeping() as one, sleeping() as two:
        lives(over, one)
        lives(free, two)
        held = (DeviceProcess(one, 3 * GIB), DeviceProcess(two, GIB))
        text = drawn(sample_once(watch(tmp_path, card(processes=held))), 80)
    assert "3.00 / 2.00 GiB  150 %" in text
    assert "1.00 GiB, no budget" in text


def test_a_part_of_a_run_that_is_unknown_is_no_figure(tmp_path: Path) -> None:
    folder = lay_run(tmp_path, cards=2)
    with sleeping() as pid:
        lives(folder, pid)
        hidden = (DeviceProcess(pid, None),)
        snapshot = sample_once(watch(tmp_path, card(processes=hidden), card(1, processes=hidden)))
        assert [device.runs[0].own_bytes for device in snapshot.devices] == [None, None]
        assert "? / 24.00 GiB    ? %" in drawn(snapshot, 80)


def test_the_guards_figure_stands_in_on_the_only_card_of_a_run(tmp_path: Path) -> None:
    folder = lay_run(tmp_path)
    measured(folder, [5 * GIB], attribution="trainer_reported")
    with sleeping() as pid:
        lives(folder, pid)
        snapshot = sample_once(watch(tmp_path, card(processes=())))
    assert snapshot.devices[0].runs[0].own_bytes == 5 * GIB
    assert snapshot.runs[0].attribution == "trainer_reported"


def test_what_a_silent_guard_last_said_is_not_the_present(tmp_path: Path) -> None:
    folder = lay_run(tmp_path)
    measured(folder, [5 * GIB], time_unix_seconds=time.time() - 20)
    with sleeping() as pid:
        lives(folder, pid)
        snapshot = sample_once(watch(tmp_path, card()))
    assert snapshot.runs[0].own_bytes is None
    assert snapshot.devices[0].runs[0].own_bytes is None


def test_only_runs_that_live_are_shown_and_a_waiting_one_is_on_no_card(tmp_path: Path) -> None:
    ended, dead, waits = (lay_run(tmp_path, budget=f"{n}GiB") for n in (7, 8, 9))
    ended.termination.write_text("{}")
    dead.supervisor.write_text(json.dumps({"pid": os.getpid(), "start_ticks": 1}))
    with sleeping() as pid:
        lives(ended, pid)
        lives(waits, pid)
        waits.queue.write_text("{}")
        snapshot = sample_once(watch(tmp_path, card()))
    assert [(run.name, run.waiting) for run in snapshot.runs] == [(waits.name, True)]
    assert snapshot.devices[0].runs == ()
    assert "waits for a GPU" in drawn(snapshot)


def test_a_run_that_moves_to_another_card_before_it_starts_is_shown_there(tmp_path: Path) -> None:
    folder = lay_run(tmp_path, cards=1)
    both = lay_run(tmp_path / "other", cards=2)
    with sleeping() as pid:
        lives(folder, pid)
        runs = LiveRuns(tmp_path)
        runs.refresh()
        assert runs.views(time.time())[0].gpu_uuids == ("GPU-0",)
        both.plan.replace(folder.plan)
        runs.refresh()
        assert runs.views(time.time())[0].gpu_uuids == ("GPU-0", "GPU-1")


def test_a_run_whose_plan_is_damaged_stops_no_view(tmp_path: Path) -> None:
    folder = lay_run(tmp_path)
    folder.plan.write_text("no plan")
    with sleeping() as pid:
        lives(folder, pid)
        assert sample_once(watch(tmp_path, card())).runs == ()


def test_a_runs_history_is_there_at_once(tmp_path: Path) -> None:
    folder = lay_run(tmp_path)
    device = {"index": 0, "used_bytes": 40 * GIB}
    measured(folder, [n * GIB for n in range(1, 25)], devices=[device])
    with sleeping() as pid:
        lives(folder, pid)
        watching = watch(tmp_path, card(processes=()), interval=1.0)
        snapshot = sample_once(watching)
    values = snapshot.histories[run_key(folder.name)].latest(24)
    assert values == [n * GIB for n in range(1, 25)]
    text = drawn(snapshot, 100)
    assert "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███" in text  # of the budget of 24 GiB
    assert "most 40.00 GiB" in text  # of the card
    # what was measured before the monitor began is no maximum of its interval
    assert snapshot.runs[0].own_max_bytes == 24 * GIB


def test_a_guards_sample_between_two_of_ours_counts_in_its_interval(tmp_path: Path) -> None:
    folder = lay_run(tmp_path)
    measured(folder, [2 * GIB])
    with sleeping() as pid:
        lives(folder, pid)
        watching = watch(tmp_path, card())
        assert sample_once(watching).runs[0].own_max_bytes == 2 * GIB
        measured(folder, [9 * GIB])
        time.sleep(0.01)
        measured(folder, [3 * GIB])
        run = sample_once(watching).runs[0]
        assert (run.own_bytes, run.own_max_bytes) == (3 * GIB, 9 * GIB)
        assert sample_once(watching).runs[0].own_max_bytes == 3 * GIB


def test_a_memory_file_is_read_from_its_end_and_then_by_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    lines = [json.dumps({"n": n, "pad": "x" * 1000}) for n in range(2000)]
    path.write_text("\n".join(lines) + "\n")
    tail = Tail(path, newest_bytes=FIRST_READ_BYTES)
    first = list(tail.read())
    assert 100 < len(first) < 600 and first[-1]["n"] == 1999
    assert [record["n"] for record in first] == list(range(2000 - len(first), 2000))
    with path.open("a") as stream:
        stream.write('{"n": 2000}\n{"n": 20')
    assert list(tail.read()) == [{"n": 2000}]
    with path.open("a") as stream:
        stream.write("01}\n")
    assert list(tail.read()) == [{"n": 2001}]
    assert list(tail.read()) == []
    path.write_text('{"n": 0}\n')  # a new start
    assert list(tail.read()) == [{"n": 0}]


def test_health_in_words(tmp_path: Path) -> None:
    health = DeviceHealth(700.0, ("power cap", "thermal (hardware)"), 2, 1, False, None)
    watching = Watch(
        Cards(card()), LiveRuns(tmp_path), health=lambda _: health, xids=lambda _: (79, 48)
    )
    text = drawn(sample_once(watching))
    assert "clocks held by: power cap, thermal (hardware)" in text
    assert "ECC 2 corrected, 1 uncorrected" in text
    assert "XID 79, 48" in text
    calm = DeviceHealth(700.0, ("idle",), 0, 0, False, None)
    watching = Watch(Cards(card()), LiveRuns(tmp_path), health=lambda _: calm, xids=lambda _: ())
    assert "clocks idle · ECC 0 corrected, 0 uncorrected · no XID" in drawn(sample_once(watching))


def test_a_card_in_mig_mode_has_its_parts(tmp_path: Path) -> None:
    parts = (MigDevice(0, "MIG-a", "NVIDIA H100 MIG 1g.10gb", 10 * GIB, 9 * GIB),)
    for found, words in (
        (parts, "9.00 / 10.00 GiB   90 %  1g.10gb"),
        ((), "in MIG mode, no MIG devices"),
        (None, "in MIG mode, MIG devices unknown"),
    ):
        health = DeviceHealth(mig_mode=True, mig_devices=found)
        watching = Watch(Cards(card()), LiveRuns(tmp_path), health=lambda _, told=health: told)
        assert words in drawn(sample_once(watching), 80)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    folder = lay_run(tmp_path)
    measured(folder, [5 * GIB, 6 * GIB])
    health = DeviceHealth(700.0, ("power cap", "thermal (software)"), 12345, 1, True, None)
    with sleeping() as pid:
        lives(folder, pid)
        held = (DeviceProcess(pid, 6 * GIB), DeviceProcess(4194303, None))
        watching = Watch(
            Cards(card(processes=held), card(1, lost=True), "GPU 2: " + "error " * 30),
            LiveRuns(tmp_path),
            health=lambda _: health,
            xids=lambda _: tuple(range(20)),
        )
        snapshot = sample_once(watching)
    text = drawn(snapshot, width)
    assert max(len(line) for line in text.splitlines()) <= width
    if width >= 60:  # everything is there, and the names of runs can be told apart
        for words in ("┃", "6.00 / 24.00 GiB", "25 %", "max 6.00", "(20 in all)"):
            assert words in text
        assert folder.name[-7:] in text


def test_a_low_terminal_shows_every_card_and_leaves_out_processes(tmp_path: Path) -> None:
    held = tuple(DeviceProcess(4_000_000 + n, n * GIB) for n in range(12))
    snapshot = sample_once(watch(tmp_path, *(card(n, processes=held) for n in range(4))))
    high, low = drawn(snapshot, 80, 100), drawn(snapshot, 80, 24)
    assert "and 2 more, 1.00 GiB together" in high and len(high.splitlines()) > 24
    assert len(low.splitlines()) <= 24
    assert [f"GPU {n}" in low for n in range(4)] == [True] * 4
    assert "pid" not in low


def test_a_host_without_a_gpu(tmp_path: Path) -> None:
    folder = lay_run(tmp_path, device="cpu", budget="8GiB")
    measured(folder, [GIB, 7 * GIB], kind="host")
    with sleeping() as pid:
        lives(folder, pid)
        snapshot = sample_once(Watch(None, LiveRuns(tmp_path), interval_seconds=1.0))
        stats = psutil.Process(pid).memory_info().rss
    host = snapshot.host
    assert host is not None and snapshot.devices == () and snapshot.note is None
    assert host.total_bytes == psutil.virtual_memory().total
    assert len(host.cpu_percent) == psutil.cpu_count()
    assert [(view.pid, view.command, view.run) for view in host.run_processes] == [
        (pid, "sleep", folder.name)
    ]
    assert abs((host.run_processes[0].used_bytes or 0) - stats) < 1 << 20
    sizes = [view.used_bytes or 0 for view in host.biggest]
    assert sizes == sorted(sizes, reverse=True) and 0 < len(sizes) <= 5
    json.dumps(snapshot.to_record(), allow_nan=False)
    text = drawn(snapshot, 80)
    for words in ("memory", "load", "cores", "biggest", folder.name, "7.00 / 8.00 GiB   88 %"):
        assert words in text
    assert "▁█" in text or "▂█" in text or "▁▇" in text or "▂▇" in text


def test_a_history_keeps_the_largest_of_each_column() -> None:
    history = History(5.0, columns=10)
    for at, value in ((100, 3), (104, 9), (101, 4), (112, 1), (113, None)):
        history.add(at, value)
    assert history.latest(4, 129) == [1, None, None, None]
    assert history.latest(4, 119) == [None, 9, None, 1]  # the newest column has only begun
    assert history.latest(3) == [9, None, 1]
    assert History(1.0).latest(2) == [None, None]
    for at in range(0, 1000, 5):
        history.add(at, at)
    assert len(history._largest) <= 21
    assert history.latest(2) == [990, 995]


def test_bars_and_sparklines() -> None:
    assert bar(10, 0.5, "").plain == "━━━━━─────"
    assert bar(10, 0.001, "").plain == "╸─────────"  # a little is not nothing
    assert bar(10, 0.0, "").plain == "──────────"
    assert bar(10, 3.0, "").plain == "━━━━━━━━━━"
    assert bar(10, 0.2, "", [0.5, 1.5]).plain == "━━───┃────"
    assert bar(10, None, "").plain == "unknown   "
    assert sparkline([0, None, 50, 100, 200], 100).plain == "▁ ▄██"
    assert sparkline([5, 10], None).plain == "▄█"
    assert sparkline([None], None).plain == " "
    assert [style_of(f) for f in (None, 0.84, 0.85, 0.95)] == [
        "dim", "green", "yellow", "bold red",
    ]  # fmt: skip


def test_figures_share_a_unit() -> None:
    assert pair(GIB // 2, 2 * GIB) == "0.50 / 2.00 GiB"
    assert pair(None, 2 * GIB) == "? / 2.00 GiB"
    assert pair(3 * GIB, None) == "3.00 GiB / ?"
    assert pair(100 << 20, 512 << 20) == "100 / 512 MiB"
    assert (percent(1, 4), percent(None, 4), percent(1, None)) == ("25 %", "? %", "? %")
    assert shorten("demo-identity/20251125-161400-76a2bff", 21) == "demo-ident…00-76a2bff"
    assert shorten("short", 21) == "short"


def test_rich_and_the_exporter_are_imported_only_when_used() -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import runner.cli.monitor\n"
        "from runner.report.monitor.runs import LiveRuns\n"
        "from runner.report.monitor.watch import Watch, sample_once\n"
        "sample_once(Watch(None, LiveRuns(Path('/nowhere')))).to_record()\n"
        "print([name in sys.modules for name in ('rich', 'pynvml', 'prometheus_client', 'yaml')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "[False, False, False, False]"


def test_a_process_in_a_runs_container_is_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    container = "4f" * 32
    asked = []

    def in_container(text: str, wanted: str) -> bool:
        asked.append(text)
        return wanted == container

    monkeypatch.setattr("runner.report.monitor.processes.in_container", in_container)
    owners = Owners()
    me = read_stat(os.getpid())
    assert me is not None and me.parent == os.getppid()
    assert owners.run_of(me) is None
    owners.learn({}, {container: "demo/1"})
    assert [owners.run_of(me), owners.run_of(me)] == ["demo/1", "demo/1"]
    assert asked == [Path("/proc/self/cgroup").read_text()]  # once, then it is known
    owners.learn({os.getppid(): "demo/2"}, {})
    assert owners.run_of(me) == "demo/2"


def test_a_command_with_blanks_and_brackets_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a (b) c"
    program.symlink_to(shutil.which("sleep") or "/bin/sleep")
    with subprocess.Popen([str(program), "900"]) as process:
        try:
            deadline = time.monotonic() + 600
            stat = read_stat(process.pid)
            while stat and stat.command != "a (b) c" and time.monotonic() < deadline:
                time.sleep(0.01)
                stat = read_stat(process.pid)
            assert stat is not None
            assert (stat.command, stat.parent) == ("a (b) c", os.getpid())
        finally:
            process.kill()
    assert read_stat(4194303) is None
