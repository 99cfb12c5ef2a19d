"""What `--help` and `render` leave unimported, so that they answer at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "numpy", "deepspeed"}
REPORT = """
import json, sys
sys.argv = ["runner", *sys.argv[1:]]
from runner.cli import main
try:
    main()
except SystemExit as end:
    if end.code:
        raise
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        (["--help"], TRAINING | {"pydantic", "rich", "yaml", "jinja2", "psutil", "pynvml"}),
        (["--version"], TRAINING | {"pydantic", "rich", "yaml", "jinja2", "psutil", "pynvml"}),
        # Typer itself imports pydantic for the options of a command
        (["train", "--help"], TRAINING | {"rich", "yaml", "jinja2", "pynvml"}),
        (["render", "demo-identity"], TRAINING | {"rich", "psutil", "huggingface_hub"}),
        (["show", "demo-identity"], TRAINING | {"rich", "psutil", "huggingface_hub"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_heavy_modules_are_not_imported(
    arguments: list[str], left_out: set[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert left_out & set(json.loads(done.stderr.splitlines()[-1])) == set()
