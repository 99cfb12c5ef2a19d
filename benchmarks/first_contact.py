"""What the first quarter of an hour on a card shows: the most important first, each part limited.

    benchmarks/carry.sh DIR                                        where there is a network
    python3 benchmarks/first_contact.py --carry DIR --out OUT      on the machine with the card: the
                                                                   Python 3.12 that has torch

| part | what | limit |
|---|---|---|
| 1 | torch, kernels, bf16, attention's backends, Triton, bitsandbytes load and run | 60 s |
| 2 | runner monitor --once --json, runner doctor | 30 s |
| 3 | tokens/s, MFU, attention kernels of our step at 7B, 2 x 4096; plain TRL beside | 240 s |
| 4 | eight configurations: predicted against measured GPU memory (vram_battery.py) | 180 s |
| 5 | a budget breach by torch's cap, and one by the watchdog | 60 s |
| 6 | two deterministic bf16 runs: one hash? | 120 s |

Each part runs as its own process, killed with all it started at its limit. Its results are written
as they come: OUT/results.jsonl (a JSON object a line), OUT/table.txt, OUT/parts.log (the last 4 MB
of what was printed). A part whose results lie in OUT or in --work, with nothing wrong, is not run
again, nor is what part 4 has measured; `--parts 3,4` runs those alone, `--limits 4=300` gives
another limit, `--seconds 570` ends the whole in time for a call that is limited itself: what does
not fit is listed as not reached. Nothing needs a network; weights are drawn on the device.

`--rehearse` runs all of it on a CPU with tiny shapes, and says so in every line: no figure of it
says anything of a card. Its limits are longer, by what else the machine is doing as a part begins;
those that --limits gives stay as given. Exit code 0 where every part completed and found what it
should.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import carried
from below import adopt_orphans, end_descendants

HERE = Path(__file__).resolve().parent
PARTS = {
    1: ("loads and runs", 60.0),
    2: ("monitor, doctor", 30.0),
    3: ("speed at 7B", 240.0),
    4: ("predicted, measured", 180.0),
    5: ("budget breaches", 60.0),
    6: ("one hash", 120.0),
}
LEAST_SECONDS = 15.0  # a part that has less is not begun
REHEARSAL_FACTOR = 3.0
"""A free CPU's time for the rehearsal's shapes, as a multiple of the limits; measured: up to 2."""
MOST_FACTOR = 12.0  # what hangs ends all the same
LOG_BYTES = 4 << 20


def rehearsal_factor(load: float, cores: int) -> float:
    """By what a part's limit is multiplied in a rehearsal.

    Args:
        load: processes that run or wait to run, the mean of the last minute.
        cores: that this process may use.
    """
    return min(MOST_FACTOR, REHEARSAL_FACTOR * max(1.0, (load + 1) / cores))


def limit_now(part: int, given: argparse.Namespace) -> float:
    """Seconds that a part which begins now may take."""
    own = parse_limits(given.limits)
    if part in own:
        return own[part]
    limit = PARTS[part][1]
    if not given.rehearse:
        return limit
    return limit * rehearsal_factor(os.getloadavg()[0], len(os.sched_getaffinity(0)))


def choose_work() -> Path:
    """Memory where there is room for two sets of weights, else the temporary folder."""
    memory = Path("/dev/shm")  # noqa: S108 - weights of 16 GB are read twice
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 30 * 2**30
    return (memory if roomy else Path(tempfile.gettempdir())) / f"first-contact-{os.getuid()}"


def environment(work: Path, packages: Path | None) -> dict[str, str]:
    """Of a part: the carried packages and this checkout before what is installed."""
    path = [str(packages)] if packages else []
    path += [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RUNNER_ON": "local",
        "RUNNER_CACHE": str(work / "cache"),
        "RUNNER_STATE": str(work / "state"),
        "RUNNER_RUNS": str(work / "runs"),
    }


class Results:
    """results.jsonl in OUT and its copy in WORK, which outlives a call whose OUT is emptied."""

    def __init__(self, out: Path, work: Path, *, rehearse: bool) -> None:
        self.path, self._kept = out / "results.jsonl", work / "results.jsonl"
        self._rehearse = rehearse
        if not self.path.is_file() and self._kept.is_file():
            self.path.write_bytes(self._kept.read_bytes())

    def add(self, record: dict[str, Any]) -> None:
        line = json.dumps({"rehearsal": True, **record} if self._rehearse else record) + "\n"
        for path in (self.path, self._kept):
            with path.open("a") as stream:
                stream.write(line)

    def read(self) -> list[dict[str, Any]]:
        """Those of each part's last try, of rehearsals or of real ones; no line in mid-write."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        found = [one for one in found if bool(one.get("rehearsal")) == self._rehearse]
        last = {one["part"]: one["try"] for one in found}
        return [one for one in found if one["try"] == last[one["part"]]]

    def done(self) -> set[int]:
        """The parts that came to their end with nothing wrong."""
        found = self.read()
        wrong = {one["part"] for one in found if one.get("ok") is False}
        return {one["part"] for one in found if one["what"] == "end" and one["completed"]} - wrong


def run_part(
    part: int, seconds: float, results: Results, given: argparse.Namespace, env: dict[str, str]
) -> None:
    """Run one part in a process of its own and write how it ended."""
    command = [sys.executable, str(HERE / "first_contact_parts.py"), str(part)]
    command += ["--work", str(given.work), "--seconds", f"{seconds:.0f}"]
    command += ["--rehearse"] if given.rehearse else []
    number = 1 + max((one["try"] for one in results.read() if one["part"] == part), default=0)
    log, began = given.out / "parts.log", time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"\n==== part {part}: {PARTS[part][0]}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, env=env, start_new_session=True
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        buffered = b""
        while True:
            ended = process.poll() is not None
            buffered += process.stdout.read() or b""
            *whole, buffered = buffered.split(b"\n")
            for line in whole:  # written at once: what comes after may be killed
                results.add({"part": part, "try": number, **json.loads(line)})
            if ended or time.monotonic() - began > seconds:
                break
            time.sleep(0.1)
        timed_out = not ended
    left = end_descendants()
    process.wait()
    results.add(
        {
            "part": part,
            "try": number,
            "what": "end",
            "completed": process.returncode == 0 and not timed_out,
            "timed_out": timed_out,
            "exit_code": None if timed_out else process.returncode,
            "seconds": round(time.monotonic() - began, 1),
            "limit_s": round(seconds, 1),
            "processes_left": left if not timed_out else None,
        }
    )
    if log.stat().st_size > LOG_BYTES:
        log.write_bytes(log.read_bytes()[-LOG_BYTES:])


def table(records: list[dict[str, Any]], *, rehearse: bool, unreached: list[int]) -> str:
    """The results as text: a line each, what went wrong in words."""
    lines = ["REHEARSAL on a CPU with tiny shapes: no figure says anything of a card."]
    lines = lines if rehearse else []
    for part, (name, _limit) in PARTS.items():
        mine = [one for one in records if one["part"] == part]
        ends = [one for one in mine if one["what"] == "end"]
        state = "not run"
        if part in unreached:
            state = "not reached"
        if ends:
            end = ends[-1]
            state = "completed" if end["completed"] else f"FAILED (exit code {end['exit_code']})"
            state = f"KILLED at its limit of {end['limit_s']} s" if end["timed_out"] else state
            state += f", {end['seconds']} s"
        lines += ["", f"{part} {name}: {state}"]
        for one in mine:
            if one["what"] != "end":
                mark = {True: "ok   ", False: "WRONG", None: "     "}[one.get("ok")]
                lines.append(f"  {mark} {one['what']}: {one.get('said', '')}")
    return "\n".join(lines).strip() + "\n"


def parse_limits(text: str) -> dict[int, float]:
    pairs = (each.partition("=") for each in text.split(",") if each)
    return {int(part): float(seconds) for part, _, seconds in pairs}


def main() -> int:
    """0 where every part that was asked for completed and found what it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carry", type=Path, help="the folder of wheels that carry.sh made")
    parser.add_argument("--out", type=Path, required=True, help="where results are written")
    parser.add_argument("--work", type=Path, help="weights and runs [in memory, else in /tmp]")
    parser.add_argument("--parts", default="1,2,3,4,5,6")
    parser.add_argument("--limits", default="", metavar="PART=SECONDS,...")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all parts")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU")
    given = parser.parse_args()
    chosen = [int(text) for text in given.parts.split(",")]
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"--parts: there is no part {unknown[0]}; 1 to {len(PARTS)}")
    began = time.monotonic()
    given.out, given.work = given.out.absolute(), (given.work or choose_work()).absolute()
    for folder in (given.out, given.work):
        folder.mkdir(parents=True, exist_ok=True)
    packages = carried.unpack(given.carry, given.work / "packages") if given.carry else None
    adopt_orphans()
    env = environment(given.work, packages)
    results = Results(given.out, given.work, rehearse=given.rehearse)
    done, unreached = results.done(), []
    for part in chosen:
        left = given.seconds - (time.monotonic() - began)
        if part in done:
            continue
        if left < LEAST_SECONDS:
            unreached.append(part)
            continue
        run_part(part, min(limit_now(part, given), left), results, given, env)
        text = table(results.read(), rehearse=given.rehearse, unreached=unreached)
        (given.out / "table.txt").write_text(text)
    text = table(results.read(), rehearse=given.rehearse, unreached=unreached)
    (given.out / "table.txt").write_text(text)
    print(text, end="")
    return 0 if set(chosen) <= results.done() else 1


if __name__ == "__main__":
    sys.exit(main())
