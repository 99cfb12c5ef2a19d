"""The real toolkit, where it is: benchmarks/mgm_trial.sh from weights to a merged model."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.support.command import REPOSITORY


def test_another_loss_than_the_pages_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import mgm_trial

    page = (REPOSITORY / "docs/mgm.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| losses of ")]
    assert len(rows) == 2
    assert mgm_trial.differences(rows, page) == []
    changed = [rows[0], re.sub(r"\d\.\d{4}", "9.0000", rows[1], count=1)]
    assert len(mgm_trial.differences(changed, page)) == 1
    assert "no row" in mgm_trial.differences(["| losses of a third | 1.0000 |"], page)[0]


@pytest.mark.e2e
def test_the_real_toolkit_trains_merges_and_loads_on_a_cpu() -> None:
    """The figures in docs/mgm.md are those of this run."""
    toolkit = os.environ.get("MGM_TOOLKIT")
    if not toolkit:
        pytest.skip("MGM_TOOLKIT does not name the toolkit's folder (docs/mgm.md)")
    script, page = REPOSITORY / "benchmarks/mgm_trial.sh", REPOSITORY / "docs/mgm.md"
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
