"""A daemon on another machine: the pids that it tells are nobody's here, or worse, somebody's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.containers import private_by
from tests.support.workplace import Workplace

FAKE = """#!{python}
import json, os, sys, time
words, place = sys.argv[1:], {place!r}
if words[0] == "info":
    print(json.dumps({{"ServerVersion": "28.0.1", "Name": "far-away", "KernelVersion": "6.1",
                      "OSType": "linux", "CgroupVersion": "2"}}))
elif words[:2] == ["image", "inspect"]:
    print(json.dumps([{{"Id": "sha256:" + "1" * 64, "RepoTags": ["mine:1"], "Size": 1,
                       "Created": "2026-01-01T00:00:00Z", "Config": {{"Labels": {{}}}}}}]))
elif words[:2] == ["container", "inspect"]:
    if "Status" in words[3]:
        sys.exit("Error: No such container: x")
    if "Labels" in words[3]:
        print(open(place + "/label").read())
    else:
        print("true {pid}")
elif words[0] == "run" and "--cidfile" in words:
    (label,) = [word for word in words if word.startswith("dev.runner.run=")]
    open(place + "/label", "w").write(label.partition("=")[2])
    (label,) = [word for word in words if word.startswith("dev.runner.supervisor=")]
    open(place + "/supervisor", "w").write(label.partition("=")[2].partition(":")[0])
    open(words[words.index("--cidfile") + 1], "w").write("2" * 64)
    end = time.monotonic() + 900
    while not os.path.exists(place + "/removed") and time.monotonic() < end:
        time.sleep(0.2)
elif words[0] == "rm":
    open(place + "/removed", "a").write(" ".join(words) + "\\n")
else:
    sys.exit("Error: not here")
"""

pytestmark = pytest.mark.e2e


def test_a_remote_daemons_pid_is_neither_measured_nor_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = subprocess.Popen(["sleep", "300"])  # whose pid the far daemon happens to tell
    program = tmp_path / "docker"
    program.write_text(FAKE.format(python=sys.executable, place=str(tmp_path), pid=neighbour.pid))
    program.chmod(0o755)
    monkeypatch.setenv("RUNNER_CONTAINER_CLI", str(program))
    monkeypatch.setenv("SOME_TOKEN", "canary")
    (tmp_path / "job.sh").write_text("echo tick\n")
    job = {
        "engine": "script",
        "script": "job.sh",
        "launch": {"on": "docker"},
        "container": {"image": "mine:1", "secrets": ["SOME_TOKEN"]},
        "budget": {"host_memory": "1MiB"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = Workplace(tmp_path).call("train", str(tmp_path / "job.yaml"))
    try:
        assert done.code == 3, done.err
        assert "on another machine" in done.err and "DOCKER_HOST" in done.err
        assert neighbour.poll() is None
        assert "2" * 64 in (tmp_path / "removed").read_text()
        assert private_by(int((tmp_path / "supervisor").read_text())) == []  # no secret is left
    finally:
        neighbour.kill()
        neighbour.wait()
