"""The real toolkit, where it is: benchmarks/mgm_trial.sh from weights to a merged model."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_real_toolkit_trains_merges_and_loads_on_a_cpu(shared: Path) -> None:
    toolkit = os.environ.get("MGM_TOOLKIT")
    if not toolkit:
        pytest.skip("MGM_TOOLKIT does not name the toolkit's folder (docs/mgm.md)")
    script = Path(__file__).parents[2] / "benchmarks/mgm_trial.sh"
    work = os.environ.get("MGM_TRIAL", "/tmp/mgm-trial")
    done = subprocess.run(
        ["bash", script, toolkit, work],
        env={**os.environ, "ROWS": str(shared / "data/mgm_200")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "load: MGMGemmaForCausalLM, 36 tensors as merged" in done.stdout
    assert "peft: 20 tensors, 14 changed by LoRA, 0 differ" in done.stdout
    assert "7 stages skipped" in done.stdout
