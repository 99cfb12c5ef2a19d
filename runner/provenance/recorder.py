"""Write manifest.json for the supervisor: inputs at the start, hashes of weights meanwhile, results
last. A manifest never delays, ends or fails a run: what can't be recorded becomes a note in it
or a warning of the run. Large weights are hashed in a thread of their own; the end waits for it
unless a stop was asked for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from runner.common import durable
from runner.common.caches import cache_folder
from runner.common.errors import RunnerError
from runner.containers.in_place import write_in_place
from runner.engines.render import render
from runner.plans.base import Plan
from runner.plans.inputs import FileRecord
from runner.provenance import inputs, machine, results, software
from runner.provenance.attempts import attempts_of
from runner.provenance.environment import kept, secret_values, without_secrets
from runner.provenance.hashes import GaveUp, Hasher
from runner.provenance.manifest import JobFile, Manifest, NeverBegan, Origin
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome
from runner.runs.records import object_at, plain, sources_of, valid_fields

DIFF_BYTES = 1 << 20
_NICENESS = 10  # of the hashing thread: the trainer goes first


class ManifestRecorder:
    """One start's manifest. `warn` takes a line for the run's records."""

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._manifest: Manifest | None = None
        self._secrets: dict[str, str] = {}
        self._files: list[FileRecord] = []
        self._notes: list[str] = []
        self._give_up = threading.Event()
        self._hasher = Hasher(cache_folder() / "hashes", gave_up=self._give_up.is_set)
        self._thread: threading.Thread | None = None

    def begin(self, plan: Plan, *, resume: bool) -> None:
        """Write what is known at the start, and begin to hash what the plan reads."""
        try:
            self._begin(plan, resume=resume)
        except Exception as error:
            self._warn(f"the manifest could not be begun: {type(error).__name__}: {error}")

    def never_began(self, plan: Plan, outcome: Outcome) -> None:
        """Write the manifest of a run that was ended in the queue: its plan, and why it ended.

        Nothing is hashed and nobody asked: who stops a run that waits does not wait for that.
        """
        try:
            self._begin(plan, resume=False, bare=outcome)
        except Exception as error:
            self._warn(f"the manifest could not be written: {type(error).__name__}: {error}")

    def complete(self, plan: Plan, outcome: Outcome, stopped: Callable[[], bool]) -> None:
        """Write the results, which are of `plan`; waits for the hashes unless `stopped`."""
        if self._manifest is None:
            return
        try:
            self._complete(plan, outcome, stopped)
        except Exception as error:
            self._warn(f"the manifest could not be completed: {type(error).__name__}: {error}")

    def abandon(self) -> None:
        """Remove what was begun, of a start that was refused; nothing is written after it."""
        self._end_hashing()
        lists = self._folder.path.glob("images*.sha256")
        for made in (self._folder.manifest, self._folder.project_diff, *lists):
            self._folder.remove(made, as_far_as_possible=True)

    def _end_hashing(self) -> None:
        self._give_up.set()  # what is read now is the last
        if self._thread is not None:
            self._thread.join()
        self._give_up.clear()

    def _begin(self, plan: Plan, *, resume: bool, bare: Outcome | None = None) -> None:
        said = sources_of(self._folder)
        named = {*said.get("secrets", ()), *(plan.container.secrets if plan.container else ())}
        self._secrets = secret_values(os.environ, named)
        code, diff = software.code()
        if diff:
            diff = without_secrets(diff, self._secrets)
            if len(diff.encode()) > DIFF_BYTES:
                self._notes.append(f"project.diff is cut after {DIFF_BYTES} bytes")
                diff = diff.encode()[:DIFF_BYTES].decode(errors="replace")
            self._folder.write_file(self._folder.project_diff, diff)
            digest = inputs.hashed(
                FileRecord(what="diff", path=str(self._folder.project_diff), kind="file"),
                self._hasher,
            ).sha256
            code = code.model_copy(update={"diff_sha256": digest})
        python, image, lock, notes = software.of_plan(plan, asked=bare is None)
        self._notes += notes
        origin = said.get("reproduces")
        dumped = plan.model_dump(mode="json")
        self._files = inputs.input_files(plan)
        self._manifest = Manifest(
            run=self._folder.name,
            resumed=resume,
            reproduces=Origin.model_validate(origin) if origin else None,
            created_unix_seconds=round(time.time(), 3),
            job=JobFile(
                name=plan.job,
                file=said.get("job_file"),
                sha256=said.get("job_sha256"),
                command=said.get("command", []),
            ),
            plan_hash=plan.hash,
            plan=dumped,
            sources=said.get("sources", {}),
            rendered=self._rendered(plan),
            code=code,
            image=image,
            lock=lock,
            python=python,
            seeds=inputs.seeds_of(dumped),
            host=machine.host(plan),
            environment=kept(os.environ),
            secrets=sorted(named),
            never_began=None if bare is None else _never_began(bare),
        )
        self._notes += inputs.moving(self._files)
        self._write()
        if bare is not None:
            return
        self._thread = threading.Thread(target=self._hash, args=(plan,), name="hashes", daemon=True)
        self._thread.start()

    def _rendered(self, plan: Plan) -> dict[str, str]:
        place = self._folder.path
        names = [name for name in sorted(render(plan)) if (place / name).is_file()]
        return {name: self._hasher.file(place / name) for name in names}

    def _hash(self, plan: Plan) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            for number, record in enumerate(self._files):
                if record.sha256 is not None or record.kind == "remote":
                    continue
                try:
                    if record.kind == "images":
                        self._files[number] = self._images(record, plan)
                    else:
                        self._files[number] = inputs.hashed(record, self._hasher, plan)
                except OSError as error:
                    which = f"{error.filename}: " if error.filename else ""
                    note = f"{record.what} could not be hashed: {which}{error.strerror or error}"
                    self._notes.append(note)
                except (RunnerError, ImportError) as error:  # rows that name images
                    self._notes.append(f"{record.what} could not be hashed: {error}")
            if not self._give_up.is_set():
                # a rename would take away what keeps a container from writing the manifest
                self._write(in_place=plan.container is not None)
        except GaveUp:
            self._notes.append("the run was stopped before all of its inputs were hashed")
        except Exception as error:
            self._notes.append(f"hashing ended early: {type(error).__name__}: {error}")

    def _images(self, record: FileRecord, plan: Plan) -> FileRecord:
        """Hash the images of a training, and write the list of them beside the manifest."""
        found = inputs.image_list(record, self._hasher, plan)
        self._folder.write_file(self._folder.images(inputs.phase_of(record)), found.text)
        return inputs.of_images(record, found)

    def _complete(self, plan: Plan, outcome: Outcome, stopped: Callable[[], bool]) -> None:
        assert self._manifest is not None  # noqa: S101 - the caller has looked
        if self._thread is not None:
            while self._thread.is_alive() and not stopped():
                self._thread.join(0.1)
            self._end_hashing()
        changed: dict[str, object] = {}
        if plan.hash != self._manifest.plan_hash:  # a recovery has put another in its place
            dumped = plan.model_dump(mode="json")
            changed = {
                "plan": dumped,
                "plan_hash": plan.hash,
                "rendered": self._rendered(plan),
                "seeds": inputs.seeds_of(dumped),
            }
        attempts = attempts_of(self._folder, plan, self._notes)
        stack = valid_fields(
            object_at(self._folder.engine_stack), {"switches": plain, "stack": plain}
        )
        try:
            found = results.results_of(self._folder, plan, outcome, self._hasher, self._notes)
        except OSError as error:
            self._notes.append(f"the results could not be read: {error}")
            found = None
        self._manifest = self._manifest.model_copy(
            update={
                **changed,
                "complete": True,
                "attempts": attempts,
                "argv": results.executed(self._folder),
                "rows": results.rows_of(self._folder, plan),
                "switches": stack.get("switches", {}),
                "stack": stack.get("stack", {}),
                "results": found,
            }
        )
        self._write()

    def _write(self, *, in_place: bool = False) -> None:
        assert self._manifest is not None  # noqa: S101 - the caller has looked
        whole = self._manifest.model_copy(
            update={"files": list(self._files), "notes": list(self._notes)}
        )
        record = whole.model_dump(mode="json")
        # plan.yaml beside it says the same, and a replay needs it as it is
        plan = record.pop("plan")
        record = without_secrets(record, self._secrets)
        record = {**record, "plan": plan}
        if in_place:  # a rename would take away what is mounted over it in the container
            write_in_place(self._folder.manifest, durable.json_text(record).encode())
        else:
            self._folder.write_json(self._folder.manifest, record)


def _never_began(outcome: Outcome) -> NeverBegan:
    return NeverBegan(
        reason=outcome.reason.value,
        exit_code=outcome.exit_code,
        message=outcome.message,
        ended_unix_seconds=outcome.ended_unix_seconds,
    )
