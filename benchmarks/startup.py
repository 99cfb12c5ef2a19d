"""How long `runner --help` and `runner render` take, against the `--help` of a bare Typer app.

    .venv/bin/python benchmarks/startup.py [N]
    .venv/bin/python benchmarks/startup.py first-step [--repeats N] ...
    .venv/bin/python benchmarks/startup.py smokes

The second is benchmarks/first_step.py: from Enter to the first optimizer step, beside plain TRL.
The third is benchmarks/all_smokes.py: `runner smoke` of all jobs.

Runs the commands in turn, N times each (default 15) after one that counts for nothing, and prints
the medians and their ratios. Typer draws help with rich unless told not to, as runner tells it; so
the bare app is measured without rich too, to show how much of the difference that is. Exit code 1
where a ratio misses its goal, or where a command imports torch or transformers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOALS = {"runner --help": 1.3, "runner render demo-identity": 2.5}
HEAVY = ("torch", "transformers")
BARE = "two-command Typer app --help"
BARE_WITHOUT_RICH = "the same, without rich"
TYPER_APP = '''\
import typer

app = typer.Typer()

@app.command()
def hello(name: str) -> None:
    """Say hello."""

@app.command()
def goodbye(name: str) -> None:
    """Say goodbye."""

app()
'''


def seconds_of(command: list[str], folder: Path) -> float:
    """Wall time of one run of a command, which has to succeed."""
    environment = {**os.environ, "COLUMNS": "100"}
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def imported(command: list[str], folder: Path) -> set[str]:
    """Top-level names of what a `python ...` command imports, by -X importtime."""
    timed = [command[0], "-X", "importtime", *command[1:]]
    done = subprocess.run(timed, cwd=folder, check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def main() -> int:
    """Measure, print, and say by the exit code whether the goals are met."""
    if sys.argv[1:2] == ["first-step"]:
        import first_step

        del sys.argv[1]
        return first_step.main()
    if sys.argv[1:2] == ["smokes"]:
        import all_smokes

        del sys.argv[1]
        return all_smokes.main()
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(TYPER_APP)
        plain = TYPER_APP.replace("Typer()", "Typer(rich_markup_mode=None)")
        (folder / "plain.py").write_text(plain)
        runner = [sys.executable, "-m", "runner"]
        commands = {
            BARE: [sys.executable, "app.py", "--help"],
            BARE_WITHOUT_RICH: [sys.executable, "plain.py", "--help"],
            "runner --help": [*runner, "--help"],
            "runner render demo-identity": [*runner, "render", "demo-identity"],
        }
        times: dict[str, list[float]] = {label: [] for label in commands}
        for turn in range(repetitions + 1):
            for label, command in commands.items():
                seconds = seconds_of(command, folder)
                if turn:
                    times[label].append(seconds)
        heavy = {label: imported(commands[label], folder) & set(HEAVY) for label in GOALS}

    medians = {label: statistics.median(values) for label, values in times.items()}
    print(f"medians of {repetitions}, interleaved, Python {sys.version.split()[0]}")
    failed = False
    for label, median in medians.items():
        low, high = min(times[label]), max(times[label])
        line = f"{label:<30} {median * 1000:6.1f} ms  ({low * 1000:.1f} to {high * 1000:.1f})"
        if label in GOALS:
            ratio = median / medians[BARE]
            met = ratio <= GOALS[label] and not heavy[label]
            failed = failed or not met
            line += f"  ratio {ratio:.2f}, goal {GOALS[label]}: {'met' if met else 'MISSED'}"
            line += f"  IMPORTS {', '.join(sorted(heavy[label]))}" if heavy[label] else ""
        print(line)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
