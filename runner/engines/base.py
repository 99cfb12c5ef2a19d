"""Engine: the interface of everything that trains, with defaults for engines that need no more.

An engine is one folder (job, plan, resolve, render, and what only it knows) with an object of this
class, listed in runner.engines.registry. Nothing else of runner asks what kind of job or plan it
has. Imports no engine and no torch; `J` and `P` are the engine's own job and plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from runner.jobs.base import Job
from runner.jobs.load import LoadedJob
from runner.plans.base import Plan, PlannedMount, Variant
from runner.plans.facts import HostFacts, gather_host
from runner.plans.inputs import FileRecord, ImageNames, Key, Part
from runner.plans.needs import Need
from runner.plans.placement import Placement
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome

if TYPE_CHECKING:
    from runner.engines.sft.facts import Facts
    from runner.engines.sft.plan import SftPlan

CODE_FLAG = "--trust-remote-code"
"""By which a command allows the code that comes with somebody else's run."""
J = TypeVar("J", bound=Job)
P = TypeVar("P", bound=Plan)


@dataclass(frozen=True)
class Stage:
    """Where a run stands that goes through named stages, as its own records say."""

    name: str | None = None
    is_training: bool = False
    """Whether the stage is a training, whose steps are counted."""
    saves: bool = False
    """Whether a stop saves a checkpoint of the training that runs."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked:
    """What was looked at before a start."""

    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    record: Mapping[str, object] | None = None
    """JSON-ready, for `check --json`; None where nothing was looked at."""


@dataclass(frozen=True)
class Untrusted:
    """What is not taken from the plan of a run that somebody else made."""

    changes: Mapping[str, object]
    """Field of the plan -> its value instead."""
    said: Sequence[str]
    """What was left off, in words."""


class Engine(ABC, Generic[J, P]):
    """One engine; its methods are only given jobs and plans of its own types."""

    name: ClassVar[str]
    """As a job's `engine` says it."""
    job_type: type[J]
    plan_type: type[P]

    counts_by_training: ClassVar[bool] = False
    """Whether the live line counts the steps of each training by itself."""
    is_judged_by_exit_code: ClassVar[bool] = True
    """Whether exit code 0 alone says that a run is completed; else engine/result.json has to."""
    caps_memory: ClassVar[bool] = False
    """Whether what trains holds the GPU's budget by itself too (torch's cap)."""
    prepares_rows: ClassVar[bool] = False
    """Whether a run writes prepared rows into runner's cache."""
    moves_earlier_results: ClassVar[bool] = False
    """Whether the run itself, and not the host, puts what was there into earlier/."""
    keeps_path_ends: ClassVar[bool] = False
    """Whether words in the paths of models decide how they are loaded."""
    has_own_python: ClassVar[bool] = False
    """Whether plan.python is an environment of the engine's own, not one of runner's."""
    python_keys: ClassVar[tuple[Key, ...]] = (("python",),)
    """The fields of a plan that name the interpreter."""
    is_tied_to_place: ClassVar[bool] = False
    """Whether a run can be reproduced only where it ran: in an image, or on the machine."""

    # --- from a job to the files of a run

    def gather(self, loaded: LoadedJob) -> HostFacts:
        """The facts of this host that a plan depends on.

        Raises:
            SpecError, RefusedError: the job can't be what it says, or can't run here.
        """
        return gather_host(loaded.job)

    @abstractmethod
    def resolve(self, loaded: LoadedJob, facts: Any, variant: Variant, max_steps: int | None) -> P:
        """The plan of a job, by the facts of `gather`. Raises SpecError, RefusedError."""

    def require_packages(self, job: J, place: Placement) -> None:
        """Refuse (RefusedError) early where the packages that train are not there."""
        return

    def require_inputs(self, loaded: LoadedJob, facts: Any, plan: P | None = None) -> None:
        """Refuse a job whose own files are not on this machine.

        Args:
            plan: of a smoke, which has samples and stand-ins; it alone decides then.

        Raises:
            SpecError: naming what is not there.
        """
        return

    def needs(self, loaded: LoadedJob, facts: Any) -> list[Need]:
        """What the job names and the fetching process could bring, each once."""
        return []

    def look_before(
        self,
        loaded: LoadedJob,
        plan: P,
        say: Callable[[str], None],
        *,
        images: bool,
        runs: Path | None = None,
    ) -> Looked:
        """Refuse before the start what the run itself would; else what was looked at.

        Args:
            say: is told of progress.
            images: whether every image is opened too, which takes a while.
            runs: where the run's folder would be made.

        Raises:
            SpecError, RefusedError: what would fail, and the way out.
        """
        return Looked()

    def plan_smoke(
        self,
        loaded: LoadedJob,
        max_steps: int,
        *,
        fetch: Callable[[HostFacts], bool],
        load: Callable[[str, list[str]], LoadedJob],
    ) -> tuple[Plan, HostFacts]:
        """The plan of a smoke and its facts; of another engine where that one stands in for it.

        Args:
            fetch: brings what is small and missing; whether anything came.
            load: reads another job, by its name and overrides.
        """
        facts = self.gather(loaded)
        job: Any = loaded.job
        self.require_packages(job, facts.place)
        if fetch(facts):
            facts = self.gather(loaded)
        plan = self.resolve(loaded, facts, "smoke", max_steps)
        self.require_inputs(loaded, facts, plan)
        return plan, facts

    def absent_inputs(self, facts: Any) -> list[str]:
        """What the facts lack of the job's inputs, a sentence each."""
        return []

    @abstractmethod
    def render(self, plan: P) -> dict[str, str]:
        """Name -> text of the files of a run besides plan.yaml; launch.sh is one of them."""

    @abstractmethod
    def summarize(self, plan: P) -> list[tuple[str, str]]:
        """Label and text of what a plan is, for the lines of a start and a report."""

    def describe_job(self, job: J) -> dict[str, str]:
        """`model` and `method` of a job in the list of jobs, in a few words."""
        return {"model": "-", "method": self.name}

    def surveyed(self, plan: P) -> SftPlan | None:
        """The plan, where runner knows its rows and weights: it can be surveyed and predicted."""
        return None

    def predicted(self, plan: P, facts: HostFacts) -> tuple[SftPlan, Facts] | None:
        """The plan with its facts, where its memory can be predicted."""
        return None

    # --- what a run reads

    def mounts(self, plan: P, cache: Path) -> Iterable[PlannedMount]:
        """What of the host a container has to see, besides the run's folder and the job's mounts.

        Args:
            cache: runner's cache on this machine.
        """
        return [
            PlannedMount(source=part.path, target=part.path)
            for part in self.parts(plan)
            if part.path is not None
        ]

    def input_files(self, plan: P) -> list[FileRecord]:
        """Everything that the plan reads; what the plan does not know by hash has none yet."""
        return []

    def parts(self, plan: P) -> list[Part]:
        """Everything that the plan reads by a path, each part once."""
        return []

    def images(self, plan: P, phase: str) -> list[ImageNames]:
        """The images that the rows of a training name, source by source. Raises RunnerError."""
        return []

    def found_here(self, plan: P) -> Mapping[str, str]:
        """Part -> path on this machine, of what comes from a hub and does not lie where it lay."""
        return {}

    def starts(self, plan: P, file: Path) -> bool:
        """Whether a run executes this very file of its inputs."""
        return False

    def own_python(self, plan: P) -> str | None:
        """The interpreter of the engine's own environment, where a run has one on this machine."""
        return None

    # --- whom it trusts

    def code_of(self, plan: P) -> str | None:
        """The code of somebody else's that a run executes, in words; None where it runs none."""
        return None

    def leave_off(self, plan: P, *, allows_code: bool, whole: bool) -> Untrusted:
        """What is not taken from a plan that came from elsewhere.

        Args:
            allows_code: whether this very command allows the model's code.
            whole: whether the run is to be repeated; a command that asks its result needs less.
        """
        return Untrusted({}, ())

    def explain_no_model(self, plan: P, folder: RunFolder) -> tuple[str, str] | None:
        """Why chat, evaluate, merge can't load a run's model, and the way out; None: they can."""
        return f"{folder.name} is a run of engine {self.name}", "runner report says what it left"

    # --- a run that lives or has ended

    def trainings(self, plan: P, folder: RunFolder) -> dict[str, int | None]:
        """Name -> optimizer steps of each training, in order; empty where a run has but one."""
        return {}

    def stage(self, folder: RunFolder) -> Stage | None:
        """Where a run stands; None of an engine without stages."""
        return None

    def explain_stop(self, plan: P, folder: RunFolder) -> str:
        """What a stop does to a run at this moment: whether a checkpoint is saved, what stays."""
        return "it is asked to end (SIGTERM); what it saves is its own affair"

    def resume_point(self, folder: RunFolder) -> str | None:
        """What a resume starts from, in words; None where there is nothing to start from."""
        from runner.runs import checkpoints

        checkpoint, _ = checkpoints.newest_whole(folder.checkpoints)
        return checkpoint.name if checkpoint else None

    def adopt(self, plan: P, recorded: P, *, is_own: bool) -> P | None:
        """The plan by which a folder with the recorded plan is resumed; None: it does not follow.

        Args:
            is_own: whether the folder is a run of this user's own.
        """
        return plan

    def result(self, plan: P, folder: RunFolder) -> str | None:
        """The folder in the run's that holds what was trained; None where nothing did."""
        return None

    def output(self, folder: RunFolder) -> Path | None:
        """The folder of a completed run whose content the manifest hashes as a whole."""
        return None

    def step_down(self, plan: P, outcome: Outcome, folder: RunFolder) -> tuple[P, str] | None:
        """A plan that takes less memory with the same mathematics, and the change in words.

        None where the job does not ask for it or nothing is left to take.
        """
        return None

    def advise(
        self,
        plan: P,
        outcome: Outcome,
        folder: RunFolder,
        limit_bytes: int | None,
        warn: Callable[[str], None],
    ) -> tuple[str, ...]:
        """The cheapest changes that would have fitted a run that ran out of memory, in words.

        Args:
            limit_bytes: what the run should have kept to; None where that is not known.
            warn: takes what could not be found out.
        """
        return ()
