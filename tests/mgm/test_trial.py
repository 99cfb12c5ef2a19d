"""The real toolkit, where it is: benchmarks/mgm_trial.sh from weights to a merged model."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_real_toolkit_trains_merges_and_loads_on_a_cpu() -> None:
    """The figures in docs/mgm.md are those of this run."""
    toolkit = os.environ.get("MGM_TOOLKIT")
    if not toolkit:
        pytest.skip("MGM_TOOLKIT does not name the toolkit's folder (docs/mgm.md)")
    root = Path(__file__).parents[2]
    script, page = root / "benchmarks/mgm_trial.sh", root / "docs/mgm.md"
    work = os.environ.get("MGM_TRIAL", "/tmp/mgm-trial")
    done = subprocess.run(
        ["bash", script, toolkit, work, "--compare", page],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "load: MGMGemmaForCausalLM, 36 tensors as merged" in done.stdout
    assert "20 tensors, 14 changed by LoRA, 0 differ" in done.stdout
    assert "7 stages done and unchanged" in done.stdout
