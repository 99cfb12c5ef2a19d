"""A model that brings Python files of its own, met where they are not to run. Pure.

transformers asks on the terminal where it is not told (`trust_remote_code=None`), and takes a line
of standard input for the answer; so every call of ours says it, and its refusal is told in ours.
"""

from __future__ import annotations

from runner.common.errors import RefusedError


def remote_code_refused(error: Exception, name: str) -> RefusedError | None:
    """The refusal where transformers would have had to run the Python files of the model `name`.

    None where `error` says something else.
    """
    if not isinstance(error, ValueError) or "trust_remote_code" not in str(error):
        return None
    return RefusedError(
        f"{name} needs Python files that it brings itself, and they are not run",
        "read them; then trust_remote_code: true in the job, or --trust-remote-code for a run that "
        "came from elsewhere, lets them run",
    )
