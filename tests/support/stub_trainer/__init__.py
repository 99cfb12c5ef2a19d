"""A trainer without torch, which speaks the engine's protocol, for tests of what supervises it.

`stub_python` makes an interpreter. A command line called with it plans, supervises and renders as
ever, and its launch.sh is the real one; only four modules are answered by the stub, by name:

    runner.engines.sft.inside         the real __main__ (signals, failures, --prepare, exit codes),
                                      with stub_trainer/train.py in place of its train/train.py
    runner.engines.sft.inside.survey  a document computed from the plan, in stub_trainer/survey.py
    runner.engines.sft.inside.memory  one change that would have fitted, in stub_trainer/survey.py
    accelerate.commands.launch        a bash loop that starts the ranks and waits for them

A start costs about 2 CPU-seconds where a start of the real engine costs 30. What the stub does in
a test is said by the plan, and by STUB_* variables (stub_trainer/train.py names them). With
STUB_REAL_ENGINE set the real engine trains, and only the others are the stub's: 15. (Several ranks
of it are started by the real launcher, which knows how they meet; STUB_REAL_LAUNCHER has one
started so.)

Standard library only.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

MAIN = Path(__file__).with_name("main.py")
_ENGINE = "runner.engines.sft.inside"
ENGINE_MODULES = (_ENGINE, f"{_ENGINE}.survey", f"{_ENGINE}.memory")

_SHIM = """#!/bin/bash
# Python, but for what would train. `exec -a` names it as this file, so that sys.executable is too.
python={python}
if [[ ${{1-}} == -P && ${{2-}} == -m ]]; then
  case ${{3-}} in
    {engine_modules})
      [[ $3 == runner.engines.sft.inside && ${{STUB_REAL_ENGINE-}} ]] ||
        exec -a "$0" "$python" -P {main} "${{@:3}}" ;;
    accelerate.commands.launch) launch=yes ;;
  esac
fi
[[ ${{launch-}} ]] || exec -a "$0" "$python" "$@"

# The launcher: as many ranks as accelerate.yaml says; the first that fails ends the others.
given=("$@")
while [[ $1 != --config_file ]]; do shift; done
ranks=$(sed -n 's/^num_processes: //p' "$2")
if [[ ${{STUB_REAL_LAUNCHER-}} ]] || ((ranks > 1)) && [[ ${{STUB_REAL_ENGINE-}} ]]; then
  exec -a "$0" "$python" "${{given[@]}}"
fi
while [[ $1 != --module ]]; do shift; done
if ((ranks == 1)); then # which, as with accelerate, knows of no ranks
  "$0" -P -m "${{@:2}}" || exit 1
  exit 0
fi
pids=()
for ((rank = 0; rank < ranks; rank++)); do
  RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$ranks "$0" -P -m "${{@:2}}" &
  pids+=($!)
done
for _ in "${{pids[@]}}"; do
  wait -n || {{ kill "${{pids[@]}}" 2>/dev/null; wait; exit 1; }}
done
"""


def stub_python(folder: Path) -> Path:
    """Make an interpreter in `folder`, a virtual environment with this one's packages."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    prefix = Path(sys.prefix)
    (folder / "lib").symlink_to(prefix / "lib")
    configuration = prefix / "pyvenv.cfg"
    home = f"home = {Path(sys.base_prefix) / 'bin'}\n"
    text = configuration.read_text() if configuration.is_file() else home
    (folder / "pyvenv.cfg").write_text(text)
    python.write_text(
        _SHIM.format(
            python=shlex.quote(sys.executable),
            main=shlex.quote(str(MAIN)),
            engine_modules="|".join(ENGINE_MODULES),
        )
    )
    python.chmod(0o755)
    return python
