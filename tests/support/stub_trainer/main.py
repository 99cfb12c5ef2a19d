"""What stub_python runs in place of the engine's modules: `main.py MODULE ARGUMENTS`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def main() -> None:
    """Play the module that is named first; does not return."""
    module, *arguments = sys.argv[1:]
    sys.argv[1:] = arguments
    if module == "runner.engines.sft.inside":
        from tests.support.stub_trainer import train

        sys.modules["runner.engines.sft.inside.train.train"] = train
        runpy.run_module("runner.engines.sft.inside", run_name="__main__")
    from tests.support.stub_trainer import survey

    answer = {
        "runner.engines.sft.inside.survey": survey.survey,
        "runner.engines.sft.inside.memory": survey.cheapest,
    }[module]
    answer(Path(arguments[0]))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
