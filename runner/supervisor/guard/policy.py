"""When to warn, to ask for a checkpoint, to stop and to kill: a pure state machine.

Values in, values out: no clock, no I/O. Imports the stdlib and runner.machine.readings only.

The supervisor calls `advance` with each observation and carries out the actions it gets, in order.
Nothing is ever warned about or stopped on memory that is unknown or not known to be the run's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, TypeAlias

from runner.machine.readings import Attribution, Sample


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The policy's numbers. Fractions are of the budget."""

    warn_fraction: float = 0.85
    hysteresis_fraction: float = 0.05  # an excursion ends this far below where it began,
    settle_seconds: float = 60.0  # and once it has stayed there: memory swings with every step
    checkpoint_fraction: float = 0.95
    hard_fraction: float = 1.05  # over this, one sample is enough
    breach_gap_seconds: float = 0.1  # over the budget, two samples this far apart
    grace_seconds: float = 60.0  # from terminate to kill
    tight_free_bytes: int = 512 * 1024**2  # a GPU with less free is about to fail for everyone
    tight_grace_seconds: float = 10.0
    kill_wait_seconds: float = 10.0  # alive for this long after a kill: stuck
    blind_seconds: float = 15.0  # without a usable sample for longer: unenforced
    calm_interval_seconds: float = 1.0
    alert_interval_seconds: float = 0.1
    opening_seconds: float = 60.0  # memory grows fastest at the start

    def __post_init__(self) -> None:
        rising = (0.0, self.warn_fraction, self.checkpoint_fraction, 1.0, self.hard_fraction)
        if list(rising) != sorted(rising) or self.warn_fraction <= 0:
            raise ValueError("expected 0 < warn <= checkpoint <= 1 <= hard, as fractions")
        if not 0 <= self.hysteresis_fraction < self.warn_fraction:
            raise ValueError("expected a hysteresis below the warning's fraction")
        if self.calm_interval_seconds <= 0 or self.alert_interval_seconds <= 0:
            raise ValueError("expected intervals above zero")


class Cause(StrEnum):
    """Why the guard stopped a run. The first one is kept."""

    OVER_BUDGET = "over_budget"
    STOP_REQUESTED = "stop_requested"
    GPU_LOST = "gpu_lost"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Observation:
    """All that one decision looks at."""

    monotonic_seconds: float
    own_bytes: int | None
    attribution: Attribution
    free_bytes: int | None
    handles_checkpoint: bool  # the engine has said that it answers the checkpoint signal
    alive: bool  # the run's main process has not ended
    gpu_lost: bool = False
    stop: Literal[0, 1, 2] = 0  # asked by the user: not at all, gracefully, now
    timed_out: bool = False
    failure: str | None = None  # why own_bytes is None or not complete, for the message
    fresh: bool = True  # measured since the last observation, not the same figure again
    complete: bool = True  # every GPU of the run has a figure

    @classmethod
    def of(
        cls,
        sample: Sample,
        *,
        handles_checkpoint: bool,
        alive: bool,
        stop: Literal[0, 1, 2] = 0,
        timed_out: bool = False,
    ) -> Observation:
        """A sample with what the supervisor knows besides."""
        return cls(
            monotonic_seconds=sample.monotonic_seconds,
            own_bytes=sample.own_bytes,
            attribution=sample.attribution,
            free_bytes=sample.free_bytes,
            handles_checkpoint=handles_checkpoint,
            alive=alive,
            gpu_lost=sample.gpu_lost,
            stop=stop,
            timed_out=timed_out,
            failure=sample.failure,
            fresh=sample.fresh,
            complete=sample.complete,
        )


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell the user that the run nears its budget (bytes)."""

    used: int
    budget: int


@dataclass(frozen=True, slots=True)
class AskCheckpoint:
    """Ask the engine for a checkpoint at its next step boundary (bytes)."""

    used: int
    budget: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM: end in order. `used` is None where memory is not the reason or is unknown."""

    cause: Cause
    used: int | None


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL everything that belongs to the run."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Unenforced:
    """Say loudly that the budget is not being enforced. Nothing is stopped for it."""

    blind_seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class EnforcedAgain:
    """Samples are back."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """The run outlived its kill: a process hangs in the kernel, or can't be reached."""


Action: TypeAlias = Warn | AskCheckpoint | Terminate | Kill | Unenforced | EnforcedAgain | Stuck


@dataclass(frozen=True, slots=True)
class State:
    """What the policy remembers between two observations. Times are monotonic seconds."""

    budget_bytes: int | None
    thresholds: Thresholds = field(default_factory=Thresholds)
    now_seconds: float | None = None
    started_seconds: float | None = None
    seen_seconds: float | None = None  # of the last sample that can be enforced on
    unenforced: bool = False
    warned: bool = False  # in the present excursion
    asked: bool = False  # in the present excursion
    warn_low_seconds: float | None = None  # since when use has been low enough to end it
    ask_low_seconds: float | None = None
    over_seconds: float | None = None  # since when each known sample was over the budget
    cause: Cause | None = None  # set once, by the first reason to stop
    deadline_seconds: float | None = None  # the kill is due
    killed_seconds: float | None = None
    stuck: bool = False
    ended: bool = False


def initial(budget_bytes: int | None, thresholds: Thresholds | None = None) -> State:
    """The state before the first observation. Without a budget only stops, timeouts and lost
    GPUs are acted on.
    """
    if budget_bytes is not None and budget_bytes <= 0:
        raise ValueError("expected a budget above zero bytes, or None")
    return State(budget_bytes, thresholds or Thresholds())


def interval_seconds(state: State) -> float:
    """How long until the next sample is due."""
    limits = state.thresholds
    if state.now_seconds is None or state.started_seconds is None:
        return limits.alert_interval_seconds
    opening = state.now_seconds - state.started_seconds < limits.opening_seconds
    if opening or state.warned or state.over_seconds is not None or state.cause is not None:
        return limits.alert_interval_seconds
    return limits.calm_interval_seconds


def advance(state: State, observation: Observation) -> tuple[State, tuple[Action, ...]]:
    """The next state, and what is to be done now, in this order.

    Observations come in order of time. Once the run has ended there are no more actions.
    """
    now = observation.monotonic_seconds
    if state.ended or not observation.alive:
        return replace(state, ended=True, now_seconds=now), ()
    if state.started_seconds is None:
        state = replace(state, started_seconds=now, seen_seconds=now)
    state = replace(state, now_seconds=now)
    if state.cause is None:
        state, actions = _watch(state, observation)
    else:
        state, actions = state, ()
    if state.cause is not None:
        state, more = _end(state, observation)
        actions += more
    return state, actions


def _watch(state: State, observation: Observation) -> tuple[State, tuple[Action, ...]]:
    """A run that nobody has stopped yet."""
    cause: Cause | None = None
    if observation.gpu_lost:
        cause = Cause.GPU_LOST
    elif observation.stop:
        cause = Cause.STOP_REQUESTED
    elif observation.timed_out:
        cause = Cause.TIMEOUT
    if cause is not None:
        return _terminate(state, observation, cause)
    if state.budget_bytes is None:
        return state, ()
    if observation.own_bytes is None or not observation.attribution.enforceable:
        return _blind(state, observation)
    return _measure(state, observation, observation.own_bytes, state.budget_bytes)


def _blind(state: State, observation: Observation) -> tuple[State, tuple[Action, ...]]:
    """No figure to enforce on, or not of every GPU: never a reason to act on the run, after a
    while one to say so.
    """
    now = observation.monotonic_seconds
    blind = now - (now if state.seen_seconds is None else state.seen_seconds)
    if state.unenforced or blind <= state.thresholds.blind_seconds:
        return state, ()
    why = observation.failure
    if why is None and observation.own_bytes is None:
        why = "no memory reading"
    elif why is None and not observation.attribution.enforceable:
        why = "the memory in use can't be told to be the run's own"
    elif why is None:
        why = "a GPU of the run has no figure"
    return replace(state, unenforced=True), (Unenforced(blind, why),)


def _measure(
    state: State, observation: Observation, used: int, budget: int
) -> tuple[State, tuple[Action, ...]]:
    """A figure that is the run's own: the ladder from a warning to the end."""
    limits = state.thresholds
    now = observation.monotonic_seconds
    fraction = used / budget
    actions: list[Action] = []

    if not observation.complete:  # known on one GPU, blind on another: the ladder holds, and
        state, said = _blind(state, observation)  # that it holds in part only is said
        actions.extend(said)
    else:
        if state.unenforced:
            actions.append(EnforcedAgain())
        state = replace(state, seen_seconds=now, unenforced=False)
    warned, warn_low = _lasting(
        state.warned, fraction, limits.warn_fraction, state.warn_low_seconds, now, limits
    )
    if not warned and fraction >= limits.warn_fraction:
        warned = True
        actions.append(Warn(used, budget))
    asked, ask_low = _lasting(
        state.asked, fraction, limits.checkpoint_fraction, state.ask_low_seconds, now, limits
    )
    if not asked and observation.handles_checkpoint and fraction >= limits.checkpoint_fraction:
        asked = True
        actions.append(AskCheckpoint(used, budget))
    over_seconds = None
    if used > budget:
        over_seconds = now if state.over_seconds is None else state.over_seconds
    state = replace(
        state,
        warned=warned,
        asked=asked,
        warn_low_seconds=warn_low,
        ask_low_seconds=ask_low,
        over_seconds=over_seconds,
    )
    # Two measurements, not one that was read twice: a trainer's report stands for a whole window.
    again = over_seconds is not None and observation.fresh and now != over_seconds
    sustained = again and now - (over_seconds or 0.0) >= limits.breach_gap_seconds
    if sustained or fraction > limits.hard_fraction:
        # checkpoint_fraction <= 1, so an engine that can has been asked by now.
        state, ending = _terminate(state, observation, Cause.OVER_BUDGET)
        actions.extend(ending)
    return state, tuple(actions)


def _lasting(
    active: bool,
    fraction: float,
    began_at: float,
    low_seconds: float | None,
    now: float,
    limits: Thresholds,
) -> tuple[bool, float | None]:
    """Whether an excursion that began at a fraction continues, and since when use has been low."""
    if not active or fraction >= began_at - limits.hysteresis_fraction:
        return active, None
    low_seconds = now if low_seconds is None else low_seconds
    return now - low_seconds < limits.settle_seconds, low_seconds


def _terminate(
    state: State, observation: Observation, cause: Cause
) -> tuple[State, tuple[Action, ...]]:
    """The first reason to stop: from here on only the deadline counts."""
    deadline = observation.monotonic_seconds + state.thresholds.grace_seconds
    state = replace(state, cause=cause, deadline_seconds=deadline)
    if observation.stop == 2:
        return state, ()  # _end kills at once; a polite request just before would be noise
    used = observation.own_bytes if observation.attribution.enforceable else None
    return state, (Terminate(cause, used),)


def _end(state: State, observation: Observation) -> tuple[State, tuple[Action, ...]]:
    """A run that is being stopped: the kill when it is due, then word of a run that outlives it.

    Falling back under the budget changes nothing: the process was told to end.
    """
    limits = state.thresholds
    now = observation.monotonic_seconds
    cause, deadline = state.cause, state.deadline_seconds
    if cause is None or deadline is None:
        return state, ()
    if state.killed_seconds is not None:
        if state.stuck or now - state.killed_seconds <= limits.kill_wait_seconds:
            return state, ()
        return replace(state, stuck=True), (Stuck(),)
    free = observation.free_bytes
    tight = free is not None and free < limits.tight_free_bytes
    # A lost GPU can't be saved from: there is nothing to wait for but the exit itself.
    if observation.gpu_lost or (tight and cause is Cause.OVER_BUDGET):
        deadline = min(deadline, now + limits.tight_grace_seconds)
    state = replace(state, deadline_seconds=deadline)
    if observation.stop == 2 or now >= deadline:
        return replace(state, killed_seconds=now), (Kill(cause),)
    return state, ()
