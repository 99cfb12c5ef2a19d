"""The engine by its earlier name: for `bash launch.sh` in the folder of an earlier run.

A run that `runner` resumes is rendered anew, and does without it.
"""

from __future__ import annotations

from runner.engines.sft.inside.__main__ import run

if __name__ == "__main__":
    run()
