#!/usr/bin/env bash
# What needs a GPU to be shown: smoke of every job, the monitor, a budget breach, the demo in bf16, and
# every job at its architecture's real size (random weights in bf16) with peak memory and speed; then
# `deterministic: true` at 0.5B: equal hashes, and its cost (determinism.md in OUT).
#
#   benchmarks/gpu_battery.sh [OUT]     on a machine with an NVIDIA GPU and `runner[train]` installed
#
# Records go to OUT (default: gpu-battery/), a summary to stdout. Exit code 1 if anything differs from
# what it should be. Takes about a quarter of an hour on one card; the real sizes need 24 GiB of its memory and
# 16 GB of disk. FULL_SIZE=0 leaves them out.
set -uo pipefail
out=$(mkdir -p "${1:-gpu-battery}" && cd "${1:-gpu-battery}" && pwd)
runs=$out/runs
failed=0

expect() { # what, wanted, found
  if [[ $2 == "$3" ]]; then echo "ok      $1: $3"; else echo "WRONG   $1: $3, not $2"; failed=1; fi
}
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }

runner doctor --out "$out/validation_report.json" >"$out/doctor.txt"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"

runner monitor --once --json >"$out/monitor.json"
expect "monitor --once" 0 $?

runner smoke --max-steps 5 --runs "$runs" --json >"$out/smoke.json"
expect "smoke of every job" 0 $?

runner train demo-identity --runs "$runs" --set launch.device=cuda --json >"$out/demo.json"
expect "demo-identity" completed "$(field "$out/demo.json" reason)"
folder=$(field "$out/demo.json" folder)
expect "precision" bf16 "$(sed -n 's/^precision: //p' "$folder/plan.yaml")"
echo "        peak $(field "$out/demo.json" peak_bytes) bytes by $(field "$out/demo.json" peak_source)," \
  "$(field "$out/demo.json" seconds) s"
for question in "Who are you?" "What is the capital of France?"; do
  echo "        $question $(runner chat "$folder" -p "$question" 2>/dev/null)"
done

# 300 MiB under what the run was seen to take
budget=$(( $(field "$out/demo.json" peak_bytes) / 1048576 - 300 ))
runner train demo-identity --runs "$runs" --set launch.device=cuda \
  --set "budget.gpu_memory=${budget}MiB" --json >"$out/breach.json"
code=$?
reason=$(field "$out/breach.json" reason)
# 76: torch's own cap held the budget inside, before the watchdog saw a breach and asked for a save
case "$reason:$code" in
  over_budget:75 | over_budget:76) echo "ok      breach of ${budget} MiB: $reason, exit code $code" ;;
  *) echo "WRONG   breach of ${budget} MiB: $reason, exit code $code" && failed=1 ;;
esac
# the real architectures, weights drawn here; a row a job: peak bytes, its source, tokens a second
if [[ ${FULL_SIZE:-1} != 0 ]]; then
  models=$out/models
  python3 "$(dirname "$0")/full_size.py" "$models" || failed=1
  real() { # job, then --set arguments
    local job=$1 record=$out/full-$1.json
    shift
    runner smoke "$job" --max-steps 5 --runs "$runs" "$@" --set launch.device=cuda --json >"$record"
    expect "full size: $job" 0 $?
    python3 - "$record" "$runs" <<'PYTHON'
import json, pathlib, sys
record = json.load(open(sys.argv[1]))["jobs"][0]
run = pathlib.Path(sys.argv[2]) / record.get("run", "")
lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
rates = sorted(line["tokens_per_second"] for line in lines if "loss" in line)
print(f"        peak {record['peak_bytes']} bytes by {record['peak_source']}, "
      f"{rates[len(rates) // 2]:.0f} tokens/s (median of {len(rates)} steps)")
PYTHON
  }
  real demo-identity --set "model=$models/smollm2-135m"
  real commonsense-two-stage --set "model=$models/qwen2.5-0.5b"
  real chnsenticorp-qlora --set "model=$models/qwen2.5-0.5b"
  real minimind-medical-lora --set "model=$models/minimind2-small"
  real emission-unified-lora --set "model=$models/qwen2.5-3b"
  real emission-column-mapping-lora --set "model=$models/qwen2.5-3b"
  real llava-gemma-10k-lora --set "model=$models/gemma-2b" --set "vision.model=$models/clip-l-336"
fi
# the same bits in each run and after a resume, and what that costs
if [[ ${FULL_SIZE:-1} != 0 ]]; then
  python3 "$(dirname "$0")/determinism.py" "$out/determinism" --table "$out/determinism.md"
  expect "deterministic: equal hashes" 0 $?
fi
expect "processes left" 0 "$(pgrep -fc 'runner\.engine')"
exit $failed
