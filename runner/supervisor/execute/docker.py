"""Execute a run as a container of this machine, by the command line of docker or podman.

The container program is a child whose exit code is the run's; the container writes its own log, and
its processes are watched and signalled from the host, so that dockerd's death loses nothing.
Nothing that the container could have written is trusted: its id comes from a folder that it does
not see, control files are mounted over its folder read-only, and links that it left are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.errors import RefusedError
from runner.containers.cli import ContainerCli, require_cli
from runner.containers.in_place import open_own, write_in_place
from runner.containers.labels import RUN, run_labels, supervisor_label
from runner.containers.private import make_private, private_example
from runner.containers.refusals import daemon_lost, discarded, explain_run, last_error
from runner.containers.secrets import have_secrets, write_secrets
from runner.engines.mounts import plan_mounts
from runner.engines.registry import engine_of
from runner.machine.container_tree import ContainerTree, first_process
from runner.plans.base import Plan, PlannedMount
from runner.plans.container.argv import launch_command, run_argv, secret_names
from runner.plans.container.caller import this_caller
from runner.plans.container.mounts import PREPARED
from runner.plans.container.overlays import fixed_above, make_places, over, run_overlays
from runner.runs.folder import RunFolder
from runner.runs.planted_links import remove_planted
from runner.runs.protocol import SUPERVISOR_BY_LOCK, SUPERVISOR_VARIABLE

START_SECONDS = 300.0  # a daemon under load, or a disk that is slow, takes its time
POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 3.0  # a container that says it runs is among the processes by then
HUNG_SECONDS = 60.0  # between a container's end and its client's: removal takes its time
ID, SECRETS = "id", "secrets"
"""Names in the private folder of a container."""
_ID = re.compile("[0-9a-f]{64}")
_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]+")


class DockerExecutor:
    """Starts launch.sh in a container; runner.supervisor.execute says what executors have."""

    def __init__(self, folder: RunFolder, plan: Plan, *, resume: bool) -> None:
        assert plan.container is not None  # noqa: S101 - the caller has looked
        self._folder, self._plan, self._container = folder, plan, plan.container
        self._cli = require_cli()
        self._resume = resume
        self._process: subprocess.Popen[bytes] | None = None
        self._private: Path | None = None  # the container's id and its secrets
        self._made: list[Path] = []
        self._cut_off = False
        self._gone_since: float | None = None
        self._said_before = 0  # bytes of the program's log that are of earlier starts
        self.tree = ContainerTree()
        self.name = container_name(folder)
        self.container_id: str | None = None
        self.argv: list[str] = []
        """Known once it is started."""
        self.notes: list[str] = []
        """What happened to the container program or its daemon, for events.jsonl."""

    def start(self) -> None:
        """Start it and wait until its first process is known.

        Raises:
            RefusedError: there is a container of this run already, or it runs elsewhere.
            OSError: the program can't be started, or the folder not be written.
        """
        left = self._cli.ask("container", "inspect", "--format", "{{.State.Status}}", self.name)
        if left.code == 0:
            if left.out.strip() in ("running", "paused", "restarting"):
                raise RefusedError(
                    f"a container of an earlier start still runs: {self.name}",
                    f"runner doctor --fix ends it; or {self._cli.name} stop {self.name}",
                )
            self._cli.ask("rm", "--force", self.name)
        self._lay_out()
        assert self._private is not None  # noqa: S101 - laid out
        self.argv = docker_argv(
            self._folder, self._plan, self._cli, resume=self._resume, private=self._private
        )
        self._folder.write_json(
            self._folder.container,
            {
                "schema_version": 1,
                "name": self.name,
                "image": self._container.image,
                "image_id": self._container.image_id,
                "argv": self.argv,
                "by_hand": by_hand_argv(self._folder, self._plan, self._cli),
            },
        )
        log = open_own(self._folder.container_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            self._said_before = os.fstat(log).st_size
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._attach()

    def _lay_out(self) -> None:
        """Make what the container is to find, and what it is not to.

        Raises OSError, RefusedError.
        """
        try:
            self._private = make_private()
            names = secret_names(self._container)
            if have_secrets(names):
                write_secrets(self._private / SECRETS, names)
        except OSError as error:
            raise RefusedError(
                f"no private folder can be made in memory: {error}", "look at /dev/shm: df /dev/shm"
            ) from None
        self._take_away_links()
        if engine_of(self._plan).prepares_rows:  # docker would make it as root
            (cache_folder() / PREPARED).mkdir(parents=True, exist_ok=True)
        self._made = make_places(self._folder, earlier=_host_alone(self._plan))
        write_in_place(self._folder.container_id, b"")

    def _take_away_links(self) -> None:
        self.notes += [f"taken away: {each}" for each in remove_planted(self._folder)]

    def _attach(self) -> None:
        """Wait for the container's first process; nothing where it ended or failed before.

        It is looked for among this machine's processes, so that a daemon which dies meanwhile
        takes nothing away.

        Raises:
            RefusedError: the daemon started it on another machine.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < START_SECONDS:
            gone = self._running() is not None  # asked first: what it left is seen once more then
            if self.container_id is None:
                self._learn_id()
            late = time.monotonic() - begun > ELSEWHERE_SECONDS
            pid = None
            if self.container_id:
                pid = first_process(self.container_id, of_any_namespace=late)
            if pid is not None:
                self.tree.attach(pid)
                self.notes += [f"not enforced here: {each}" for each in discarded(self._told())]
                return
            if gone:
                return
            if self.container_id and late:
                self._require_here(self.container_id)
            time.sleep(POLL_SECONDS)

    def _learn_id(self) -> None:
        """Take the container's id from where it can't write, once it is there; tell others of it.

        Raises:
            RefusedError: the container of that id is not this run's, as its label says.
        """
        assert self._private is not None  # noqa: S101 - started
        try:
            told = (self._private / ID).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return
        if not _ID.fullmatch(told):
            return
        label = f'{{{{index .Config.Labels "{RUN}"}}}}'
        answer = self._cli.ask("container", "inspect", "--format", label, told)
        # --format ends the label with one line break, and the path may have its own
        if answer.code == 0 and answer.out.removesuffix("\n") != str(self._folder.path):
            raise RefusedError(
                f"{self._cli.name} started the container {told[:12]}, which is not this run's"
            )
        self.container_id = told
        write_in_place(self._folder.container_id, told.encode() + b"\n")

    def _require_here(self, container_id: str) -> None:
        """End the container where its process is not one of this machine.

        The daemon of another machine (DOCKER_HOST) tells a pid of its own, and here that number may
        be anybody's: it would be measured, and killed.

        Raises:
            RefusedError: it runs, and is nowhere here.
        """
        state = "{{.State.Running}} {{.State.Pid}}"
        answer = self._cli.ask("container", "inspect", "--format", state, container_id)
        running, _, _ = answer.out.strip().partition(" ")
        if answer.code or running != "true" or first_process(container_id, of_any_namespace=True):
            return  # it has ended, or is not there yet
        self._cli.ask("rm", "--force", container_id)
        raise RefusedError(
            f"{self._cli.name}'s daemon runs containers on another machine or in one of its own, "
            "where runner can't guard them",
            "unset DOCKER_HOST; run `runner` on the daemon's machine; or --on local",
        )

    def _running(self) -> int | None:
        assert self._process is not None  # noqa: S101 - started first
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Of the container program on this side."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    def ended(self) -> bool:
        """Whether the container has ended, whatever became of the program that started it."""
        if self._running() is None:
            return self._outlived_by_its_client()
        if self.tree.main is None:
            return True
        if not self._cut_off:
            self._cut_off = True
            self.notes.append(
                f"{self._cli.name} lost its container (is the daemon gone?); its processes run on "
                "and are watched as before"
            )
        return False

    def _outlived_by_its_client(self) -> bool:
        """Whether the container is gone and the program that waits for it hangs: a hung dockerd."""
        if self.container_id is None or not self.tree.attached or self.tree.main is not None:
            self._gone_since = None
            return False
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if now - self._gone_since < HUNG_SECONDS:
            return False
        self._cut_off = True
        self.notes.append(f"{self._cli.name} does not notice that the container has ended")
        return True

    @property
    def exit_code(self) -> int | None:
        """Of the launch script, once it has ended; None where nobody could say it any more."""
        code = self._running()
        if not self._cut_off:
            return code
        answer = self._cli.ask(
            "container", "inspect", "--format", "{{.State.ExitCode}}", str(self.container_id)
        )
        text = answer.out.strip()
        return int(text) if answer.code == 0 and text.isdigit() else None

    @property
    def start_failure(self) -> tuple[str, str] | None:
        """Why no container came to run, and the way out; None where one did."""
        code = self._running()
        told = self._told() if code in (125, 126, 127) else ""
        # a script can end with these numbers too, but then docker has nothing to say
        if code is None or not told.strip() or daemon_lost(told, code):
            return None
        found = explain_run(told, code)
        if found is None and code == 125 and (reason := last_error(told)):
            return f"{self._cli.name}: {reason}", ""
        return found

    def _told(self) -> str:
        """What the container program has said since this start, its end."""
        try:
            descriptor = open_own(self._folder.container_log, os.O_RDONLY)
            with os.fdopen(descriptor, errors="replace") as log:
                log.seek(self._said_before)
                return log.read()[-8000:]
        except OSError:
            return ""

    def clear(self) -> list[str]:
        """See that no container, secret, id file or planted link is left; what is to be told."""
        left: list[str] = []
        if self._process is not None:  # else what there is of this name is another's
            answer = self._cli.ask("rm", "--force", self.name)
            if answer.code and "no such container" not in answer.err.lower():
                left.append(
                    f"the container {self.name} could not be removed ({answer.reason}); runner "
                    "doctor --fix does it later"
                )
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._folder.container_id.unlink(missing_ok=True)
            for place in self._made:
                with contextlib.suppress(OSError):  # it is in use by now
                    place.rmdir()
            try:
                self._take_away_links()
            except OSError as error:
                left.append(f"links in the run folder could not be taken away: {error}")
            left += self.notes
            self.notes.clear()
        return left


def docker_argv(
    folder: RunFolder,
    plan: Plan,
    cli: ContainerCli | None = None,
    *,
    resume: bool = False,
    private: Path | None = None,
) -> list[str]:
    """The command of a run's container: what a dry run prints, and what is executed.

    Args:
        cli: the container program of this machine, found where it is not given.
        private: the folder with the secrets, where the id is written; None in a dry run, which
            tells what would be there.

    Raises RefusedError.
    """
    assert plan.container is not None  # noqa: S101 - the caller has looked
    cli = cli or require_cli()
    place = private or private_example()
    return run_argv(
        plan.container,
        this_caller(cli),
        program=cli.program,
        name=container_name(folder),
        labels=run_labels(folder.path, plan.job, plan.hash, os.geteuid(), supervisor_label()),
        mounts=_mounts(folder, plan, expected=private is None),
        command=launch_command(
            folder.launch_script, folder.train_log, ["--resume"] if resume else []
        ),
        workdir=str(folder.path),
        environment={SUPERVISOR_VARIABLE: SUPERVISOR_BY_LOCK},
        gpu_uuids=plan.launch.gpu_uuids,
        gpu_limit_bytes=plan.budget.limit_bytes if plan.budget.kind == "gpu" else None,
        id_file=str(place / ID),
        secrets_folder=str(place / SECRETS) if have_secrets(secret_names(plan.container)) else None,
    )


def by_hand_argv(folder: RunFolder, plan: Plan, cli: ContainerCli) -> list[str]:
    """The command by which a person runs the launch script again, without runner on the host.

    Nothing is laid over the run folder: the script sets its earlier results aside by itself.
    """
    assert plan.container is not None  # noqa: S101 - the caller has looked
    return run_argv(
        plan.container,
        this_caller(cli),
        program=cli.program,
        name=f"{container_name(folder)}-by-hand",
        labels={},
        mounts=plan_mounts(plan, folder.path, cache_folder()),
        command=["bash", str(folder.launch_script)],
        workdir=str(folder.path),
        gpu_uuids=plan.launch.gpu_uuids,
    )


def _mounts(folder: RunFolder, plan: Plan, *, expected: bool) -> list[PlannedMount]:
    mounts = plan_mounts(plan, folder.path, cache_folder())
    mounts = over(fixed_above(folder.path, mounts), mounts)
    return over(mounts, run_overlays(folder, earlier=_host_alone(plan), expected=expected))


def _host_alone(plan: Plan) -> bool:
    """Whether earlier/ is the host's alone, and not moved into by the run itself."""
    return not engine_of(plan).moves_earlier_results


def container_name(folder: RunFolder) -> str:
    """A name that docker takes, the same for every start of a run.

    Runs of one name in several places (two users, one second) are told apart by their paths.
    """
    place = hashlib.sha256(os.fsencode(folder.path.absolute())).hexdigest()[:8]
    return f"runner-{_UNSAFE.sub('_', folder.name.replace('/', '-'))}-{place}"
