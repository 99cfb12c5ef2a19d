"""The judge: from what is known when a run is over to a reason, an exit code and a sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.runs.outcome import Evidence, Outcome, Reason, SentSignal, judge


def evidence(
    exit_code: int = 1,
    *,
    failure: dict[str, object] | None = None,
    completed: bool = False,
    cause: str | None = None,
    checkpoint: str | None = None,
    oom_kills: int = 0,
    interrupted: bool = False,
    phase: str | None = None,
    dry_run: bool = False,
) -> Evidence:
    return Evidence(
        exit_code=exit_code,
        engine_failure=failure,
        engine_completed=completed,
        cause=cause,
        engine_phase=phase,
        checkpoint=checkpoint,
        host_oom_kills=oom_kills,
        interrupted=interrupted,
        dry_run=dry_run,
    )


SAVED = "checkpoints/checkpoint-5"
OOM = {"kind": "cuda_oom", "message": "CUDA out of memory", "step": 3}
NAN = {"kind": "non_finite_loss", "message": "the loss is nan at step 3"}
DATA = {"kind": "bad_data", "message": "no row is left"}

TABLE: dict[str, tuple[Evidence, Reason, int, str]] = {
    "done": (evidence(0, completed=True), Reason.COMPLETED, 0, "all steps done, result saved"),
    "a dry run": (
        evidence(0, completed=True, dry_run=True),
        *(Reason.COMPLETED, 0, "dry run: everything was made ready, nothing was trained"),
    ),
    "done, though it was asked to stop": (
        evidence(0, completed=True, cause="stop_requested"),
        *(Reason.COMPLETED, 0, "all steps done, result saved"),
    ),
    "over budget, saved": (
        evidence(-15, cause="over_budget", checkpoint=SAVED),
        *(Reason.OVER_BUDGET, 75),
        f"stopped by the guard over its memory budget; checkpoint {SAVED}",
    ),
    "over budget, not saved": (
        evidence(-9, cause="over_budget"),
        *(Reason.OVER_BUDGET, 76),
        "stopped by the guard over its memory budget; no checkpoint",
    ),
    "over budget comes before the failure that it brought": (
        evidence(1, cause="over_budget", failure=OOM, oom_kills=1),
        *(Reason.OVER_BUDGET, 76),
        "stopped by the guard over its memory budget; no checkpoint",
    ),
    "the GPU is lost": (
        evidence(1, cause="gpu_lost"),
        *(Reason.GPU_LOST, 69, "the GPU was lost; no checkpoint"),
    ),
    "out of time": (
        evidence(-15, cause="timeout", checkpoint=SAVED),
        *(Reason.TIMEOUT, 143, f"its time was up; checkpoint {SAVED}"),
    ),
    "stopped by Ctrl-C": (
        evidence(-15, cause="stop_requested", interrupted=True, checkpoint=SAVED),
        *(Reason.STOPPED, 130, f"stopped on request; checkpoint {SAVED}"),
    ),
    "stopped from elsewhere": (
        evidence(0, cause="stop_requested"),
        *(Reason.STOPPED, 143, "stopped on request; no checkpoint"),
    ),
    "CUDA out of memory": (
        evidence(1, failure=OOM),
        *(Reason.CUDA_OOM, 1, "CUDA out of memory; no checkpoint"),
    ),
    "a loss that is no number": (
        evidence(1, failure=NAN, checkpoint=SAVED),
        *(Reason.NON_FINITE_LOSS, 1, f"the loss is nan at step 3; checkpoint {SAVED}"),
    ),
    "bad data": (
        evidence(2, failure=DATA),
        *(Reason.FAILED, 2, "no row is left; no checkpoint"),
    ),
    "torch's cap held the budget": (
        evidence(1, failure={"kind": "over_budget", "message": "cap", "exit_code": 1}),
        *(Reason.OVER_BUDGET, 76, "cap; no checkpoint"),
    ),
    "a failure of a kind not known": (
        evidence(1, failure={"kind": "new"}),
        *(Reason.FAILED, 1, "the engine failed; no checkpoint"),
    ),
    "a failure that exits as if well": (
        evidence(0, failure=OOM),
        *(Reason.CUDA_OOM, 1, "CUDA out of memory; no checkpoint"),
    ),
    "killed by the kernel for memory": (
        evidence(-9, oom_kills=1),
        *(Reason.HOST_OOM, 137, "the kernel killed it for host memory; no checkpoint"),
    ),
    "killed by the kernel behind a launcher that says 1": (
        evidence(1, oom_kills=1, phase="training"),
        *(Reason.HOST_OOM, 137, "the kernel killed it for host memory; no checkpoint"),
    ),
    "someone else's kill by the kernel": (
        evidence(1, oom_kills=1, phase="completed"),
        *(Reason.FAILED, 1, "the trainer exited with code 1; no checkpoint"),
    ),
    "a trainer that fell silent": (
        evidence(1, phase="training", checkpoint=SAVED),
        *(Reason.FAILED, 1),
        "a training process was killed while training, not by runner (SIGKILL from elsewhere, or "
        f"a crash of native code: see the log); checkpoint {SAVED}",
    ),
    "killed by someone": (
        evidence(-9),
        *(Reason.FAILED, 137, "ended by SIGKILL, which runner did not send; no checkpoint"),
    ),
    "killed by someone, as a shell says it": (
        evidence(143),
        *(Reason.FAILED, 143, "ended by SIGTERM, which runner did not send; no checkpoint"),
    ),
    "a signal without a name": (
        evidence(255),
        *(Reason.FAILED, 255, "ended by signal 127, which runner did not send; no checkpoint"),
    ),
    "an early end without a word": (
        evidence(0),
        *(Reason.FAILED, 1, "the trainer exited before its last step; no checkpoint"),
    ),
    "an exit code": (
        evidence(3),
        *(Reason.FAILED, 3, "the trainer exited with code 3; no checkpoint"),
    ),
    "done, then failed at the end": (
        evidence(1, completed=True),
        *(Reason.FAILED, 1, "the trainer exited with code 1; no checkpoint"),
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_judge(case: str) -> None:
    known, *verdict = TABLE[case]
    assert list(judge(known)) == verdict


@given(
    st.builds(
        Evidence,
        exit_code=st.integers(-64, 255),
        engine_failure=st.none() | st.fixed_dictionaries({"kind": st.text()}),
        engine_completed=st.booleans(),
        cause=st.sampled_from([None, "over_budget", "gpu_lost", "timeout", "stop_requested"]),
        checkpoint=st.none() | st.just(SAVED),
        engine_phase=st.sampled_from([None, "starting", "training", "completed", "stopped"]),
        host_oom_kills=st.integers(0, 2),
        interrupted=st.booleans(),
    )
)
def test_every_verdict_is_one_a_shell_can_carry(known: Evidence) -> None:
    reason, code, message = judge(known)
    assert reason is not Reason.LOST
    assert 0 <= code <= 255
    assert (code == 0) == (reason is Reason.COMPLETED)
    assert message


def test_an_outcome_is_json_with_its_version_first() -> None:
    outcome = Outcome(
        Reason.STOPPED,
        143,
        "stopped on request",
        signals=(SentSignal(1.5, "SIGTERM", (7, 8), "stop requested"),),
        started_unix_seconds=10.0,
        ended_unix_seconds=12.3456,
    )
    record = json.loads(json.dumps(outcome.to_record(), allow_nan=False))
    assert next(iter(record)) == "schema_version"
    assert (record["reason"], record["exit_code"], record["seconds"]) == ("stopped", 143, 2.346)
    assert record["signals"] == [
        {"time_unix_seconds": 1.5, "signal": "SIGTERM", "pids": [7, 8], "why": "stop requested"}
    ]
    assert Outcome(Reason.LOST, 1, "", started_unix_seconds=5.0).seconds == 0.0
