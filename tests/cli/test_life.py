"""ps, logs, attach, wait, rm and prune on run folders in every state."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.process_times import boot_id, start_ticks
from runner.common.processes import is_living
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import gather
from runner.engines.sft.inside.train import best
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.launch.follow import Progress, seconds_a_step
from runner.report import run_table as standing
from runner.runs import checkpoints
from runner.runs.create import create_run
from runner.runs.delete import HIDDEN
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.runs.state import state_of
from tests.support.command import Answer

Cli = Callable[..., Answer]
NOW = time.time()


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SftPlan:
    place = tmp_path_factory.mktemp("job")
    (place / "rows.jsonl").write_text("{}\n")
    (place / "demo.yaml").write_text(
        f"model: a/b\ndata: {{train: {place}/rows.jsonl}}\ntraining: {{max_steps: 60}}\n"
        "budget: {host_memory: 8GiB}\nlaunch: {device: cpu}\n"
    )
    loaded = load_job(str(place / "demo.yaml"))
    return make_plan(loaded, gather(loaded))


class Runs:
    """Makes runs in ./runs of the current folder."""

    def __init__(self, plan: SftPlan) -> None:
        self._plan, self._second = plan, 0

    def make(self, variant: str = "train", **end: Any) -> RunFolder:
        """A run with a verdict where `end` has a reason."""
        self._second += 1
        plan = self._plan.model_copy(update={"variant": variant})
        at = NOW - 86_400 + self._second
        run = create_run(Path("runs"), plan.job, plan.short_hash, variant, render(plan), at)
        if "reason" in end:
            outcome = Outcome(
                Reason(end["reason"]),
                end.get("exit_code", 0),
                "the message",
                steps=60,
                max_steps=60,
                last_loss=0.5,
                started_unix_seconds=end.get("ended", NOW - 60) - 60,
                ended_unix_seconds=end.get("ended", NOW - 60),
            )
            run.termination.write_text(json.dumps(outcome.to_record()))
        return run

    def lost(self) -> RunFolder:
        run = self.make()
        run.supervisor.write_text(json.dumps({"pid": 1, "start_ticks": -1}))
        run.metrics.write_text('{"step": 7, "loss": 1.5, "time_unix_seconds": 1.0}\n')
        return run

    def running(self, pid: int | None = None) -> RunFolder:
        pid, run = pid or os.getpid(), self.make()
        run.supervisor.write_text(json.dumps({"pid": pid, "start_ticks": start_ticks(pid)}))
        run.metrics.write_text(
            '{"step": 7, "loss": 1.5, "time_unix_seconds": 1.0}\n{"step": 7, "eval_loss": 1.0}\n'
        )
        run.memory.write_text('{"own_bytes": 1073741824}\n')
        return run


@pytest.fixture
def runs(cli: Cli, plan: SftPlan) -> Runs:
    return Runs(plan)


def save(run: RunFolder, *steps: int) -> None:
    for step in steps:
        path = run.checkpoints / checkpoints.name_of(step)
        path.mkdir()
        (path / "weights").write_bytes(b"w" * 10_000)
        checkpoints.seal(path)


def states(answer: Answer) -> dict[str, str]:
    return {one["run"]: one["state"] for one in json.loads(answer.out)["runs"]}


# -- ps


def test_ps_shows_what_lives_and_what_is_lost_and_all_the_rest(cli: Cli, runs: Runs) -> None:
    done, failed = runs.make(reason="completed"), runs.make(reason="failed", exit_code=1)
    lost, living, waiting = runs.lost(), runs.running(), runs.running()
    waiting.queue.write_text('{"text": "place 1 of 1"}')
    never = runs.make()
    save(lost, 5)
    short = {lost.name: "lost", living.name: "running", waiting.name: "queued"}
    assert states(cli("ps", "--json")) == short
    assert states(cli("ps", "--all", "--json")) == {
        done.name: "completed",
        failed.name: "failed",
        **short,
        never.name: "not_started",
    }
    text = cli("ps").out
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("demo/")}
    assert "running  7/60  1.5   1.00 GiB of 8.00 GiB  cpu" in rows[living.name]
    assert f"{lost.name}: last sign at step 7" in text
    assert "the same runner train command resumes from checkpoint-5" in text
    # columns are aligned: each header begins where its cells do
    head = text.splitlines()[0]
    assert rows[living.name][head.index("STATE") :].startswith("running")
    assert rows[waiting.name][head.index("GPU") :].startswith("cpu")


def typed(run: RunFolder, *words: str, folder: Path | None = None) -> None:
    """sources.json as `runner train WORDS` leaves it."""
    record = {"command": ["/bin/runner", "train", *words], "folder": str(folder or Path.cwd())}
    run.sources.write_text(json.dumps(record))


def test_the_command_that_goes_on_is_printed_for_a_shell(
    cli: Cli, runs: Runs, tmp_path: Path
) -> None:
    lost, stopped = runs.lost(), runs.make(reason="stopped", exit_code=143)
    words = ["my job.yaml", "--set", 'description=it\'s "a" $HOME', "--fresh", "--json"]
    elsewhere = tmp_path / "a 'place'"
    elsewhere.mkdir()
    for run in (lost, stopped):
        save(run, 5)
    typed(lost, *words)
    typed(stopped, "demo", folder=elsewhere)
    told = {one["run"]: one for one in json.loads(cli("ps", "--all", "--json").out)["runs"]}
    command = told[lost.name]["goes_on_by"]
    assert command in cli("ps").out and command in cli("report", lost.name).out
    show = 'runner() { printf "%s\\0" "$PWD" "$@"; }; ' + command
    said = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    *heard, _ = said.stdout.split("\0")
    assert heard == [str(tmp_path), "train", *words[:3], "--resume"]
    # from another folder, with the runs where they are
    command = told[stopped.name]["goes_on_by"]
    assert command in cli("ps", "--all").out and command in cli("report", stopped.name).out
    assert json.loads(cli("report", stopped.name, "--json").out)["goes_on_by"] == command
    show = 'runner() { printf "%s\\0" "$PWD" "$@"; }; ' + command
    said = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    runs_folder = str(tmp_path / "runs")
    assert said.stdout.split("\0")[:-1] == [
        *(str(elsewhere), "train", "demo", "--resume", "--runs", runs_folder)
    ]


def test_nothing_is_promised_where_nothing_can_be_gone_on_with(cli: Cli, runs: Runs) -> None:
    done, bare, replay = runs.make(reason="completed"), runs.lost(), runs.lost()
    for run in (done, replay):
        save(run, 5)
    for run in (done, bare):
        typed(run, "demo")
    replay.sources.write_text(json.dumps({"command": ["runner", "reproduce", "x"]}))
    told = json.loads(cli("ps", "--all", "--json").out)["runs"]
    assert [one["goes_on_by"] for one in told] == [None, None, None]
    assert "runner train demo" not in cli("ps", "--all").out


def test_no_run_at_all_is_said(cli: Cli, runs: Runs) -> None:
    assert "no run lives under runs" in cli("ps").out
    assert cli("ps", "--all").out == "there is no run under runs\n"
    assert json.loads(cli("ps", "--json").out)["runs"] == []


def test_since_is_the_process_s_own_age_whatever_the_clock_says(cli: Cli, runs: Runs) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        run = runs.running(sleeper.pid)
        record = json.loads(run.supervisor.read_text())
        record["started_unix_seconds"] = NOW + 10 * 86_400  # the clock was set back ten days
        run.supervisor.write_text(json.dumps(record))
        [one] = json.loads(cli("ps", "--json").out)["runs"]
        assert 0 <= one["seconds"] < 60
        assert abs(one["since_unix_seconds"] - time.time()) < 60
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_verdict_under_a_jumping_clock_has_a_sane_duration() -> None:
    back = Outcome(Reason.COMPLETED, 0, "", started_unix_seconds=1e9, ended_unix_seconds=5.0)
    assert back.to_record()["seconds"] == 0.0
    measured = Outcome(Reason.COMPLETED, 0, "", ended_unix_seconds=1e9, elapsed_seconds=3.5)
    assert measured.to_record()["seconds"] == 3.5
    assert "elapsed_seconds" not in measured.to_record()


def test_a_scripts_own_lines_are_followed_whatever_they_hold(runs: Runs, plan: SftPlan) -> None:
    folder = runs.make()
    lines: list[dict[str, Any]] = [
        {"loss": 1.5},
        {"loss": 1.5, "step": "one"},
        {"loss": None, "step": 2, "learning_rate": "high", "tokens_per_second": []},
        {"loss": 0.25, "step": 3},
    ]
    for line in lines:
        folder.metrics.write_text(json.dumps(line) + "\n")
        progress = Progress(folder, plan)
        progress.update()
        shown = progress.line()
    assert "step 3/60" in shown and "loss 0.250" in shown


def test_the_pace_forgets_spans_in_which_the_clock_was_set() -> None:
    steady = [(100.0 + 2 * n, n) for n in range(10)]
    assert seconds_a_step(steady) == pytest.approx(2.0)
    ahead = [(when + (86_400 if n > 4 else 0), n) for when, n in steady]
    back = [(when - (86_400 if n > 4 else 0), n) for when, n in steady]
    for jumped in (ahead, back):
        assert seconds_a_step(jumped) == pytest.approx(2.0)
    assert seconds_a_step([(5.0, 1)]) is None


def test_after_a_reboot_a_reused_pid_with_the_same_start_time_is_nobody(runs: Runs) -> None:
    run = runs.running()
    record = json.loads(run.supervisor.read_text())
    assert is_living({**record, "boot_id": boot_id()})
    run.supervisor.write_text(json.dumps({**record, "boot_id": "of-another-boot"}))
    assert state_of(run) == "lost"


def test_a_supervisor_that_has_not_said_its_pid_is_known_by_its_lock(runs: Runs) -> None:
    run = runs.make()
    with run.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state_of(run) == "running"
    assert state_of(run) == "not_started"


@pytest.mark.parametrize("command", [["ps", "--all"], ["report"], ["wait"], ["attach"]])
def test_a_newer_runner_s_verdict_is_shown_as_such(
    command: list[str], cli: Cli, runs: Runs
) -> None:
    run = runs.make()
    run.termination.write_text(
        json.dumps({"schema_version": 9, "reason": "evaporated", "exit_code": 5, "why": {}})
    )
    name = [] if command[0] == "ps" else [run.name]
    answer = cli(*command, *name)
    assert "bug in runner" not in answer.err
    assert "evaporated" in answer.out
    assert answer.code == (5 if command[0] in ("wait", "attach") else 0)
    if command[0] != "wait":
        assert "a newer runner (schema_version 9, this one reads 1)" in answer.out


def test_a_newer_runner_s_plan_stops_no_list(cli: Cli, runs: Runs) -> None:
    run = runs.running()
    text = run.plan.read_text().replace("schema_version: 1", "schema_version: 9")
    run.plan.write_text(text)
    told = cli("ps")
    assert (told.code, "running" in told.out) == (0, True)
    assert "written by a newer runner (schema_version 9, this one reads 1)" in told.out
    refused = cli("attach", run.name)
    assert (refused.code, "written by a newer runner" in refused.err) == (1, True)


def test_a_folder_that_vanishes_while_it_is_looked_at_is_no_run(
    cli: Cli, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the look, as `rm` in another terminal does it."""
    gone, stays = runs.make(reason="completed"), runs.make(reason="completed")
    look = standing.standing_of

    def slow(folder: RunFolder, now: float) -> Any:
        if gone.path.exists():
            assert cli("rm", gone.name, "--yes").code == 0
        return look(folder, now)

    monkeypatch.setattr(standing, "standing_of", slow)
    assert states(cli("ps", "--all", "--json")) == {stays.name: "completed"}


def test_lists_bear_folders_that_come_and_go(cli: Cli, runs: Runs) -> None:
    """Really at once: a thread makes and removes runs while `ps` and `report @last` look."""
    stays, stop = runs.make(reason="completed"), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            run = runs.make(reason="completed")
            run.path.rename(run.path.with_name(f"{HIDDEN}{run.path.name}"))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(25):
            assert stays.name in states(cli("ps", "--all", "--json"))
            assert cli("report", "@last").code in (0, 1)
    finally:
        stop.set()
        thread.join()


# -- wait, logs, attach of runs that are over


def test_wait_gives_the_first_exit_code_that_is_not_zero(cli: Cli, runs: Runs) -> None:
    done = runs.make(reason="completed")
    over = runs.make(reason="over_budget", exit_code=75)
    failed, lost = runs.make(reason="failed", exit_code=1), runs.lost()
    assert cli("wait", done.name).code == 0
    assert cli("wait", done.name, over.name, failed.name).code == 75
    assert cli("wait", failed.name, over.name).code == 1
    assert cli("wait", lost.name).code == 1
    told = json.loads(cli("wait", done.name, over.name, "--json").out)
    assert (told["exit_code"], [one["state"] for one in told["runs"]]) == (
        75,
        ["completed", "over_budget"],
    )
    assert cli("wait", done.name, "no-such").code == 2


def test_waiting_for_what_is_removed_ends(cli: Cli, runs: Runs) -> None:
    run = runs.running()
    timer = threading.Timer(0.6, lambda: run.path.rename(run.path.with_name("elsewhere")))
    timer.start()
    answer = cli("wait", run.name)
    assert (answer.code, "its folder is gone" in answer.err) == (1, True)


def test_waiting_for_what_nobody_starts_is_refused(
    cli: Cli, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.launch.wait.START_SECONDS", 0.3)
    answer = cli("wait", runs.make().name)
    assert (answer.code, "was never started" in answer.err) == (3, True)


def test_logs_are_printed_whole_and_followed_to_the_end(cli: Cli, runs: Runs) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    run = runs.running(sleeper.pid)
    run.train_log.write_bytes("first é\n".encode()[:-2])  # cut within a character
    run.supervisor_log.write_text("guard\n")
    assert cli("logs", run.name).out == "first "
    assert cli("logs", run.name, "--supervisor").out == "guard\n"

    def go_on() -> None:
        with run.train_log.open("ab") as log:
            log.write("é\n".encode()[1:] + b"last words")
        sleeper.kill()
        sleeper.wait()

    timer = threading.Timer(0.8, go_on)
    timer.start()
    followed = cli("logs", "-f", run.name)
    assert (followed.code, followed.out) == (0, "first é\nlast words")
    lines = cli("logs", "-f", run.name, "--json").out.splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["first é", "last words"]
    assert json.loads(cli("logs", run.name, "--json").out)["lines"] == ["first é", "last words"]


def test_a_log_that_is_not_there_is_explained(cli: Cli, runs: Runs) -> None:
    waiting = runs.running()
    waiting.queue.write_text("{}")
    answer = cli("logs", waiting.name)
    assert (answer.code, answer.out) == (0, "")
    assert "waits for a GPU" in answer.err


def test_watching_a_lost_run_ends(cli: Cli, runs: Runs) -> None:
    told = cli("monitor", runs.lost().name, "--interval", "0.1", "--json")
    assert told.code == 0 and len(told.out.splitlines()) <= 2


def test_attach_to_what_is_over_gives_its_verdict(cli: Cli, runs: Runs) -> None:
    run = runs.make(reason="over_budget", exit_code=75)
    answer = cli("attach", run.name)
    assert answer.code == 75
    assert answer.out.startswith("over_budget 60 of 60 steps")
    assert json.loads(cli("attach", run.name, "--json").out)["state"] == "over_budget"


# -- rm


def test_rm_removes_the_folder_whole(cli: Cli, runs: Runs) -> None:
    first, second, stays = (runs.make(reason="completed") for _ in range(3))
    save(first, 1)
    answer = cli("rm", first.name, second.path.name, first.name, "--yes", "--json")
    assert answer.code == 0
    told = json.loads(answer.out)
    assert told["removed"] == [first.name, second.name] and told["freed_bytes"] >= 10_000
    assert [path.name for path in first.path.parent.iterdir()] == [stays.path.name]


def test_rm_never_takes_what_lives_and_then_takes_nothing(cli: Cli, runs: Runs) -> None:
    done, living = runs.make(reason="completed"), runs.running()
    waiting, by_hand = runs.running(), runs.make()
    waiting.queue.write_text("{}")
    own = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    by_hand.engine_status(0).write_text(json.dumps(own))
    starting = runs.make()
    with starting.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for run in (living, waiting, by_hand, starting):
            answer = cli("rm", done.name, run.name, "--yes")
            assert (answer.code, "left alone" in answer.err) == (3, True), run
            assert done.path.is_dir() and run.plan.is_file()


def test_rm_asks_at_a_terminal_and_nowhere_else(cli: Cli, runs: Runs) -> None:
    run = runs.make(reason="completed")
    piped = cli("rm", run.name)
    assert (piped.code, "no terminal to ask on" in piped.err) == (2, True)
    for answer, code, there in (("n\n", 1, True), ("\x04", 1, True), ("y\n", 0, False)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "rm", run.name],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.write(ours, answer.encode())
        assert process.wait(30) == code, os.read(ours, 4000)
        os.close(ours)
        assert run.path.is_dir() is there


def test_rm_leaves_links_and_copies_alone(cli: Cli, runs: Runs, tmp_path: Path) -> None:
    run = runs.make(reason="completed")
    link, attempt = run.path.with_name(run.path.name + "-9"), run.attempt(1)
    link.symlink_to(run.path)
    attempt.mkdir(parents=True)
    (attempt / "plan.yaml").write_text(run.plan.read_text())
    for path in (link, attempt):
        answer = cli("rm", str(path), "--yes")
        assert (answer.code, "left alone" in answer.err) == (2, True)
    assert run.plan.is_file() and (attempt / "plan.yaml").is_file()


def test_what_a_killed_removal_left_goes_with_the_next(cli: Cli, runs: Runs) -> None:
    run = runs.make(reason="completed")
    left = run.path.with_name(f"{HIDDEN}20260101-000000-abcdef0")
    (left / "checkpoints").mkdir(parents=True)
    assert left.name not in cli("ps", "--all").out
    assert cli("rm", run.name, "--yes").code == 0
    assert not left.exists()


# -- prune


def test_prune_needs_a_rule_and_an_answer(cli: Cli, runs: Runs) -> None:
    run = runs.make("smoke", reason="completed")
    bare = cli("prune")
    assert (bare.code, "no rule was given" in bare.err) == (2, True)
    assert cli("prune", "--older-than", "soon").code == 2
    assert cli("prune", "--smokes").code == 2  # nobody to ask
    shown = cli("prune", "--smokes", "--dry-run")
    assert (shown.code, run.name in shown.out) == (0, True)
    assert run.path.is_dir()


def test_prune_keeps_the_newest_whole_and_the_best_checkpoint(cli: Cli, runs: Runs) -> None:
    run, living = runs.make(reason="completed"), runs.running()
    save(run, 1, 2, 3, 4, 5)
    save(living, 1, 2, 3)
    (run.checkpoints / "checkpoint-5" / "weights").write_bytes(b"damaged")
    found = [best.Evaluation(step, loss) for step, loss in ((1, 9.0), (2, 0.1), (3, 5.0))]
    best.write(run.best, found)
    shown = json.loads(cli("prune", "--keep-checkpoints", "1", "--dry-run", "--json").out)
    assert [each["checkpoints"] for each in shown["runs"]] == [["checkpoint-1", "checkpoint-3"]]
    answer = cli("prune", "--keep-checkpoints", "1", "--yes")
    assert (answer.code, "2 checkpoints removed" in answer.out) == (0, True)
    kept = [checkpoints.step_of(path) for path in checkpoints.listed(run.checkpoints)]
    assert kept == [2, 4, 5]
    assert len(checkpoints.listed(living.checkpoints)) == 3
    assert not list(run.checkpoints.glob(f"{HIDDEN}*"))


def test_prune_removes_runs_by_age_kind_and_end(cli: Cli, runs: Runs) -> None:
    old = runs.make(reason="completed", ended=NOW - 40 * 86_400)
    ahead = runs.make(reason="completed", ended=NOW + 40 * 86_400)  # the clock was set back
    smoke, failed = runs.make("smoke", reason="completed"), runs.make(reason="failed", exit_code=1)
    stopped, living = runs.make(reason="stopped", exit_code=143), runs.running()
    assert cli("prune", "--older-than", "30d", "--yes").code == 0
    assert not old.path.exists() and ahead.path.exists() and stopped.path.exists()
    answer = cli("prune", "--smokes", "--failed", "--yes")
    assert "2 runs removed" in answer.out
    left = [run.path.exists() for run in (smoke, failed, stopped, living, ahead)]
    assert left == [False, False, True, True, True]
    assert "nothing here falls" in cli("prune", "--failed", "--dry-run").out
