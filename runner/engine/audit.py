"""Check a plan's rows and model without training: `python -m runner.engine.audit PLAN SAMPLES`.

Prints one JSON document: the data report with decoded samples, exact parameter counts. Imports
torch only for the counts; loads no weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from runner.errors import RunnerError, SpecError
from runner.render import read_plan


def main() -> int:
    """Exit code 0, or that of the first refusal, whose lines are in the JSON."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    plan = read_plan(Path(sys.argv[1]))
    if plan.model.kind != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    record: dict[str, Any] = {"notes": []}
    code = 0
    try:
        from runner.engine.model import count_parameters, load_tokenizer
        from runner.engine.rows import prepare_rows

        tokenizer, notes = load_tokenizer(plan)
        record["notes"] += notes
        rows = prepare_rows(plan, tokenizer, samples=int(sys.argv[2]))
        record["data"] = rows.report()
        record["lines"] = rows.lines()
        count = count_parameters(plan)
        record["parameters"] = {
            "trainable": count.trainable,
            "total": count.total,
            "percent": round(count.percent, 4),
        }
    except RunnerError as error:
        record["error"] = error.lines()
        record["spec"] = isinstance(error, SpecError)
        code = error.exit_code
    print(json.dumps(record, ensure_ascii=False))
    return code


if __name__ == "__main__":
    sys.exit(main())
