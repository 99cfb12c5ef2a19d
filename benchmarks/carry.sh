#!/usr/bin/env bash
# carry.sh DIR [PYTHON_VERSION]: the wheels that first_contact.py needs on a machine that has torch,
# transformers, peft and accelerate, but no network: what of runner's imports such a machine lacks,
# in requirements.lock's versions, for Python 3.12 on x86-64 Linux (or the version given).
#
# DIR is emptied of wheels first. Fails where they and the project together are over 64 MiB
# (CARRY_LIMIT_MIB), which is what one call takes along.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
dir=${1:?usage: benchmarks/carry.sh DIR [PYTHON_VERSION]}
python=${2:-3.12}
names=(annotated-types bitsandbytes datasets dill duckdb gguf multiprocess nvidia-ml-py pydantic
  pydantic-core rich trl typer typing-inspection)
extra=(liger-kernel==0.8.5) # not in the lock: only its kernels are tried

wanted=("${extra[@]}")
for name in "${names[@]}"; do
  wanted+=("$(grep -m1 "^$name==" "$repository/requirements.lock" | cut -d' ' -f1)")
done
mkdir -p "$dir"
rm -f "$dir"/*.whl
# pip matches a platform's number exactly, so each that a wheel may be built for is named
platforms=()
for number in 34 31 28 27 26 24 17 12 5; do platforms+=(--platform "manylinux_2_${number}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version "$python" --implementation cp "${platforms[@]}" --dest "$dir" "${wanted[@]}"
python3 "$here/carried.py" cut "$dir"
python3 "$here/carried.py" check "$dir" "$repository" "${CARRY_LIMIT_MIB:-64}"
