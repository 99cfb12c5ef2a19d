#!/usr/bin/env bash
# What needs a GPU to be shown: smoke of every job, the monitor, a budget breach, the demo in bf16, and
# every job at its architecture's real size (random weights in bf16) with peak memory and speed; then
# `deterministic: true` at 0.5B: equal hashes, and its cost. first_contact.py comes before this: it
# shows the most of these in a quarter of an hour.
#
#   benchmarks/gpu_battery.sh [OUT]     on a machine with an NVIDIA GPU and runner's packages
#
# Every step has a time limit (STEP_SECONDS, 300 by default) and its result in OUT at once; a step
# whose result is there is not run again, so a battery that was cut short goes on. OUT has a few
# files (summary.txt, records.jsonl, log.txt); runs and weights go to WORK (else a folder in /dev/shm
# or /tmp that OUT's name decides). Exit code 1 if anything differs from what it should be. Takes
# about half an hour on one GPU; the real sizes need 24 GiB of its memory and 16 GB of WORK.
# FULL_SIZE=0 leaves them and determinism out. PYTHON names the interpreter; `runner` need not be
# installed as a command.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "${1:-gpu-battery}" && cd "${1:-gpu-battery}" && pwd)
memory=/dev/shm
[[ -w $memory && $(df --output=avail -k "$memory" | tail -1) -gt 20000000 ]] || memory=${TMPDIR:-/tmp}
work=${WORK:-$memory/gpu-battery-$(cksum <<<"$out" | cut -d' ' -f1)}
mkdir -p "$work"
runs=$work/runs
seconds=${STEP_SECONDS:-300}
python=${PYTHON:-python3}
PYTHONPATH=$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
failed=0
touch "$out/summary.txt"

# limited SECONDS COMMAND ...: 124 where time was up, and nothing of it is left, supervisors included
limited() { "$python" "$here/below.py" "$@" 2>>"$out/log.txt"; }
runner() { limited "$seconds" "$python" -m runner "$@"; }
say() { echo "$1" | tee -a "$out/summary.txt"; }
# has NAME: its line is in the summary already, and was right
has() { grep -q "^ok  *$1: " "$out/summary.txt"; }
expect() { # what, wanted, found
  if [[ $2 == "$3" ]]; then say "ok      $1: $3"; return; fi
  if [[ $3 == 124 ]]; then
    say "WRONG   $1: not done in $seconds s"
  else
    say "WRONG   $1: ${3:-nothing}, not $2"
  fi
  failed=1
}
# field FILE NAME: of a record; empty where there is no such file or field
field() {
  "$python" -c '
import json, sys
try:
    print(json.load(open(sys.argv[1]))[sys.argv[2]])
except (OSError, ValueError, KeyError, TypeError):
    pass' "$1" "$2"
}
keep() { # FILE: as one line among the records
  [[ -s $1 ]] && "$python" -c 'import json, sys; print(json.dumps({sys.argv[2]: json.load(open(sys.argv[1]))}))' \
    "$1" "$(basename "$1" .json)" >>"$out/records.jsonl"
}

say "        $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -1)"
if ! has doctor; then
  runner doctor --out "$work/doctor.json" >"$work/doctor.txt"
  expect doctor 0 $?
  keep "$work/doctor.json"
fi
if ! has "monitor --once"; then
  runner monitor --once --json >"$work/monitor.json"
  expect "monitor --once" 0 $?
  keep "$work/monitor.json"
fi
# which attention kernel runs, by our step and by plain TRL's; one step of a model of 2 M parameters
for who in ours trl; do
  has "attention of $who" && continue
  limited "$seconds" "$python" "$here/full_size.py" "$work/models" tiny >>"$out/log.txt"
  "$python" -c 'import pathlib, sys; sys.path.insert(0, sys.argv[1]); import vram_battery
vram_battery.make_rows(pathlib.Path(sys.argv[2]))' "$here" "$work/rows.jsonl" 2>>"$out/log.txt"
  rm -rf "${work:?}/step-$who" && mkdir -p "$work/step-$who"
  limited "$seconds" "$python" "$here/step_speed.py" "$work/step-$who" --who "$who" \
    --model "$work/models/tiny" --rows "$work/rows.jsonl" --shape 2x1024 \
    --out "$work/step-$who.json" >>"$out/log.txt"
  expect "attention of $who" 0 $?
  say "        $(field "$work/step-$who.json" attention_kernels) (allowed: $(field "$work/step-$who.json" sdp))"
  keep "$work/step-$who.json"
done

if ! has "smoke of every job"; then
  runner smoke --max-steps 5 --runs "$runs" --json >"$work/smoke.json"
  expect "smoke of every job" 0 $?
  keep "$work/smoke.json"
fi

if ! has demo-identity; then
  runner train demo-identity --runs "$runs" --set launch.device=cuda --json >"$work/demo.json"
  expect demo-identity completed "$(field "$work/demo.json" reason)"
  folder=$(field "$work/demo.json" folder)
  expect precision bf16 "$(sed -n 's/^precision: //p' "$folder/plan.yaml" 2>>"$out/log.txt")"
  say "        peak $(field "$work/demo.json" peak_bytes) bytes by $(field "$work/demo.json" peak_source), $(field "$work/demo.json" seconds) s"
  for question in "Who are you?" "What is the capital of France?"; do
    [[ $folder ]] && say "        $question $(runner chat "$folder" -p "$question")"
  done
  keep "$work/demo.json"
fi

# 300 MiB under what the run was seen to take
peak=$(field "$work/demo.json" peak_bytes)
if ! has breach && [[ ! $peak =~ ^[0-9]+$ ]]; then
  expect breach over_budget "left out: the demo has no peak"
elif ! has breach; then
  budget=$((peak / 1048576 - 300))
  runner train demo-identity --runs "$runs" --set launch.device=cuda \
    --set "budget.gpu_memory=${budget}MiB" --json >"$work/breach.json"
  code=$?
  # 76: torch's own cap held the budget inside, before the watchdog saw a breach and asked for a save
  case "$(field "$work/breach.json" reason):$code" in
    over_budget:75 | over_budget:76) say "ok      breach: of ${budget} MiB, exit code $code" ;;
    *) expect breach over_budget "$(field "$work/breach.json" reason)" ;;
  esac
  keep "$work/breach.json"
fi

# the real architectures, weights drawn here; a row a job: peak bytes, its source, tokens a second
real() { # job, then --set arguments
  local job=$1 record=$work/full-$1.json
  shift
  has "full size, $job" && return
  runner smoke "$job" --max-steps 5 --runs "$runs" "$@" --set launch.device=cuda \
    --set 'budget={}' --json >"$record"
  expect "full size, $job" 0 $?
  say "$("$python" - "$record" "$runs" 2>>"$out/log.txt" <<'PYTHON'
import json, pathlib, sys
record = json.load(open(sys.argv[1]))["jobs"][0]
run = pathlib.Path(sys.argv[2]) / record.get("run", "")
lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
rates = sorted(line["tokens_per_second"] for line in lines if "loss" in line)
print(f"        peak {record['peak_bytes']} bytes by {record['peak_source']}, "
      f"{rates[len(rates) // 2]:.0f} tokens/s (median of {len(rates)} steps)")
PYTHON
  )"
  keep "$record"
}
if [[ ${FULL_SIZE:-1} != 0 ]]; then
  models=$work/models
  limited "$seconds" "$python" "$here/full_size.py" "$models" >>"$out/log.txt"
  expect "weights of the real sizes" 0 $?
  real demo-identity --set "model=$models/smollm2-135m"
  real commonsense-two-stage --set "model=$models/qwen2.5-0.5b"
  real chnsenticorp-qlora --set "model=$models/qwen2.5-0.5b"
  real minimind-medical-lora --set "model=$models/minimind2-small"
  real emission-unified-lora --set "model=$models/qwen2.5-3b"
  real emission-column-mapping-lora --set "model=$models/qwen2.5-3b"
  real llava-gemma-10k-lora --set "model=$models/gemma-2b" --set "vision.model=$models/clip-l-336"
  # the same bits in each run and after a resume, and what that costs
  if ! has "deterministic, equal hashes"; then
    rm -rf "$work/determinism"
    limited $((2 * seconds)) "$python" "$here/determinism.py" "$work/determinism" \
      --table "$work/determinism.md" >>"$out/log.txt"
    expect "deterministic, equal hashes" 0 $?
    [[ -s $work/determinism.md ]] && say "$(sed 's/^/        /' "$work/determinism.md")"
  fi
fi
expect "processes left" 0 "$(pgrep -fc 'runner\.engine')"
say "        runs and weights are in $work: remove it when they are not needed"
exit $failed
