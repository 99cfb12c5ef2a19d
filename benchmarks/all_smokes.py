"""`runner smoke --max-steps 5` of all jobs, as on the first day: seconds and CPU seconds.

    python benchmarks/startup.py smokes [--models FOLDER] [--package FOLDER]

Cache, state and runs are empty but for the models that are downloaded already (--models, else those
of the user's own cache). --package measures another checkout of runner. Exit code 1 where it took
longer than the goal, which is for two free cores, or where a job did not pass. Look at the load
first: on a busy machine the threads of a training step wait for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_SECONDS = 75.0


def main() -> int:
    """Measure, print, and say by the exit code whether the goal is met."""
    from runner.common.caches import cache_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=cache_folder() / "models")
    parser.add_argument("--package", type=Path, default=Path(__file__).resolve().parents[1])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runner-smokes-") as name:
        return measure(Path(name), asked.models.absolute(), asked.package.absolute())


def measure(folder: Path, models: Path, package: Path) -> int:
    """Smoke all jobs in an empty folder; 1 where the goal is missed."""
    (folder / "cache").mkdir()
    if models.is_dir():
        (folder / "cache" / "models").symlink_to(models)
    load = os.getloadavg()[0]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "runner", "smoke", "--max-steps", "5", "--json"],
        cwd=folder,
        env={
            **os.environ,
            "RUNNER_CACHE": str(folder / "cache"),
            "RUNNER_STATE": str(folder / "state"),
            "RUNNER_RUNS": str(folder / "runs"),
            "RUNNER_ON": "local",
            "PYTHONPATH": str(package),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = json.loads(done.stdout)
    for job in record["jobs"]:
        print(f"{job['job']:<30} {job['seconds']:6.1f} s  {job['verdict']}")
    before = seconds - sum(job["seconds"] for job in record["jobs"])
    print(f"{'before the first':<30} {before:6.1f} s")
    print(
        f"{'all':<30} {seconds:6.1f} s, {used.ru_utime + used.ru_stime:.1f} CPU s; goal "
        f"{GOAL_SECONDS:.0f} s on two free cores; load before {load:.1f}, after "
        f"{os.getloadavg()[0]:.1f}"
    )
    return int(done.returncode != 0 or seconds > GOAL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
