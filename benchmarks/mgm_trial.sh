#!/usr/bin/env bash
# The real MGM toolkit on a CPU, by our rendered launch script: tiny random weights, 5 steps of each
# training, merge, the merged model loaded by the toolkit's builder and compared with PEFT's merge.
#
#   benchmarks/mgm_trial.sh TOOLKIT [WORK [--compare docs/mgm.md]]
#
# TOOLKIT is the folder with mgm/ (git clone https://github.com/dvlab-research/MGM, commit
# 769820cb71afc7c2b9a2166ca3ce92db1636215c); nothing is fetched but Python packages. WORK keeps the
# environment and the weights for the next time. The rows are the 79 in jobs/data/llava_sample, drawn
# for this project; ROWS names another folder with such a pretrain.jsonl and finetune.json.
set -euo pipefail

here="$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)"
toolkit="${1:?the folder with the package mgm/ of the toolkit}"
work="${2:-/tmp/mgm-trial}"
rows="${ROWS:-$here/jobs/data/llava_sample}"
mkdir -p -- "$work"

if [[ ! -e $work/venv/ready ]]; then
  rm -rf -- "$work/venv"
  "$here/.venv/bin/python" -m venv "$work/venv"
  # what was seen to train (docs/mgm.md); torch's CPU build where pip's find-links has one
  "$work/venv/bin/pip" install --quiet \
    'torch==2.13.0' 'torchvision==0.28.0' 'transformers==4.38.0' 'tokenizers==0.15.0' \
    'accelerate==0.27.2' 'peft==0.4.0' 'timm==0.9.16' 'open_clip_torch==2.32.0' 'einops==0.6.1' \
    'numpy==1.26.4' 'opencv-python-headless==4.11.0.86' 'sentencepiece==0.2.1' \
    'deepspeed==0.19.8' 'pillow' 'requests' 'protobuf'
  # PyPI's torchvision is built for CUDA: its compiled part does not load beside a CPU torch, and
  # registering it is what fails. The toolkit needs its transforms alone.
  site="$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  printf '%s\n' 'import sys, types' \
    'name = "torchvision._meta_registrations"' \
    'sys.modules.setdefault(name, types.ModuleType(name))' >"$site/sitecustomize.py"
  touch "$work/venv/ready"
fi

if [[ ! -d $work/weights ]]; then
  rm -rf -- "$work/weights.part"
  PYTHONPATH="$toolkit" "$work/venv/bin/python" "$here/benchmarks/mgm_tiny.py" \
    "$work/weights.part" "$rows/finetune.json"
  mv -- "$work/weights.part" "$work/weights"
fi

exec "$here/.venv/bin/python" "$here/benchmarks/mgm_trial.py" --toolkit "$toolkit" \
  --python "$work/venv/bin/python" --weights "$work/weights" --rows "$rows" --run "$work/run" "${@:3}"
