"""How a stage's script says why it failed: on stderr, and in engine/failure.json of its run.

Standard library only; Python 3.10.
"""

from __future__ import annotations

import sys

if __package__:
    from .records import RUN, fail
else:  # in a run folder the scripts lie beside each other
    from records import RUN, fail  # type: ignore[import-not-found, no-redef]


def refuse(message: str) -> int:
    """Say it, and record it where this script lies in a run folder; 1, to exit with."""
    print(message, file=sys.stderr)
    if (RUN / "mgm" / "plan.json").is_file():
        fail("failed", message)
    return 1


def failure_of(error: BaseException) -> tuple[str, str]:
    """Kind and reason of an exception, as engine/failure.json has them.

    A data loader's worker hands on its whole traceback as text: its last line is the reason.
    """
    kind = "host_oom" if isinstance(error, MemoryError) else "failed"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, in torch.cuda before torch 2.5
        kind = "cuda_oom"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return kind, type(error).__name__
    if lines[0].startswith("Caught ") and len(lines) > 1:
        return kind, lines[-1].partition(": ")[2] or lines[-1]
    return kind, lines[0]
